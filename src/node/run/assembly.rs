//! What a site is made of: rings between actors, and for each core the actors that will be built on its thread.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::Instant;

use super::front::FrontActor;
use super::storage::Storage;
use super::{Extras, RunError};
use crate::base::*;
use crate::core::config::Role;
use crate::core::messages::{Executor, IoTarget};
use crate::core::nbd::Export;
use crate::core::outbox::{Event, LINK_CLOSES_MAX, LINK_CONTROL_MAX, Tables};
use crate::io::arena::{Arena, ArenaView};
use crate::io::disk::{DiskEdges, DiskExecutor, slots_of};
use crate::io::metadata::{MetadataEdges, MetadataExecutor, SharedSpace};
use crate::io::nbd::{CONNECTIONS_DEFAULT, FrontConfig, FrontEdges, NbdFront};
use crate::io::quic::LinkStats;
use crate::io::quic::connection::LinkConfig;
use crate::io::quic::identity::{Identity, IdentityError};
use crate::io::quic::link::{Link, LinkActor, LinkEdges};
use crate::io::quic::transport::PayloadSize;
use crate::io::ring::{ArenaId, Ring};
use crate::node::allocation::{Allocation, SharedMap};
use crate::node::config::{Config, Remote, Replication, Volume};
use crate::node::control::{AdminLine, GroupLine, Line, Lines, LinkLine, RoleSeen};
use crate::node::events::{Names, Patience};
use crate::node::group_actor::*;
use crate::reactor::{Actor, Clock, Loads, Port, edge, mesh};

/// Bytes in flight each way on the link: 0.9 GB/s, what one connection's cryptography does on a core, over 17 ms.
const LINK_WINDOW_BYTES: u32 = 16 << 20;

/// Builds an actor on the thread that will run it.
pub type Build = Box<dyn FnOnce(&mut Ring) -> Result<Box<dyn Actor<Ring>>, RunError> + Send>;

/// What a front of the caller's own needs beside its rings.
pub struct FrontPlace {
    /// Index of its table, and of its pages.
    pub front: usize,
    pub view: ArenaView,
    pub tables: Arc<Tables>,
    pub clock: Clock,
}

/// Whether the group could begin, and whether it had to end. Set on its reactor, read by the main thread.
#[derive(Debug, Default)]
pub struct Fate {
    recovered: AtomicBool,
    failed: AtomicBool,
    anew: AtomicBool,
    pub role: Arc<RoleSeen>,
}

impl Fate {
    fn note(&self, event: &Event) {
        match event {
            Event::Recovered { role, .. } => {
                self.role.set(*role);
                self.recovered.store(true, Release);
            }
            Event::RoleChanged { role } => self.role.set(*role),
            Event::HostsToGo => self.role.set_leaving(true),
            Event::LeavingAbandoned { .. } => self.role.set_leaving(false),
            Event::ThirdPromoted { stays: false, .. } => self.role.set_leaving(true),
            Event::Failed { .. } | Event::MetadataFailed { .. } | Event::RoleRefused { .. } => {
                self.failed.store(true, Release)
            }
            Event::StagedWhole { .. } => self.anew.store(true, Release),
            _ => {}
        }
    }

    pub fn recovered(&self) -> bool {
        self.recovered.load(Acquire)
    }

    pub fn failed(&self) -> bool {
        self.failed.load(Acquire)
    }

    /// Whether the site ended to start anew by itself.
    pub fn anew(&self) -> bool {
        self.anew.load(Acquire)
    }
}

pub struct Assembly {
    pub arena: Arc<Arena>,
    /// The main thread's port: for the control plane, and for stopping everything.
    pub main_port: Port,
    pub ports: BTreeMap<usize, Port>,
    /// What each CPU runs, in the order of a write's way.
    pub builds: BTreeMap<usize, Vec<Build>>,
    /// The figures of the peer's link, and a line to it.
    pub link: Option<(Arc<LinkStats>, LinkLine)>,
    /// Of the links beside the peer's, by their number.
    pub remotes: Vec<(Arc<LinkStats>, LinkLine)>,
    line: Option<Lines>,
    /// What became of the group.
    pub fate: Arc<Fate>,
    pub metadata: Option<MetadataExecutor>,
    /// What each snapshot keeps.
    pub space: SharedSpace,
}

impl Assembly {
    pub fn new(
        config: &Config,
        storage: Storage,
        clock: &Clock,
        Extras { front: extra, faults }: Extras,
    ) -> Result<Assembly, RunError> {
        let reactors = &config.reactors;
        let fronts = 1 + usize::from(extra.is_some());
        let pages =
            config.pages(fronts).expect("validation checked the cache's size for every number of fronts");
        let arena = Arena::new(pages)
            .and_then(|arena| arena.populate().map(|()| arena))
            .map_err(|source| RunError::Memory { bytes: config.cache_bytes, source })?;
        let group_config = config.group_config(pages, fronts);
        let tables = Arc::new(Tables::of(&group_config));

        let mut ports = mesh(2 + reactors.cores.len()).map_err(RunError::Ports)?;
        let main_port = ports.pop().expect("two more than there are cores");
        let metadata_port = ports.pop().expect("two more than there are cores");
        let ports: BTreeMap<usize, Port> = reactors.cores.iter().copied().zip(ports).collect();
        let (group, front) = (&ports[&reactors.group], &ports[&reactors.front]);
        let mut builds: BTreeMap<usize, Vec<Build>> = BTreeMap::new();
        let mut place = |cpu: usize, build: Build| builds.entry(cpu).or_default().push(build);

        let mut front_ends = Vec::new();
        let (ends, edges) = front_edge(group, front);
        front_ends.push(ends);
        let allocation = Allocation::new(config.volumes.iter().map(Volume::blocks));
        let nbd_front =
            nbd(config, (storage.role, &storage.sizes), &tables, &arena, edges, allocation.clone())?;
        let (front_questions, front_asked) = edge(QUESTIONS_MAX, &main_port, front);
        let (front_answers, front_answered) = edge(QUESTIONS_MAX, front, &main_port);
        let front_actor = FrontActor::new(nbd_front, front_asked, front_answers);
        place(reactors.front, Box::new(move |_| Ok(Box::new(front_actor))));
        if let Some(make) = extra {
            let (ends, edges) = front_edge(group, front);
            front_ends.push(ends);
            let place_of =
                FrontPlace { front: 1, view: arena.view(), tables: tables.clone(), clock: clock.clone() };
            place(reactors.front, Box::new(move |_| Ok(make(place_of, edges))));
        }

        let (questions, asked) = edge(QUESTIONS_MAX, &main_port, group);
        let (answers, answered) = edge(QUESTIONS_MAX, group, &main_port);
        let (journal, journal_edges) = disk_edge(Executor::Journal, group, group);
        let (volumes, volume_edges) = disk_edge(Executor::Volumes, group, &ports[&reactors.capture]);
        let (admin_requests, admin_asked) = edge(ADMIN_REQUESTS_MAX, &main_port, group);
        let (admin_replies, admin_answered) = edge(ADMIN_REQUESTS_MAX, group, &main_port);
        let admin_line = AdminLine::new(admin_requests, admin_answered);
        let (to_metadata, metadata_asked) = edge(METADATA_IO_SLOTS, group, &metadata_port);
        let (metadata_done, from_metadata) = edge(METADATA_IO_SLOTS, &metadata_port, group);
        let store = storage.metadata.into_store();
        let space = store.space();
        let metadata = MetadataExecutor::new(
            MetadataEdges { requests: metadata_asked, done: metadata_done },
            metadata_port,
            store,
            tables.clone(),
            arena.view(),
        );
        let mut link_builds = Vec::new();
        let mut peer_link = None;
        let mut link_ends = None;
        if let Some(pair) = &config.replication {
            let updates = WINDOW_UPDATES_MAX + CATCH_UP_SLOTS;
            let (ends, edges) = link_edge(group, &ports[&reactors.link], updates);
            let link = link(config, pair, edges, &tables, &arena, clock)?;
            let (line, build) = build_link(link, &main_port, &ports[&reactors.link]);
            (peer_link, link_ends) = (Some(line), Some(ends));
            link_builds.push(build);
        }
        let (mut remote_ends, mut remote_links) = (Vec::new(), Vec::new());
        for (index, remote) in config.remotes().enumerate() {
            let (ends, edges) = link_edge(group, &ports[&reactors.link], CATCH_UP_SLOTS);
            let link_config = remote_config(remote)?;
            let link =
                Link::new(&link_config, edges, arena.view(), tables.clone(), clock.clone())?.beside(index);
            let (line, build) = build_link(link, &main_port, &ports[&reactors.link]);
            remote_links.push(line);
            remote_ends.push(ends);
            link_builds.push(build);
        }

        let ends = GroupEnds {
            fronts: front_ends,
            link: link_ends,
            remotes: remote_ends,
            journal,
            volumes,
            metadata: MetadataEnds { requests: to_metadata, done: from_metadata },
            control: ControlEnds { questions: asked, answers, admin: admin_asked, admin_replies },
        };
        let names = Names::of(config);
        let fate = Arc::new(Fate::default());
        let fate_seen = fate.clone();
        let (group_tables, view) = (tables.clone(), arena.view());
        place(
            reactors.group,
            Box::new(move |_| {
                let mut patience = Patience::new(Instant::now());
                let herald = Box::new(move |event: &Event| {
                    fate_seen.note(event);
                    names.log(event, &mut patience);
                });
                Ok(Box::new(GroupActor::new(group_config, ends, view, group_tables, herald, allocation)))
            }),
        );
        for build in link_builds {
            place(reactors.link, build);
        }
        let mut journal_disks = vec![(IoTarget::Journal, storage.journal)];
        journal_disks.extend(storage.staging.map(|staging| (IoTarget::Staging, staging)));
        let executor = |executor, edges, disks, view: ArenaView, tables: Arc<Tables>| -> Build {
            let plan = faults.clone();
            Box::new(move |ring| {
                let arena = (ArenaId(0), view);
                Ok(Box::new(DiskExecutor::new(ring, executor, edges, tables, arena, disks, plan)?))
            })
        };
        place(
            reactors.group,
            executor(Executor::Journal, journal_edges, journal_disks, arena.view(), tables.clone()),
        );
        place(
            reactors.capture,
            executor(Executor::Volumes, volume_edges, storage.volumes, arena.view(), tables.clone()),
        );

        Ok(Assembly {
            arena,
            main_port,
            ports,
            builds,
            link: peer_link,
            remotes: remote_links,
            line: Some((
                Line::new(questions, answered),
                Line::new(front_questions, front_answered),
                admin_line,
            )),
            fate,
            metadata: Some(metadata),
            space,
        })
    }

    /// The control plane's line to the group; there is one.
    pub fn group_line(&mut self, clock: &Clock, loads: Vec<(usize, Arc<Loads>)>) -> GroupLine {
        let (group, front, admin) = self.line.take().expect("the lines are taken once");
        GroupLine::new(self.main_port.clone(), (group, front, admin), clock.clone(), loads)
    }
}

fn front_edge(group: &Port, front: &Port) -> (FrontEnds, FrontEdges) {
    let (to_group, requests) = edge(FRONT_TICKETS_MAX, front, group);
    let (replies, from_group) = edge(FRONT_TICKETS_MAX, group, front);
    let (granted, pages) = edge(STAGING_PAGES, group, front);
    (FrontEnds { requests, replies, pages: granted }, FrontEdges { to_group, from_group, pages })
}

/// For a link that may have so many updates to read.
fn link_edge(group: &Port, link: &Port, updates: usize) -> (LinkEnds, LinkEdges) {
    let (to_link, from_group) = edge(updates + LINK_CONTROL_MAX, group, link);
    let (to_group, messages) = edge(LINK_INBOUND_SLOTS, link, group);
    let (granted, pages) = edge(STAGING_PAGES, group, link);
    let (closes, closing) = edge(LINK_CLOSES_MAX, group, link);
    let ends = LinkEnds { messages, to_link, pages: granted, closes, begun: 0 };
    (ends, LinkEdges { from_group, closes: closing, to_group, pages })
}

fn disk_edge(executor: Executor, group: &Port, disks: &Port) -> (DiskEnds, DiskEdges) {
    let slots = slots_of(executor);
    let (requests, asked) = edge(slots, group, disks);
    let (results, done) = edge(slots, disks, group);
    (DiskEnds { requests, done }, DiskEdges { requests: asked, done: results })
}

fn nbd(
    config: &Config,
    (role, sizes): (Role, &VolumeSizes),
    tables: &Arc<Tables>,
    arena: &Arc<Arena>,
    edges: FrontEdges,
    allocation: Arc<Allocation>,
) -> Result<NbdFront, RunError> {
    let exports = (0u16..).zip(&config.volumes).map(|(index, volume)| Export {
        name: volume.name.clone(),
        volume: VolumeId(index),
        blocks: sizes.get(VolumeId(index)),
        read_only: role != Role::Primary,
    });
    let front = FrontConfig {
        unix: Some(config.nbd.socket.clone()),
        tcp: config.nbd.tcp,
        tcp_beyond_loopback: config.nbd.allow_unauthenticated_tcp,
        exports: exports.collect(),
        connections_max: CONNECTIONS_DEFAULT,
    };
    Ok(NbdFront::new(front, 0, tables.clone(), edges, arena.view(), Box::new(SharedMap(allocation)))?)
}

fn link(
    config: &Config,
    pair: &Replication,
    edges: LinkEdges,
    tables: &Arc<Tables>,
    arena: &Arc<Arena>,
    clock: &Clock,
) -> Result<Link<ArenaView>, RunError> {
    Ok(Link::new(&link_config(config, pair)?, edges, arena.view(), tables.clone(), clock.clone())?)
}

/// What builds a link's actor, and what is known of it: its figures, and a line from `here` to where it runs.
fn build_link(link: Link<ArenaView>, here: &Port, there: &Port) -> ((Arc<LinkStats>, LinkLine), Build) {
    let (questions, asked) = edge(QUESTIONS_MAX, here, there);
    let (answers, answered) = edge(QUESTIONS_MAX, there, here);
    let seen = (link.stats(), LinkLine::new(questions, answered));
    let build = move |ring: &mut Ring| -> Result<Box<dyn Actor<Ring>>, RunError> {
        let actor = LinkActor::new(link, ring).map_err(RunError::LinkSocket)?;
        Ok(Box::new(actor.answering(asked, answers)))
    };
    (seen, Box::new(build))
}

/// How this site meets its third, or a third what it pulls from.
fn remote_config(remote: &Remote) -> Result<LinkConfig, IdentityError> {
    Ok(LinkConfig {
        local: remote.link.listen,
        dial: remote.address,
        identity: Identity::load(&remote.link.identity)?,
        peer: remote.fingerprints,
        payload: remote.link.mtu.map_or(PayloadSize::Discover, PayloadSize::of_mtu),
        congestion: remote.link.congestion,
        window_bytes: LINK_WINDOW_BYTES,
    })
}

/// How this site meets its peer.
pub fn link_config(config: &Config, pair: &Replication) -> Result<LinkConfig, IdentityError> {
    // One of the two dials, whatever their roles become.
    let dials = config.site.id < pair.peer.id;
    Ok(LinkConfig {
        local: pair.link.listen,
        dial: dials.then_some(pair.peer.address),
        identity: Identity::load(&pair.link.identity)?,
        peer: pair.peer.fingerprints,
        payload: pair.link.mtu.map_or(PayloadSize::Discover, PayloadSize::of_mtu),
        congestion: pair.link.congestion,
        window_bytes: LINK_WINDOW_BYTES,
    })
}
