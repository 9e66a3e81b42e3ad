//! Which of two sites that meet leads the other. Both decide it, from the same two hellos, and come to the same answer (INV-7).

use crate::base::{Generation, UpdateNumber};
use crate::core::config::Role;
use crate::core::history::common_point;
use crate::format::wire::Hello;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lead {
    Ours,
    Theirs,
    /// Neither is primary, or the one that says so is not any more: the other site has gone on since, and stepped down.
    Nobody,
    /// Both are primaries of a group that has no history to tell which of them is meant.
    BothConfigured,
    /// Each has what it promised without the other.
    SplitBrain,
}

/// How a site stands to the other's history.
#[derive(Clone, Copy)]
struct Side<'a> {
    hello: &'a Hello,
    common: UpdateNumber,
}

impl Side<'_> {
    fn is_primary(&self) -> bool {
        self.hello.role == Role::Primary
    }

    fn generation(&self) -> Generation {
        self.hello.history.last().map_or(Generation::NONE, |(generation, _)| generation)
    }

    fn knows(&self, generation: Generation) -> bool {
        generation == Generation::NONE || self.hello.history.iter().any(|(known, _)| known == generation)
    }

    /// Whether it loses nothing that it promised by itself if it drops what the other has not, or its operator wants that lost.
    fn yields_to(&self, other: &Side<'_>) -> bool {
        let Hello { last, settled, alone_upto, gives_way_to, .. } = *self.hello;
        let gives_way = gives_way_to != Generation::NONE && other.knows(gives_way_to);
        gives_way || last <= self.common || settled.max(alone_upto) <= self.common
    }

    /// Whether it has gone on since the other last heard of it.
    fn is_newer_than(&self, other: &Side<'_>) -> bool {
        match (self.knows(other.generation()), other.knows(self.generation())) {
            (true, false) => true,
            (false, true) => false,
            _ => self.generation() > other.generation(),
        }
    }
}

pub fn leader(ours: &Hello, theirs: &Hello) -> Lead {
    let common = common_point(&ours.history, ours.last, &theirs.history, theirs.last);
    let (we, they) = (Side { hello: ours, common }, Side { hello: theirs, common });
    let leads = |side: &Side<'_>| if side.hello.site == ours.site { Lead::Ours } else { Lead::Theirs };
    if we.generation() == they.generation() {
        return match (we.is_primary(), they.is_primary()) {
            (true, false) => Lead::Ours,
            (false, true) => Lead::Theirs,
            (false, false) => Lead::Nobody,
            (true, true) if we.generation() == Generation::NONE => Lead::BothConfigured,
            // The other one was about to open a generation of its own, and died before it did.
            (true, true) if we.generation().opener() == ours.site => Lead::Ours,
            (true, true) => Lead::Theirs,
        };
    }
    let (newer, older) = if we.is_newer_than(&they) { (we, they) } else { (they, we) };
    match (newer.is_primary(), older.is_primary()) {
        (false, false) => Lead::Nobody,
        (true, _) if older.yields_to(&newer) => leads(&newer),
        // It opened that generation itself, and has stepped down since.
        (false, true) if newer.generation().opener() == newer.hello.site && older.yields_to(&newer) => {
            Lead::Nobody
        }
        // It was about to take over, and died before it was alone.
        (_, true) if newer.yields_to(&older) => leads(&older),
        (true, false) if newer.yields_to(&older) => Lead::Nobody,
        (false, true) if older.yields_to(&newer) => Lead::Nobody,
        _ => Lead::SplitBrain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{BLOCK_BYTES, GroupId, Nanos, SiteId, VOLUMES_MAX};
    use crate::core::config::{AckLevel, DifferentialBy};
    use crate::format::history::History;
    use crate::format::wire::HelloVolume;

    /// Generations by count and opener.
    fn site(id: u16, role: Role, history: &[(u64, u16, u64)], last: u64, settled: u64, solo: bool) -> Hello {
        let mut entries = History::default();
        for &(count, opener, first) in history {
            entries.push(Generation(count << 16 | u64::from(opener)), UpdateNumber(first));
        }
        Hello {
            protocol_min: 1,
            protocol_max: 1,
            group: GroupId(1),
            site: SiteId(id),
            role,
            ack: AckLevel::Journaled,
            block_bytes: BLOCK_BYTES as u32,
            volumes: [HelloVolume::default(); VOLUMES_MAX],
            volume_count: 0,
            history: entries,
            last: UpdateNumber(last),
            last_generation: entries.last().map_or(Generation::NONE, |(generation, _)| generation),
            durable: UpdateNumber(last),
            settled: UpdateNumber(settled),
            checkpoint: UpdateNumber(0),
            journal_free_blocks: 0,
            window_blocks: 0,
            differential_blocks: 0,
            differential: DifferentialBy::Reference,
            alone_upto: UpdateNumber(if solo { last } else { 0 }),
            marks_after: UpdateNumber(u64::MAX),
            gives_way_to: Generation::NONE,
            solo,
            serving: false,
            alone: solo,
            suspends: false,
            read_lease: Nanos(0),
        }
    }

    /// What the first site decides; the second decides the same.
    fn decided(first: &Hello, second: &Hello) -> Lead {
        let mirrored = match leader(second, first) {
            Lead::Ours => Lead::Theirs,
            Lead::Theirs => Lead::Ours,
            other => other,
        };
        let lead = leader(first, second);
        assert_eq!(lead, mirrored, "{first:?} and {second:?}");
        lead
    }

    use Role::{Primary, Secondary};

    #[test]
    fn a_primary_leads_a_secondary_of_its_generation() {
        let old = site(1, Primary, &[(1, 1, 1)], 10, 8, false);
        assert_eq!(decided(&old, &site(2, Secondary, &[(1, 1, 1)], 12, 8, false)), Lead::Ours);
        assert_eq!(decided(&old, &site(2, Secondary, &[], 0, 0, false)), Lead::Ours);
        let restarted = site(1, Primary, &[(1, 1, 1), (2, 1, 11)], 11, 11, true);
        assert_eq!(decided(&restarted, &site(2, Secondary, &[(1, 1, 1)], 12, 8, false)), Lead::Ours);
    }

    #[test]
    fn who_took_over_leads_the_one_before() {
        let new = site(2, Primary, &[(1, 1, 1), (2, 2, 9)], 20, 20, true);
        assert_eq!(decided(&site(1, Primary, &[(1, 1, 1)], 14, 8, false), &new), Lead::Theirs);
        assert_eq!(decided(&site(1, Secondary, &[(1, 1, 1)], 14, 8, false), &new), Lead::Theirs);
        // It restarted meanwhile, and met nobody.
        assert_eq!(decided(&site(1, Primary, &[(1, 1, 1), (2, 1, 10)], 14, 8, false), &new), Lead::Theirs);
    }

    #[test]
    fn who_was_about_to_take_over_gives_way_to_a_primary_that_went_on_alone() {
        let died = site(2, Primary, &[(1, 1, 1), (2, 2, 9)], 9, 8, false);
        assert_eq!(decided(&site(1, Primary, &[(1, 1, 1)], 14, 14, true), &died), Lead::Ours);
        assert_eq!(decided(&site(1, Primary, &[(1, 1, 1)], 14, 8, false), &died), Lead::Theirs);
        let not_opened = site(2, Primary, &[(1, 1, 1)], 9, 8, false);
        assert_eq!(decided(&site(1, Primary, &[(1, 1, 1)], 14, 8, false), &not_opened), Lead::Ours);
    }

    #[test]
    fn two_that_each_went_on_alone_are_a_split_brain() {
        let first = site(1, Primary, &[(1, 1, 1)], 14, 14, true);
        let second = site(2, Primary, &[(1, 1, 1), (2, 2, 9)], 20, 20, true);
        assert_eq!(decided(&first, &second), Lead::SplitBrain);
        // Stepping down takes nothing back.
        let second = Hello { role: Secondary, solo: false, alone_upto: UpdateNumber(0), ..second };
        assert_eq!(decided(&first, &second), Lead::SplitBrain);
    }

    #[test]
    fn who_gives_way_is_led_by_whoever_it_gives_way_to() {
        let (old, new) = (Generation(1 << 16 | 1), Generation(2 << 16 | 2));
        let first = site(1, Primary, &[(1, 1, 1)], 14, 14, true);
        let second = site(2, Primary, &[(1, 1, 1), (2, 2, 9)], 20, 20, true);
        let gives =
            |hello: Hello, gives_way_to| Hello { role: Secondary, solo: false, gives_way_to, ..hello };
        assert_eq!(decided(&gives(first, new), &second), Lead::Theirs);
        assert_eq!(decided(&first, &gives(second, old)), Lead::Ours);
        // The one that it gives way to started again, or was formatted anew.
        let again = site(1, Primary, &[(1, 1, 1), (3, 1, 15)], 30, 30, true);
        assert_eq!(decided(&again, &gives(second, old)), Lead::Ours);
        let other = site(1, Primary, &[(4, 1, 1)], 30, 30, true);
        assert_eq!(decided(&other, &gives(second, old)), Lead::SplitBrain);
        assert_eq!(decided(&gives(first, new), &gives(second, old)), Lead::Nobody);
    }

    #[test]
    fn what_was_promised_alone_before_the_histories_part_is_no_obstacle() {
        let new = site(2, Primary, &[(1, 1, 1), (2, 2, 9)], 20, 20, true);
        let old = |alone_upto| Hello {
            alone_upto: UpdateNumber(alone_upto),
            ..site(1, Primary, &[(1, 1, 1)], 14, 6, false)
        };
        assert_eq!(decided(&old(8), &new), Lead::Theirs);
        assert_eq!(decided(&old(9), &new), Lead::SplitBrain);
    }

    #[test]
    fn nobody_leads_where_nobody_is_primary_any_more() {
        let second = site(2, Secondary, &[(1, 1, 1), (2, 2, 9)], 20, 20, false);
        assert_eq!(decided(&site(1, Primary, &[(1, 1, 1)], 8, 8, false), &second), Lead::Nobody);
        assert_eq!(decided(&site(1, Secondary, &[(1, 1, 1)], 8, 8, false), &second), Lead::Nobody);
        // Also where it could give up all that it had gone on with (seed 15053 of the simulator).
        let unsettled = site(2, Secondary, &[(1, 1, 1), (2, 2, 9)], 12, 8, false);
        assert_eq!(decided(&site(1, Primary, &[(1, 1, 1)], 8, 8, false), &unsettled), Lead::Nobody);
    }

    #[test]
    fn two_that_were_formatted_as_primaries_are_told_so() {
        let fresh = |id| site(id, Primary, &[], 0, 0, false);
        assert_eq!(decided(&fresh(1), &fresh(2)), Lead::BothConfigured);
        let used = site(2, Primary, &[(1, 2, 1)], 20, 20, true);
        assert_eq!(decided(&fresh(1), &used), Lead::Theirs);
    }
}
