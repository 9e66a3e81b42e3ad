//! The NBD front with a recorder: how long replies wait for it.

use crate::base::Nanos;
use crate::io::nbd::NbdFront;
use crate::io::ring::Ring;
use crate::node::telemetry::{Recorder, Stage};
use crate::reactor::{Actor, Completion, Receiver, Sender};

pub struct FrontActor {
    front: NbdFront,
    recorder: Box<Recorder>,
    /// Empty recorders to swap the filled one for.
    empties: Receiver<Box<Recorder>>,
    filled: Sender<Box<Recorder>>,
}

impl FrontActor {
    pub fn new(
        front: NbdFront,
        empties: Receiver<Box<Recorder>>,
        filled: Sender<Box<Recorder>>,
    ) -> FrontActor {
        FrontActor { front, recorder: Box::new(Recorder::new()), empties, filled }
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
        let Some(empty) = self.empties.pop() else { return worked };
        self.filled.push(std::mem::replace(&mut self.recorder, empty));
        true
    }

    fn complete(&mut self, now: Nanos, ring: &mut Ring, completion: Completion) {
        self.front.complete(now, ring, completion);
    }

    fn ready(&self) -> bool {
        self.front.ready() || !self.empties.is_empty()
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
