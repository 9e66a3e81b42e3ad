//! Volumes that become larger while hosts are connected.

use std::time::Duration;

use super::line::LineError;
use super::protocol::Response;
use super::server::Control;
use crate::base::{BLOCK_BYTES, VolumeId};
use crate::core::messages::{AdminError, AdminOp};

/// The group gives up before this.
const ANSWER_MAX: Duration = Duration::from_secs(90);

impl Control {
    /// Done when clients that connect here see it; those of the other site do a second later.
    pub(super) fn extend(&self, name: &str, bytes: u64) -> Result<Response, LineError> {
        let Some(volume) = self.config.volumes.iter().position(|volume| volume.name == name) else {
            let group = &self.config.group.name;
            return Ok(Response::Failed(format!("group {group} has no volume {name}")));
        };
        if !bytes.is_multiple_of(BLOCK_BYTES as u64) {
            return Ok(Response::Failed(format!("{bytes} bytes are not whole blocks of {BLOCK_BYTES}")));
        }
        let op = AdminOp::Extend { volume: VolumeId(volume as u16), blocks: bytes / BLOCK_BYTES as u64 };
        match self.carried_out(op, ANSWER_MAX)? {
            Ok(_) => {
                self.line().show_sizes()?;
                Ok(Response::Done)
            }
            Err(error) => Ok(Response::Failed(told(error))),
        }
    }
}

/// With what the system calls an error number.
fn told(error: AdminError) -> String {
    match error {
        AdminError::CannotReserve { errno } | AdminError::PeerCannotReserve { errno } => {
            format!("{error}: {}; no size is changed", std::io::Error::from_raw_os_error(errno))
        }
        error => error.to_string(),
    }
}
