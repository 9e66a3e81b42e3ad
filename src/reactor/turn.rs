//! The turn: deliver completions, give each actor one slice, wake whom they sent to, then spin or sleep.

use std::sync::Arc;

use crate::base::Nanos;
use crate::reactor::load::Loads;
use crate::reactor::ring::Port;
use crate::reactor::{Actor, Completion};

/// Actors on one reactor; they name their submissions by a small index.
pub const ACTORS_MAX: usize = 32;

/// Completions delivered before the actors get their slices, so that a flood of them starves no ring.
pub const COMPLETIONS_A_TURN_MAX: usize = 256;

/// How an actor's submissions reach the system and come back. One per reactor, used by its thread alone.
pub trait Driver {
    fn now(&mut self) -> Nanos;

    /// What is submitted from here on belongs to this actor.
    fn set_actor(&mut self, actor: usize);

    /// Hands over what was submitted and looks for completions, without waiting. Returns whether it did anything.
    fn poll(&mut self) -> bool;

    /// The next completion and its actor's index. What a completion brings along (a buffer, a descriptor) stays with the
    /// driver until the next call.
    fn next_completion(&mut self) -> Option<(usize, Completion)>;

    /// Waits for a completion, the doorbell or `deadline`. May return early. Does not wait if completions are there.
    fn park(&mut self, deadline: Option<Nanos>);
}

/// What a reactor does when a round found nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdlePolicy {
    /// Goes on polling: the lowest latency, a core each.
    Spin,
    /// Polls for up to `spin` while waits are shorter than that on average, else sleeps at once.
    Adaptive { spin: Nanos },
    /// Sleeps at once.
    Park,
}

impl IdlePolicy {
    /// A few times what sleeping and waking costs: 5 to 10 µs where an idle core only naps, 50 and more in a virtual machine that
    /// gives it up. Sleeping makes the waits of both sites longer by that, so a spin that ends just before the answer
    /// would come finds its own delay in the average and never tries again (decision 0041).
    pub const ADAPTIVE_SPIN: Nanos = Nanos::from_micros(200);
}

impl Default for IdlePolicy {
    fn default() -> IdlePolicy {
        IdlePolicy::Adaptive { spin: IdlePolicy::ADAPTIVE_SPIN }
    }
}

/// A wait counts as at most this many spins in the average, so that a pause is forgotten after some sixteen short ones.
const WAIT_CAP_FACTOR: u64 = 8;

/// A waiting reactor offers its core this often: whoever shares it is hardly late, and the call, about a microsecond where
/// nobody does, is seldom in the way of what comes in.
const YIELD_AFTER: Nanos = Nanos::from_micros(3);

/// Runs actors over a driver on the calling thread.
pub struct Reactor<D> {
    port: Port,
    driver: D,
    actors: Vec<Option<Box<dyn Actor<D>>>>,
    idle: IdlePolicy,
    loads: Arc<Loads>,
    stop_told: bool,
    /// When the last round that found work ended.
    worked_at: Nanos,
    /// When the core was last offered to others.
    yielded_at: Nanos,
    /// Whether a round has found nothing since.
    waiting: bool,
    /// Moving average of how long such waits took. Spinning is worth while if it is likely to see their end.
    wait: Nanos,
}

impl<D: Driver> Reactor<D> {
    pub fn new(port: Port, mut driver: D, idle: IdlePolicy, loads: Arc<Loads>) -> Reactor<D> {
        let worked_at = driver.now();
        Reactor {
            port,
            driver,
            actors: Vec::with_capacity(ACTORS_MAX),
            idle,
            loads,
            stop_told: false,
            worked_at,
            yielded_at: worked_at,
            waiting: false,
            wait: Nanos(0),
        }
    }

    /// Actors get their slices in the order they were added: put what feeds the longer path first.
    pub fn add(&mut self, actor: impl Actor<D> + 'static) {
        self.add_boxed(Box::new(actor));
    }

    pub fn add_boxed(&mut self, actor: Box<dyn Actor<D>>) {
        assert!(self.actors.len() < ACTORS_MAX, "a reactor has at most {ACTORS_MAX} actors");
        self.loads.name(self.actors.len(), actor.name());
        self.actors.push(Some(actor));
    }

    /// Turns until a stop is requested and every actor has stopped. Gives the driver back.
    pub fn run(mut self) -> D {
        while !self.finished() {
            let began = self.driver.now();
            if self.round(began) {
                continue;
            }
            self.waiting = true;
            let now = self.driver.now();
            self.loads.spinning(now.since(began));
            if self.tired(now) {
                self.park(now);
            } else {
                self.pause(now);
            }
        }
        self.port.flush_wakes();
        self.driver
    }

    fn finished(&self) -> bool {
        self.stop_told && self.actors.iter().all(Option::is_none)
    }

    /// Returns whether anything was done.
    fn round(&mut self, began: Nanos) -> bool {
        let mut worked = self.driver.poll();
        let mut stamp = self.driver.now();
        if worked {
            self.loads.driver(stamp.since(began));
        }
        worked |= self.deliver(&mut stamp);

        if !self.stop_told && self.port.stopping() {
            self.stop_told = true;
            self.actors.iter_mut().flatten().for_each(|actor| actor.stop(stamp));
        }

        for index in 0..self.actors.len() {
            let Some(actor) = &mut self.actors[index] else { continue };
            self.driver.set_actor(index);
            let found_work = actor.turn(stamp, &mut self.driver);
            let gone = self.stop_told && actor.stopped();
            let now = self.driver.now();
            if found_work {
                self.loads.busy(index, now.since(stamp), 1);
                worked = true;
            }
            stamp = now;
            if gone {
                self.actors[index] = None;
                worked = true;
            }
        }
        self.port.flush_wakes();

        if worked {
            self.learn_wait(began);
            self.worked_at = stamp;
        }
        worked
    }

    fn deliver(&mut self, stamp: &mut Nanos) -> bool {
        let mut previous = None;
        for _ in 0..COMPLETIONS_A_TURN_MAX {
            let Some((index, completion)) = self.driver.next_completion() else { break };
            if previous.is_some_and(|previous| previous != index) {
                self.charge(previous, stamp);
            }
            previous = Some(index);
            // A completion may outlive its actor: a poll that it left behind, cancelled by the driver's end.
            if let Some(actor) = &mut self.actors[index] {
                self.driver.set_actor(index);
                actor.complete(*stamp, &mut self.driver, completion);
            }
        }
        self.charge(previous, stamp);
        previous.is_some()
    }

    fn charge(&mut self, actor: Option<usize>, stamp: &mut Nanos) {
        if let Some(actor) = actor {
            let now = self.driver.now();
            self.loads.busy(actor, now.since(*stamp), 0);
            *stamp = now;
        }
    }

    fn learn_wait(&mut self, began: Nanos) {
        if let IdlePolicy::Adaptive { spin } = self.idle
            && std::mem::take(&mut self.waiting)
        {
            let wait = began.since(self.worked_at).0.min(spin.0 * WAIT_CAP_FACTOR);
            self.wait = Nanos(self.wait.0 - self.wait.0 / 8 + wait / 8);
        }
    }

    /// Between two looks at the queues. A reactor that owns its core just looks again; one that may share it offers it now and
    /// then to whoever is runnable there, which spares both the sleep and the wake-up.
    fn pause(&mut self, now: Nanos) {
        let shares = matches!(self.idle, IdlePolicy::Adaptive { .. });
        if shares && now.since(self.yielded_at) >= YIELD_AFTER {
            std::thread::yield_now();
            self.yielded_at = now;
        } else {
            std::hint::spin_loop();
        }
    }

    /// Whether it is time to sleep, after a round that found nothing.
    fn tired(&self, now: Nanos) -> bool {
        match self.idle {
            IdlePolicy::Spin => false,
            IdlePolicy::Park => true,
            IdlePolicy::Adaptive { spin } => self.wait > spin || now.since(self.worked_at) >= spin,
        }
    }

    fn park(&mut self, now: Nanos) {
        let deadline = self.actors.iter().flatten().filter_map(|actor| actor.deadline()).min();
        if deadline.is_some_and(|deadline| deadline <= now) {
            return;
        }
        self.port.doorbell().announce();
        let stop_told = self.stop_told;
        let ready = self.actors.iter().flatten().any(|actor| actor.ready() || (stop_told && actor.stopped()))
            || (self.port.stopping() && !stop_told);
        if !ready {
            self.driver.park(deadline);
        }
        self.port.doorbell().retract();
        let woken = self.driver.now();
        self.loads.parked(woken.since(now));
    }
}
