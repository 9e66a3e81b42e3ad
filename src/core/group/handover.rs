//! A primary that leaves its role: it hands over to its peer, or steps down. Its hosts go first, then everything comes to rest, and
//! then one update ends its generation. That is sent when it is durable here, so whoever has it knows that this primary is none any
//! more, whatever happens to it (decision 0021).

use super::origins::Origin;
use super::peering::{LINK_SPARE, Talk};
use super::status::PeerState;
use super::{Alone, Group, Phase, Turn};
use crate::base::*;
use crate::core::config::Role;
use crate::core::messages::*;
use crate::core::outbox::{Event, LossReason};
use crate::format::superblock::Left;
use crate::format::update::UpdateKind;
use crate::format::wire::Hello;

/// Hosts are served for so long at most after they were to be disconnected: the control plane takes a turn of the front.
const HOSTS_GONE_MAX: Nanos = Nanos::from_millis(250);

/// What hosts have asked, and both journals, come to rest within this time, or the primary stays what it is: hosts that are held
/// meanwhile are not to run into their deadlines.
const DRAIN_MAX: Nanos = Nanos::from_millis(2_000);

/// Who wants a primary to leave, and is to hear what came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    Administrator(u64),
    Peer,
    /// Was told that it takes longer.
    Nobody,
}

/// A primary on its way out.
#[derive(Clone, Copy, Debug)]
struct Departure {
    how: Left,
    asker: Asker,
    since: Nanos,
    /// No host is connected any more, or it was time enough.
    hosts_gone: bool,
    /// The update that ends the generation; `NONE` until it is numbered.
    at: UpdateNumber,
}

/// A secondary whose administrator wants it to be primary.
#[derive(Clone, Copy, Debug)]
struct Wish {
    id: u64,
    since: Nanos,
    connection: Option<u32>,
}

/// What a peer has said that is a secondary now.
#[derive(Clone, Copy, Debug)]
struct Released {
    /// The generation that it opened, and stepped down from.
    generation: Generation,
    /// It has nothing that this site lacks. What it has more may be promised, and would be lost with a takeover.
    whole: bool,
}

#[derive(Debug, Default)]
pub(super) struct Leaving {
    departure: Option<Departure>,
    wish: Option<Wish>,
    /// A successor that has not met its predecessor in the generation it opened.
    succeeds: bool,
    /// The newest generation of the primary that this site follows, when they met.
    led_by: Generation,
    /// The peer says that it is a secondary now.
    released: Option<Released>,
}

impl Leaving {
    /// Whether what hosts ask waits.
    pub fn holds_hosts(&self) -> bool {
        self.departure.is_some_and(|departure| departure.hosts_gone)
    }

    pub fn follows(&mut self, hello: &Hello) {
        self.led_by = hello.last_generation;
    }

    pub fn led_by(&self) -> Generation {
        self.led_by
    }

    pub fn met_successor(&mut self) {
        self.succeeds = false;
    }

    /// Neither site is primary: whoever opened the newest generation has stepped down from it.
    pub fn peer_is_secondary(&mut self, hello: &Hello, common: UpdateNumber) {
        let generation = hello.last_generation;
        if hello.role == Role::Secondary && generation.opener() == hello.site {
            self.released = Some(Released { generation, whole: hello.last <= common });
        }
    }
}

impl Group {
    /// Whether this site is a primary that leaves, or has left and leads its peer until that has opened the next generation.
    pub(super) fn is_leaving(&self) -> bool {
        self.role == Role::Primary && (self.leaving.departure.is_some() || self.left.is_some())
    }

    /// Whether nobody is primary as far as this site knows.
    pub(super) fn is_vacant(&self) -> bool {
        let stepped_down = self.left.is_some_and(|(_, left)| left == Left::SteppedDown);
        self.role == Role::Secondary && self.is_up_to_date() && (stepped_down || self.released().is_some())
    }

    /// Whether this site has been sent the newest generation that it was told of: a primary that has left one may have been forced to go on
    /// since, in another.
    fn is_up_to_date(&self) -> bool {
        self.leaving.led_by <= self.generation
    }

    fn released(&self) -> Option<Released> {
        self.leaving.released.filter(|released| released.generation == self.generation)
    }

    /// Whether this site may take over on nobody's word: its peer has durably left the generation that this one holds all of, and
    /// opens no other without an operator's word that this site is cut off.
    pub(super) fn is_released(&self) -> bool {
        let of_peer = self.generation.opener() != self.config.site && self.is_up_to_date();
        match self.role {
            Role::Secondary => of_peer && (self.left.is_some() || self.released().is_some_and(|it| it.whole)),
            Role::Third => false,
            Role::Primary => self.leaving.succeeds,
        }
    }

    /// Whether this site is about to open the next generation without being alone in it.
    pub(super) fn is_being_handed_over(&self) -> bool {
        let handed_over = self.left.is_some_and(|(_, left)| left == Left::HandedOver);
        self.role == Role::Secondary && handed_over && self.engaged()
    }

    // ------------------------------------------------------------------------------------------------------ who asks

    pub(super) fn on_leave(&mut self, turn: &mut Turn<impl Memory>, request: AdminRequest) {
        let AdminRequest { id, op } = request;
        let verdict = match op {
            AdminOp::HostsGone => {
                if let Some(departure) = &mut self.leaving.departure {
                    departure.hosts_gone = true;
                }
                turn.out.to_admin.push(AdminReply { id, result: Ok(self.window.last()) });
                return;
            }
            // It is told again.
            AdminOp::GiveWay if self.has_given_way() => {
                turn.out.to_admin.push(AdminReply { id, result: Ok(self.window.last()) });
                return;
            }
            AdminOp::Switchover if self.role == Role::Secondary => self.wish(turn, id),
            AdminOp::Switchover => self.leave(turn, Left::HandedOver, Asker::Administrator(id)),
            AdminOp::GiveWay => self
                .judge_giving_way()
                .and_then(|to| self.leave(turn, Left::GaveWay(to), Asker::Administrator(id))),
            _ => self.leave(turn, Left::SteppedDown, Asker::Administrator(id)),
        };
        if let Err(error) = verdict {
            turn.out.to_admin.push(AdminReply { id, result: Err(error) });
        }
    }

    /// Asks the primary to hand over.
    fn wish(&mut self, turn: &mut Turn<impl Memory>, id: u64) -> Result<(), AdminError> {
        self.judge_phase()?;
        if self.leaving.wish.is_some() || self.left.is_some() {
            return Err(AdminError::LeavesAlready);
        }
        if self.peer.talk != Talk::Following || turn.out.to_link.room() <= LINK_SPARE {
            return Err(AdminError::NotInLockstep);
        }
        turn.out.to_link.push(ToLink::Control(Control::SwitchoverWanted));
        self.leaving.wish = Some(Wish { id, since: turn.now, connection: self.peer.connection });
        Ok(())
    }

    pub(super) fn on_switchover_wanted(&mut self, turn: &mut Turn<impl Memory>) {
        if let Err(error) = self.leave(turn, Left::HandedOver, Asker::Peer) {
            self.tell_asker(turn, Asker::Peer, Err(error));
        }
    }

    pub(super) fn on_switchover_refused(&mut self, turn: &mut Turn<impl Memory>, code: u8) {
        if let Some(Wish { id, .. }) = self.leaving.wish.take() {
            let result = Err(AdminError::of_code(code));
            turn.out.to_admin.push(AdminReply { id, result });
        }
    }

    fn tell_asker(
        &mut self,
        turn: &mut Turn<impl Memory>,
        asker: Asker,
        result: Result<UpdateNumber, AdminError>,
    ) {
        match (asker, result) {
            (Asker::Administrator(id), result) => turn.out.to_admin.push(AdminReply { id, result }),
            (Asker::Peer, Err(error)) if turn.out.to_link.room() > LINK_SPARE => {
                turn.out.to_link.push(ToLink::Control(Control::SwitchoverRefused { code: error.code() }));
            }
            // A peer that succeeds sees that it does.
            _ => {}
        }
    }

    // --------------------------------------------------------------------------------------------------- the primary

    /// Whether `number` belongs to a generation of ours whose opening is not durable yet, or ends one and is not. A crash could undo
    /// it, and this site would open the same generation again over other updates than the peer had been sent (INV-7).
    pub(super) fn opening(&self, number: UpdateNumber) -> bool {
        let opened = self.history.last().map_or(UpdateNumber::NONE, |(_, first)| first);
        let left = self.left.map_or(UpdateNumber(u64::MAX), |(at, _)| at);
        let durable = self.journal.durable();
        self.role == Role::Primary
            && ((number >= opened && durable < opened) || (number >= left && durable < left))
    }

    pub(super) fn judge_phase(&self) -> Result<(), AdminError> {
        match self.phase {
            Phase::Recovering(_) => Err(AdminError::Recovering),
            Phase::Running if !self.stopping => Ok(()),
            _ => Err(AdminError::NotServing),
        }
    }

    fn leave(&mut self, turn: &mut Turn<impl Memory>, how: Left, asker: Asker) -> Result<(), AdminError> {
        self.judge_phase()?;
        if self.config.peer.is_none() {
            return Err(AdminError::NoPeer);
        }
        if self.role == Role::Secondary {
            return Err(AdminError::NotPrimary);
        }
        if self.leaving.departure.is_some() || self.left.is_some() {
            return Err(AdminError::LeavesAlready);
        }
        if !self.serving {
            return Err(if how == Left::HandedOver {
                AdminError::NotInLockstep
            } else {
                AdminError::NotServing
            });
        }
        self.judge_leaving(how)?;
        self.leaving.departure =
            Some(Departure { how, asker, since: turn.now, hosts_gone: false, at: UpdateNumber::NONE });
        turn.event(Event::HostsToGo);
        Ok(())
    }

    fn judge_leaving(&self, how: Left) -> Result<(), AdminError> {
        match how {
            Left::HandedOver if self.alone != Alone::No || self.peer_state() != PeerState::InSync => {
                Err(AdminError::NotInLockstep)
            }
            // Solo ends before the peer has everything.
            Left::SteppedDown if self.alone != Alone::No || self.alone_upto() > self.peer.durable => {
                Err(AdminError::Alone)
            }
            // The other one may have given way meanwhile.
            Left::GaveWay(_) => self.judge_giving_way().map(|_| ()),
            _ => Ok(()),
        }
    }

    fn drain_max(&self) -> Nanos {
        Nanos(DRAIN_MAX.0.min(self.config.host_deadline.0 / 2))
    }

    fn grace(&self) -> Nanos {
        Nanos(HOSTS_GONE_MAX.0.min(self.config.host_deadline.0 / 4))
    }

    pub(super) fn leave_turn(&mut self, turn: &mut Turn<impl Memory>) {
        self.follow_wish(turn);
        let Some(departure) = self.leaving.departure else { return };
        if self.role == Role::Secondary {
            return;
        }
        let waited = turn.now.since(departure.since);
        if departure.at > UpdateNumber::NONE {
            return self.finish_leaving(turn, departure, waited);
        }
        let judged =
            if self.stopping { Err(AdminError::NotServing) } else { self.judge_leaving(departure.how) };
        if let Err(why) = judged {
            return self.abandon(turn, departure, why);
        }
        let late = waited >= self.drain_max();
        if late && departure.how != Left::SteppedDown {
            return self.abandon(turn, departure, AdminError::NotDrained);
        }
        let hosts_gone = departure.hosts_gone || waited >= self.grace();
        self.leaving.departure = Some(Departure { hosts_gone, ..departure });
        if !hosts_gone {
            return;
        }
        // Without the peer nothing comes to rest: what it lacks is nobody's promise.
        let joint = self.peer.talk == Talk::Streaming;
        if joint || matches!(departure.how, Left::GaveWay(_)) {
            self.flush_wanted = self.flush_wanted.max(self.window.last());
        }
        let at_rest = self.operations_under_way() == 0 && self.settled == self.window.last();
        let may = at_rest || (departure.how == Left::SteppedDown && (late || !joint));
        if may && self.window.room() > 0 {
            let at = match departure.how {
                Left::HandedOver => self.append_control(turn, UpdateKind::HandOver, self.generation),
                Left::SteppedDown => self.append_control(turn, UpdateKind::StepDown, self.generation),
                Left::GaveWay(to) => {
                    self.append_naming(turn, UpdateKind::GiveWay, self.generation, Lba(to.0))
                }
            };
            self.serving = false;
            self.leaving.departure = Some(Departure { hosts_gone: true, at, ..departure });
        }
    }

    /// The generation is ended. Who handed over leads until its successor says hello; who stepped down is secondary once that is
    /// durable, and known to a peer that can be told.
    fn finish_leaving(&mut self, turn: &mut Turn<impl Memory>, departure: Departure, waited: Nanos) {
        let Departure { how, at, asker, .. } = departure;
        let told =
            self.peer.talk != Talk::Streaming || (self.peer.durable >= at && self.peer.said_settled >= at);
        let left = match how {
            Left::HandedOver => false,
            Left::SteppedDown => self.journal.durable() >= at && told,
            Left::GaveWay(_) => self.settled >= at,
        };
        if left {
            self.leave_peer(turn);
            self.become_secondary(turn);
            self.role_at = at;
        } else if waited >= self.config.host_deadline && asker != Asker::Nobody {
            self.leaving.departure = Some(Departure { asker: Asker::Nobody, ..departure });
            self.tell_asker(turn, asker, Err(AdminError::Deadline));
        }
    }

    /// A primary that had ended its generation opens another one, and is to be left no more. Returns how it was about to be.
    pub(super) fn stay(&mut self, turn: &mut Turn<impl Memory>) -> Option<Left> {
        let departure = self.leaving.departure.take()?;
        self.tell_asker(turn, departure.asker, Err(AdminError::PrimaryAlready));
        Some(departure.how)
    }

    fn abandon(&mut self, turn: &mut Turn<impl Memory>, departure: Departure, why: AdminError) {
        self.leaving.departure = None;
        self.tell_asker(turn, departure.asker, Err(why));
        turn.event(Event::LeavingAbandoned { why });
    }

    /// This site is a secondary now.
    pub(super) fn have_left(&mut self, turn: &mut Turn<impl Memory>) {
        if let Some(departure) = self.leaving.departure.take() {
            let left = departure.at > UpdateNumber::NONE;
            let result = if left { Ok(departure.at) } else { Err(AdminError::NotServing) };
            self.tell_asker(turn, departure.asker, result);
        }
    }

    /// The site leaves the group, or stops: what it has not done it does not do.
    pub(super) fn forget_leaving(&mut self, turn: &mut Turn<impl Memory>) {
        if let Some(departure) = self.leaving.departure.take() {
            self.tell_asker(turn, departure.asker, Err(AdminError::NotServing));
        }
        if let Some(Wish { id, .. }) = self.leaving.wish.take() {
            turn.out.to_admin.push(AdminReply { id, result: Err(AdminError::NotServing) });
        }
    }

    /// A primary that has handed over takes a second hello on a connection: its successor's.
    pub(super) fn awaits_successor(&self) -> bool {
        let handed_over =
            self.left.is_some_and(|(at, left)| left == Left::HandedOver && at < self.peer.next_to_send);
        self.role == Role::Primary && handed_over && self.peer.talk == Talk::Streaming
    }

    /// Both sites say hello again, on the connection that they have.
    pub(super) fn greet_anew(&mut self, turn: &mut Turn<impl Memory>) {
        self.peer.talk = Talk::Greeting { since: turn.now, hello_sent: false };
        self.peer.hello = None;
        self.peer.said_hello = None;
        self.peer.sizes = VolumeSizes::default();
        self.peer.waiting_since = None;
        self.peer.send_to = UpdateNumber::NONE;
        self.forget_lender(turn.now, Origin::Peer);
        self.forget_lending();
        self.forget_comparing(turn);
        self.peer.told_settled = self.settled;
    }

    // ------------------------------------------------------------------------------------------------- the secondary

    fn follow_wish(&mut self, turn: &mut Turn<impl Memory>) {
        let Some(Wish { id, since, connection }) = self.leaving.wish else { return };
        let result = if self.role == Role::Primary && self.serving {
            Ok(self.window.last())
        } else if self.peer.connection != connection || self.peer.talk == Talk::Absent {
            Err(AdminError::LinkLost)
        } else if turn.now.since(since) >= self.config.host_deadline {
            Err(AdminError::Deadline)
        } else {
            return;
        };
        self.leaving.wish = None;
        turn.out.to_admin.push(AdminReply { id, result });
    }

    /// The primary has handed over, and this site holds all of its generation durably: it opens the next one, and serves as soon as
    /// its predecessor follows. It is alone at no moment.
    pub(super) fn succeed_if_handed_over(&mut self, turn: &mut Turn<impl Memory>) {
        let last = self.window.last();
        let handed_over = self.left == Some((last, Left::HandedOver)) && self.journal.durable() >= last;
        let of_peer = self.generation.opener() != self.config.site && self.is_up_to_date();
        let may =
            !self.stopping && self.peer.inbound.is_empty() && self.applied <= last && self.window.room() > 0;
        if self.peer.talk != Talk::Following || !handed_over || !of_peer || !may || self.is_inherited(last) {
            return;
        }
        if self.peer.connection.is_none() {
            return self.lose_peer(turn, LossReason::Disconnected);
        }
        self.greet_anew(turn);
        self.open_as_primary(turn);
        self.leaving.succeeds = true;
    }

    pub(super) fn leave_deadline(&self) -> Option<Nanos> {
        let wish = self.leaving.wish.map(|wish| wish.since.plus(self.config.host_deadline));
        let departure = self.leaving.departure.map(|departure| {
            let next = match departure {
                Departure { at, .. } if at > UpdateNumber::NONE => self.config.host_deadline,
                Departure { hosts_gone: true, .. } => self.drain_max(),
                _ => self.grace(),
            };
            departure.since.plus(next)
        });
        let told = self.leaving.departure.is_some_and(|departure| departure.asker == Asker::Nobody);
        [wish, departure.filter(|_| !told)].into_iter().flatten().min()
    }
}
