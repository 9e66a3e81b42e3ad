//! One site as the event loop holds it: its group, and everything around the group that a real site would have.

use std::collections::VecDeque;
use std::rc::Rc;

use crate::base::*;
use crate::core::group::Group;
use crate::core::messages::*;
use crate::core::outbox::{Outbox, Tables};
use crate::format::superblock::Superblock;
use crate::format::update::Update;
use crate::sim::audit::THIRD;
use crate::sim::audit::journal::Seen;
use crate::sim::disk::{Disk, IoId};
use crate::sim::hosts::Front;
use crate::sim::link::Link;
use crate::sim::memory::{SimMemory, Sums};
use crate::sim::metadata::Metadata;
use crate::sim::network::{self, End};
use crate::sim::plan::Plan;
use crate::sim::stock;
use crate::sim::upkeep::Stops;

/// The next time somebody is to be woken; an event with an older token is void.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Alarm {
    pub(super) at: Option<u64>,
    pub(super) token: u64,
}

/// A completion on its way to the group.
pub(super) struct Done {
    pub(super) ready: u64,
    pub(super) done: IoDone,
    /// The write it completes, which the next flush then covers.
    pub(super) write: Option<(IoTarget, IoId)>,
}

/// What a site has of a path to another site.
pub(super) struct Leg {
    pub(super) end: End,
    /// The number of its link as the group has them; none for that with the other of the pair.
    pub(super) remote: Option<usize>,
    pub(super) link: Link,
    pub(super) alarm: Alarm,
}

impl Leg {
    fn new(site: usize, leg: usize, end: End) -> Leg {
        let remote = if site == THIRD { Some(leg) } else { leg.checked_sub(1) };
        Leg { end, remote, link: Link::new(1), alarm: Alarm::default() }
    }
}

pub(super) struct Site {
    pub(super) group: Option<Box<Group>>,
    pub(super) memory: SimMemory,
    pub(super) tables: Tables,
    pub(super) out: Outbox,
    pub(super) disk: Disk,
    /// Its link with the other of the pair first.
    pub(super) legs: Vec<Leg>,
    pub(super) fronts: Vec<Front>,
    pub(super) journal_done: VecDeque<Done>,
    pub(super) volume_done: VecDeque<Done>,
    pub(super) metadata_done: VecDeque<(u64, MetadataDone)>,
    /// What administrators ask, on its way.
    pub(super) admin: VecDeque<(u64, AdminRequest)>,
    pub(super) incarnation: u32,
    pub(super) alarm: Alarm,
    pub(super) front_alarms: Vec<Alarm>,
    /// When each executor's ring is drained of what was pushed so far.
    pub(super) submitted_at: [u64; 2],
    /// Where this life's journal was last written.
    pub(super) batch_at: u64,
    pub(super) slow_until: u64,
    /// When the last I/O of a slow disk ends, and the last that fails.
    pub(super) disturbed_io_until: u64,
    /// Errors to inject: journal, volumes.
    pub(super) errors: [Option<i32>; 2],
    /// An operator has told it to stop.
    pub(super) stops: Option<Stops>,
    /// A read has failed in this life.
    pub(super) reads_failed: bool,
}

impl Site {
    pub(super) fn new(plan: &Plan, index: usize, volumes: &[u64], sums: &Rc<Sums>) -> Site {
        let config = &plan.configs[index];
        let disk = Site::formatted(plan, index, volumes);
        Site {
            group: None,
            memory: SimMemory::new(config.pages, sums),
            tables: stock::take(config),
            out: Outbox::of(config),
            disk,
            legs: network::ends_of(plan, index)
                .enumerate()
                .map(|(leg, end)| Leg::new(index, leg, end))
                .collect(),
            fronts: (0..config.fronts).map(|_| Front::new(index, plan.depth)).collect(),
            journal_done: VecDeque::new(),
            volume_done: VecDeque::new(),
            metadata_done: VecDeque::new(),
            admin: VecDeque::new(),
            incarnation: 0,
            alarm: Alarm::default(),
            front_alarms: vec![Alarm::default(); config.fronts],
            submitted_at: [0; 2],
            batch_at: 0,
            slow_until: 0,
            disturbed_io_until: 0,
            errors: [None; 2],
            stops: None,
            reads_failed: false,
        }
    }

    /// Disks as an operator's `format` leaves them.
    pub(super) fn formatted(plan: &Plan, index: usize, volumes: &[u64]) -> Disk {
        let config = &plan.configs[index];
        let mut disk = Disk::new(
            config.journal_blocks,
            config.journal_volatile,
            config.differential_blocks,
            config.resync.staging_blocks,
            volumes,
        );
        disk.metadata = Metadata::new(plan.snapshots.map_or(1, |plan| plan.reclaim_step));
        for sequence in 0..2 {
            let formatted = Superblock::formatted(
                config.group,
                config.site,
                config.role,
                sequence,
                config.journal_blocks,
                volumes,
            );
            let formatted = Superblock { sizes: plan.sizes(), ..formatted };
            let mut block = [0; BLOCK_BYTES];
            formatted.encode(&mut block);
            disk.put(IoTarget::Journal, formatted.slot(), &block);
        }
        disk
    }
}

/// An update as the auditor knows them.
pub fn seen(update: &Update) -> Seen {
    Seen {
        number: update.number.0,
        generation: update.generation.0,
        kind: update.kind as u8,
        volume: update.volume.0,
        lba: update.lba.0,
        count: update.count,
        slot: if update.captures() { update.slot.0 + 1 } else { 0 },
    }
}
