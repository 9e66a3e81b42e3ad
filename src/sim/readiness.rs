//! What a site says of its third's delta, judged by who sees all disks; and losses of the other site, after which what it said is to come true.
//!
//! A site that is lost is dead, or cut off from everybody, until the survivor has given the third what it promised: for the two others it is lost
//! for good. `yes` has to stand whenever the survivor's journal has what the third lacks, unless what the survivor knows of the third keeps
//! it from that.

use crate::base::UpdateNumber;
use crate::core::group::status::{Delta, DestageState, GroupState, NoDelta, SourceState, SourceStatus};
use crate::sim::audit::{THIRD, peer_of};
use crate::sim::coverage::Struck;
use crate::sim::network;
use crate::sim::plan::{CRASHES_MAX, Crash};
use crate::sim::world::{Event, Stage, World};

const MS: u64 = 1_000_000;

/// What the survivor promised has come true in so much time in which the third was there.
const RESUME_NS_MAX: u64 = 5_000 * MS;

/// A site stays lost for no longer than this.
const LOST_NS_MAX: u64 = 20_000 * MS;

/// What both sites say is judged once in so many events.
const JUDGED_EVERY_EVENTS: u64 = 128;

/// How a site is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    Dead(Crash),
    CutOff,
}

/// A site is lost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Disaster {
    victim: usize,
    loss: Loss,
    /// What the third had then, and what the survivor has to give it.
    third_at: u64,
    target: u64,
    promised: bool,
    /// Since when the third lives, and nothing is between it and the survivor; and when to give up waiting for that.
    calm_since: u64,
    until: u64,
}

/// What was said of the delta, and what came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Readiness {
    /// Times that a site was asked, and of these those when it said yes, and when it could not and said no.
    pub judged: u64,
    pub yes: u64,
    pub no: u64,
    /// It said no, though its journal had what the third lacked: it had not heard the third since it started; the third had got further than it
    /// had said, or had lost what it had said; the superblock that lets go of it was on its way to the disk; the disk did not give it.
    pub unheard: u64,
    pub unknown: u64,
    pub letting_go: u64,
    pub unread: u64,
    /// It said yes to what the third had told, and the third had lost, or got, something else since.
    pub outdated: u64,
    /// Sites lost; of these, those when yes was said, and the third went on.
    pub disasters: u64,
    pub resumed: u64,
    /// It could not: hosts wrote more than the journal keeps, before it came.
    pub overrun: u64,
    /// It could not, since the survivor or the third died, they could not reach each other, or the disk did not give what it lacked.
    pub void: u64,
    /// No was said.
    pub refused: u64,
}

impl Readiness {
    pub fn add(&mut self, one: &Readiness) {
        let all = self;
        for (sum, value) in [
            (&mut all.judged, one.judged),
            (&mut all.yes, one.yes),
            (&mut all.no, one.no),
            (&mut all.unheard, one.unheard),
            (&mut all.unknown, one.unknown),
            (&mut all.letting_go, one.letting_go),
            (&mut all.unread, one.unread),
            (&mut all.outdated, one.outdated),
            (&mut all.disasters, one.disasters),
            (&mut all.resumed, one.resumed),
            (&mut all.overrun, one.overrun),
            (&mut all.void, one.void),
            (&mut all.refused, one.refused),
        ] {
            *sum += value;
        }
    }
}

impl World {
    /// What the third has: in memory if it runs, else in its journal.
    fn third_at(&self) -> u64 {
        let runs = self.standing(THIRD).filter(|third| third.state != GroupState::Recovering);
        runs.map_or_else(|| self.audit.third_written(), |third| third.last.0)
    }

    /// Whether a site that runs says that the third could go on from it; nothing of one that does not.
    fn judge_readiness(&mut self, site: usize) -> Option<bool> {
        let status = self.status(site)?;
        if matches!(status.state, GroupState::Recovering | GroupState::Failed | GroupState::Stopped) {
            return None;
        }
        let third = status.third.expect("each of the pair has a third");
        let at = self.third_at();
        let possible = self.audit.can_go_on(site, status.last.0, at);
        let seen = &mut self.outcome.readiness;
        seen.judged += 1;
        match (third.delta, possible) {
            (Delta::Yes { .. }, true) => seen.yes += 1,
            (Delta::No(_), false) => seen.no += 1,
            (Delta::Yes { updates, .. }, false) => {
                let known = UpdateNumber(status.last.0 - updates);
                assert!(
                    known.0 != at,
                    "readiness: site {site} says {:?} of a third at #{at}, and does not have what that lacks",
                    third.delta
                );
                seen.outdated += 1;
            }
            (Delta::No(NoDelta::Unheard), true) => seen.unheard += 1,
            (Delta::No(NoDelta::Lapsed), true) if third.position.0 < at => seen.unknown += 1,
            // It has lost what it had told that it has: with its memory, or with its disks.
            (Delta::No(NoDelta::Ahead), true) if third.position.0.max(self.audit.third_told()) > at => {
                seen.unknown += 1;
            }
            (Delta::No(NoDelta::Lapsed), true) if status.destage == DestageState::Checkpointing => {
                seen.letting_go += 1;
            }
            (Delta::No(NoDelta::Unread), true) if self.audit.does_without(site, at) => seen.unread += 1,
            (Delta::No(why), true) => {
                panic!(
                    "readiness: site {site} says no, {why:?}, of a third at #{at}, which it knows at {}, and its journal has all that it lacks",
                    third.position
                )
            }
        }
        Some(matches!(third.delta, Delta::Yes { .. }) && possible)
    }

    /// A site is lost, for all that the others can see.
    pub(super) fn lose_for_good(&mut self, victim: usize, loss: Loss) {
        let survivor = peer_of(victim);
        let may = self.stage == Stage::Working && self.disaster.is_none() && self.alive(victim);
        if !may || self.outcome.crashes >= CRASHES_MAX {
            return;
        }
        let third_at = self.third_at();
        let Some(promised) = self.judge_readiness(survivor) else { return };
        let target = self.standing(survivor).map_or(0, |status| status.settled.0);
        self.outcome.readiness.disasters += 1;
        self.trace.note(self.now, || {
            format!("site {victim} is lost; site {survivor} promised {promised} to a third at #{third_at}")
        });
        let (calm_since, until) = (self.now, self.now + LOST_NS_MAX);
        self.disaster = Some(Disaster { victim, loss, third_at, target, promised, calm_since, until });
        match loss {
            Loss::Dead(crash) => {
                self.cover(victim, if crash == Crash::Power { Struck::Power } else { Struck::Process });
                self.outcome.crashes += 1;
                self.end(victim, crash);
            }
            Loss::CutOff => {
                self.cover(victim, Struck::Partition);
                for end in network::ends_of(&self.plan, victim).collect::<Vec<_>>() {
                    self.partition(end.path, LOST_NS_MAX);
                }
            }
        }
        if victim == self.home {
            self.perhaps_promote(loss != Loss::CutOff);
        }
    }

    /// After each event: whether what was promised has come true.
    pub(super) fn watch_readiness(&mut self) {
        if self.plan.third.is_none() {
            return;
        }
        if self.stage == Stage::Working && self.outcome.events.is_multiple_of(JUDGED_EVERY_EVENTS) {
            for site in self.pair() {
                self.judge_readiness(site);
            }
        }
        let Some(disaster) = self.disaster else { return };
        let Disaster { victim, third_at, target, promised, calm_since, until, .. } = disaster;
        let survivor = peer_of(victim);
        let seen = &mut self.outcome.readiness;
        if !promised {
            seen.refused += 1;
            return self.end_disaster(disaster);
        }
        if !self.works(survivor) {
            self.outcome.readiness.void += 1;
            return self.end_disaster(disaster);
        }
        if self.standing(THIRD).is_some_and(|third| third.last.0 >= target) {
            self.outcome.readiness.resumed += 1;
            return self.end_disaster(disaster);
        }
        let status = self.status(THIRD);
        let at = |source: &SourceStatus| usize::from(source.site.0) == survivor + 1;
        let lapsed = |state| matches!(state, SourceState::Lapsed | SourceState::Copying);
        let told = status.is_some_and(|status| {
            status.sources.iter().flatten().any(|source| at(source) && lapsed(source.state))
        });
        if told && self.audit.does_without(survivor, third_at) {
            self.outcome.readiness.void += 1;
            return self.end_disaster(disaster);
        }
        if told {
            let kept_from = self.audit.kept_from(survivor);
            assert!(
                kept_from > third_at + 1,
                "readiness: site {survivor} promised what follows #{third_at}, its journal has what follows #{kept_from}, and the third has lapsed"
            );
            self.outcome.readiness.overrun += 1;
            return self.end_disaster(disaster);
        }
        let path = network::path_between(&self.plan, THIRD, survivor);
        if !self.works(THIRD) || self.network.is_partitioned(path, self.now) {
            self.disaster = Some(Disaster { calm_since: self.now, ..disaster });
        } else {
            assert!(
                self.now < calm_since + RESUME_NS_MAX,
                "readiness: site {survivor} promised what follows #{third_at} up to #{target}, and the third does not get it: {status:#?}"
            );
        }
        if self.now >= until {
            self.outcome.readiness.void += 1;
            self.end_disaster(disaster);
        }
    }

    fn works(&self, site: usize) -> bool {
        let stops = self.sites[site].stops.is_some();
        self.standing(site).is_some_and(|status| status.state != GroupState::Failed && !stops)
    }

    fn end_disaster(&mut self, Disaster { victim, loss, .. }: Disaster) {
        self.disaster = None;
        match loss {
            Loss::Dead(_) => {
                let down = self.third_rng.latency(self.plan.down_ns);
                self.schedule(self.now + down, Event::Restart { site: victim });
            }
            Loss::CutOff => {
                for end in network::ends_of(&self.plan, victim).collect::<Vec<_>>() {
                    self.end_partition(end.path);
                }
            }
        }
    }
}
