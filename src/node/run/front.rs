//! The NBD front with a recorder: how long replies wait for it.

use crate::base::{Nanos, VolumeSet, VolumeSizes};
use crate::format::snapshot::SnapshotRecord;
use crate::io::nbd::NbdFront;
use crate::io::ring::Ring;
use crate::node::telemetry::{Recorder, Stage};
use crate::reactor::{Actor, Completion, Receiver, Sender};

/// What the control plane tells a front, which answers with what it had before: nothing is allocated or freed on a reactor.
#[derive(Debug)]
pub enum FrontQuestion {
    /// Swap the recorder for this empty one.
    Record(Box<Recorder>),
    /// These snapshots can be asked for.
    Snapshots(Vec<SnapshotRecord>),
    /// Nobody else may open these volumes for now.
    Hold(VolumeSet),
    /// Whether hosts may only read from here on.
    ReadOnly(bool),
    /// What hosts that come from here on see of the volumes.
    Sizes(Box<VolumeSizes>),
}

#[derive(Debug)]
pub enum FrontAnswer {
    Record(Box<Recorder>),
    Snapshots(Vec<SnapshotRecord>),
    /// So many clients have them open.
    Held(usize),
    /// So many clients had them open as they were before.
    SentAway(usize),
    Sized(Box<VolumeSizes>),
}

pub struct FrontActor {
    front: NbdFront,
    recorder: Box<Recorder>,
    questions: Receiver<FrontQuestion>,
    answers: Sender<FrontAnswer>,
}

impl FrontActor {
    pub fn new(
        front: NbdFront,
        questions: Receiver<FrontQuestion>,
        answers: Sender<FrontAnswer>,
    ) -> FrontActor {
        FrontActor { front, recorder: Box::new(Recorder::new()), questions, answers }
    }
}

impl Actor<Ring> for FrontActor {
    fn name(&self) -> &'static str {
        self.front.name()
    }

    fn turn(&mut self, now: Nanos, ring: &mut Ring) -> bool {
        let worked = self.front.turn(now, ring);
        for wait in self.front.reply_waits() {
            self.recorder.record(Stage::ReplyRing, wait);
        }
        let answer = match self.questions.pop_if_answerable(&self.answers) {
            None => return worked,
            Some(FrontQuestion::Record(empty)) => {
                FrontAnswer::Record(std::mem::replace(&mut self.recorder, empty))
            }
            Some(FrontQuestion::Snapshots(list)) => FrontAnswer::Snapshots(self.front.show_snapshots(list)),
            Some(FrontQuestion::Hold(volumes)) => FrontAnswer::Held(self.front.hold(volumes)),
            Some(FrontQuestion::ReadOnly(read_only)) => {
                FrontAnswer::SentAway(self.front.set_read_only(read_only))
            }
            Some(FrontQuestion::Sizes(sizes)) => {
                self.front.set_sizes(&sizes);
                FrontAnswer::Sized(sizes)
            }
        };
        self.answers.push(answer);
        true
    }

    fn complete(&mut self, now: Nanos, ring: &mut Ring, completion: Completion) {
        self.front.complete(now, ring, completion);
    }

    fn ready(&self) -> bool {
        self.front.ready() || !self.questions.is_empty()
    }

    fn deadline(&self) -> Option<Nanos> {
        self.front.deadline()
    }

    fn stop(&mut self, now: Nanos) {
        self.front.stop(now);
    }

    fn stopped(&self) -> bool {
        self.front.stopped()
    }
}
