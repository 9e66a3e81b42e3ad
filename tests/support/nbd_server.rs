//! The front over a group that is only memory, on reactors of its own threads.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use lockstep::base::*;
use lockstep::core::messages::*;
use lockstep::core::nbd::{AllAllocated, Export};
use lockstep::core::outbox::Tables;
use lockstep::io::arena::{Arena, ArenaView};
use lockstep::io::nbd::{FrontConfig, FrontEdges, NbdFront};
use lockstep::io::ring::{Ring, RingConfig};
use lockstep::reactor::*;

use crate::nbd_group::MemoryGroup;

#[derive(Clone, Debug)]
pub struct Setup {
    pub unix: Option<PathBuf>,
    pub tcp: bool,
    /// Name, blocks and whether it is read-only.
    pub exports: Vec<(String, u64, bool)>,
    pub connections_max: usize,
    /// Pages of the arena; as few as 32 for a front that is always short of them.
    pub pages: u32,
    /// How long the group keeps each request.
    pub hold: Nanos,
    pub failure: Option<HostError>,
    pub idle: IdlePolicy,
    /// The group on a thread of its own.
    pub apart: bool,
}

impl Setup {
    pub fn new(unix: PathBuf, blocks: u64) -> Setup {
        Setup {
            unix: Some(unix),
            tcp: false,
            exports: vec![("disk".into(), blocks, false)],
            connections_max: 512,
            pages: 4096,
            hold: Nanos(0),
            failure: None,
            idle: IdlePolicy::Park,
            apart: false,
        }
    }
}

pub struct Server {
    port: Port,
    threads: Vec<JoinHandle<()>>,
    pub tcp: Option<std::net::SocketAddr>,
    /// Requests the group has taken.
    pub taken: Arc<AtomicU64>,
}

impl Server {
    pub fn start(setup: &Setup) -> Server {
        let arena = Arena::new(setup.pages + 1).expect("memory");
        let ports = mesh(2).expect("file descriptors");
        let (front_port, group_port) = (&ports[0], &ports[usize::from(setup.apart)]);
        let tables = Arc::new(Tables::new(1));
        let (to_group, requests) = edge(FRONT_TICKETS_MAX, front_port, group_port);
        let (replies, from_group) = edge(FRONT_TICKETS_MAX, group_port, front_port);
        let (grants, pages) = edge(STAGING_PAGES, group_port, front_port);
        let exports = setup.exports.iter().enumerate();
        let exports = exports.map(|(index, (name, blocks, read_only))| Export {
            name: name.clone(),
            volume: VolumeId(index as u16),
            blocks: *blocks,
            read_only: *read_only,
        });
        let config = FrontConfig {
            unix: setup.unix.clone(),
            tcp: setup.tcp.then(|| "127.0.0.1:0".parse().expect("an address")),
            tcp_beyond_loopback: false,
            exports: exports.collect(),
            connections_max: setup.connections_max,
        };
        let edges = FrontEdges { to_group, from_group, pages };
        let front = NbdFront::new(config, 0, tables.clone(), edges, arena.view(), Box::new(AllAllocated));
        let front = front.expect("the front listens");
        let tcp = front.tcp_address();
        let sizes: Vec<u64> = setup.exports.iter().map(|(_, blocks, _)| *blocks).collect();
        let taken = Arc::new(AtomicU64::new(0));
        let mut memory = MemoryGroup::new(&sizes, setup.pages);
        memory.failure = setup.failure;
        let group = GroupActor {
            memory,
            view: arena.view(),
            tables,
            requests,
            replies,
            grants,
            with_front: 0,
            hold: setup.hold,
            held: Default::default(),
            taken: taken.clone(),
            stopping: false,
        };
        let clock = Clock::new();
        let idle = setup.idle;
        let mut threads = Vec::new();
        if setup.apart {
            let add = |reactor: &mut Reactor<Ring>| reactor.add(group);
            threads.push(spawn(ports[1].clone(), arena.clone(), clock.clone(), idle, add));
            threads.push(spawn(ports[0].clone(), arena, clock, idle, |reactor| reactor.add(front)));
        } else {
            let add = |reactor: &mut Reactor<Ring>| {
                reactor.add(front);
                reactor.add(group);
            };
            threads.push(spawn(ports[0].clone(), arena, clock, idle, add));
        }
        Server { port: ports[0].clone(), threads, tcp, taken }
    }

    /// Stops everything and fails if a reactor panicked: front and group check that nothing is left behind.
    pub fn stop(self) {
        self.port.request_stop();
        for thread in self.threads {
            thread.join().expect("no reactor panics");
        }
    }
}

fn spawn(
    port: Port,
    arena: Arc<Arena>,
    clock: Clock,
    idle: IdlePolicy,
    add: impl FnOnce(&mut Reactor<Ring>) + Send + 'static,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let ring = Ring::new(RingConfig::new(vec![arena]), clock, port.clone()).expect("io_uring");
        let mut reactor = Reactor::new(port, ring, idle, Arc::new(Loads::default()));
        add(&mut reactor);
        drop(reactor.run());
    })
}

struct GroupActor {
    memory: MemoryGroup,
    view: ArenaView,
    tables: Arc<Tables>,
    requests: Receiver<HostRequest>,
    replies: Sender<HostReply>,
    grants: Sender<PageId>,
    /// Pages the front has or is being given.
    with_front: usize,
    hold: Nanos,
    held: std::collections::VecDeque<(Nanos, HostRequest)>,
    taken: Arc<AtomicU64>,
    stopping: bool,
}

impl GroupActor {
    fn answer(&mut self, request: HostRequest) {
        let before = self.memory.free.len();
        let reply = self.memory.handle(&mut self.view, &self.tables.fronts[0], request);
        self.with_front -= self.memory.free.len() - before;
        self.replies.push(reply);
    }
}

impl Actor<Ring> for GroupActor {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn turn(&mut self, now: Nanos, _driver: &mut Ring) -> bool {
        let mut worked = false;
        for _ in 0..TURN_MESSAGES_MAX {
            let Some(request) = self.requests.pop() else { break };
            worked = true;
            self.taken.fetch_add(1, Ordering::Relaxed);
            if self.hold == Nanos(0) {
                self.answer(request);
            } else {
                self.held.push_back((now.plus(self.hold), request));
            }
        }
        while self.held.front().is_some_and(|(due, _)| *due <= now) {
            let (_, request) = self.held.pop_front().expect("it has a front");
            self.answer(request);
            worked = true;
        }
        while self.with_front < STAGING_PAGES
            && let Some(page) = self.memory.free.pop()
        {
            self.grants.push(page);
            self.with_front += 1;
            worked = true;
        }
        worked
    }

    fn complete(&mut self, _now: Nanos, _driver: &mut Ring, completion: Completion) {
        panic!("{completion:?} of nothing");
    }

    fn ready(&self) -> bool {
        !self.requests.is_empty() || (self.with_front < STAGING_PAGES && !self.memory.free.is_empty())
    }

    fn deadline(&self) -> Option<Nanos> {
        self.held.front().map(|(due, _)| *due)
    }

    fn stop(&mut self, _now: Nanos) {
        self.stopping = true;
    }

    fn stopped(&self) -> bool {
        let stopped = self.stopping && self.requests.is_closed() && self.held.is_empty();
        let answered = self.memory.requests == self.taken.load(Ordering::Relaxed);
        assert!(!stopped || answered, "what was taken was not answered");
        stopped
    }
}
