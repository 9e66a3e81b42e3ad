//! The control plane's lines to actors: one question at a time, each answered within a turn of the actor's reactor.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Sample, Sampler};
use crate::base::{SNAPSHOTS_MAX, UpdateNumber};
use crate::core::group::status::GroupStatus;
use crate::core::messages::{AdminError, AdminOp, AdminReply, AdminRequest};
use crate::node::group_actor::{Answer, Question, SnapshotListed};
use crate::node::telemetry::{Recorder, Report, Totals};
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
    fn ask(&mut self, port: &Port, question: Q, mut late: impl FnMut(A)) -> Result<A, LineError> {
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

/// A line for administrators' requests, which are answered when the sites have agreed, in any order.
#[derive(Debug)]
pub struct AdminLine {
    requests: Sender<AdminRequest>,
    replies: Receiver<AdminReply>,
    next_id: u64,
}

impl AdminLine {
    pub fn new(requests: Sender<AdminRequest>, replies: Receiver<AdminReply>) -> AdminLine {
        AdminLine { requests, replies, next_id: 1 }
    }

    /// Asks, and waits for the answer; replies that earlier callers gave up waiting for are passed over.
    fn ask(
        &mut self,
        port: &Port,
        op: AdminOp,
        at_most: Duration,
    ) -> Result<Result<UpdateNumber, AdminError>, LineError> {
        if self.requests.is_closed() {
            return Err(LineError::Ended);
        }
        let id = self.next_id;
        self.next_id += 1;
        self.requests.try_push(AdminRequest { id, op }).map_err(|_| LineError::Silent)?;
        port.flush_wakes();
        let asked = Instant::now();
        loop {
            match self.replies.pop() {
                Some(reply) if reply.id == id => return Ok(reply.result),
                Some(_) => {}
                None if self.replies.is_closed() => return Err(LineError::Ended),
                None if asked.elapsed() > at_most => return Err(LineError::Silent),
                None => std::thread::sleep(LOOK_EVERY),
            }
        }
    }
}

/// The control plane's ends of its rings with the group and the front.
pub type Lines = (Line<Question, Answer>, Line<Box<Recorder>, Box<Recorder>>, AdminLine);

/// The lines to a group and its front, and what was heard over them. Shared by threads through a mutex; none of them is a
/// reactor.
#[derive(Debug)]
pub struct GroupLine {
    port: Port,
    group: Line<Question, Answer>,
    front: Line<Box<Recorder>, Box<Recorder>>,
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
        GroupLine { port, group, front, admin, clock, total, recording_since: Instant::now(), sampler }
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

    /// Has the group do what an administrator asks; waits at most so long, and somewhat beyond the host deadline is enough.
    pub fn administer(
        &mut self,
        op: AdminOp,
        at_most: Duration,
    ) -> Result<Result<UpdateNumber, AdminError>, LineError> {
        self.admin.ask(&self.port, op, at_most)
    }

    /// Everything recorded since the last reset.
    pub fn report(&mut self, reset: bool) -> Result<Report, LineError> {
        match self.ask_group(Question::Record(Box::default()))? {
            Answer::Record(recorder) => self.total.add(&recorder),
            other => unreachable!("a question about recordings was answered with {other:?}"),
        }
        let front = self.front.ask(&self.port, Box::default(), |late| self.total.add(&late))?;
        self.total.add(&front);
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
