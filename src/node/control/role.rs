//! What follows from a site's role beside the group: whether its volumes can be written to, and commands that change it.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::AcqRel, Ordering::Acquire};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

use super::third::loss;
use super::{Control, LineError, Response};
use crate::core::config::Role;
use crate::core::messages::AdminOp;

/// The watcher looks this often although nobody has told it of anything: whether the site stops.
const LOOKS_EVERY: Duration = Duration::from_secs(1);

/// Pause between looks for what a turn of the group's reactor brings.
const TURNS_EVERY: Duration = Duration::from_micros(100);

/// Longest that a group which has answered takes to tell what it is.
const TOLD_MAX: Duration = Duration::from_secs(1);

/// Longest that the program of `site.on_role_change` may run: what it is to move are addresses and mounts.
const HOOK_MAX: Duration = Duration::from_secs(30);

/// Pause between looks whether it has ended.
const HOOK_LOOKS_EVERY: Duration = Duration::from_millis(50);

/// Waits for the program, and ends it when it takes too long.
fn watch(mut child: Child) {
    let begun = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return,
            Ok(Some(status)) => return tracing::error!("site.on_role_change ended with {status}"),
            Ok(None) if begun.elapsed() < HOOK_MAX => std::thread::sleep(HOOK_LOOKS_EVERY),
            _ => break,
        }
    }
    tracing::error!("site.on_role_change has not ended in {} s, and is killed", HOOK_MAX.as_secs());
    let _ = child.kill();
    let _ = child.wait();
}

/// The group's role as its reactor last told it.
#[derive(Debug, Default)]
pub struct RoleSeen {
    /// 0 as long as nothing is known.
    role: AtomicU8,
    /// What it was first: a site may be something else a moment after its start, before anybody has looked.
    began_as: AtomicU8,
    /// A primary that is about to be none any more.
    leaving: AtomicBool,
    watcher: OnceLock<Thread>,
}

impl RoleSeen {
    /// Called on the reactor; waking a thread does not block.
    pub fn set(&self, role: Role) {
        let _ = self.began_as.compare_exchange(0, role as u8, AcqRel, Acquire);
        let left = self.leaving.swap(false, AcqRel);
        if self.role.swap(role as u8, AcqRel) != role as u8 || left {
            self.wake();
        }
    }

    /// Called on the reactor as well.
    pub fn set_leaving(&self, leaving: bool) {
        if self.leaving.swap(leaving, AcqRel) != leaving {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(watcher) = self.watcher.get() {
            watcher.unpark();
        }
    }

    fn is_leaving(&self) -> bool {
        self.leaving.load(Acquire)
    }

    pub fn get(&self) -> Option<Role> {
        Role::from_code(self.role.load(Acquire))
    }

    fn began_as(&self) -> Option<Role> {
        Role::from_code(self.began_as.load(Acquire))
    }
}

impl Control {
    /// Keeps the exports what the role lets them be, until the process ends.
    pub fn follow_role(self: &Arc<Control>) -> std::io::Result<()> {
        let control = self.clone();
        let watcher = std::thread::Builder::new().name("role".to_owned()).spawn(move || {
            let mut applied = (None, false);
            while !control.stopping() {
                let (role, leaving) = (control.role.get(), control.role.is_leaving());
                if (role, leaving) != applied {
                    match control.apply_role() {
                        Ok(()) => {
                            // What a site starts as is no change.
                            let before = applied.0.or_else(|| control.role.began_as());
                            if let (Some(before), Some(role)) = (before, role)
                                && before != role
                            {
                                control.tell_of_role(role);
                            }
                            applied = (role, leaving);
                        }
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
        let leaving = self.role.is_leaving();
        // Whoever comes to a new primary is to see all that hosts of the old one saw.
        line.show_sizes()?;
        let clients = line.read_only(leaving || role != Role::Primary)?;
        if leaving {
            // Nobody waits for the answer: without it the group goes on a little later.
            line.administer(AdminOp::HostsGone)?;
        }
        if clients > 0 {
            tracing::info!(
                "{clients} connections of hosts are closed: they were made before the site's role changed"
            );
        }
        Ok(())
    }

    /// Runs the configured program beside everything else.
    fn tell_of_role(self: &Arc<Control>, role: Role) {
        let Some((program, arguments)) = self.config.site.on_role_change.split_first() else { return };
        let name = role.name();
        let started = Command::new(program)
            .args(arguments)
            .env("LOCKSTEP_ROLE", name)
            .env("LOCKSTEP_SITE", &self.config.site.name)
            .env("LOCKSTEP_GROUP", &self.config.group.name)
            .env("LOCKSTEP_CONFIG", &self.config.file)
            .stdin(Stdio::null())
            .spawn();
        let ended = started.and_then(|child| {
            let watch = move || watch(child);
            std::thread::Builder::new().name("role change".to_owned()).spawn(watch)
        });
        if let Err(error) = ended {
            tracing::error!("site.on_role_change: {program} cannot be run: {error}");
        }
    }

    pub(super) fn promote(&self, fenced: bool, accepted: Option<u64>) -> Result<Response, LineError> {
        let status = self.group_status()?;
        if status.role != Role::Third {
            return self.change_role(AdminOp::Promote { fenced }, Some(Role::Primary));
        }
        let response = self.change_role(AdminOp::PromoteThird { fenced, accepted }, Some(Role::Primary))?;
        Ok(match response {
            Response::Failed(why) => {
                Response::Failed(format!("{} Nothing is changed: {why}", loss(&self.config, &status)))
            }
            other => other,
        })
    }

    pub(super) fn demote(&self) -> Result<Response, LineError> {
        self.change_role(AdminOp::Demote, Some(Role::Secondary))
    }

    /// Lets this site give way, if it is the one that is named.
    pub(super) fn resolve(&self, discard: &str) -> Result<Response, LineError> {
        let here = &self.config.site.name;
        let other = self.config.replication.as_ref().map(|pair| pair.peer.name.as_str());
        if discard == here {
            return self.change_role(AdminOp::GiveWay, Some(Role::Secondary));
        }
        Ok(Response::Failed(match other {
            Some(other) if other == discard => format!(
                "{other} is the other site, and gives way by its own operator's word: give `lockstep resolve --discard {other}` there, with \
                 its configuration; nothing is changed"
            ),
            other => format!(
                "there is no site {discard}: this one is {here}, the other one {}; nothing is changed",
                other.unwrap_or("none")
            ),
        }))
    }

    pub(super) fn switch_over(&self) -> Result<Response, LineError> {
        let becomes = self.role.get().map(|role| match role {
            Role::Primary => Role::Secondary,
            Role::Secondary => Role::Primary,
            Role::Third => Role::Third,
        });
        self.change_role(AdminOp::Switchover, becomes)
    }

    /// Done when the front knows it too.
    fn change_role(&self, op: AdminOp, becomes: Option<Role>) -> Result<Response, LineError> {
        let response = self.administer(op)?;
        if let Response::Done = response {
            let answered = Instant::now();
            while self.role.get() != becomes && answered.elapsed() < TOLD_MAX {
                std::thread::sleep(TURNS_EVERY);
            }
            self.apply_role()?;
        }
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_was_first_is_known_though_nobody_looked() {
        let seen = RoleSeen::default();
        assert_eq!((seen.get(), seen.began_as()), (None, None));
        [Role::Primary, Role::Secondary, Role::Primary, Role::Secondary]
            .into_iter()
            .for_each(|role| seen.set(role));
        assert_eq!((seen.get(), seen.began_as()), (Some(Role::Secondary), Some(Role::Primary)));
    }
}
