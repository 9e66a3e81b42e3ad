//! Where a reactor's time goes, published for status by its own thread with plain stores.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::base::Nanos;
use crate::reactor::turn::ACTORS_MAX;

#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Counter {
    /// Only the reactor's thread adds, so a load and a store do.
    fn add(&self, amount: u64) {
        self.0.store(self.0.load(Relaxed) + amount, Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

#[derive(Debug, Default)]
struct Slot {
    name: OnceLock<&'static str>,
    busy_ns: Counter,
    turns: Counter,
}

/// One reactor's accounts. Created before its thread, shared with status.
#[derive(Debug, Default)]
pub struct Loads {
    actors: [Slot; ACTORS_MAX],
    driver_ns: Counter,
    spinning_ns: Counter,
    parked_ns: Counter,
    parks: Counter,
}

/// An actor's share since the reactor began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActorLoad {
    pub name: &'static str,
    /// Time in completions and in turns that found work.
    pub busy: Nanos,
    /// Turns that found work.
    pub turns: u64,
}

/// All shares of one reactor since it began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadsSnapshot {
    pub actors: Vec<ActorLoad>,
    /// Time in the driver while it moved something: submitting, reaping.
    pub driver: Nanos,
    /// Time in rounds that found nothing.
    pub spinning: Nanos,
    /// Time asleep.
    pub parked: Nanos,
    pub parks: u64,
}

impl Loads {
    pub fn snapshot(&self) -> LoadsSnapshot {
        let actors = self.actors.iter().filter_map(|slot| {
            let name = slot.name.get()?;
            Some(ActorLoad { name, busy: Nanos(slot.busy_ns.get()), turns: slot.turns.get() })
        });
        LoadsSnapshot {
            actors: actors.collect(),
            driver: Nanos(self.driver_ns.get()),
            spinning: Nanos(self.spinning_ns.get()),
            parked: Nanos(self.parked_ns.get()),
            parks: self.parks.get(),
        }
    }

    pub(super) fn name(&self, actor: usize, name: &'static str) {
        self.actors[actor].name.set(name).expect("a reactor names each of its actors once");
    }

    pub(super) fn busy(&self, actor: usize, span: Nanos, turns: u64) {
        self.actors[actor].busy_ns.add(span.0);
        self.actors[actor].turns.add(turns);
    }

    pub(super) fn driver(&self, span: Nanos) {
        self.driver_ns.add(span.0);
    }

    pub(super) fn spinning(&self, span: Nanos) {
        self.spinning_ns.add(span.0);
    }

    pub(super) fn parked(&self, span: Nanos) {
        self.parked_ns.add(span.0);
        self.parks.add(1);
    }
}
