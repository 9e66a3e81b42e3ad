//! The driver of a group on a reactor: rings in, the group's calls, rings out.

use std::sync::Arc;

use crate::base::*;
use crate::core::config::{AckLevel, GroupConfig};
use crate::core::group::status::GroupStatus;
use crate::core::group::{Group, Turn};
use crate::core::messages::*;
use crate::core::outbox::{Event, Outbox, Tables};
use crate::format::snapshot::SnapshotRecord;
use crate::io::arena::ArenaView;
use crate::node::allocation::{Allocation, Survey};
use crate::node::telemetry::Recorder;
use crate::reactor::{Actor, Completion, Driver, Receiver, Sender};

/// Questions that the control plane may have open; it waits for each answer.
pub const QUESTIONS_MAX: usize = 1;

/// What the control plane asks a group.
#[derive(Debug)]
pub enum Question {
    Status,
    /// Swap the recorder for this empty one.
    Record(Box<Recorder>),
    /// Fill this list, which has capacity for all there can be.
    Snapshots(Vec<SnapshotListed>),
    /// Bring the checkpoint up to what is settled, soon.
    Sweep,
}

/// A snapshot, and whether it can be read at this site yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotListed {
    pub record: SnapshotRecord,
    pub readable: bool,
}

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one in a ring of one; a box would be allocated on the reactor"
)]
pub enum Answer {
    Status(GroupStatus),
    Record(Box<Recorder>),
    Snapshots(Vec<SnapshotListed>),
    /// It will.
    Swept,
}

/// The group's ends of a front's rings.
#[derive(Debug)]
pub struct FrontEnds {
    pub requests: Receiver<HostRequest>,
    pub replies: Sender<HostReply>,
    pub pages: Sender<PageId>,
}

/// The group's ends of the link's rings.
#[derive(Debug)]
pub struct LinkEnds {
    pub messages: Receiver<FromLink>,
    pub to_link: Sender<ToLink>,
    pub pages: Sender<PageId>,
    /// Has the places of [`LINK_CLOSES_MAX`].
    pub closes: Sender<u32>,
    /// The connection that the group has begun.
    pub begun: u32,
}

impl LinkEnds {
    /// Moves what fits. The ring covers every update; heartbeats behind a link that does not pop stay where they are.
    fn give(&mut self, messages: &mut FixedQueue<ToLink>, pages: &mut FixedQueue<PageId>) -> bool {
        let mut given = false;
        while let Some(message) = messages.front().copied() {
            if self.to_link.try_push(message).is_err() && !self.to_link.is_closed() {
                break;
            }
            match message {
                ToLink::Begin { connection } => self.begun = connection,
                // Without it the connection ends no sooner than all before that is sent.
                ToLink::Close => {
                    let _ = self.closes.try_push(self.begun);
                }
                ToLink::Update { .. } | ToLink::Control(_) | ToLink::Page { .. } => {}
            }
            messages.pop();
            given = true;
        }
        given | forward(pages, &mut self.pages)
    }
}

/// The group's ends of an executor's rings.
#[derive(Debug)]
pub struct DiskEnds {
    pub requests: Sender<IoRequest>,
    pub done: Receiver<IoDone>,
}

/// The group's ends of the metadata executor's rings.
#[derive(Debug)]
pub struct MetadataEnds {
    pub requests: Sender<MetadataRequest>,
    pub done: Receiver<MetadataDone>,
}

/// The group's ends of the control plane's rings.
#[derive(Debug)]
pub struct ControlEnds {
    pub questions: Receiver<Question>,
    pub answers: Sender<Answer>,
    /// What administrators ask is answered when the sites have agreed on it, so it has rings of its own.
    pub admin: Receiver<AdminRequest>,
    pub admin_replies: Sender<AdminReply>,
}

#[derive(Debug)]
pub struct GroupEnds {
    pub fronts: Vec<FrontEnds>,
    pub link: Option<LinkEnds>,
    /// Of the links beside the peer's, by their number.
    pub remotes: Vec<LinkEnds>,
    pub journal: DiskEnds,
    pub volumes: DiskEnds,
    pub metadata: MetadataEnds,
    pub control: ControlEnds,
}

/// Says what happened in words; called on the reactor, so it must not block.
pub type Herald = Box<dyn FnMut(&Event) + Send>;

pub struct GroupActor {
    group: Group,
    ends: GroupEnds,
    view: ArenaView,
    tables: Arc<Tables>,
    out: Outbox,
    recorder: Box<Recorder>,
    ack: AckLevel,
    herald: Herald,
    survey: Survey,
    started: bool,
    stopping: bool,
    /// The last turn left something, so the next one may have more to do.
    busy: bool,
}

impl GroupActor {
    pub fn new(
        config: GroupConfig,
        ends: GroupEnds,
        view: ArenaView,
        tables: Arc<Tables>,
        herald: Herald,
        allocation: Arc<Allocation>,
    ) -> GroupActor {
        assert_eq!(config.fronts, ends.fronts.len(), "a front without rings");
        assert_eq!(config.peer.is_some(), ends.link.is_some(), "a peer and a link go together");
        assert_eq!(config.remotes(), ends.remotes.len(), "a remote site without a link");
        GroupActor {
            ack: config.ack,
            out: Outbox::of(&config),
            group: Group::new(config),
            ends,
            view,
            tables,
            recorder: Box::new(Recorder::new()),
            herald,
            survey: Survey::new(allocation),
            started: false,
            stopping: false,
            busy: false,
        }
    }

    /// Pops at most `TURN_MESSAGES_MAX` from each ring into the group. Returns whether there was anything.
    fn take(&mut self, now: Nanos, driver: &mut impl Driver) -> bool {
        let GroupActor { group, ends, view, tables, out, recorder, survey, .. } = self;
        let mut turn = Turn { now, memory: view, tables, out };
        let mut taken = false;
        if !self.started {
            self.started = true;
            group.start(&mut turn);
            taken = true;
        }
        for (executor, ring) in
            [(Executor::Journal, &mut ends.journal.done), (Executor::Volumes, &mut ends.volumes.done)]
        {
            for done in pop(ring, TURN_MESSAGES_MAX) {
                group.on_io(&mut turn, executor, done);
                taken = true;
            }
        }
        for done in pop(&mut ends.metadata.done, TURN_MESSAGES_MAX) {
            group.on_metadata(&mut turn, done);
            taken = true;
        }
        if let Some(link) = &mut ends.link {
            for _ in 0..TURN_MESSAGES_MAX {
                if group.link_room() == 0 {
                    break;
                }
                let Some(message) = link.messages.pop() else { break };
                survey.peer(&message);
                group.on_link(&mut turn, message);
                taken = true;
            }
        }
        for (index, link) in ends.remotes.iter_mut().enumerate() {
            for _ in 0..TURN_MESSAGES_MAX {
                if group.remote_room(index) == 0 {
                    break;
                }
                let Some(message) = link.messages.pop() else { break };
                survey.peer(&message);
                group.on_remote(&mut turn, index, message);
                taken = true;
            }
        }
        for (index, front) in ends.fronts.iter_mut().enumerate() {
            for request in pop(&mut front.requests, TURN_MESSAGES_MAX) {
                recorder.counters.operation(&request.op);
                survey.host(&request);
                // A read is answered by what the lease says after it was asked, however long this thread stood still before.
                if request.op.reads() {
                    turn.now = driver.now();
                }
                group.on_host(&mut turn, index, request);
                taken = true;
            }
        }
        for request in pop(&mut ends.control.admin, ADMIN_REQUESTS_MAX) {
            survey.admin(&request);
            group.on_admin(&mut turn, request);
            taken = true;
        }
        if self.stopping {
            group.stop(&mut turn);
        }
        taken
    }

    /// Puts the group's effects onto the rings. Returns whether there were any.
    fn give(&mut self) -> bool {
        let GroupActor { ends, out, recorder, .. } = self;
        let mut given = false;
        if let Some(link) = &mut ends.link {
            given |= link.give(&mut out.to_link, &mut out.link_pages);
        }
        for (link, out) in ends.remotes.iter_mut().zip(&mut out.remotes) {
            given |= link.give(&mut out.to_link, &mut out.pages);
        }
        given |= forward(&mut out.to_journal, &mut ends.journal.requests);
        given |= forward(&mut out.to_volumes, &mut ends.volumes.requests);
        given |= forward(&mut out.to_admin, &mut ends.control.admin_replies);
        given |= forward(&mut out.to_metadata, &mut ends.metadata.requests);
        for (index, front) in ends.fronts.iter_mut().enumerate() {
            while let Some(reply) = out.to_front[index].pop() {
                recorder.counters.reply(&reply.result);
                front.replies.push(reply);
                given = true;
            }
            given |= forward(&mut out.front_pages[index], &mut front.pages);
        }
        while let Some(stamps) = out.stamps.pop() {
            recorder.write(&stamps, self.ack);
        }
        while let Some(event) = out.events.pop() {
            (self.herald)(&event);
        }
        given
    }

    fn answer(&mut self, now: Nanos) -> bool {
        let ControlEnds { questions, answers, .. } = &mut self.ends.control;
        let Some(question) = questions.pop_if_answerable(answers) else { return false };
        let answer = match question {
            Question::Status => Answer::Status(self.group.status(now)),
            Question::Record(empty) => Answer::Record(std::mem::replace(&mut self.recorder, empty)),
            Question::Snapshots(mut list) => {
                list.clear();
                let room = list.capacity();
                let all = self
                    .group
                    .snapshots()
                    .map(|(record, readable)| SnapshotListed { record: *record, readable });
                list.extend(all.take(room));
                Answer::Snapshots(list)
            }
            Question::Sweep => {
                self.group.want_sweep();
                self.busy = true;
                Answer::Swept
            }
        };
        self.ends.control.answers.push(answer);
        true
    }
}

fn pop<T>(ring: &mut Receiver<T>, most: usize) -> impl Iterator<Item = T> {
    std::iter::from_fn(move || ring.pop()).take(most)
}

/// Moves what fits; an edge whose capacity is its credits takes all. Returns whether anything moved.
fn forward<T: Copy>(from: &mut FixedQueue<T>, to: &mut Sender<T>) -> bool {
    let mut moved = false;
    while let Some(message) = from.front() {
        if to.try_push(*message).is_err() {
            // A receiver that stopped takes nothing any more; what it would have done is not needed.
            if !to.is_closed() {
                break;
            }
        }
        from.pop();
        moved = true;
    }
    moved
}

impl<D: Driver> Actor<D> for GroupActor {
    fn name(&self) -> &'static str {
        "group"
    }

    fn turn(&mut self, now: Nanos, driver: &mut D) -> bool {
        let taken = self.take(now, driver);
        let due = self.group.next_deadline().is_some_and(|deadline| deadline <= now);
        let mut given = false;
        if taken || due || self.busy || self.stopping {
            // Replies and submissions happen now, not when the turn began: the stamps are to say so.
            let now = driver.now();
            let mut turn = Turn { now, memory: &mut self.view, tables: &self.tables, out: &mut self.out };
            self.group.end_turn(&mut turn);
            given = self.give();
            self.busy = given;
        }
        let answered = self.answer(now);
        let surveyed = self.survey.turn(&self.group);
        taken || given || answered || surveyed
    }

    fn complete(&mut self, _: Nanos, _: &mut D, completion: Completion) {
        panic!("a group submits nothing to the ring, yet {completion:?} came");
    }

    fn ready(&self) -> bool {
        let ends = &self.ends;
        !self.started
            || self.busy
            || (self.survey.is_open() && self.group.at_rest())
            || !ends.journal.done.is_empty()
            || !ends.volumes.done.is_empty()
            || !ends.metadata.done.is_empty()
            || !ends.control.admin.is_empty()
            || !ends.control.questions.is_empty()
            || ends.fronts.iter().any(|front| !front.requests.is_empty())
            || ends.link.as_ref().is_some_and(|link| !link.messages.is_empty() && self.group.link_room() > 0)
            || ends
                .remotes
                .iter()
                .enumerate()
                .any(|(index, link)| !link.messages.is_empty() && self.group.remote_room(index) > 0)
    }

    fn deadline(&self) -> Option<Nanos> {
        self.group.next_deadline()
    }

    fn stop(&mut self, _: Nanos) {
        self.stopping = true;
    }

    /// Once the group has drained and no front can ask it anything any more.
    fn stopped(&self) -> bool {
        self.stopping
            && self.group.stopped()
            && self.ends.fronts.iter().all(|front| front.requests.is_closed())
    }
}
