//! What administrators ask of a site's snapshots.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{Control, DifferentialShown, LineError, Response, SnapshotList, SnapshotShown};
use crate::base::{BLOCK_BYTES, NAME_BYTES_MAX, Nanos, UpdateNumber, VolumeId, VolumeSet};
use crate::core::group::status::DIFFERENTIAL_WARN_PERCENT;
use crate::core::messages::{AdminError, AdminOp};
use crate::format::snapshot::SnapshotName;
use crate::io::metadata::Space;
use crate::node::config::Config;
use crate::node::group_actor::SnapshotListed;

/// How often a request looks for its answer.
const LOOKS_EVERY: Duration = Duration::from_millis(1);

/// What the rings may add to the host deadline, by which the group answers.
const ANSWER_SLACK: Duration = Duration::from_secs(1);

/// What a list holds is brought up to the moment if that takes no longer than this; a busy site is behind.
const SWEEP_AWAITED_MAX: Duration = Duration::from_secs(1);

impl Control {
    pub fn snapshots(&self) -> Result<Vec<SnapshotShown>, LineError> {
        // What the list shows can be asked for at once.
        self.line().show_snapshots()?;
        let listed = self.line().snapshots()?;
        let space = self.space.get();
        Ok(listed.iter().map(|snapshot| self.shown(snapshot, &space)).collect())
    }

    /// The snapshots with what each keeps. What is settled by now is counted, unless the site is too busy for that.
    pub(super) fn list_snapshots(&self) -> Result<SnapshotList, LineError> {
        let asked = Instant::now();
        let settled = self.group_status()?.settled;
        self.line().sweep()?;
        let mut status = self.group_status()?;
        while status.checkpoint < settled && asked.elapsed() < SWEEP_AWAITED_MAX {
            std::thread::sleep(LOOKS_EVERY);
            status = self.group_status()?;
        }
        // A checkpoint comes after the commit, so that what is counted by now is never older than this status.
        let as_of = status.checkpoint.max(self.space.get().applied).0;
        let bytes = |blocks: u64| blocks * BLOCK_BYTES as u64;
        let (total, used) = (status.differential_blocks, status.differential_used_blocks);
        let used_percent = used * 100 / total.max(1);
        let differential = DifferentialShown {
            total_bytes: bytes(total),
            used_bytes: bytes(used),
            free_bytes: bytes(total - used),
            used_percent,
            filling: used_percent >= DIFFERENTIAL_WARN_PERCENT,
        };
        Ok(SnapshotList { snapshots: self.snapshots()?, as_of, differential })
    }

    fn shown(&self, SnapshotListed { record, readable }: &SnapshotListed, space: &Space) -> SnapshotShown {
        let volumes = self.config.volumes.iter().enumerate();
        SnapshotShown {
            name: record.name.as_str().to_owned(),
            number: record.number.0,
            taken_at_ns: record.taken_at_ns,
            volumes: volumes
                .filter(|(index, _)| record.volumes.contains(VolumeId(*index as u16)))
                .map(|(_, volume)| volume.name.clone())
                .collect(),
            protected: record.protected,
            readable: *readable,
            held_bytes: space.of(record.number) * BLOCK_BYTES as u64,
        }
    }

    pub(super) fn create_snapshot(
        &self,
        name: &str,
        volumes: &[String],
        protected: bool,
    ) -> Result<Response, LineError> {
        let name = match valid_name(name) {
            Ok(name) => name,
            Err(why) => return Ok(Response::Failed(why)),
        };
        let volumes = match self.volumes(volumes) {
            Ok(volumes) => volumes,
            Err(why) => return Ok(Response::Failed(why)),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let taken_at_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        self.administer(AdminOp::CreateSnapshot { name, volumes, protected, taken_at_ns })
    }

    pub(super) fn delete_snapshot(&self, name: &str) -> Result<Response, LineError> {
        self.administer_named(name, |snapshot| AdminOp::DeleteSnapshot { snapshot })
    }

    pub(super) fn protect_snapshot(&self, name: &str, protected: bool) -> Result<Response, LineError> {
        self.administer_named(name, |snapshot| AdminOp::ProtectSnapshot { snapshot, protected })
    }

    pub(super) fn administer_named(
        &self,
        name: &str,
        op: impl FnOnce(UpdateNumber) -> AdminOp,
    ) -> Result<Response, LineError> {
        let listed = self.line().snapshots()?;
        let Some(found) = listed.iter().find(|snapshot| snapshot.record.name.as_str() == name) else {
            return Ok(Response::Failed(format!(
                "there is no snapshot {name}; `lockstep snapshot list` shows what there is"
            )));
        };
        self.administer(op(found.record.number))
    }

    /// The set of the volumes named, all of them if none is.
    fn volumes(&self, names: &[String]) -> Result<VolumeSet, String> {
        if names.is_empty() {
            return Ok(VolumeSet::first(self.config.volumes.len()));
        }
        names.iter().try_fold(VolumeSet(0), |set, name| {
            match self.config.volumes.iter().position(|volume| volume.name == *name) {
                Some(index) => Ok(VolumeSet(set.0 | 1 << index)),
                None => Err(format!("group {} has no volume {name}", self.config.group.name)),
            }
        })
    }

    pub(super) fn administer(&self, op: AdminOp) -> Result<Response, LineError> {
        let at_most = answered_within(&self.config, &op);
        match self.carried_out(op, at_most)? {
            Ok(_) => {
                self.line().show_snapshots()?;
                Ok(Response::Done)
            }
            Err(error) => Ok(Response::Failed(error.to_string())),
        }
    }

    /// Waits for the outcome without keeping others from the group.
    pub(super) fn carried_out(
        &self,
        op: AdminOp,
        at_most: Duration,
    ) -> Result<Result<UpdateNumber, AdminError>, LineError> {
        let asked = Instant::now();
        let id = self.line().administer(op)?;
        while asked.elapsed() < at_most {
            // Apart from the match, so that nobody is kept from the line for as long as that takes.
            let outcome = self.line().administered(id)?;
            match outcome {
                Some(outcome) => return Ok(outcome),
                None => std::thread::sleep(LOOKS_EVERY),
            }
        }
        Err(LineError::Late(at_most))
    }
}

/// The longest that the group takes to say what became of it. A secondary that is to be sure by itself waits first until what it promised
/// its primary has run out.
fn answered_within(config: &Config, op: &AdminOp) -> Duration {
    let promised = match (op, config.peer_config()) {
        (AdminOp::Promote { fenced: false }, Some(peer)) => peer.promise_kept(),
        _ => Nanos(0),
    };
    Duration::from_nanos(promised.0) + Duration::from_nanos(config.group.host_deadline.0) + ANSWER_SLACK
}

/// A name that fits, and can stand behind a volume's in the name of an export.
fn valid_name(name: &str) -> Result<SnapshotName, String> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(format!(
            "a snapshot's name has 1 to {NAME_BYTES_MAX} bytes, this one has {}",
            name.len()
        ));
    }
    match name.chars().find(|c| c.is_control() || "@/".contains(*c)) {
        Some(wrong) => Err(format!("a snapshot's name cannot contain {wrong:?}")),
        None => Ok(SnapshotName::new(name)),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::node::config::SAMPLE;

    #[test]
    fn a_promotion_that_waits_for_a_promise_is_awaited_as_long() {
        let config = Config::parse(SAMPLE, Path::new("left.toml")).expect("the sample is correct");
        let within = |op| answered_within(&config, &op).as_millis();
        assert_eq!(within(AdminOp::Promote { fenced: true }), 31_000);
        // Four times 100 ms, and a sixteenth.
        assert_eq!(within(AdminOp::Promote { fenced: false }), 31_425);
        assert_eq!(within(AdminOp::Demote), 31_000);
    }
}
