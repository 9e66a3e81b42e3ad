//! The control plane's lines to actors: one question at a time, each answered within a turn of the actor's reactor.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Sample, Sampler};
use crate::base::{ADMIN_REQUESTS_MAX, SNAPSHOTS_MAX, UpdateNumber, VolumeSet, VolumeSizes};
use crate::core::group::status::{GroupState, GroupStatus};
use crate::core::messages::{AdminError, AdminOp, AdminReply, AdminRequest};
use crate::format::snapshot::SnapshotRecord;
use crate::node::group_actor::{Answer, Question, SnapshotListed};
use crate::node::run::{FrontAnswer, FrontQuestion};
use crate::node::telemetry::{Report, Totals};
use crate::reactor::{Clock, Loads, Port, Receiver, Sender};

/// A turn takes microseconds, recovery's longest some milliseconds; a reactor silent this long is stuck.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// Pause between looks for the answer.
const LOOK_EVERY: Duration = Duration::from_micros(100);

#[derive(Debug, thiserror::Error)]
pub enum LineError {
    #[error("the group has ended")]
    Ended,
    #[error("the group's reactor has not answered for {} s", ANSWER_MAX.as_secs())]
    Silent,
    #[error(
        "the group has not answered within {:.1} s; what was asked may still be carried out: `lockstep status` and the site's log tell",
        .0.as_secs_f64()
    )]
    Late(Duration),
}

/// A line to one actor: rings of one place each way.
#[derive(Debug)]
pub struct Line<Q, A> {
    questions: Sender<Q>,
    answers: Receiver<A>,
    /// Questions given up on whose answers may still come.
    unanswered: usize,
}

impl<Q, A> Line<Q, A> {
    pub fn new(questions: Sender<Q>, answers: Receiver<A>) -> Line<Q, A> {
        Line { questions, answers, unanswered: 0 }
    }

    /// Asks and waits; `late` is given the answers to earlier questions that come now.
    pub(super) fn ask(&mut self, port: &Port, question: Q, mut late: impl FnMut(A)) -> Result<A, LineError> {
        if self.questions.is_closed() {
            return Err(LineError::Ended);
        }
        self.questions.try_push(question).map_err(|_| LineError::Silent)?;
        port.flush_wakes();
        let asked = Instant::now();
        loop {
            match self.answers.pop() {
                Some(answer) if self.unanswered > 0 => {
                    self.unanswered -= 1;
                    late(answer);
                }
                Some(answer) => return Ok(answer),
                None if self.answers.is_closed() => return Err(LineError::Ended),
                None if asked.elapsed() > ANSWER_MAX => {
                    self.unanswered += 1;
                    return Err(LineError::Silent);
                }
                None => std::thread::sleep(LOOK_EVERY),
            }
        }
    }
}

/// A line for administrators' requests, which are answered when the sites have agreed, in any order. Several threads may
/// be waiting, each for its own answer.
#[derive(Debug)]
pub struct AdminLine {
    requests: Sender<AdminRequest>,
    replies: Receiver<AdminReply>,
    /// Answers that nobody has fetched, the oldest first; some were given up on.
    heard: VecDeque<AdminReply>,
    next_id: u64,
}

impl AdminLine {
    pub fn new(requests: Sender<AdminRequest>, replies: Receiver<AdminReply>) -> AdminLine {
        AdminLine { requests, replies, heard: VecDeque::with_capacity(ADMIN_REQUESTS_MAX), next_id: 1 }
    }

    /// Asks; the answer will be for the number that this returns.
    fn begin(&mut self, port: &Port, op: AdminOp) -> Result<u64, LineError> {
        if self.requests.is_closed() {
            return Err(LineError::Ended);
        }
        let id = self.next_id;
        self.next_id += 1;
        self.requests.try_push(AdminRequest { id, op }).map_err(|_| LineError::Silent)?;
        port.flush_wakes();
        Ok(id)
    }

    /// The answer, once it is there.
    fn reply(&mut self, id: u64) -> Result<Option<Result<UpdateNumber, AdminError>>, LineError> {
        let ended = self.replies.is_closed();
        while let Some(reply) = self.replies.pop() {
            if self.heard.len() == ADMIN_REQUESTS_MAX {
                self.heard.pop_front();
            }
            self.heard.push_back(reply);
        }
        let index = self.heard.iter().position(|reply| reply.id == id);
        match index.and_then(|index| self.heard.remove(index)) {
            Some(reply) => Ok(Some(reply.result)),
            None if ended => Err(LineError::Ended),
            None => Ok(None),
        }
    }
}

/// The control plane's ends of its rings with the group and the front.
pub type Lines = (Line<Question, Answer>, Line<FrontQuestion, FrontAnswer>, AdminLine);

/// The lines to a group and its front, and what was heard over them. Shared by threads through a mutex; none of them is a
/// reactor.
#[derive(Debug)]
pub struct GroupLine {
    port: Port,
    group: Line<Question, Answer>,
    front: Line<FrontQuestion, FrontAnswer>,
    /// The snapshots that the front was last told of, and the sizes.
    shown: Vec<SnapshotRecord>,
    sizes: VolumeSizes,
    admin: AdminLine,
    clock: Clock,
    total: Totals,
    recording_since: Instant,
    sampler: Sampler,
}

impl GroupLine {
    /// `loads` are the reactors', with their CPU numbers.
    pub fn new(
        port: Port,
        (group, front, admin): Lines,
        clock: Clock,
        loads: Vec<(usize, Arc<Loads>)>,
    ) -> GroupLine {
        let (total, sampler) = (Totals::default(), Sampler::new(loads));
        GroupLine {
            port,
            group,
            front,
            shown: Vec::new(),
            sizes: VolumeSizes::default(),
            admin,
            clock,
            total,
            recording_since: Instant::now(),
            sampler,
        }
    }

    fn ask_group(&mut self, question: Question) -> Result<Answer, LineError> {
        self.group.ask(&self.port, question, |late| {
            if let Answer::Record(recorder) = late {
                self.total.add(&recorder);
            }
        })
    }

    pub fn status(&mut self) -> Result<GroupStatus, LineError> {
        match self.ask_group(Question::Status)? {
            Answer::Status(status) => Ok(status),
            other => unreachable!("a question about status was answered with {other:?}"),
        }
    }

    /// The group's snapshots, oldest first.
    pub fn snapshots(&mut self) -> Result<Vec<SnapshotListed>, LineError> {
        match self.ask_group(Question::Snapshots(Vec::with_capacity(SNAPSHOTS_MAX)))? {
            Answer::Snapshots(list) => Ok(list),
            other => unreachable!("a question about snapshots was answered with {other:?}"),
        }
    }

    /// Lets the group bring its checkpoint up to what is settled, soon.
    pub fn sweep(&mut self) -> Result<(), LineError> {
        match self.ask_group(Question::Sweep)? {
            Answer::Swept => Ok(()),
            other => unreachable!("a wish for a sweep was answered with {other:?}"),
        }
    }

    /// Whatever the front recorded is kept, also what it answers late. The clients that it counted, if that was the question.
    fn ask_front(&mut self, question: FrontQuestion) -> Result<Option<usize>, LineError> {
        let total = &mut self.total;
        let mut keep = |answer| {
            if let FrontAnswer::Record(recorder) = answer {
                total.add(&recorder);
            }
        };
        match self.front.ask(&self.port, question, &mut keep)? {
            FrontAnswer::Held(clients) | FrontAnswer::SentAway(clients) => Ok(Some(clients)),
            answer => {
                keep(answer);
                Ok(None)
            }
        }
    }

    /// From here on no client gets in that wants to write to one of these volumes. Returns how many are in already.
    pub fn hold(&mut self, volumes: VolumeSet) -> Result<usize, LineError> {
        let clients = self.ask_front(FrontQuestion::Hold(volumes))?;
        Ok(clients.expect("a front that is told to hold volumes says who has them"))
    }

    /// From here on the volumes can be written to, or not; clients that came before that changed are sent away. Returns how many.
    pub fn read_only(&mut self, read_only: bool) -> Result<usize, LineError> {
        let clients = self.ask_front(FrontQuestion::ReadOnly(read_only))?;
        Ok(clients.expect("a front that is told what its volumes are says whom it sends away"))
    }

    /// Lets NBD clients ask for the snapshots that can be read by now.
    pub fn show_snapshots(&mut self) -> Result<(), LineError> {
        let readable = self.snapshots()?.into_iter().filter(|snapshot| snapshot.readable);
        let records: Vec<SnapshotRecord> = readable.map(|snapshot| snapshot.record).collect();
        if records != self.shown {
            self.ask_front(FrontQuestion::Snapshots(records.clone()))?;
            self.shown = records;
        }
        Ok(())
    }

    /// Lets NBD clients that come from here on see as much of the volumes as they are to see.
    pub fn show_sizes(&mut self) -> Result<(), LineError> {
        let status = self.status()?;
        if status.state != GroupState::Recovering && status.sizes != self.sizes {
            self.ask_front(FrontQuestion::Sizes(Box::new(status.sizes)))?;
            self.sizes = status.sizes;
        }
        Ok(())
    }

    /// Asks the group to do what an administrator wants; `administered` tells the outcome under the number returned.
    pub fn administer(&mut self, op: AdminOp) -> Result<u64, LineError> {
        self.admin.begin(&self.port, op)
    }

    /// The outcome, once there is one: the update that did it. The group answers within its host deadline, which begins for a promotion when
    /// nothing that the site promised stands in its way any more.
    pub fn administered(&mut self, id: u64) -> Result<Option<Result<UpdateNumber, AdminError>>, LineError> {
        self.admin.reply(id)
    }

    /// Everything recorded since the last reset.
    pub fn report(&mut self, reset: bool) -> Result<Report, LineError> {
        match self.ask_group(Question::Record(Box::default()))? {
            Answer::Record(recorder) => self.total.add(&recorder),
            other => unreachable!("a question about recordings was answered with {other:?}"),
        }
        self.ask_front(FrontQuestion::Record(Box::default()))?;
        let report = Report::of(&self.total, self.recording_since.elapsed().as_secs_f64());
        if reset {
            self.total.clear();
            self.recording_since = Instant::now();
        }
        Ok(report)
    }

    /// A status with rates since about a second ago.
    pub fn sample(&mut self) -> Result<Sample, LineError> {
        let status = self.status()?;
        Ok(self.sampler.sample(self.clock.now(), status))
    }
}
