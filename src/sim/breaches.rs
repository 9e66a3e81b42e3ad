//! What no site of a run has reason to say: all of them are honest, no disk lies about journals and tables, and what was written
//! elsewhere comes back unless a bit of it has flipped or a read fails.

use crate::core::messages::*;
use crate::core::outbox::{Event as GroupEvent, LossReason};
use crate::sim::world::World;

/// Why an honest site may give up its connection with another honest one, with what brings it about.
const BENIGN: [&str; 22] = [
    // A refusal is an event of its own, which is judged by what it says.
    "refused by us",
    "refused by the peer",
    "refused by the source",
    "refused by the third",
    // Networks and disks are slow, cut and late, for longer than these wait.
    "no hello in time",
    "no answer in time",
    "silent for too long",
    // A third goes by what is best for it: one source was ahead, comes first, or has what another would have had to copy.
    "another source has more",
    "another source is preferred",
    "another source has what this third lacks",
    // That source is waiting for its own peer, say.
    "it does not offer the copy that it was asked for",
    // Sizes change while a hello is on its way, and a new hello is to tell of them.
    "it shows its hosts more of a volume, and this site is about to",
    "a volume was extended since its hello",
    // Roles and generations do.
    "this site went on meanwhile",
    "this site went on alone meanwhile",
    "this site stepped down meanwhile",
    "this site is about to go on alone",
    "this site begins alone at this moment",
    // It is to install another site's contents, and starts anew for that.
    "this site is about to be another",
    // Disks fail to give what is to be sent: a copy ends with that, or begins.
    "a block that it lacks cannot be read here",
    "a slot that it lacks cannot be read here",
    "it cannot be sent what this site's disk does not give, and is to be copied that",
];

impl World {
    /// A group says something: it is not to be what only a broken protocol, or a disk that lies, lets it say.
    pub(super) fn judge_event(&mut self, index: usize, event: &GroupEvent) {
        self.judge_scrub(index, event);
        let unread = self.sites[index].reads_failed;
        let excused = match *event {
            GroupEvent::PeerLost { reason: LossReason::Protocol(why) }
            | GroupEvent::SourceLost { reason: LossReason::Protocol(why), .. }
            | GroupEvent::ThirdLost { reason: LossReason::Protocol(why) } => BENIGN.contains(&why),
            GroupEvent::Failed { fault: IoFault::Corrupt | IoFault::Foreign | IoFault::Short, .. }
            | GroupEvent::BatchDamaged { .. } => unread,
            GroupEvent::ChecksumsDamaged { volume, block } => {
                unread || self.rots_aside(index, IoTarget::Checksums(volume), block)
            }
            GroupEvent::MetadataFailed { .. }
            | GroupEvent::TablesDamaged
            | GroupEvent::TablesUnreadable
            | GroupEvent::RoleRefused { .. } => false,
            _ => true,
        };
        assert!(excused, "INV-13: site {index} says, for no reason that there could be: {event:?}");
    }
}
