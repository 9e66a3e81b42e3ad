//! Faults as they strike, and sites as they die and start again.

use crate::base::*;
use crate::core::group::{Group, Turn};
use crate::core::outbox::Outbox;
use crate::sim::audit::{PRIMARY, SECONDARY, THIRD, peer_of};
use crate::sim::coverage::Struck;
use crate::sim::far::{HOSTS_COME_AT, TICKETS};
use crate::sim::hosts::Front;
use crate::sim::link::Link;
use crate::sim::network::{End, PAIR};
use crate::sim::plan::{CRASHES_MAX, CRASHES_MIN, Crash, Fault};
use crate::sim::site::{Alarm, Leg, Site};
use crate::sim::world::{Event, Stage, World};

/// A crash that found no site alive is tried again after this many events.
const CRASH_AGAIN_EVENTS: u64 = 50;

impl World {
    pub(super) fn fire_armed(&mut self) {
        while let Some(planned) = self.plan.faults.get(self.next_fault)
            && self.counts.submitted >= planned.after_ops
        {
            self.armed.push((planned.events, planned.fault));
            self.next_fault += 1;
        }
        let mut due = Vec::new();
        self.armed.retain_mut(|(events, fault)| {
            if *events == 0 {
                due.push(*fault);
                return false;
            }
            *events -= 1;
            true
        });
        for fault in due {
            self.strike_unless_spared(fault);
        }
    }

    /// Strikes the armed fault that is next, if there is one.
    pub(super) fn strike_next(&mut self) -> bool {
        let next = (0..self.armed.len()).min_by_key(|&index| self.armed[index].0);
        let fault = next.map(|index| self.armed.remove(index).1);
        fault.into_iter().for_each(|fault| self.strike_unless_spared(fault));
        fault.is_some()
    }

    fn strike_unless_spared(&mut self, fault: Fault) {
        let spared = self.spared.contains(&self.strikes);
        let (strike, what) = (self.strikes, if spared { "spared" } else { "fault" });
        self.trace.note(self.now, || format!("{what} {strike}: {fault:?}"));
        self.strikes += 1;
        if !spared {
            self.strike(fault);
        }
    }

    fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::Third(fault) => self.strike_third(fault),
            Fault::Stop { site } => self.stop(site),
            Fault::Crash { site, crash } => {
                let other = peer_of(site);
                if !self.alive(site) && !self.alive(other) && self.outcome.crashes < CRASHES_MIN as u64 {
                    // Nobody is there to crash, and the seed is to have its crashes.
                    return self.armed.push((CRASH_AGAIN_EVENTS, fault));
                }
                let site = if self.alive(site) || !self.alive(other) { site } else { other };
                self.crash(site, crash);
            }
            Fault::CrashBoth { crashes } => {
                self.crash(PRIMARY, crashes[PRIMARY]);
                self.crash(SECONDARY, crashes[SECONDARY]);
            }
            Fault::SlowDisk { site, ns } => {
                self.cover(site, Struck::SlowDisk);
                self.sites[site].slow_until = self.now + ns;
            }
            Fault::DiskError { site, journal, errno } => {
                self.cover(site, if journal { Struck::JournalError } else { Struck::VolumeError });
                self.sites[site].errors[usize::from(!journal)] = Some(errno);
            }
            Fault::Break => {
                self.cover_both(Struck::Break);
                self.break_connection(PAIR);
            }
            Fault::Garble { site } => {
                self.cover_both(Struck::Garble);
                self.network.garble(End { path: PAIR, side: site });
            }
            Fault::Partition { ns } => {
                self.cover_both(Struck::Partition);
                self.partition(PAIR, ns);
                self.perhaps_promote(false);
            }
            Fault::Gray { delay_ns, ns } => {
                self.cover_both(Struck::Gray);
                self.network.gray(PAIR, delay_ns, self.now + ns);
            }
        }
    }

    pub(super) fn cover(&mut self, site: usize, fault: Struck) {
        if let Some(status) = self.status(site) {
            self.outcome.coverage.strike(fault, &status);
        }
    }

    fn cover_both(&mut self, fault: Struck) {
        self.pair().for_each(|site| self.cover(site, fault));
    }

    pub(super) fn crash(&mut self, index: usize, crash: Crash) {
        if !self.alive(index) {
            return;
        }
        let struck = if crash == Crash::Power { Struck::Power } else { Struck::Process };
        self.cover(index, struck);
        self.outcome.crashes += 1;
        self.end(index, crash);
        let down = self.rng.latency(self.plan.down_ns);
        let down = self.away_ns(index, down);
        self.schedule(self.now + down, Event::Restart { site: index });
        if index == self.home {
            self.perhaps_promote(true);
        } else if index != THIRD {
            self.perhaps_force(index);
        }
    }

    /// The site's process is over, in whatever it was doing.
    pub(super) fn end(&mut self, index: usize, crash: Crash) {
        let crash = self.crash_that_decides(index, crash);
        let site = &mut self.sites[index];
        site.group = None;
        site.stops = None;
        site.incarnation += 1;
        self.forget_orders(index);
        let site = &mut self.sites[index];
        // What a dead process had in flight disturbs nobody any more.
        site.disturbed_io_until = 0;
        match crash {
            Crash::Process => site.disk.crash_process(&mut self.rng),
            Crash::Power => site.disk.crash_power(&mut self.rng),
        }
        site.disk.metadata.crash(&mut self.snapshot_rng, &site.memory, &site.tables);
        let disk = &site.disk;
        self.audit.perhaps_adopt(index, disk);
        self.audit.of(index).crashed(index, disk);
        for leg in 0..self.sites[index].legs.len() {
            let Leg { end, link, .. } = &mut self.sites[index].legs[leg];
            let (end, link) = (*end, std::mem::replace(link, Link::new(1)));
            if let Some(connection) = link.connection() {
                self.abandon(end, connection);
            }
        }
    }

    /// Beside the faults of the plan, if there were not too many.
    pub(super) fn crash_soon(&mut self, site: usize, events: u64) {
        if self.outcome.crashes < CRASHES_MAX {
            let crash = if self.takeover_rng.once_in(2) { Crash::Power } else { Crash::Process };
            self.armed.push((events, Fault::Crash { site, crash }));
        }
    }

    pub(super) fn restart(&mut self, index: usize) {
        let site = &mut self.sites[index];
        assert!(site.group.is_none());
        match index {
            THIRD => self.perhaps_replace_third(),
            _ => self.perhaps_replace(index),
        }
        if !self.is_parted() && index != THIRD {
            self.perhaps_repair_tables(index);
        }
        self.audit.of(index).restarted(index);
        self.trace.note(self.now, || format!("site {index} starts"));
        let site = &mut self.sites[index];
        site.memory.restart();
        let ring = if self.plan.turn_messages == 1 { 1 } else { LINK_INBOUND_SLOTS };
        site.legs.iter_mut().for_each(|leg| leg.link = Link::new(ring));
        let tickets = if self.plan.far.is_some() { TICKETS } else { self.plan.depth };
        site.fronts = (0..site.fronts.len()).map(|_| Front::new(index, tickets)).collect();
        if self.plan.far.is_some() {
            site.fronts.iter_mut().for_each(|front| front.next_at = HOSTS_COME_AT);
        }
        site.journal_done.clear();
        site.volume_done.clear();
        site.metadata_done.clear();
        site.admin.clear();
        site.out = Outbox::of(&self.plan.configs[index]);
        site.submitted_at = [self.now; 2];
        site.errors = [None; 2];
        site.reads_failed = false;
        site.batch_at = 0;
        for alarm in std::iter::once(&mut site.alarm)
            .chain(site.legs.iter_mut().map(|leg| &mut leg.alarm))
            .chain(&mut site.front_alarms)
        {
            *alarm = Alarm { at: None, token: alarm.token + 1 };
        }
        let mut group = Box::new(Group::new(self.plan.configs[index].clone()));
        let Site { memory, tables, out, .. } = &mut self.sites[index];
        group.start(&mut Turn { now: Nanos(self.now), memory, tables, out });
        self.sites[index].group = Some(group);
        self.drain(index);
        self.wake_group(index, self.now);
        self.dial_at_once(index);
        self.perhaps_stop(index);
        if index == THIRD {
            return self.perhaps_crash_third_again();
        }
        if self.stage == Stage::Working
            && self.rng.percent(self.plan.crash_again_percent)
            && self.outcome.crashes < CRASHES_MAX
        {
            let crash = if self.rng.once_in(2) { Crash::Power } else { Crash::Process };
            self.armed.push((self.rng.below(600), Fault::Crash { site: index, crash }));
        }
    }

    /// A peer of the primary's has begun to catch up.
    pub(super) fn perhaps_crash_at_catch_up(&mut self) {
        let more = self.plan.crashes_at_catch_up > 0 && self.outcome.crashes < CRASHES_MAX;
        if more && self.stage == Stage::Working {
            self.plan.crashes_at_catch_up -= 1;
            let crash = Fault::Crash { site: self.home, crash: Crash::Power };
            self.armed.push((self.rng.below(200), crash));
        }
    }

    /// A site's journal begins anew at its ring's start.
    pub(super) fn perhaps_crash_at_wrap(&mut self, site: usize) {
        let more = self.plan.crashes_at_wrap > 0 && self.outcome.crashes < CRASHES_MAX;
        if more && self.stage == Stage::Working && site != THIRD {
            self.plan.crashes_at_wrap -= 1;
            self.armed.push((self.rng.below(40), Fault::Crash { site, crash: Crash::Power }));
        }
    }
}
