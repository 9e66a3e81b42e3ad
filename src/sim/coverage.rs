//! Coverage: which fault has met which state of a site. A campaign says little about what it never brought together.

use std::fmt::Write;

use crate::core::config::Role;
use crate::core::group::status::{DestageState, GroupState, GroupStatus, PeerState, SourceState};

/// What strikes a site. A fault of the network strikes both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Struck {
    Process,
    Power,
    Stop,
    SlowDisk,
    JournalError,
    VolumeError,
    Break,
    Garble,
    Partition,
    Gray,
}

const FAULTS: [(Struck, &str); 10] = [
    (Struck::Process, "process dies"),
    (Struck::Power, "power is lost"),
    (Struck::Stop, "is stopped"),
    (Struck::SlowDisk, "disks get slow"),
    (Struck::JournalError, "journal fails"),
    (Struck::VolumeError, "volume fails"),
    (Struck::Break, "connection breaks"),
    (Struck::Garble, "bits flip"),
    (Struck::Partition, "partition"),
    (Struck::Gray, "late bytes"),
];

/// A state, and whether a site is in it; it may be in several.
type State = (&'static str, fn(&GroupStatus) -> bool);

const STATES: [State; 17] = [
    ("recovering", |site| site.state == GroupState::Recovering),
    ("awaiting peer", |site| site.state == GroupState::AwaitingPeer),
    ("no peer", |site| running(site) && site.peer == PeerState::Disconnected),
    ("greeting", |site| running(site) && site.peer == PeerState::Greeting),
    ("reconciling", |site| running(site) && site.peer == PeerState::Reconciling),
    ("catching up", |site| running(site) && site.peer == PeerState::CatchingUp),
    ("resyncing", |site| running(site) && site.peer == PeerState::Resyncing),
    ("in lockstep", |site| running(site) && site.peer == PeerState::InSync),
    ("solo", |site| running(site) && site.solo),
    ("no source", |site| running(site) && !pulls(site) && !lapsed(site) && !copied_to(site)),
    ("pulling", pulls),
    ("lapsed", lapsed),
    ("copied to", copied_to),
    ("keeping", |site| site.destage == DestageState::Keeping),
    ("committing", |site| site.destage == DestageState::Committing),
    ("sweeping", |site| site.destage == DestageState::Sweeping),
    ("checkpointing", |site| site.destage == DestageState::Checkpointing),
];

const ROLES: [(Role, &str); 3] =
    [(Role::Primary, "primary"), (Role::Secondary, "secondary"), (Role::Third, "third")];

/// States that sites of a role are never in.
fn is_unreachable(role: Role, state: &str) -> bool {
    let of_third = matches!(state, "no source" | "pulling" | "lapsed" | "copied to");
    let of_disks = matches!(state, "recovering" | "keeping" | "committing" | "sweeping" | "checkpointing");
    match role {
        Role::Primary => of_third,
        // A secondary is there for its readers whoever is connected, and goes on alone only by becoming a primary.
        Role::Secondary => of_third || matches!(state, "awaiting peer" | "solo"),
        // A third has no peer.
        Role::Third => !of_third && !of_disks,
    }
}

fn pulls(site: &GroupStatus) -> bool {
    site.sources.iter().flatten().any(|source| source.state == SourceState::Pulling)
}

fn lapsed(site: &GroupStatus) -> bool {
    site.sources.iter().flatten().any(|source| source.state == SourceState::Lapsed)
}

fn copied_to(site: &GroupStatus) -> bool {
    site.sources.iter().flatten().any(|source| source.state == SourceState::Copying)
}

fn running(site: &GroupStatus) -> bool {
    matches!(site.state, GroupState::Serving | GroupState::AwaitingPeer)
}

/// How often each fault met each state, by role.
#[derive(Clone, Copy, Debug, Default)]
pub struct Coverage {
    cells: [[[u64; STATES.len()]; ROLES.len()]; FAULTS.len()],
}

impl Coverage {
    pub(super) fn strike(&mut self, fault: Struck, site: &GroupStatus) {
        let row = FAULTS.iter().position(|(kind, _)| *kind == fault).expect("all are listed");
        let role = ROLES.iter().position(|(role, _)| *role == site.role).expect("all are listed");
        for (cell, (_, holds)) in self.cells[row][role].iter_mut().zip(STATES) {
            *cell += u64::from(holds(site));
        }
    }

    pub fn add(&mut self, other: &Coverage) {
        let theirs = other.cells.iter().flatten().flatten();
        self.cells.iter_mut().flatten().flatten().zip(theirs).for_each(|(sum, count)| *sum += count);
    }

    /// A table of all cells; those that cannot be filled are dashes, and those that nothing has filled are counted below it.
    pub fn table(&self) -> String {
        let mut table = format!("{:28}", "");
        STATES.iter().for_each(|(state, _)| write!(table, " {state:>13}").expect("a string takes it"));
        let (mut cells, mut empty) = (0, Vec::new());
        for (row, (_, fault)) in self.cells.iter().zip(FAULTS) {
            for (counts, (role, of)) in row.iter().zip(ROLES) {
                write!(table, "\n{:28}", format!("{fault}, {of}")).expect("a string takes it");
                for (count, (state, _)) in counts.iter().zip(STATES) {
                    if is_unreachable(role, state) {
                        write!(table, " {:>13}", "-").expect("a string takes it");
                        continue;
                    }
                    cells += 1;
                    if *count == 0 {
                        empty.push(format!("{fault}, {of}, {state}"));
                    }
                    write!(table, " {count:>13}").expect("a string takes it");
                }
            }
        }
        write!(table, "\n{} of {cells} cells are empty", empty.len()).expect("a string takes it");
        empty.iter().for_each(|cell| write!(table, "\n  {cell}").expect("a string takes it"));
        table
    }
}
