//! The control plane's line to a group: one question at a time, each answered within a turn of the group's reactor.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Sample, Sampler};
use crate::core::group::status::GroupStatus;
use crate::node::group_actor::{Answer, Question};
use crate::node::telemetry::{Recorder, Report};
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

/// See the module. Shared by threads through a mutex; none of them is a reactor.
#[derive(Debug)]
pub struct GroupLine {
    port: Port,
    questions: Sender<Question>,
    answers: Receiver<Answer>,
    /// Questions given up on whose answers may still come.
    unanswered: usize,
    clock: Clock,
    total: Recorder,
    spare: Option<Box<Recorder>>,
    recording_since: Instant,
    sampler: Sampler,
}

impl GroupLine {
    /// `loads` are the reactors', with their CPU numbers.
    pub fn new(
        port: Port,
        questions: Sender<Question>,
        answers: Receiver<Answer>,
        clock: Clock,
        loads: Vec<(usize, Arc<Loads>)>,
    ) -> GroupLine {
        GroupLine {
            port,
            questions,
            answers,
            unanswered: 0,
            clock,
            total: Recorder::new(),
            spare: Some(Box::new(Recorder::new())),
            recording_since: Instant::now(),
            sampler: Sampler::new(loads),
        }
    }

    fn ask(&mut self, question: Question) -> Result<Answer, LineError> {
        if self.questions.is_closed() {
            return Err(LineError::Ended);
        }
        self.questions.try_push(question).map_err(|_| LineError::Silent)?;
        self.port.flush_wakes();
        let asked = Instant::now();
        loop {
            match self.answers.pop() {
                Some(late) if self.unanswered > 0 => {
                    self.unanswered -= 1;
                    if let Answer::Record(recorder) = late {
                        self.keep(recorder);
                    }
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

    fn keep(&mut self, mut recorder: Box<Recorder>) {
        self.total.add(&recorder);
        recorder.clear();
        self.spare = Some(recorder);
    }

    pub fn status(&mut self) -> Result<GroupStatus, LineError> {
        match self.ask(Question::Status)? {
            Answer::Status(status) => Ok(status),
            Answer::Record(_) => unreachable!("a question about status was answered with a recorder"),
        }
    }

    /// Everything recorded since the last reset.
    pub fn report(&mut self, reset: bool) -> Result<Report, LineError> {
        let empty = self.spare.take().unwrap_or_default();
        match self.ask(Question::Record(empty))? {
            Answer::Record(recorder) => self.keep(recorder),
            Answer::Status(_) => unreachable!("a question about recordings was answered with a status"),
        }
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
