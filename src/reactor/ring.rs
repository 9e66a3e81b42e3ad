//! Edges between actors: bounded rings with one producer and one consumer, and the wake-ups that go with them.
//!
//! A [`Port`] stands for one reactor, or one plain thread, of the process. What its senders push marks the receiving
//! port; the reactor then wakes each marked port at most once a turn, with one fence for all of them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use crossbeam_queue::ArrayQueue;

use crate::base::Nanos;
use crate::reactor::bell::{Doorbell, EventBell};

/// Reactors and plain threads of one process that exchange messages: a port's marks are the bits of one word.
pub const PORTS_MAX: usize = 64;

#[derive(Debug)]
struct Shared {
    doorbells: Box<[Doorbell]>,
    stopping: AtomicBool,
}

/// One thread's end of all its edges. Clones belong to the same thread's actors; another thread may hold one to ask
/// everything to stop, but must not send through it.
#[derive(Clone, Debug)]
pub struct Port {
    index: usize,
    shared: Arc<Shared>,
    /// Ports that were sent something since the last `flush_wakes`. Touched by one thread, so never contended.
    marked: Arc<AtomicU64>,
}

/// The ports of a process. Fails when no file descriptors are left for their doorbells.
pub fn mesh(ports: usize) -> io::Result<Vec<Port>> {
    assert!(ports <= PORTS_MAX, "{ports} ports, at most {PORTS_MAX}");
    let doorbells = (0..ports).map(|_| Ok(Doorbell::new(EventBell::new()?))).collect::<io::Result<_>>()?;
    let shared = Arc::new(Shared { doorbells, stopping: AtomicBool::new(false) });
    let port = |index| Port { index, shared: shared.clone(), marked: Arc::new(AtomicU64::new(0)) };
    Ok((0..ports).map(port).collect())
}

impl Port {
    pub fn doorbell(&self) -> &Doorbell {
        &self.shared.doorbells[self.index]
    }

    /// Wakes every port that was sent something since the last call and sleeps. Reactors call it after each round, plain
    /// threads after they have pushed.
    pub fn flush_wakes(&self) {
        if self.marked.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut marked = self.marked.swap(0, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        while marked != 0 {
            self.shared.doorbells[marked.trailing_zeros() as usize].wake_fenced();
            marked &= marked - 1;
        }
    }

    /// Every reactor of the mesh is to stop its actors and end when they have.
    pub fn request_stop(&self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        for doorbell in &self.shared.doorbells {
            doorbell.wake();
        }
    }

    pub fn stopping(&self) -> bool {
        self.shared.stopping.load(Ordering::SeqCst)
    }

    /// For a plain thread: sleeps until something is sent to this port, a stop is requested, or `timeout` has passed;
    /// not at all if `ready` finds work. Reactors park in their driver instead.
    pub fn park(&self, ready: impl FnOnce() -> bool, timeout: Option<Nanos>) -> io::Result<()> {
        self.flush_wakes();
        let doorbell = self.doorbell();
        doorbell.announce();
        let slept = if ready() || self.stopping() { Ok(()) } else { doorbell.bell().wait(timeout) };
        doorbell.retract();
        slept
    }
}

#[derive(Debug)]
struct Ring<T> {
    queue: ArrayQueue<T>,
    sender_gone: AtomicBool,
    receiver_gone: AtomicBool,
}

/// The producing end of an edge.
#[derive(Debug)]
pub struct Sender<T> {
    ring: Arc<Ring<T>>,
    from: Port,
    to: usize,
}

/// The consuming end of an edge.
#[derive(Debug)]
pub struct Receiver<T> {
    ring: Arc<Ring<T>>,
}

/// An edge with room for `capacity` messages, from an actor on `from`'s thread to one on `to`'s (which may be the same).
pub fn edge<T: Send>(capacity: usize, from: &Port, to: &Port) -> (Sender<T>, Receiver<T>) {
    assert!(Arc::ptr_eq(&from.shared, &to.shared), "an edge joins ports of one mesh");
    let ring = Arc::new(Ring {
        queue: ArrayQueue::new(capacity),
        sender_gone: AtomicBool::new(false),
        receiver_gone: AtomicBool::new(false),
    });
    (Sender { ring: ring.clone(), from: from.clone(), to: to.index }, Receiver { ring })
}

impl<T> Sender<T> {
    /// For edges whose capacity covers the credits of their senders: panics if the ring is full all the same. What is sent
    /// to a receiver that was dropped (it stopped first) is discarded.
    #[track_caller]
    pub fn push(&mut self, message: T) {
        if self.try_push(message).is_err() {
            assert!(
                self.ring.receiver_gone.load(Ordering::Acquire),
                "a ring of {} is full though credits should cover it",
                self.ring.queue.capacity()
            );
        }
    }

    /// The message comes back if the ring is full.
    pub fn try_push(&mut self, message: T) -> Result<(), T> {
        self.ring.queue.push(message)?;
        let bit = 1 << self.to;
        if self.from.marked.load(Ordering::Relaxed) & bit == 0 {
            self.from.marked.fetch_or(bit, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Messages that can be pushed now; more once the receiver pops.
    pub fn room(&self) -> usize {
        self.ring.queue.capacity() - self.ring.queue.len()
    }

    pub fn capacity(&self) -> usize {
        self.ring.queue.capacity()
    }

    /// Whether the receiver was dropped.
    pub fn is_closed(&self) -> bool {
        self.ring.receiver_gone.load(Ordering::Acquire)
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.ring.sender_gone.store(true, Ordering::Release);
        self.from.shared.doorbells[self.to].wake();
    }
}

impl<T> Receiver<T> {
    pub fn pop(&mut self) -> Option<T> {
        self.ring.queue.pop()
    }

    /// A question, unless there is no place for its answer: whoever gave up on an earlier one may not have taken that answer yet.
    pub fn pop_if_answerable<A>(&mut self, answers: &Sender<A>) -> Option<T> {
        if answers.room() > 0 { self.pop() } else { None }
    }

    pub fn is_empty(&self) -> bool {
        self.ring.queue.is_empty()
    }

    pub fn len(&self) -> usize {
        self.ring.queue.len()
    }

    /// Whether the sender was dropped and everything it sent was popped.
    pub fn is_closed(&self) -> bool {
        self.ring.sender_gone.load(Ordering::Acquire) && self.ring.queue.is_empty()
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.ring.receiver_gone.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_in_order_and_closing_follows_them() {
        let ports = mesh(2).unwrap();
        let (mut sender, mut receiver) = edge(3, &ports[0], &ports[1]);
        assert_eq!((sender.capacity(), sender.room()), (3, 3));
        (0..3).for_each(|message| sender.push(message));
        assert_eq!(sender.try_push(3), Err(3));
        drop(sender);
        assert!(!receiver.is_closed());
        assert_eq!([receiver.pop(), receiver.pop(), receiver.pop()], [Some(0), Some(1), Some(2)]);
        assert!(receiver.is_closed());
    }

    #[test]
    #[should_panic(expected = "a ring of 1 is full")]
    fn pushing_beyond_the_credits_is_a_broken_invariant() {
        let ports = mesh(1).unwrap();
        let (mut sender, _receiver) = edge(1, &ports[0], &ports[0]);
        sender.push(());
        sender.push(());
    }

    #[test]
    fn what_nobody_receives_is_discarded() {
        let ports = mesh(1).unwrap();
        let (mut sender, receiver) = edge(1, &ports[0], &ports[0]);
        drop(receiver);
        assert!(sender.is_closed());
        (0..3).for_each(|message| sender.push(message));
    }

    #[test]
    fn a_thread_sleeps_until_it_is_sent_something() {
        let mut ports = mesh(2).unwrap();
        let (there, here) = (ports.remove(1), ports.remove(0));
        let (mut requests, mut asked) = edge(1, &here, &there);
        let (mut replies, mut answered) = edge(1, &there, &here);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                while !asked.is_closed() {
                    there.park(|| !asked.is_empty() || asked.is_closed(), None).unwrap();
                    if let Some(message) = asked.pop() {
                        replies.push(message + 1);
                    }
                }
            });
            for message in 0..1000u64 {
                requests.push(message);
                let answer = loop {
                    here.park(|| !answered.is_empty(), None).unwrap();
                    if let Some(answer) = answered.pop() {
                        break answer;
                    }
                };
                assert_eq!(answer, message + 1);
            }
            drop(requests);
        });
    }
}
