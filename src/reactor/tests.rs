use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::*;

/// A driver without a kernel: what is submitted completes at the next poll; parking waits at the doorbell.
struct Loopback {
    clock: Clock,
    port: Port,
    actor: usize,
    submitted: VecDeque<(usize, Completion)>,
    completed: VecDeque<(usize, Completion)>,
}

impl Loopback {
    fn new(port: &Port, clock: &Clock) -> Loopback {
        let (submitted, completed) = (VecDeque::new(), VecDeque::new());
        Loopback { clock: clock.clone(), port: port.clone(), actor: 0, submitted, completed }
    }

    fn submit(&mut self, token: u64) {
        self.submitted.push_back((self.actor, Completion { token, result: 0, flags: 0 }));
    }
}

impl Driver for Loopback {
    fn now(&mut self) -> Nanos {
        self.clock.now()
    }

    fn set_actor(&mut self, actor: usize) {
        self.actor = actor;
    }

    fn poll(&mut self) -> bool {
        self.completed.append(&mut self.submitted);
        !self.completed.is_empty()
    }

    fn next_completion(&mut self) -> Option<(usize, Completion)> {
        self.completed.pop_front()
    }

    fn park(&mut self, deadline: Option<Nanos>) {
        assert!(self.submitted.is_empty() && self.completed.is_empty(), "parked with work to do");
        let now = self.now();
        self.port.doorbell().bell().wait(deadline.map(|deadline| deadline.since(now))).unwrap();
    }
}

/// Sends each number on, through a completion of its own, and ends after `last`.
struct Player {
    serve: Option<u64>,
    last: u64,
    incoming: Receiver<u64>,
    outgoing: Sender<u64>,
    seen: Arc<AtomicU64>,
    stopping: bool,
}

impl Actor<Loopback> for Player {
    fn name(&self) -> &'static str {
        "player"
    }

    fn turn(&mut self, _now: Nanos, driver: &mut Loopback) -> bool {
        if let Some(number) = self.serve.take() {
            self.outgoing.push(number);
            return true;
        }
        match self.incoming.pop() {
            Some(number) => driver.submit(number),
            None => return false,
        }
        true
    }

    fn complete(&mut self, _now: Nanos, _driver: &mut Loopback, completion: Completion) {
        let previous = self.seen.swap(completion.token, Ordering::Relaxed);
        assert_eq!(previous.wrapping_add(2), completion.token);
        if completion.token < self.last {
            self.outgoing.push(completion.token + 1);
        }
    }

    fn ready(&self) -> bool {
        self.serve.is_some() || !self.incoming.is_empty()
    }

    fn deadline(&self) -> Option<Nanos> {
        None
    }

    fn stop(&mut self, _now: Nanos) {
        self.stopping = true;
    }

    fn stopped(&self) -> bool {
        self.stopping
    }
}

/// Two reactors send each other the numbers up to `last` over rings of one place.
fn rally(idle: [IdlePolicy; 2], last: u64) {
    let ports = mesh(3).unwrap();
    let clock = Clock::new();
    let (to_right, from_left) = edge(1, &ports[0], &ports[1]);
    let (to_left, from_right) = edge(1, &ports[1], &ports[0]);
    // The left one sees 2, 4, ...; the right one 1, 3, ...
    let seen = [0, u64::MAX].map(|before_first| Arc::new(AtomicU64::new(before_first)));
    let loads = [(), ()].map(|()| Arc::new(Loads::default()));
    let player = |side: usize, serve, incoming, outgoing| {
        let seen = seen[side].clone();
        Player { serve, last, incoming, outgoing, seen, stopping: false }
    };
    let players = [player(0, Some(1), from_right, to_right), player(1, None, from_left, to_left)];
    std::thread::scope(|scope| {
        for (side, player) in players.into_iter().enumerate() {
            let (port, clock, loads) = (&ports[side], &clock, loads[side].clone());
            scope.spawn(move || {
                let mut reactor = Reactor::new(port.clone(), Loopback::new(port, clock), idle[side], loads);
                reactor.add(player);
                reactor.run();
            });
        }
        let patience = Instant::now() + Duration::from_secs(60);
        while seen[(last % 2) as usize].load(Ordering::Relaxed) != last {
            assert!(Instant::now() < patience, "the rally hangs at {seen:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        ports[2].request_stop();
    });
    for (loads, idle) in loads.iter().zip(idle) {
        let snapshot = loads.snapshot();
        assert_eq!((snapshot.actors.len(), snapshot.actors[0].name), (1, "player"));
        assert!(snapshot.actors[0].turns >= last / 2);
        assert!(snapshot.actors[0].busy > Nanos(0));
        assert!(idle != IdlePolicy::Spin || snapshot.parks == 0);
        assert!(idle != IdlePolicy::Park || snapshot.parks > 0);
    }
}

#[test]
fn a_question_waits_until_the_answer_to_the_last_one_is_taken() {
    let [here, there] = mesh(2).unwrap().try_into().expect("two ports");
    let (mut ask, mut asked) = edge::<u32>(1, &here, &there);
    let (mut answer, mut answers) = edge::<u32>(1, &there, &here);
    // The first one was given up on: its answer comes late, and is still there when the second one is asked.
    ask.push(1);
    assert_eq!(asked.pop_if_answerable(&answer), Some(1));
    ask.push(2);
    answer.push(10);
    assert_eq!(asked.pop_if_answerable(&answer), None);
    assert_eq!(answers.pop(), Some(10));
    assert_eq!(asked.pop_if_answerable(&answer), Some(2));
    answer.push(20);
    assert_eq!(answers.pop(), Some(20));
}

#[test]
fn parking_loses_no_message() {
    rally([IdlePolicy::Park, IdlePolicy::Park], 5_000);
}

#[test]
fn spinning_and_adapting_lose_no_message() {
    rally([IdlePolicy::default(), IdlePolicy::default()], 5_000);
    rally([IdlePolicy::Spin, IdlePolicy::Park], 500);
    rally([IdlePolicy::Adaptive { spin: Nanos(1) }, IdlePolicy::Adaptive { spin: Nanos(200) }], 5_000);
}

/// Wants a turn at each multiple of a period, and nothing else.
struct Ticker {
    period: Nanos,
    due: Nanos,
    ticks: Arc<AtomicU64>,
    /// Turns that it ends after, once told to stop.
    stop_after: Option<u32>,
}

impl<D> Actor<D> for Ticker {
    fn name(&self) -> &'static str {
        "ticker"
    }

    fn turn(&mut self, now: Nanos, _driver: &mut D) -> bool {
        if now < self.due {
            return false;
        }
        self.due = now.plus(self.period);
        self.ticks.fetch_add(1, Ordering::Relaxed);
        if let Some(left) = &mut self.stop_after {
            *left -= 1;
        }
        true
    }

    fn complete(&mut self, _now: Nanos, _driver: &mut D, completion: Completion) {
        panic!("nothing was submitted, and {completion:?} came");
    }

    fn ready(&self) -> bool {
        false
    }

    fn deadline(&self) -> Option<Nanos> {
        Some(self.due)
    }

    fn stop(&mut self, _now: Nanos) {
        self.stop_after = Some(3);
    }

    fn stopped(&self) -> bool {
        self.stop_after == Some(0)
    }
}

#[test]
fn deadlines_are_kept_while_parked_and_stopping_takes_its_turns() {
    let ports = mesh(2).unwrap();
    let ticks = Arc::new(AtomicU64::new(0));
    let loads = Arc::new(Loads::default());
    let ticker =
        Ticker { period: Nanos::from_millis(1), due: Nanos(0), ticks: ticks.clone(), stop_after: None };
    std::thread::scope(|scope| {
        let reactor = scope.spawn(|| {
            let driver = Loopback::new(&ports[0], &Clock::new());
            let mut reactor = Reactor::new(ports[0].clone(), driver, IdlePolicy::Park, loads.clone());
            reactor.add(ticker);
            reactor.run();
        });
        while ticks.load(Ordering::Relaxed) < 20 && !reactor.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let before = ticks.load(Ordering::Relaxed);
        ports[1].request_stop();
        reactor.join().unwrap();
        assert!(ticks.load(Ordering::Relaxed) >= before + 3);
    });
    assert!(loads.snapshot().parks > 0, "it slept between ticks");
}

/// Ends when what it receives from has ended.
struct Follower {
    incoming: Receiver<()>,
    _outgoing: Option<Sender<()>>,
}

impl<D> Actor<D> for Follower {
    fn name(&self) -> &'static str {
        "follower"
    }

    fn turn(&mut self, _now: Nanos, _driver: &mut D) -> bool {
        self.incoming.pop().is_some()
    }

    fn complete(&mut self, _now: Nanos, _driver: &mut D, completion: Completion) {
        panic!("nothing was submitted, and {completion:?} came");
    }

    fn ready(&self) -> bool {
        !self.incoming.is_empty()
    }

    fn deadline(&self) -> Option<Nanos> {
        None
    }

    fn stop(&mut self, _now: Nanos) {}

    fn stopped(&self) -> bool {
        self.incoming.is_closed()
    }
}

#[test]
fn helpers_end_after_whom_they_help_on_any_thread() {
    // A chain over two reactors, each link dropped by its reactor only when the one before is: 0 -> 1 -> 0 -> 1.
    for _ in 0..200 {
        let ports = mesh(3).unwrap();
        let (head, first_in) = edge(1, &ports[2], &ports[0]);
        let (first_out, second_in) = edge(1, &ports[0], &ports[1]);
        let (second_out, third_in) = edge(1, &ports[1], &ports[0]);
        let (third_out, fourth_in) = edge(1, &ports[0], &ports[1]);
        let follower = |incoming, outgoing| Follower { incoming, _outgoing: outgoing };
        let actors = [
            [follower(first_in, Some(first_out)), follower(third_in, Some(third_out))],
            [follower(second_in, Some(second_out)), follower(fourth_in, None)],
        ];
        std::thread::scope(|scope| {
            for (port, actors) in ports.iter().zip(actors) {
                scope.spawn(move || {
                    let driver = Loopback::new(port, &Clock::new());
                    let loads = Arc::new(Loads::default());
                    let mut reactor = Reactor::new(port.clone(), driver, IdlePolicy::Park, loads);
                    actors.into_iter().for_each(|actor| reactor.add(actor));
                    reactor.run();
                });
            }
            ports[2].request_stop();
            drop(head);
        });
    }
}

/// Time that passes by being looked at, and one operation in flight that takes `latency`; who slept is woken `wake` late.
struct Virtual {
    now: u64,
    latency: u64,
    wake: u64,
    due: Option<u64>,
    polls: u64,
}

impl Driver for Virtual {
    fn now(&mut self) -> Nanos {
        self.now += 100;
        Nanos(self.now)
    }

    fn set_actor(&mut self, _actor: usize) {}

    fn poll(&mut self) -> bool {
        self.polls += 1;
        false
    }

    fn next_completion(&mut self) -> Option<(usize, Completion)> {
        self.due.take_if(|due| *due <= self.now)?;
        Some((0, Completion { token: 0, result: 0, flags: 0 }))
    }

    fn park(&mut self, _deadline: Option<Nanos>) {
        self.now = self.now.max(self.due.expect("something is in flight")) + self.wake;
    }
}

/// Keeps one operation in flight, and stops the reactor after `left`; the first `slow` of them take a millisecond.
struct Single {
    left: u32,
    slow: u32,
    port: Port,
}

impl Actor<Virtual> for Single {
    fn name(&self) -> &'static str {
        "single"
    }

    fn turn(&mut self, now: Nanos, driver: &mut Virtual) -> bool {
        if driver.due.is_some() || self.left == 0 {
            return false;
        }
        self.left -= 1;
        driver.due = Some(now.0 + if self.slow > 0 { 1_000_000 } else { driver.latency });
        self.slow = self.slow.saturating_sub(1);
        if self.left == 0 {
            self.port.request_stop();
        }
        true
    }

    fn complete(&mut self, _now: Nanos, _driver: &mut Virtual, _completion: Completion) {}

    fn ready(&self) -> bool {
        false
    }

    fn deadline(&self) -> Option<Nanos> {
        None
    }

    fn stop(&mut self, _now: Nanos) {}

    fn stopped(&self) -> bool {
        self.left == 0
    }
}

/// Parks, and rounds, for a thousand operations of this latency one after another.
fn idle_costs(idle: IdlePolicy, latency: Nanos) -> (u64, u64) {
    idle_costs_of(idle, Virtual { now: 0, latency: latency.0, wake: 0, due: None, polls: 0 }, 0)
}

/// The same, of which so many are slow.
fn idle_costs_of(idle: IdlePolicy, driver: Virtual, slow: u32) -> (u64, u64) {
    let port = mesh(1).unwrap().remove(0);
    let loads = Arc::new(Loads::default());
    let mut reactor = Reactor::new(port.clone(), driver, idle, loads.clone());
    reactor.add(Single { left: 1000, slow, port });
    let driver = reactor.run();
    (loads.snapshot().parks, driver.polls)
}

#[test]
fn adapting_spins_for_short_waits_and_sleeps_through_long_ones() {
    let adaptive = IdlePolicy::Adaptive { spin: Nanos::from_micros(50) };
    let (parks, _) = idle_costs(adaptive, Nanos::from_micros(20));
    assert_eq!(parks, 0);
    let (parks, rounds) = idle_costs(adaptive, Nanos::from_millis(1));
    assert!(parks >= 999, "{parks} parks");
    assert!(rounds < 6_000, "{rounds} rounds: it went on spinning in vain");
    // The wait that is just too long for the spin is the one that a fixed rule pays for twice.
    let (parks, rounds) = idle_costs(adaptive, Nanos::from_micros(60));
    assert!(parks >= 999 && rounds < 6_000, "{parks} parks, {rounds} rounds");
    assert_eq!(idle_costs(IdlePolicy::Spin, Nanos::from_millis(1)).0, 0);
    assert_eq!(idle_costs(IdlePolicy::Park, Nanos::from_micros(20)).0, 999);
}

#[test]
fn a_pause_does_not_keep_a_reactor_asleep_that_is_woken_late() {
    // The answer comes after 60 µs, and a sleeper hears of it after 140: it must find out that it would have been worth waiting.
    let driver = Virtual { now: 0, latency: 60_000, wake: 80_000, due: None, polls: 0 };
    let (parks, _) = idle_costs_of(IdlePolicy::default(), driver, 20);
    assert!((20..100).contains(&parks), "{parks} parks");
}
