//! Snapshots that a primary takes by itself, and deletes when there are newer ones enough.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Control, LineError, Response, SnapshotShown};
use crate::core::config::Role;
use crate::node::config::Schedule;

/// How often schedules are looked at: the shortest interval there can be.
const LOOKS_EVERY: Duration = Duration::from_secs(1);

impl Control {
    /// Follows the configured schedules until the process ends, while this site is primary.
    pub fn follow_schedules(self: &Arc<Control>) -> std::io::Result<()> {
        if self.config.schedules.is_empty() {
            return Ok(());
        }
        let control = self.clone();
        std::thread::Builder::new().name("schedules".to_owned()).spawn(move || {
            let mut said = None;
            while !control.stopping() {
                let problem = control.follow_once();
                // A site that waits for its peer says so once.
                if problem != said
                    && let Some(problem) = &problem
                {
                    tracing::warn!("a scheduled snapshot: {problem}");
                }
                said = problem;
                std::thread::sleep(LOOKS_EVERY);
            }
        })?;
        Ok(())
    }

    /// Does what is due; returns what went wrong first.
    fn follow_once(&self) -> Option<String> {
        if self.role.get() != Some(Role::Primary) {
            return None;
        }
        let problems: Vec<String> =
            self.config.schedules.iter().filter_map(|schedule| self.follow(schedule).err()).collect();
        problems.into_iter().next()
    }

    fn follow(&self, schedule: &Schedule) -> Result<(), String> {
        let done = |response: Result<Response, LineError>| match response {
            Ok(Response::Failed(why)) => Err(why),
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        };
        let snapshots = || self.snapshots().map_err(|error| error.to_string());
        if let Some(name) = due(schedule, &snapshots()?, SystemTime::now()) {
            done(self.create_snapshot(&name, &schedule.volumes, false))?;
        }
        beyond(schedule, &snapshots()?).iter().try_for_each(|name| done(self.delete_snapshot(name)))
    }
}

/// The schedule's snapshots, oldest first, as they are listed.
fn taken_by<'a>(
    schedule: &Schedule,
    snapshots: &'a [SnapshotShown],
) -> impl DoubleEndedIterator<Item = &'a SnapshotShown> {
    snapshots.iter().filter(move |snapshot| belongs_to(schedule, &snapshot.name))
}

/// The name of the snapshot to take now: one in each interval since 1970, so that those of an hour are taken on the hour.
fn due(schedule: &Schedule, snapshots: &[SnapshotShown], now: SystemTime) -> Option<String> {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let interval = |at_ns: u64| at_ns / schedule.every.0;
    let current = interval(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
    let newest = taken_by(schedule, snapshots).next_back();
    let due = newest.is_none_or(|newest| interval(newest.taken_at_ns) < current);
    due.then(|| format!("{}-{}", schedule.name, utc(now.as_secs())))
}

/// What goes because there are newer ones enough; not what somebody has protected since.
fn beyond(schedule: &Schedule, snapshots: &[SnapshotShown]) -> Vec<String> {
    let unprotected: Vec<_> = taken_by(schedule, snapshots).filter(|snapshot| !snapshot.protected).collect();
    let beyond = unprotected.len().saturating_sub(schedule.keep);
    unprotected[..beyond].iter().map(|snapshot| snapshot.name.clone()).collect()
}

/// Whether a snapshot of this name is the schedule's: `NAME-20261126T184500Z`.
fn belongs_to(schedule: &Schedule, name: &str) -> bool {
    let Some(time) = name.strip_prefix(&schedule.name).and_then(|rest| rest.strip_prefix('-')) else {
        return false;
    };
    let shape = time.bytes().map(|byte| if byte.is_ascii_digit() { b'0' } else { byte });
    shape.eq(*b"00000000T000000Z")
}

/// A time in UTC as people read and sort it. The calendar's arithmetic is Howard Hinnant's `civil_from_days`.
fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Nanos;

    #[test]
    fn times_are_written_as_the_calendar_has_them() {
        let times = [0, 951_782_399, 951_782_400, 1_764_182_700, 4_107_542_399].map(utc);
        let due = [
            "19700101T000000Z",
            "20000228T235959Z",
            "20000229T000000Z",
            "20251126T184500Z",
            "21000228T235959Z",
        ];
        assert_eq!(times, due);
    }

    #[test]
    fn one_is_taken_an_interval_and_the_newest_are_kept() {
        let schedule = Schedule {
            name: "hourly".to_owned(),
            every: Nanos(3600 * 1_000_000_000),
            keep: 2,
            volumes: Vec::new(),
        };
        let shown = |name: &str, hour: u64, protected| SnapshotShown {
            name: name.to_owned(),
            number: hour,
            taken_at_ns: hour * schedule.every.0 + 1,
            volumes: Vec::new(),
            protected,
            readable: true,
            held_bytes: 0,
        };
        let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(seconds);
        let hour = |hour: u64| format!("hourly-{}", utc(hour * 3600));
        let foreign = shown("hourly-by-hand", 1, false);
        assert_eq!(due(&schedule, std::slice::from_ref(&foreign), at(7200)), Some(hour(2)));
        let mut list = vec![foreign, shown(&hour(1), 1, false), shown(&hour(2), 2, true)];
        assert_eq!(due(&schedule, &list, at(3 * 3600 - 1)), None, "the hour is not over");
        assert_eq!(due(&schedule, &list, at(3 * 3600)), Some(hour(3)));
        list.push(shown(&hour(3), 3, false));
        assert!(beyond(&schedule, &list).is_empty(), "a protected one does not count");
        list.push(shown(&hour(4), 4, false));
        assert_eq!(beyond(&schedule, &list), [hour(1)]);
    }
}
