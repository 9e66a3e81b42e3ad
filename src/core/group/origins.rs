//! Whom a site gets blocks from, copied or lent: the other of the pair, or at a third one of its sources; and the link that they come by.

use super::Turn;
use super::peering::LINK_SPARE;
use crate::base::*;
use crate::core::messages::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Peer,
    /// A third's source, by its place.
    Source(usize),
}

impl Origin {
    pub fn link<'a>(self, turn: &'a mut Turn<impl Memory>) -> &'a mut FixedQueue<ToLink> {
        match self {
            Origin::Peer => &mut turn.out.to_link,
            Origin::Source(index) => &mut turn.out.remotes[index].to_link,
        }
    }

    /// Whether its link takes one more message.
    pub fn has_room(self, turn: &Turn<impl Memory>) -> bool {
        let link = match self {
            Origin::Peer => &turn.out.to_link,
            Origin::Source(index) => &turn.out.remotes[index].to_link,
        };
        link.room() > LINK_SPARE
    }

    pub fn ask_for_block(self, turn: &mut Turn<impl Memory>, place: BlockPlace, sum: BlockSum) {
        self.link(turn).push(ToLink::Control(Control::BlockWanted { place, sum }));
    }

    /// One of its own, for sets of those that were asked. No site has both a peer and sources.
    pub fn bit(self) -> u8 {
        match self {
            Origin::Peer => 1,
            Origin::Source(index) => 1 << index,
        }
    }
}
