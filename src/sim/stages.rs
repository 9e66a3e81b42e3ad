//! From the last fault to the end: lockstep again, calm operations, everything settled, stopped, and both volumes compared.

use crate::base::*;
use crate::core::config::Role;
use crate::core::group::Turn;
use crate::core::group::status::{GroupState, GroupStatus, PeerState, Standing};
use crate::sim::audit::{THIRD, peer_of};
use crate::sim::hosts::Front;
use crate::sim::network::PAIR;
use crate::sim::site::Site;
use crate::sim::stock;
use crate::sim::world::{Outcome, Stage, World};

const MS: u64 = 1_000_000;

/// Time for both sites to be in lockstep once nothing fails any more.
const HEAL_NS_MAX: u64 = 20_000 * MS;
/// Operations of the calm stage.
const CALM_OPERATIONS: u64 = 20;

impl World {
    pub(super) fn finished(&self) -> bool {
        matches!(self.stage, Stage::Stopping { .. }) && self.members().all(|site| self.stopped(site))
    }

    /// The sites that run.
    pub(super) fn members(&self) -> impl Iterator<Item = usize> + use<> {
        let last = if self.plan.has_peer() { self.sites.len() } else { 1 };
        if self.is_inherited() { THIRD..last } else { 0..last }
    }

    /// Those of them that are, or should be, in lockstep.
    pub(super) fn pair(&self) -> impl Iterator<Item = usize> + use<> {
        self.members().take(2)
    }

    pub(super) fn stopped(&self, site: usize) -> bool {
        let Site { group, disk, legs, journal_done, volume_done, metadata_done, .. } = &self.sites[site];
        group.as_ref().is_some_and(|group| group.stopped())
            && disk.in_flight() == 0
            && journal_done.is_empty()
            && volume_done.is_empty()
            && metadata_done.is_empty()
            && disk.metadata.is_idle()
            && legs.iter().all(|leg| leg.link.idle())
    }

    pub(super) fn status(&self, site: usize) -> Option<GroupStatus> {
        self.sites[site].group.as_ref().map(|group| group.status(Nanos(self.now)))
    }

    /// What of that is asked after every event.
    pub(super) fn standing(&self, site: usize) -> Option<Standing> {
        self.sites[site].group.as_ref().map(|group| group.standing())
    }

    fn all_status(&self) -> Vec<Option<GroupStatus>> {
        self.members().map(|site| self.status(site)).collect()
    }

    pub(super) fn in_lockstep(&self) -> bool {
        let Some(primary) = self.standing(self.home) else { return false };
        let serving = (primary.role, primary.state) == (Role::Primary, GroupState::Serving);
        if !self.plan.has_peer() {
            return serving && self.members().all(|site| self.alive(site));
        }
        serving
            && primary.peer == PeerState::InSync
            && !primary.solo
            && self.standing(peer_of(self.home)).is_some_and(|secondary| {
                (secondary.role, secondary.peer) == (Role::Secondary, PeerState::InSync)
            })
    }

    /// Whether the last faults are over in their effects too.
    pub(super) fn undisturbed(&self) -> bool {
        let under_way = self.members().any(|site| {
            let Site { disturbed_io_until, stops, journal_done, volume_done, .. } = &self.sites[site];
            self.now <= *disturbed_io_until
                || stops.is_some()
                || !journal_done.is_empty()
                || !volume_done.is_empty()
        });
        !under_way
            && self.now > self.operator_until
            && (!self.plan.has_peer() || self.is_inherited() || self.network.is_whole(PAIR, self.now))
    }

    pub(super) fn wake_fronts(&mut self) {
        for site in self.members() {
            for front in 0..self.sites[site].fronts.len() {
                self.sites[site].fronts[front].next_at = self.now;
                self.wake_front(site, front, self.now);
            }
        }
    }

    pub(super) fn settled(&self) -> bool {
        let idle = |site: usize| self.sites[site].fronts.iter().all(|front| front.outstanding() == 0);
        if !self.members().all(idle) || !(self.is_inherited() || self.third_has_all()) {
            return false;
        }
        self.pair().all(|site| {
            self.standing(site).is_some_and(|status| {
                status.settled.0 == self.audit.last() && status.checkpoint == status.settled
            })
        })
    }

    pub(super) fn advance_stage(&mut self) {
        let late = |until: u64| self.now > until;
        match self.stage {
            Stage::Working => {
                let faults_over = self.next_fault == self.plan.faults.len()
                    && self.armed.is_empty()
                    && self.disaster.is_none();
                if self.counts.submitted < self.plan.operations || !faults_over {
                    return;
                }
                self.trace.note(self.now, || "faults are over".into());
                self.end_faults();
                self.end_work();
                self.stage = Stage::Healing { until: self.now + HEAL_NS_MAX };
            }
            Stage::Healing { until } => {
                assert!(
                    !late(until),
                    "liveness: not in lockstep {HEAL_NS_MAX} ns after the last fault: {:#?}",
                    self.all_status()
                );
                let idle =
                    self.sites.iter().flat_map(|site| &site.fronts).all(|front| front.outstanding() == 0);
                if idle
                    && self.armed.is_empty()
                    && self.undisturbed()
                    && self.in_lockstep()
                    && self.third_follows()
                {
                    self.trace.note(self.now, || "in lockstep again".into());
                    // A third may be about to hear of what the pair shows.
                    self.check_sizes(self.pair());
                    let operations = self.counts.submitted + CALM_OPERATIONS;
                    self.stage = Stage::Calm { operations, until: self.now + HEAL_NS_MAX };
                    self.wake_fronts();
                }
            }
            Stage::Calm { operations, until } => {
                assert!(!late(until), "liveness: hosts cannot submit in lockstep");
                if self.counts.submitted >= operations {
                    self.rot.calm = 0;
                    self.stage = Stage::Settling { until: self.now + HEAL_NS_MAX };
                    self.wake_fronts();
                }
            }
            Stage::Settling { until } => {
                assert!(
                    !late(until),
                    "liveness: not settled {HEAL_NS_MAX} ns after the last operation, last is #{}: {:#?}",
                    self.audit.last(),
                    self.all_status()
                );
                if !self.settled() {
                    return;
                }
                if !self.is_inherited() {
                    self.check_sizes(self.members());
                }
                if !self.is_inherited() {
                    self.perhaps_rot_aside();
                    if !self.is_whole() {
                        return self.scrub_when_due();
                    }
                }
                if !self.perhaps_part() && !self.perhaps_inherit() {
                    self.trace.note(self.now, || "settled; stopping".into());
                    self.stage = Stage::Stopping { until: self.now + HEAL_NS_MAX };
                    for site in self.members() {
                        let Site { group, memory, tables, out, .. } = &mut self.sites[site];
                        let group = group.as_mut().expect("settled, so it runs");
                        group.stop(&mut Turn { now: Nanos(self.now), memory, tables, out });
                        self.wake_group(site, self.now);
                    }
                }
            }
            Stage::Parted { part, until } => {
                assert!(
                    !late(until),
                    "liveness: a split brain is not over, {part:?}: {:#?}",
                    self.all_status()
                );
                self.go_on_parted(part);
            }
            Stage::Inherited { step, until } => {
                assert!(
                    !late(until),
                    "liveness: a third has not taken over, {step:?}: {:#?}",
                    self.all_status()
                );
                self.go_on_inheriting(step);
            }
            Stage::Stopping { until } => {
                assert!(
                    !late(until),
                    "liveness: not stopped after {HEAL_NS_MAX} ns: {:#?}",
                    self.all_status()
                );
            }
        }
    }

    pub(super) fn end_faults(&mut self) {
        self.sites.iter_mut().for_each(|site| {
            site.slow_until = 0;
            site.errors = [None; 2];
        });
        for path in 0..self.network.paths() {
            self.network.calm(path);
            self.healed(path);
        }
    }

    pub(super) fn check_end(&mut self) -> Outcome {
        self.end_far();
        for site in self.members() {
            let follows = site == THIRD && !self.is_inherited();
            let upto = if follows { self.standing(site).map_or(0, |at| at.settled.0) } else { u64::MAX };
            if follows {
                self.audit.check_third_volumes(upto, &self.sites[site].disk);
            } else {
                self.audit.check_volumes(site, &self.sites[site].disk);
            }
            self.audit.check_snapshots(site, upto, &self.sites[site].disk);
            self.audit.check_sums(site, &self.sites[site].disk);
            let Site { group, memory, fronts, legs, out, .. } = &self.sites[site];
            let (free, used) = group.as_ref().expect("stopped, not dead").pages();
            let of_links = legs.iter().map(|leg| leg.link.pages_held()).sum::<usize>();
            let held = fronts.iter().map(Front::pages_held).sum::<usize>() + of_links;
            let status = self.status(site).expect("stopped, not dead");
            let kept = self.sites[site].disk.metadata.captured.len() as u64;
            assert_eq!(status.differential_used_blocks, kept, "site {site}: slots in use, and entries");
            self.outcome.repaired_blocks += status.counters.repaired_blocks;
            self.outcome.captured_blocks += status.counters.captured_blocks;
            self.outcome.reclaimed_blocks += status.counters.reclaimed_blocks;
            assert_eq!(free + used, self.plan.configs[site].pages as usize - 1, "site {site} lost pages");
            assert_eq!(memory.lent(), held, "site {site}: pages lent and pages held");
            // Nobody takes what is granted to the link of a third that is configured, and that no seed has.
            let untaken = out.remotes.iter().map(|remote| remote.pages.len()).sum::<usize>();
            assert_eq!(
                status.pages_staged as usize,
                held + untaken,
                "site {site}: pages granted and pages held"
            );
            assert_eq!(memory.pinned(), 0, "site {site}: pages still in use");
        }
        std::mem::take(&mut self.sites).into_iter().for_each(|site| stock::keep(site.tables));
        self.outcome.snapshots = self.audit.snapshots_taken() as u64;
        self.outcome.takeovers = self.audit.takeovers;
        (self.outcome.fed, self.outcome.lapsed) = (self.audit.fed, self.audit.lapsed);
        self.outcome.given_up = self.audit.given_up;
        self.outcome.copied_blocks = self.audit.copied_blocks;
        self.outcome.installs = self.audit.installs;
        self.outcome.installed_snapshots = self.audit.installed_snapshots;
        self.outcome.snapshot_reads = self.audit.snapshot_reads;
        self.outcome.changes_told = self.audit.changes_told;
        self.outcome.sent_by_value = self.audit.sent_by_value;
        self.outcome.hosts = self.counts;
        self.outcome.virtual_ns = self.now;
        self.outcome.updates = self.audit.last();
        self.outcome.acknowledged_writes = self.audit.acknowledged_writes;
        self.outcome.excused_writes = self.audit.excused_writes;
        self.outcome.solo_ranges = self.audit.solo_ranges() as u64;
        self.outcome.trace_hash = self.trace.hash();
        self.outcome
    }
}
