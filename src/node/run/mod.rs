//! A site as a process: everything is opened and checked on the main thread, each core's actors are built and run on its
//! own, and the main thread watches over them until they have stopped.

mod assembly;
mod front;
mod reactors;
mod storage;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::io::disk::{DiskError, FaultPlan};
use crate::io::metadata::{Difference, MetadataError};
use crate::io::nbd::{FrontEdges, ListenError};
use crate::io::quic::connection::LinkError;
use crate::io::quic::identity::IdentityError;
use crate::io::ring::{Ring, RingError};
use crate::node::config::Config;
use crate::node::control::{Control, ControlError, Links};
use crate::reactor::{Actor, Clock, Port};

pub use assembly::{FrontPlace, link_config};
pub use front::{FrontAnswer, FrontQuestion};
#[cfg(test)]
pub(super) use storage::open as open_files;
pub use storage::{installs, names, newest_superblock, staged, superblock};

use assembly::{Assembly, Fate};
use reactors::Threads;

/// From the request to stop until every actor has: hosts' operations and the destage of what is settled, each at most five.
const STOP_MAX: Duration = Duration::from_secs(10);

/// How often the main thread looks after things, and keeps rates.
const TICK: Duration = Duration::from_millis(100);
const RATES_EVERY: Duration = Duration::from_secs(1);

/// What makes a stopped site what its configuration says.
const CHANGES: &str =
    "`lockstep grow`, `lockstep add-volume`, `lockstep remove-volume`, `lockstep resize-journal`";

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(
        "{}; put the configuration back, let the site become what it says ({changes}), or format it anew",
        .0.iter().map(Difference::to_string).collect::<Vec<_>>().join("; "),
        changes = CHANGES
    )]
    Differs(Vec<Difference>),
    #[error(
        "{}: a change of this site's volumes or journal was interrupted: give its command ({changes}) again, with the configuration that \
         it had",
        path.display(),
        changes = CHANGES
    )]
    HalfChanged { path: PathBuf },
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(
        "{what}. The snapshot tables are damaged, the volumes are not touched by that: `lockstep snapshot repair --config {}` brings \
         the tables back from {peer}, then start the site again",
        file.display()
    )]
    Tables { what: String, file: PathBuf, peer: String },
    #[error(
        "{}: holds what this site was copied by its peer, and is not in its volumes yet: start the site once with the [peer] that it had, \
         or format it anew",
        path.display()
    )]
    Uninstalled { path: PathBuf },
    #[error(
        "{}: staging.path names what is not this site's staging file; nothing was changed. Let it name another one, which is made if \
         there is none, or empty this one if nobody needs what it holds",
        path.display()
    )]
    NotStaging { path: PathBuf },
    #[error("cache.size: {bytes} bytes of memory cannot be had ({source}); write a smaller one")]
    Memory { bytes: u64, source: io::Error },
    #[error("the threads' doorbells cannot be made: {0}; raise the limit of open files")]
    Ports(#[source] io::Error),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("the link's socket cannot be watched: {0}")]
    LinkSocket(#[source] io::Error),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error("reactors.cores: CPU {cpu} is not one that this process may use, which are {available:?}")]
    Cpu { cpu: usize, available: Vec<usize> },
    #[error("the thread of CPU {cpu} cannot be started: {source}")]
    Thread { cpu: usize, source: io::Error },
    #[error("the thread of the management information cannot be started: {0}")]
    MetadataThread(#[source] io::Error),
    #[error("a thread of the control plane cannot be started: {0}")]
    ControlThread(#[source] io::Error),
    #[error("the signal handlers cannot be installed: {0}")]
    Signals(#[source] io::Error),
    #[error("the site cannot start from its files; the log says why")]
    Unusable,
    #[error("the site left its group because a disk failed; the log says which")]
    Failed,
    #[error(
        "not everything had stopped {} s after it was asked to; what was not acknowledged is replayed at the next start",
        STOP_MAX.as_secs()
    )]
    StopOverdue,
}

impl RunError {
    /// Whether the site's files, rather than the machine or the moment, are the reason.
    pub fn is_about_files(&self) -> bool {
        match self {
            // What a killed process left passes, and a service that is started again finds it gone.
            RunError::Disk(DiskError::NotLetGo { .. } | DiskError::DeviceBusy { .. }) => false,
            RunError::Metadata(_)
            | RunError::Differs(_)
            | RunError::HalfChanged { .. }
            | RunError::Disk(_)
            | RunError::Tables { .. }
            | RunError::Uninstalled { .. }
            | RunError::NotStaging { .. }
            | RunError::Identity(_)
            | RunError::Unusable => true,
            _ => false,
        }
    }
}

/// A front of the caller's own, built on the reactor that runs the fronts.
pub type MakeFront = Box<dyn FnOnce(FrontPlace, FrontEdges) -> Box<dyn Actor<Ring>> + Send>;

/// What a site is run with beside its configuration.
#[derive(Default)]
pub struct Extras {
    /// A front beside NBD's.
    pub front: Option<MakeFront>,
    /// Faults on order, for rehearsals.
    pub faults: FaultPlan,
}

/// What a running site offers to whoever started it.
#[derive(Clone, Debug)]
pub struct Handle {
    control: Arc<Control>,
    port: Port,
}

impl Handle {
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Drain, checkpoint, end.
    pub fn stop(&self) {
        self.port.request_stop();
    }
}

/// Why a site ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to.
    Stopped,
    /// What it lacked is staged: it is to be started again at once, and brings that to its volumes.
    ToInstall,
}

/// A site whose reactors run.
pub struct Site {
    threads: Threads,
    handle: Handle,
    fate: Arc<Fate>,
}

impl Site {
    /// Opens and starts everything.
    pub fn start(config: &Config, extras: Extras) -> Result<Site, RunError> {
        let clock = Clock::new();
        let storage = storage::open(config)?;
        let mut assembly = Assembly::new(config, storage, &clock, extras)?;
        let port = assembly.main_port.clone();
        let threads = Threads::start(config, &mut assembly, &clock)?;
        let line = assembly.group_line(&clock, threads.loads());
        let links = Links::new(&port, assembly.link.take(), std::mem::take(&mut assembly.remotes));
        let space = assembly.space.clone();
        let role = assembly.fate.role.clone();
        let control = Control::new(config.clone(), line, links, port.clone(), space, role);
        let served = control.serve().map_err(RunError::from);
        let followed = served.and_then(|()| control.follow_role().map_err(RunError::ControlThread));
        if let Err(error) = followed
            .and_then(|()| control.follow_schedules().map_err(RunError::ControlThread))
            .and_then(|()| control.scrub_now_and_then().map_err(RunError::ControlThread))
        {
            port.request_stop();
            threads.join(STOP_MAX);
            return Err(error);
        }
        Ok(Site { threads, handle: Handle { control, port }, fate: assembly.fate })
    }

    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Returns when the site has been asked to stop and has, or cannot go on; or has ended to start anew.
    pub fn wait(self) -> Result<Ended, RunError> {
        let Site { threads, handle, fate } = self;
        let mut rates_at = Instant::now();
        let mut ended = Ended::Stopped;
        while !handle.port.stopping() {
            std::thread::sleep(TICK);
            if Instant::now() >= rates_at {
                rates_at = Instant::now() + RATES_EVERY;
                handle.control.tick();
            }
            if fate.failed() && !fate.recovered() {
                handle.stop();
            }
            if fate.anew() {
                ended = Ended::ToInstall;
                handle.stop();
            }
        }
        if !threads.join(STOP_MAX) {
            return Err(RunError::StopOverdue);
        }
        handle.control.end();
        match (fate.failed(), fate.recovered()) {
            (false, _) => Ok(ended),
            (true, false) => Err(RunError::Unusable),
            (true, true) => Err(RunError::Failed),
        }
    }
}

/// Runs a site until SIGTERM, SIGINT, or a request over its control socket.
pub fn run(config: &Config, faults: FaultPlan) -> Result<(), RunError> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT]).map_err(RunError::Signals)?;
    let asked = Arc::new(AtomicBool::new(false));
    let mut site = Site::start(config, Extras { front: None, faults: faults.clone() })?;
    let running = Arc::new(Mutex::new(site.handle()));
    let (asked_seen, running_seen) = (asked.clone(), running.clone());
    let watcher = std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        if let Some(signal) = signals.forever().next() {
            let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
            tracing::info!("{name}: draining, then stopping");
            asked_seen.store(true, SeqCst);
            running_seen.lock().unwrap_or_else(PoisonError::into_inner).stop();
        }
    });
    watcher.map_err(RunError::Signals)?;
    loop {
        let ended = site.handle();
        let to_install = site.wait()? == Ended::ToInstall;
        if !to_install || asked.load(SeqCst) || ended.control().stop_was_asked() {
            break;
        }
        // With the keys that it took meanwhile.
        let config = ended.control().config_in_force();
        site = Site::start(&config, Extras { front: None, faults: faults.clone() })?;
        *running.lock().unwrap_or_else(PoisonError::into_inner) = site.handle();
        // Whoever asked in between asked the one before.
        if asked.load(SeqCst) {
            site.handle().stop();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_site_still_holds_is_no_fault_of_its_files() {
        let path = || PathBuf::from("/dev/vdb");
        for (error, is) in [
            (DiskError::DeviceBusy { path: path() }, false),
            (DiskError::NotLetGo { path: path() }, false),
            (DiskError::Locked { path: path() }, true),
            (DiskError::Missing { path: path() }, true),
        ] {
            let said = error.to_string();
            assert_eq!(RunError::Disk(error).is_about_files(), is, "{said}");
        }
    }
}
