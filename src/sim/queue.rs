//! What is going to happen, by instant, and at one instant in the order it was scheduled.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The heap holds small keys only: events are several times as large and would be moved at every step of every sift.
#[derive(Debug)]
pub struct Queue<E> {
    /// Instant, order of scheduling, and place in `events`, from the most significant bits down.
    keys: BinaryHeap<Reverse<u128>>,
    events: Vec<Option<E>>,
    free: Vec<u32>,
    scheduled: u32,
}

impl<E> Queue<E> {
    pub fn new() -> Queue<E> {
        Queue { keys: BinaryHeap::new(), events: Vec::new(), free: Vec::new(), scheduled: 0 }
    }

    pub fn push(&mut self, at: u64, event: E) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() as u32 - 1
        });
        self.events[place as usize] = Some(event);
        self.scheduled = self.scheduled.checked_add(1).expect("fewer events than the bound of a run");
        self.keys.push(Reverse(u128::from(at) << 64 | u128::from(self.scheduled) << 32 | u128::from(place)));
    }

    /// The next event and its instant.
    pub fn pop(&mut self) -> Option<(u64, E)> {
        let Reverse(key) = self.keys.pop()?;
        let place = key as u32;
        self.free.push(place);
        let event = self.events[place as usize].take().expect("a key names an event");
        Some(((key >> 64) as u64, event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::rng::Rng;

    #[test]
    fn events_come_by_instant_and_then_as_scheduled() {
        let mut rng = Rng::new(3);
        let mut queue = Queue::new();
        let mut waiting = Vec::new();
        let mut now = 0;
        for tie in 0..5000 {
            let at = now + rng.below(20);
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
