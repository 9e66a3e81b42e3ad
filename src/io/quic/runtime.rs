//! quinn's runtime on a reactor: a bounded set of tasks polled by the reactor's turn. Only quinn's own drivers are tasks
//! (one for the endpoint, one for each connection); the link polls its streams itself.
//!
//! quinn wants `Send + Sync`, so what tasks and reactor share is atomic; it is used from one thread, and so uncontended.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime};

use crate::base::Nanos;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Tasks at once: the endpoint's, the connection in use, and connections that are shaking hands or draining. The link
/// refuses connections before this runs out.
pub const TASKS_MAX: usize = 32;

/// Timers at once. Each connection has one, for as long as the link holds it, which may be longer than its task lives.
const TIMERS_MAX: usize = 64;

/// Task polls in one drain: an exchange needs about six, and the reactor has other actors.
const POLLS_A_DRAIN_MAX: usize = 64;

/// The ready bit of the link itself, above those of the tasks.
const LINK_BIT: u32 = 63;

/// The ready bit that says there are tasks to adopt.
const SPAWN_BIT: u32 = 62;

/// The ready bits of tasks.
const TASK_BITS: u64 = (1 << TASKS_MAX) - 1;

/// No task is being polled.
const NO_TASK: u32 = u32::MAX;

/// A timer that is not set.
const NEVER: u64 = u64::MAX;

/// How long a full socket buffer is left alone; at 10 Gb/s the kernel's default buffer empties in twice this.
const SEND_RETRY: Nanos = Nanos::from_micros(50);

/// A deadline, and the task to wake at it: none once it was woken.
#[derive(Debug)]
struct Timer {
    deadline: AtomicU64,
    task: AtomicU32,
}

/// What quinn's tasks, timers and sockets share with the reactor.
#[derive(Debug)]
pub(super) struct Shared {
    /// The instant of [`Nanos`] zero. Only differences matter: quinn sees no other clock.
    epoch: Instant,
    now: AtomicU64,
    /// A bit for each task that has been woken, and one for the link.
    ready: AtomicU64,
    polling: AtomicU32,
    spawned: ArrayQueue<Task>,
    timers: [Timer; TIMERS_MAX],
    /// Bits of the timers in use.
    timers_used: AtomicU64,
    /// Bits of the tasks that wait for room in the socket's send buffer, and when they try again.
    blocked: AtomicU64,
    blocked_until: AtomicU64,
}

impl Shared {
    fn now(&self) -> u64 {
        self.now.load(Relaxed)
    }

    pub(super) fn wake(&self, bit: u32) {
        self.ready.fetch_or(1 << bit, Release);
    }

    /// The task being polled. Timers and sockets are used from tasks only.
    pub(super) fn polling(&self) -> u32 {
        let task = self.polling.load(Relaxed);
        assert!(task != NO_TASK, "a timer or socket was polled outside of a task");
        task
    }

    /// Whether sending was refused a moment ago; the task being polled is then woken when it is to be tried again.
    pub(super) fn send_blocked(&self) -> bool {
        let blocked = self.blocked_until.load(Relaxed) != NEVER;
        if blocked {
            self.blocked.fetch_or(1 << self.polling(), Relaxed);
        }
        blocked
    }

    /// The send buffer is full.
    pub(super) fn block_send(&self) {
        self.blocked_until.store(self.now() + SEND_RETRY.0, Relaxed);
    }

    fn timers(&self) -> impl Iterator<Item = &Timer> {
        bits(self.timers_used.load(Relaxed)).map(|slot| &self.timers[slot as usize])
    }
}

/// The set bits of a word, lowest first.
fn bits(mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = word.trailing_zeros();
        word &= word.wrapping_sub(1);
        (bit < u64::BITS).then_some(bit)
    })
}

#[derive(Debug)]
struct TaskWaker {
    shared: Arc<Shared>,
    bit: u32,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.shared.wake(self.bit);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.shared.wake(self.bit);
    }
}

/// The handle quinn holds.
#[derive(Debug, Clone)]
pub(super) struct Handle(pub(super) Arc<Shared>);

impl Runtime for Handle {
    fn new_timer(&self, deadline: Instant) -> Pin<Box<dyn AsyncTimer>> {
        let slot = (!self.0.timers_used.load(Relaxed)).trailing_zeros();
        assert!((slot as usize) < TIMERS_MAX, "a connection has one timer, and the link holds few of them");
        self.0.timers_used.fetch_or(1 << slot, Relaxed);
        let mut timer = Box::pin(SlotTimer { shared: self.0.clone(), slot });
        timer.as_mut().reset(deadline);
        timer
    }

    fn spawn(&self, task: Task) {
        assert!(self.0.spawned.push(task).is_ok(), "the link leaves room for {TASKS_MAX} tasks");
        self.0.wake(SPAWN_BIT);
    }

    fn wrap_udp_socket(&self, _: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Err(io::Error::other("the link makes its own socket"))
    }

    fn now(&self) -> Instant {
        self.0.epoch + Duration::from_nanos(self.0.now())
    }
}

#[derive(Debug)]
struct SlotTimer {
    shared: Arc<Shared>,
    slot: u32,
}

impl SlotTimer {
    fn timer(&self) -> &Timer {
        &self.shared.timers[self.slot as usize]
    }
}

impl AsyncTimer for SlotTimer {
    fn reset(self: Pin<&mut Self>, deadline: Instant) {
        let nanos = deadline.saturating_duration_since(self.shared.epoch).as_nanos();
        self.timer().deadline.store(u64::try_from(nanos).unwrap_or(NEVER), Relaxed);
    }

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer();
        if timer.deadline.load(Relaxed) <= self.shared.now() {
            timer.deadline.store(NEVER, Relaxed);
            return Poll::Ready(());
        }
        timer.task.store(self.shared.polling(), Relaxed);
        Poll::Pending
    }
}

impl Drop for SlotTimer {
    fn drop(&mut self) {
        self.timer().deadline.store(NEVER, Relaxed);
        self.timer().task.store(NO_TASK, Relaxed);
        self.shared.timers_used.fetch_and(!(1 << self.slot), Relaxed);
    }
}

/// The reactor's side: owns the tasks and polls them.
pub(super) struct Executor {
    shared: Arc<Shared>,
    tasks: [Option<Task>; TASKS_MAX],
    wakers: [Waker; TASKS_MAX],
    link_waker: Waker,
}

impl Executor {
    pub fn new() -> Executor {
        let timer = || Timer { deadline: AtomicU64::new(NEVER), task: AtomicU32::new(NO_TASK) };
        let shared = Arc::new(Shared {
            epoch: Instant::now(),
            now: AtomicU64::new(0),
            ready: AtomicU64::new(0),
            polling: AtomicU32::new(NO_TASK),
            spawned: ArrayQueue::new(TASKS_MAX),
            timers: std::array::from_fn(|_| timer()),
            timers_used: AtomicU64::new(0),
            blocked: AtomicU64::new(0),
            blocked_until: AtomicU64::new(NEVER),
        });
        let waker = |bit| Waker::from(Arc::new(TaskWaker { shared: shared.clone(), bit }));
        Executor {
            tasks: std::array::from_fn(|_| None),
            wakers: std::array::from_fn(|bit| waker(bit as u32)),
            link_waker: waker(LINK_BIT),
            shared,
        }
    }

    pub(super) fn handle(&self) -> Arc<Handle> {
        Arc::new(Handle(self.shared.clone()))
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Sets the time quinn sees; it stands still within a turn.
    pub fn set_now(&mut self, now: Nanos) {
        self.shared.now.store(now.0, Relaxed);
    }

    /// The waker with which the link polls its streams; [`Executor::take_link_wake`] tells of its use.
    pub fn link_waker(&self) -> Waker {
        self.link_waker.clone()
    }

    /// Whether the link's waker was used since the last call.
    pub fn take_link_wake(&mut self) -> bool {
        let bit = 1 << LINK_BIT;
        self.shared.ready.load(Relaxed) & bit != 0 && self.shared.ready.fetch_and(!bit, Acquire) & bit != 0
    }

    /// Tasks that may still be spawned.
    pub fn room(&self) -> usize {
        self.tasks.iter().filter(|task| task.is_none()).count() - self.shared.spawned.len()
    }

    /// Whether a drain now would find work.
    pub fn ready(&self) -> bool {
        self.shared.ready.load(Acquire) != 0
    }

    /// When a drain is due though nothing happens.
    pub fn next_deadline(&self) -> Option<Nanos> {
        let waited_for = self.shared.timers().filter(|timer| timer.task.load(Relaxed) != NO_TASK);
        let timers = waited_for.map(|timer| timer.deadline.load(Relaxed));
        let first = timers.chain([self.shared.blocked_until.load(Relaxed)]).min()?;
        (first != NEVER).then_some(Nanos(first))
    }

    /// Polls what is due or woken, until nothing is or the turn's bound is reached. Returns whether anything was.
    pub fn drain(&mut self) -> bool {
        self.fire();
        let mut polls = 0;
        while polls < POLLS_A_DRAIN_MAX {
            // Most turns find nothing, and then a load is all it costs.
            if self.shared.ready.load(Relaxed) & !(1 << LINK_BIT) == 0 {
                break;
            }
            let woken = self.shared.ready.fetch_and(1 << LINK_BIT, Acquire);
            if woken & 1 << SPAWN_BIT != 0 {
                self.adopt();
            }
            for bit in bits(woken & TASK_BITS) {
                self.poll(bit);
                polls += 1;
            }
        }
        polls > 0
    }

    fn adopt(&mut self) {
        while let Some(task) = self.shared.spawned.pop() {
            let free = self.tasks.iter().position(|slot| slot.is_none());
            let free = free.expect("the link leaves room for the tasks it starts");
            self.tasks[free] = Some(task);
            self.shared.wake(free as u32);
        }
    }

    fn fire(&mut self) {
        let now = self.shared.now();
        for timer in self.shared.timers().filter(|timer| timer.deadline.load(Relaxed) <= now) {
            let task = timer.task.swap(NO_TASK, Relaxed);
            if task != NO_TASK {
                self.shared.wake(task);
            }
        }
        if self.shared.blocked_until.load(Relaxed) <= now {
            self.shared.blocked_until.store(NEVER, Relaxed);
            self.shared.ready.fetch_or(self.shared.blocked.swap(0, Relaxed), Relaxed);
        }
    }

    fn poll(&mut self, bit: u32) {
        let slot = bit as usize;
        // A waker may outlive its task; the next one in the slot is then polled once in vain.
        let Some(task) = &mut self.tasks[slot] else { return };
        self.shared.polling.store(bit, Relaxed);
        if task.as_mut().poll(&mut Context::from_waker(&self.wakers[slot])).is_ready() {
            self.tasks[slot] = None;
        }
        self.shared.polling.store(NO_TASK, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Spawns a task that counts its polls and ends when `done` says so.
    fn spawn(
        executor: &Executor,
        mut done: impl FnMut(&mut Context<'_>) -> bool + Send + 'static,
    ) -> Arc<AtomicUsize> {
        let polls = Arc::new(AtomicUsize::new(0));
        let counted = polls.clone();
        executor.handle().spawn(Box::pin(std::future::poll_fn(move |context| {
            counted.fetch_add(1, Ordering::Relaxed);
            if done(context) { Poll::Ready(()) } else { Poll::Pending }
        })));
        polls
    }

    fn count(polls: &AtomicUsize) -> usize {
        polls.load(Ordering::Relaxed)
    }

    #[test]
    fn a_task_is_polled_when_it_is_woken_and_freed_when_it_ends() {
        let mut executor = Executor::new();
        let waker = Arc::new(Mutex::new(None::<Waker>));
        let given = waker.clone();
        let polls = spawn(&executor, move |context| {
            *given.lock().unwrap() = Some(context.waker().clone());
            false
        });
        assert_eq!(executor.room(), TASKS_MAX - 1);
        assert!(executor.ready() && executor.drain());
        assert!(!executor.ready() && !executor.drain());
        let waker = waker.lock().unwrap().clone().unwrap();
        waker.wake_by_ref();
        waker.wake_by_ref();
        assert!(executor.ready() && executor.drain());
        assert_eq!(count(&polls), 2);
    }

    #[test]
    fn a_waker_that_outlives_its_task_does_no_harm() {
        let mut executor = Executor::new();
        let waker = Arc::new(Mutex::new(None::<Waker>));
        let given = waker.clone();
        let ended = spawn(&executor, move |context| {
            *given.lock().unwrap() = Some(context.waker().clone());
            true
        });
        executor.drain();
        assert_eq!(executor.room(), TASKS_MAX);
        let waker = waker.lock().unwrap().clone().unwrap();
        waker.wake_by_ref();
        executor.drain();
        let next = spawn(&executor, |_| false);
        executor.drain();
        waker.wake();
        executor.drain();
        assert_eq!((count(&ended), count(&next)), (1, 2), "the slot's next task is polled in vain");
    }

    #[test]
    fn a_drain_ends_though_tasks_wake_themselves() {
        let mut executor = Executor::new();
        let polls = spawn(&executor, |context| {
            context.waker().wake_by_ref();
            false
        });
        assert!(executor.drain());
        assert_eq!(count(&polls), POLLS_A_DRAIN_MAX);
        assert!(executor.ready(), "the rest is for the next turn");
    }

    #[test]
    fn the_link_is_woken_beside_the_tasks() {
        let mut executor = Executor::new();
        let waker = executor.link_waker();
        assert!(!executor.take_link_wake());
        waker.wake_by_ref();
        assert!(executor.ready());
        assert!(!executor.drain(), "the link is no task");
        assert!(executor.take_link_wake() && !executor.take_link_wake());
    }

    #[test]
    fn timers_fire_at_their_deadline_and_can_be_moved() {
        let mut executor = Executor::new();
        executor.set_now(Nanos(1_000));
        let handle = executor.handle();
        let (mut timer, mut fired) = (None, 0);
        let polls = spawn(&executor, move |context| {
            let soon = handle.now() + Duration::from_nanos(500);
            let timer = timer.get_or_insert_with(|| handle.new_timer(soon));
            while timer.as_mut().poll(context).is_ready() {
                fired += 1;
                if fired == 2 {
                    return true;
                }
                timer.as_mut().reset(soon);
            }
            false
        });
        executor.drain();
        assert_eq!(executor.next_deadline(), Some(Nanos(1_500)));
        executor.set_now(Nanos(1_499));
        assert!(!executor.drain());
        executor.set_now(Nanos(1_500));
        assert!(executor.drain());
        assert_eq!((count(&polls), executor.next_deadline()), (2, Some(Nanos(2_000))));
        executor.set_now(Nanos(2_600));
        assert!(executor.drain());
        assert_eq!((count(&polls), executor.next_deadline()), (3, None));
        assert_eq!(executor.shared.timers_used.load(Relaxed), 0, "an ended task's timer is given back");
    }

    #[test]
    fn what_cannot_be_sent_is_tried_again_after_a_moment() {
        let mut executor = Executor::new();
        let shared = executor.shared();
        executor.set_now(Nanos(0));
        let mut refused = false;
        let polls = spawn(&executor, move |_| {
            if !std::mem::replace(&mut refused, true) {
                shared.block_send();
            }
            !shared.send_blocked()
        });
        executor.drain();
        assert_eq!(executor.next_deadline(), Some(SEND_RETRY));
        assert!(!executor.drain());
        executor.set_now(SEND_RETRY);
        assert!(executor.drain());
        assert_eq!((count(&polls), executor.room(), executor.next_deadline()), (2, TASKS_MAX, None));
    }

    #[test]
    #[should_panic(expected = "leaves room")]
    fn more_tasks_than_there_is_room_for_are_a_broken_invariant() {
        let executor = Executor::new();
        (0..=TASKS_MAX).for_each(|_| drop(spawn(&executor, |_| true)));
    }
}
