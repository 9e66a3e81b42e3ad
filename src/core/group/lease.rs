//! The read lease (DESIGN section 5): a primary that does not go on alone answers reads only while its secondary has promised not to
//! take over unasked, and a secondary takes over without the word that the primary is fenced only once that promise has run out.
//! So a primary that was stopped, or cut off, never tells a host what the other site has overwritten since (INV-5).

use super::peering::Talk;
use super::{Alone, Group};
use crate::base::*;
use crate::core::config::{OnPeerLoss, Role};
use crate::core::messages::AdminError;
use crate::format::update::{Update, UpdateKind};
use crate::format::wire::Hello;

/// No number settles it.
const FOREVER: UpdateNumber = UpdateNumber(u64::MAX);

/// What a secondary knows of its primary: whether that can acknowledge anything without it.
#[derive(Clone, Copy, Debug)]
struct Terms {
    /// Losing this site lets it acknowledge nothing.
    suspends: bool,
    /// It may acknowledge without this site until this has settled, the `SoloEnd` of that: before, its disk may lose it, and with that the
    /// memory that it is alone no more.
    alone_until: UpdateNumber,
    /// All that it had numbered when it was last met.
    had: UpdateNumber,
}

#[derive(Debug)]
pub(super) struct Lease {
    /// Primary: hosts are answered reads before then.
    until: Nanos,
    /// Primary: what an acknowledgement of the peer's is worth.
    worth: Nanos,
    /// Primary: a heartbeat that was not answered yet, and when it was sent.
    asked: Option<(u64, Nanos)>,
    /// Primary: reads wait.
    pub wanted: bool,
    /// Secondary: the last heartbeat of this conversation.
    pub heard: u64,
    /// Secondary: this site does not take over unasked before then.
    promised_until: Nanos,
    /// Secondary: of the primary that was followed last, if any was since this process began.
    terms: Option<Terms>,
}

impl Lease {
    pub const NONE: Lease = Lease {
        until: Nanos(0),
        worth: Nanos(0),
        asked: None,
        wanted: false,
        heard: 0,
        promised_until: Nanos(0),
        terms: None,
    };

    /// A new conversation: nothing that was sent in the last one is answered in it, and what was promised in it the peer may not know any more,
    /// or may have promised for longer than it does now.
    pub fn begin(&mut self, worth: Nanos) {
        (self.worth, self.asked, self.until) = (worth, None, Nanos(0));
    }

    pub fn note_heartbeat(&mut self, sequence: u64, now: Nanos) {
        self.asked.get_or_insert((sequence, now));
    }

    /// The primary may have become another one, or may go on alone by now.
    pub fn forget_terms(&mut self) {
        self.terms = None;
    }

    /// The peer has acknowledged something that it was sent then.
    fn renew(&mut self, sent_at: Nanos) {
        self.until = self.until.max(sent_at.plus(self.worth));
    }

    /// Whether a heartbeat is to ask for more of it: half of it is over, though nothing was silent.
    pub fn is_due(&self, now: Nanos) -> bool {
        self.asked.is_none() && (self.wanted || now.plus(Nanos(self.worth.0 / 2)) >= self.until)
    }
}

impl Group {
    /// What this site's hello says of its promises: alone, suspends, and how long they last.
    pub(super) fn lease_terms(&self) -> (bool, bool, Nanos) {
        let Some(peer) = &self.config.peer else { return (false, false, Nanos(0)) };
        (self.alone != Alone::No, peer.on_peer_loss == OnPeerLoss::Suspend, peer.promise())
    }

    // ------------------------------------------------------------------------------------------------- the primary

    /// Whether hosts may be told what this site holds: nobody else can have taken over.
    pub(super) fn may_read(&mut self, now: Nanos) -> bool {
        let needs = self.role == Role::Primary && self.config.peer.is_some() && self.alone != Alone::Yes;
        let may = !needs || now < self.lease.until;
        self.lease.wanted |= !may;
        may
    }

    /// The peer has received `received` and `heard`: whichever was sent later, its promise is younger than that.
    pub(super) fn renew_lease(&mut self, received: UpdateNumber, heard: u64) {
        if self.peer.talk != Talk::Streaming {
            return;
        }
        if self.window.contains(received) {
            let sent_at = self.window.get(received).given_to_link_at;
            self.lease.renew(sent_at);
        }
        if let Some((asked, sent_at)) = self.lease.asked
            && heard >= asked
        {
            self.lease.renew(sent_at);
            self.lease.asked = None;
        }
    }

    // ----------------------------------------------------------------------------------------------- the secondary

    /// This site follows the one whose hello that is. What it promised before a restart it promises again.
    pub(super) fn note_terms(&mut self, hello: &Hello, now: Nanos) {
        self.lease.heard = 0;
        let alone_until = match hello.alone {
            true => FOREVER,
            // The number after the last that it may have acknowledged alone is its `SoloEnd`'s.
            false if hello.alone_upto > UpdateNumber::NONE => hello.alone_upto.next(),
            false => UpdateNumber::NONE,
        };
        self.lease.terms = Some(Terms { suspends: hello.suspends, alone_until, had: hello.last });
        self.promise(now);
    }

    /// An acknowledgement is on its way.
    pub(super) fn promise(&mut self, now: Nanos) {
        let kept = self.peer_config().promise_kept();
        self.lease.promised_until = self.lease.promised_until.max(now.plus(kept));
    }

    /// What the primary says in the stream of being alone.
    pub(super) fn note_alone(&mut self, update: &Update) {
        if let Some(terms) = &mut self.lease.terms {
            match update.kind {
                UpdateKind::SoloBegin => terms.alone_until = FOREVER,
                UpdateKind::SoloEnd => terms.alone_until = update.number,
                _ => {}
            }
        }
    }

    /// Whether the primary acknowledges nothing without this site, as far as this site has heard; before its first heartbeat it has not even
    /// heard how far the primary is.
    pub(super) fn is_counted_on(&self) -> bool {
        self.lease.heard > 0 && self.lease.terms.is_some_and(|terms| terms.alone_until <= self.settled)
    }

    /// Whether this site has all that the primary it cannot ask may have acknowledged, and that one cannot go on.
    pub(super) fn judge_unfenced(&self) -> Result<(), AdminError> {
        match self.lease.terms {
            Some(terms)
                if self.role == Role::Secondary && terms.suspends && self.settled >= terms.alone_until =>
            {
                let whole = self.window.last() >= terms.had;
                whole.then_some(()).ok_or(AdminError::LacksUpdates)
            }
            _ => Err(AdminError::NotFenced),
        }
    }

    /// Until when a promotion that was not said to be fenced has to wait, if it has to.
    pub(super) fn promised_until(&self, now: Nanos) -> Option<Nanos> {
        let binds = self.role == Role::Secondary && !self.is_released() && now < self.lease.promised_until;
        binds.then_some(self.lease.promised_until)
    }
}
