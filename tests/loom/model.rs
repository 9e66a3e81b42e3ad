//! Every interleaving of parking and waking, with an atomic counter for the queue and a bell that remembers.
#![cfg(all(test, loom))]

#[path = "../../src/reactor/park.rs"]
mod park;

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Arc, Notify};
use park::{Bell, Parking};

/// An eventfd: ringing before the sleep ends it at once. A lost wake-up shows as a deadlock, which loom reports.
struct Eventfd {
    rung: AtomicUsize,
    notify: Notify,
}

impl Eventfd {
    fn new() -> Eventfd {
        Eventfd { rung: AtomicUsize::new(0), notify: Notify::new() }
    }
}

impl Bell for Eventfd {
    fn ring(&self) {
        self.rung.fetch_add(1, Ordering::Relaxed);
        self.notify.notify();
    }
}

/// Sleeps until `queue` has something; returns how much.
fn wait(parking: &Parking<Eventfd>, queue: &AtomicUsize) -> usize {
    loop {
        let found = queue.swap(0, Ordering::Acquire);
        if found > 0 {
            return found;
        }
        parking.announce();
        if queue.load(Ordering::Relaxed) == 0 {
            parking.bell().notify.wait();
        }
        parking.retract();
    }
}

#[test]
fn no_wake_up_is_lost() {
    loom::model(|| {
        let parking = Arc::new(Parking::new(Eventfd::new()));
        let queue = Arc::new(AtomicUsize::new(0));
        let (their_parking, their_queue) = (parking.clone(), queue.clone());
        let pusher = loom::thread::spawn(move || {
            for _ in 0..2 {
                their_queue.fetch_add(1, Ordering::Release);
                their_parking.wake();
            }
        });
        let mut seen = 0;
        while seen < 2 {
            seen += wait(&parking, &queue);
        }
        pusher.join().unwrap();
    });
}

#[test]
fn two_wakers_do_not_confuse_each_other() {
    // All interleavings of three threads are too many; those with this many preemptions are not, and catch what bounded
    // search is known to catch.
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        let parking = Arc::new(Parking::new(Eventfd::new()));
        let queue = Arc::new(AtomicUsize::new(0));
        let pushers: Vec<_> = (0..2)
            .map(|_| {
                let (parking, queue) = (parking.clone(), queue.clone());
                loom::thread::spawn(move || {
                    queue.fetch_add(1, Ordering::Release);
                    parking.wake();
                })
            })
            .collect();
        let mut seen = 0;
        while seen < 2 {
            seen += wait(&parking, &queue);
        }
        pushers.into_iter().for_each(|pusher| pusher.join().unwrap());
    });
}

#[test]
fn nobody_pays_for_a_sleeper_that_is_awake() {
    loom::model(|| {
        let parking = Arc::new(Parking::new(Eventfd::new()));
        let their_parking = parking.clone();
        let waker = loom::thread::spawn(move || their_parking.wake());
        waker.join().unwrap();
        assert_eq!(parking.bell().rung.load(Ordering::Relaxed), 0);
    });
}
