//! What is going to happen, by instant, and at one instant in the order it was scheduled.
//!
//! A timing wheel: most events are a few microseconds or milliseconds away, and many are alarms that an earlier one made
//! void, so that a heap would be large and cost more than the events.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::base::Bitmap;

/// Nanoseconds of a slot, as a power of two: few events share one.
const SLOT_BITS: u32 = 12;

/// Slots of the wheel, which reaches some milliseconds ahead.
const SLOTS: u64 = 2048;

const NONE: u32 = u32::MAX;

/// Instant, order of scheduling, and place in `entries`, from the most significant bits down.
type Key = u128;

#[derive(Debug)]
struct Entry<E> {
    key: Key,
    /// The next entry of the same slot.
    next: u32,
    event: Option<E>,
}

#[derive(Debug)]
pub struct Queue<E> {
    entries: Vec<Entry<E>>,
    free: Vec<u32>,
    scheduled: u32,
    /// The slot that is being worked off, counted from the beginning of time, and its keys, the next one last.
    slot: u64,
    current: Vec<Key>,
    /// The first entry of each slot after it, by the slot's number modulo `SLOTS`.
    wheel: Box<[u32]>,
    occupied: Bitmap,
    /// What the wheel did not reach when it was scheduled.
    far: BinaryHeap<Reverse<Key>>,
}

fn slot_of(key: Key) -> u64 {
    (key >> (64 + SLOT_BITS)) as u64
}

impl<E> Queue<E> {
    pub fn new() -> Queue<E> {
        Queue {
            entries: Vec::new(),
            free: Vec::new(),
            scheduled: 0,
            slot: 0,
            current: Vec::new(),
            wheel: vec![NONE; SLOTS as usize].into_boxed_slice(),
            occupied: Bitmap::new(SLOTS),
            far: BinaryHeap::new(),
        }
    }

    /// `at` is not before what was popped last.
    pub fn push(&mut self, at: u64, event: E) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry { key: 0, next: NONE, event: None });
            self.entries.len() as u32 - 1
        });
        self.scheduled = self.scheduled.checked_add(1).expect("fewer events than the bound of a run");
        let key = u128::from(at) << 64 | u128::from(self.scheduled) << 32 | u128::from(place);
        self.entries[place as usize] = Entry { key, next: NONE, event: Some(event) };
        if slot_of(key) < self.slot + SLOTS { self.put(key) } else { self.far.push(Reverse(key)) }
    }

    /// Into the wheel, which reaches it.
    fn put(&mut self, key: Key) {
        let slot = slot_of(key);
        if slot <= self.slot {
            let after = self.current.iter().rev().take_while(|next| **next < key).count();
            self.current.insert(self.current.len() - after, key);
        } else {
            let at = slot % SLOTS;
            let first = std::mem::replace(&mut self.wheel[at as usize], key as u32);
            self.entries[key as u32 as usize].next = first;
            self.occupied.insert(at);
        }
    }

    /// Goes on to the next slot that has an event; false if there is none.
    fn turn(&mut self) -> bool {
        let from = (self.slot + 1) % SLOTS;
        let at = self.occupied.next_from(from).or_else(|| self.occupied.next_from(0));
        let near = at.map(|at| self.slot + 1 + (at + SLOTS - from) % SLOTS);
        let far = self.far.peek().map(|Reverse(key)| slot_of(*key));
        let Some(slot) = near.into_iter().chain(far).min() else { return false };
        self.slot = slot;
        let mut next = NONE;
        if self.occupied.remove(slot % SLOTS) {
            next = std::mem::replace(&mut self.wheel[(slot % SLOTS) as usize], NONE);
        }
        while next != NONE {
            let entry = &self.entries[next as usize];
            self.current.push(entry.key);
            next = entry.next;
        }
        self.current.sort_unstable_by_key(|key| Reverse(*key));
        while self.far.peek().is_some_and(|Reverse(key)| slot_of(*key) < slot + SLOTS) {
            let Reverse(key) = self.far.pop().expect("looked at it");
            self.put(key);
        }
        true
    }

    /// The next event and its instant.
    pub fn pop(&mut self) -> Option<(u64, E)> {
        while self.current.is_empty() {
            if !self.turn() {
                return None;
            }
        }
        let key = self.current.pop()?;
        let place = key as u32;
        self.free.push(place);
        let event = self.entries[place as usize].event.take().expect("a key names an event");
        Some(((key >> 64) as u64, event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::rng::Rng;

    #[test]
    fn events_come_by_instant_and_then_as_scheduled() {
        for seed in 0..20 {
            let mut rng = Rng::new(seed);
            let mut queue = Queue::new();
            let mut waiting = Vec::new();
            let mut now = 0;
            for tie in 0..3000 {
                let ahead = rng.pick(&[1, 20, 5_000, 1_000_000, (SLOTS << SLOT_BITS) + 5_000, 1 << 30]);
                let at = now + rng.below(ahead);
                queue.push(at, tie);
                waiting.push((at, tie));
                for _ in 0..rng.below(3) {
                    let Some(expected) = waiting.iter().copied().min() else { break };
                    waiting.retain(|entry| *entry != expected);
                    assert_eq!(queue.pop(), Some(expected));
                    now = expected.0;
                }
            }
            waiting.sort_unstable();
            assert_eq!(std::iter::from_fn(|| queue.pop()).collect::<Vec<_>>(), waiting);
        }
    }
}
