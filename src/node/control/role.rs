//! What follows from a site's role beside the group: whether its volumes can be written to, and commands that change it.

use std::sync::atomic::{AtomicU8, Ordering::AcqRel, Ordering::Acquire};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

use super::{Control, LineError, Response};
use crate::core::config::Role;
use crate::core::messages::AdminOp;

/// The watcher looks this often although nobody has told it of anything: whether the site stops.
const LOOKS_EVERY: Duration = Duration::from_secs(1);

/// Pause between looks for what a turn of the group's reactor brings.
const TURNS_EVERY: Duration = Duration::from_micros(100);

/// Longest that a group which has answered takes to tell what it is.
const TOLD_MAX: Duration = Duration::from_secs(1);

/// The group's role as its reactor last told it.
#[derive(Debug, Default)]
pub struct RoleSeen {
    /// 0 as long as nothing is known.
    role: AtomicU8,
    watcher: OnceLock<Thread>,
}

impl RoleSeen {
    /// Called on the reactor; waking a thread does not block.
    pub fn set(&self, role: Role) {
        if self.role.swap(role as u8, AcqRel) != role as u8
            && let Some(watcher) = self.watcher.get()
        {
            watcher.unpark();
        }
    }

    pub fn get(&self) -> Option<Role> {
        match self.role.load(Acquire) {
            role if role == Role::Primary as u8 => Some(Role::Primary),
            role if role == Role::Secondary as u8 => Some(Role::Secondary),
            _ => None,
        }
    }
}

impl Control {
    /// Keeps the exports what the role lets them be, until the process ends.
    pub fn follow_role(self: &Arc<Control>) -> std::io::Result<()> {
        let control = self.clone();
        let watcher = std::thread::Builder::new().name("role".to_owned()).spawn(move || {
            let mut applied = None;
            while !control.stopping() {
                let role = control.role.get();
                if role != applied {
                    match control.apply_role() {
                        Ok(()) => applied = role,
                        Err(LineError::Ended) => return,
                        Err(error) => tracing::error!("hosts do not know the site's role yet: {error}"),
                    }
                }
                std::thread::park_timeout(LOOKS_EVERY);
            }
        })?;
        let _ = self.role.watcher.set(watcher.thread().clone());
        Ok(())
    }

    /// Tells the front what hosts may do. Those that came when they might do something else have to come again.
    fn apply_role(&self) -> Result<(), LineError> {
        let mut line = self.line();
        // Asked for under the line's lock, so that the last one to tell the front tells it the last role.
        let Some(role) = self.role.get() else { return Ok(()) };
        let clients = line.read_only(role == Role::Secondary)?;
        if clients > 0 {
            tracing::info!(
                "{clients} connections of hosts are closed: they were made before the site's role changed"
            );
        }
        Ok(())
    }

    pub(super) fn promote(&self, fenced: bool) -> Result<Response, LineError> {
        let response = self.administer(AdminOp::Promote { fenced })?;
        if let Response::Done = response {
            let answered = Instant::now();
            while self.role.get() != Some(Role::Primary) && answered.elapsed() < TOLD_MAX {
                std::thread::sleep(TURNS_EVERY);
            }
            self.apply_role()?;
        }
        Ok(response)
    }
}
