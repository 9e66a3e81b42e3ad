//! Rolling back: a volume becomes what it was when a snapshot was taken, by ordinary writes, so that the secondary and every
//! older snapshot follow. Nobody else may have it open meanwhile.

use std::sync::TryLockError;

use super::{Control, LineError, Response};
use crate::base::{BLOCK_BYTES, VolumeSet};
use crate::core::config::Role;
use crate::core::messages::AdminOp;
use crate::io::nbd_client::{ClientError, ClientOptions, NbdClient, NbdUri};
use crate::node::load::{changes_seen_by, connect_since};

/// Bytes that are read and written back at a time.
const STEP_BYTES: u64 = 1 << 20;

/// Told how many bytes are written back, of how many.
pub(super) type Progress<'a> = &'a mut dyn FnMut(u64, u64);

#[derive(Debug, thiserror::Error)]
enum Wrong {
    #[error(transparent)]
    Line(#[from] LineError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{0}")]
    Refused(String),
}

/// Refuses hosts a set of volumes until it is dropped.
struct Hold<'a>(&'a Control);

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.line().hold(VolumeSet(0)) {
            tracing::error!("hosts stay locked out of what was rolled back: {error}");
        }
    }
}

impl Control {
    pub(super) fn rollback(&self, name: &str, volumes: &[String], progress: Progress<'_>) -> Response {
        let _alone = match self.rolling_back.try_lock() {
            Ok(alone) => alone,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return Response::Failed("another rollback is under way".to_owned());
            }
        };
        match self.roll_back(name, volumes, progress) {
            Ok(()) => Response::Done,
            Err(wrong) => Response::Failed(wrong.to_string()),
        }
    }

    fn roll_back(&self, name: &str, volumes: &[String], progress: Progress<'_>) -> Result<(), Wrong> {
        let refuse = |why: String| Err(Wrong::Refused(why));
        let role = self.group_status()?.role;
        if role != Role::Primary {
            return refuse(format!("this site is a {}; ask the primary", role.name()));
        }
        let snapshots = self.snapshots()?;
        let Some(snapshot) = snapshots.into_iter().find(|snapshot| snapshot.name == name) else {
            return refuse(format!(
                "there is no snapshot {name}; `lockstep snapshot list` shows what there is"
            ));
        };
        if let Some(other) = volumes.iter().find(|volume| !snapshot.volumes.contains(volume)) {
            return refuse(format!("snapshot {name} has no volume {other}"));
        }
        let wanted: Vec<&String> =
            if volumes.is_empty() { snapshot.volumes.iter() } else { volumes.iter() }.collect();
        // Making room for what is overwritten now must not delete what is being restored.
        if !snapshot.protected {
            self.change_protection(name, true)?;
        }
        let restored = self.restore_held(name, &wanted, progress);
        if snapshot.protected {
            return restored;
        }
        let unprotected = self.change_protection(name, false);
        match (restored, unprotected) {
            (restored, Ok(())) => restored,
            (restored, Err(wrong)) => Err(still_protected(name, &restored.err().unwrap_or(wrong))),
        }
    }

    fn change_protection(&self, name: &str, protected: bool) -> Result<(), Wrong> {
        match self.administer_named(name, |snapshot| AdminOp::ProtectSnapshot { snapshot, protected })? {
            Response::Failed(why) => Err(Wrong::Refused(why)),
            _ => Ok(()),
        }
    }

    fn restore_held(&self, name: &str, volumes: &[&String], progress: Progress<'_>) -> Result<(), Wrong> {
        let uri = |export: &str| NbdUri::unix(&self.config.nbd.socket, export);
        // Connected before others are refused; then nobody else may be.
        let mut clients = Vec::new();
        let mut held = VolumeSet(0);
        for volume in volumes {
            let index = self.config.volumes.iter().position(|configured| configured.name == **volume);
            let index = index.expect("a snapshot is of the group's volumes");
            held = VolumeSet(held.0 | 1 << index);
            clients.push(connect_since(&uri(volume), name)?);
        }
        let _hold = Hold(self);
        let found = self.line().hold(held)?;
        if found > clients.len() {
            let others = found - clients.len();
            return Err(Wrong::Refused(format!(
                "{others} connections of hosts have what is to be rolled back open; disconnect them first"
            )));
        }
        let mut changed = Vec::new();
        for client in &mut clients {
            changed.push(changes_seen_by(client, &mut |_, _| {})?);
        }
        let total = changed.iter().flatten().map(|extent| extent.end - extent.start).sum();
        let mut done = 0;
        for ((volume, client), extents) in volumes.iter().zip(&mut clients).zip(&changed) {
            let mut then = NbdClient::connect(&uri(&format!("{volume}@{name}")), ClientOptions::default())?;
            for extent in extents {
                let mut at = extent.start;
                while at < extent.end {
                    let length = (extent.end - at).min(STEP_BYTES);
                    let bytes = then.read(at, length as u32)?;
                    write_back(client, at, &bytes)?;
                    then.recycle(bytes);
                    (at, done) = (at + length, done + length);
                    progress(done, total);
                }
            }
            client.flush()?;
        }
        let names: Vec<&str> = volumes.iter().map(|volume| volume.as_str()).collect();
        tracing::info!(
            "rolled back to snapshot {name}: volume{} {}, {total} bytes were written back; hosts may connect again",
            if names.len() == 1 { "" } else { "s" },
            names.join(", ")
        );
        Ok(())
    }
}

/// The next rollback finds it protected, and leaves it so.
fn still_protected(name: &str, wrong: &Wrong) -> Wrong {
    Wrong::Refused(format!(
        "{wrong}; snapshot {name} stays protected, which it was not before: `lockstep snapshot unprotect {name}` lets it be deleted for \
         room again, once a rollback has ended well"
    ))
}

/// Blocks that were zeros become zeros again without their bytes going through the journal.
fn write_back(client: &mut NbdClient, offset: u64, bytes: &[u8]) -> Result<(), ClientError> {
    let zeros = |block: &[u8]| block.iter().all(|byte| *byte == 0);
    let mut at = offset;
    for run in runs(bytes, zeros) {
        match zeros(run) {
            true => client.write_zeroes(at, run.len() as u32)?,
            false => client.write(at, run, false)?,
        }
        at += run.len() as u64;
    }
    Ok(())
}

/// Cuts whole blocks where what `is` says of them changes.
fn runs(bytes: &[u8], is: impl Fn(&[u8]) -> bool) -> Vec<&[u8]> {
    let mut runs = Vec::new();
    let mut begun = 0;
    for border in (BLOCK_BYTES..=bytes.len()).step_by(BLOCK_BYTES) {
        let next = bytes.get(border..border + BLOCK_BYTES);
        let same = next.is_some_and(|next| is(next) == is(&bytes[border - BLOCK_BYTES..border]));
        if !same {
            runs.push(&bytes[begun..border]);
            begun = border;
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_cut_where_zeros_begin_and_end() {
        let mut bytes = vec![0; 5 * BLOCK_BYTES];
        bytes[BLOCK_BYTES + 7] = 1;
        bytes[2 * BLOCK_BYTES] = 1;
        let lengths = |bytes: &[u8]| -> Vec<usize> {
            let zeros = |block: &[u8]| block.iter().all(|byte| *byte == 0);
            runs(bytes, zeros).iter().map(|run| run.len() / BLOCK_BYTES).collect()
        };
        assert_eq!(lengths(&bytes), [1, 2, 2]);
        assert_eq!(lengths(&bytes[..BLOCK_BYTES]), [1]);
        assert_eq!(lengths(&[]), [0; 0]);
    }
}
