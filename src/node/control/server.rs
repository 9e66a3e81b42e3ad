//! The socket's side: a thread that accepts, and one for each connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use socket2::{Domain, SockAddr, Socket, Type};

use super::protocol::REQUEST_BYTES_MAX;
use super::{Goal, GroupLine, LineError, Links, Request, Response, RoleSeen, Status};
use crate::base::BLOCK_BYTES;
use crate::core::config::Role;
use crate::core::group::status::{GroupState, GroupStatus, PeerState, SourceState};
use crate::io::metadata::SharedSpace;
use crate::node::config::Config;
use crate::node::telemetry::{Report, WireReport};
use crate::reactor::Port;

/// Connections at once: people and a monitor or two. Each has a thread.
const CONNECTIONS_MAX: usize = 16;

/// A connection that asks nothing for this long is closed.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// How often whoever waits for something long hears how far it is.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// How often a wait looks again.
const WAIT_LOOKS_EVERY: Duration = Duration::from_millis(5);

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("{path}: another process controls a site there; stop it, or give this site another site.control")]
    InUse { path: PathBuf },
    #[error("{path}: exists and is no socket; move it away, or give this site another site.control")]
    NotASocket { path: PathBuf },
    #[error("{path}: cannot be opened: {source}")]
    System { path: PathBuf, source: io::Error },
}

/// What all connections share.
#[derive(Debug)]
pub struct Control {
    pub(super) config: Config,
    line: Mutex<GroupLine>,
    pub(super) links: Links,
    /// The configuration that keys were last loaded from, if not at the start.
    pub(super) keys_in_force: Mutex<Option<Config>>,
    /// To ask every reactor to stop.
    port: Port,
    connections: AtomicUsize,
    /// The site has ended, whatever the process does.
    ended: AtomicBool,
    /// Somebody asked here that the site stop.
    stop_asked: AtomicBool,
    /// Taken for as long as a rollback runs.
    pub(super) rolling_back: Mutex<()>,
    /// What each snapshot keeps.
    pub(super) space: SharedSpace,
    pub(super) role: Arc<RoleSeen>,
}

impl Control {
    pub fn new(
        config: Config,
        line: GroupLine,
        links: Links,
        port: Port,
        space: SharedSpace,
        role: Arc<RoleSeen>,
    ) -> Arc<Control> {
        Arc::new(Control {
            config,
            line: Mutex::new(line),
            links,
            keys_in_force: Mutex::new(None),
            port,
            connections: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
            stop_asked: AtomicBool::new(false),
            rolling_back: Mutex::new(()),
            space,
            role,
        })
    }

    /// Opens the socket and serves it until the site ends.
    pub fn serve(self: &Arc<Control>) -> Result<(), ControlError> {
        let listener = listen(&self.config.site.control)?;
        let control = self.clone();
        let system = |source| ControlError::System { path: self.config.site.control.clone(), source };
        std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || control.accept(&listener))
            .map_err(system)?;
        Ok(())
    }

    /// The site has ended: nobody is to find its socket, nor to wait there.
    pub fn end(&self) {
        let path = &self.config.site.control;
        self.ended.store(true, SeqCst);
        // Whoever accepts looks again with each connection.
        let _ = UnixStream::connect(path);
        if let Err(error) = std::fs::remove_file(path) {
            tracing::debug!("{} stays behind: {error}", path.display());
        }
    }

    /// Whether the site stops because somebody asked for that here.
    pub fn stop_was_asked(&self) -> bool {
        self.stop_asked.load(SeqCst)
    }

    fn accept(self: &Arc<Control>, listener: &UnixListener) {
        for stream in listener.incoming() {
            if self.ended.load(SeqCst) {
                return;
            }
            let stream = match stream {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!("a control connection could not be accepted: {error}");
                    std::thread::sleep(Duration::from_millis(100));
                    continue;
                }
            };
            if self.connections.fetch_add(1, Relaxed) >= CONNECTIONS_MAX {
                self.connections.fetch_sub(1, Relaxed);
                let reason =
                    format!("there are {CONNECTIONS_MAX} control connections already, which is the limit");
                let _ = send(&stream, &Response::Failed(reason));
                continue;
            }
            let control = self.clone();
            let spawned =
                std::thread::Builder::new().name("control connection".to_owned()).spawn(move || {
                    if let Err(error) = control.converse(&stream) {
                        tracing::debug!("a control connection ended: {error}");
                    }
                    control.connections.fetch_sub(1, Relaxed);
                });
            if let Err(error) = spawned {
                self.connections.fetch_sub(1, Relaxed);
                tracing::warn!("a control connection could not be served: {error}");
            }
        }
    }

    fn converse(&self, stream: &UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(IDLE_MAX))?;
        stream.set_write_timeout(Some(IDLE_MAX))?;
        let mut reader = BufReader::new(stream);
        loop {
            let mut line = Vec::new();
            if reader.by_ref().take(REQUEST_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            if line.last() != Some(&b'\n') {
                send(stream, &Response::Failed("the request is no line, or too long a one".to_owned()))?;
                return Ok(());
            }
            let response = match serde_json::from_slice(&line) {
                Ok(Request::SnapshotRollback { name, volumes }) => {
                    let mut shown = Instant::now();
                    self.rollback(&name, &volumes, &mut |done, total| {
                        if shown.elapsed() >= PROGRESS_EVERY {
                            shown = Instant::now();
                            // Whoever asked may be gone; it goes on.
                            let _ = send(stream, &Response::Progress { done, total });
                        }
                    })
                }
                Ok(Request::Verify { volumes, bytes_per_second, repair }) => {
                    let mut shown = Instant::now();
                    self.verify(&volumes, bytes_per_second, repair.as_deref(), &mut |done, total| {
                        if shown.elapsed() < PROGRESS_EVERY {
                            return true;
                        }
                        shown = Instant::now();
                        send(stream, &Response::Progress { done, total }).is_ok()
                    })
                }
                Ok(request) => {
                    let waits = matches!(request, Request::Wait { .. });
                    match self.answer(request, stream) {
                        Ok(response) => response,
                        // Another site may start at once at the same path, which this connection does not lead to. Whoever waits goes there.
                        Err(LineError::Ended) if waits => return Ok(()),
                        Err(error @ LineError::Ended) => {
                            return send(stream, &Response::Failed(error.to_string()));
                        }
                        Err(error) => Response::Failed(error.to_string()),
                    }
                }
                Err(error) => Response::Failed(format!("the request is not understood: {error}")),
            };
            send(stream, &response)?;
        }
    }

    pub(super) fn stopping(&self) -> bool {
        self.port.stopping()
    }

    pub(super) fn line(&self) -> MutexGuard<'_, GroupLine> {
        // A thread that panicked in the middle of a question leaves at worst an answer too many, which `ask` skips.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, request: Request, stream: &UnixStream) -> Result<Response, LineError> {
        match request {
            Request::Status => self.status().map(|status| Response::Status(Box::new(status))),
            Request::Histogram { reset } => {
                self.report(reset).map(|report| Response::Histogram(WireReport::from(&report)))
            }
            Request::Wait { goal, timeout_ms } => self.wait(goal, Duration::from_millis(timeout_ms), stream),
            Request::SnapshotCreate { name, volumes, protected } => {
                self.create_snapshot(&name, &volumes, protected)
            }
            Request::SnapshotDelete { name } => self.delete_snapshot(&name),
            Request::SnapshotProtect { name, protected } => self.protect_snapshot(&name, protected),
            Request::SnapshotList => self.list_snapshots().map(Response::Snapshots),
            Request::SnapshotRollback { .. } | Request::Verify { .. } => {
                unreachable!("answered with its progress")
            }
            Request::Promote { fenced, accept_loss } => self.promote(fenced, accept_loss),
            Request::Switchover => self.switch_over(),
            Request::Demote => self.demote(),
            Request::Extend { volume, bytes } => self.extend(&volume, bytes),
            Request::Resolve { discard } => self.resolve(&discard),
            Request::Scrub { bytes_per_second } => self.scrub(bytes_per_second),
            Request::KeysReload { disconnect } => Ok(self.reload_keys(disconnect)),
            Request::Stop => {
                self.stop_asked.store(true, SeqCst);
                self.port.request_stop();
                // Whoever starts it anew has looked already.
                if self.ended.load(SeqCst) { Err(LineError::Ended) } else { Ok(Response::Done) }
            }
        }
    }

    pub fn status(&self) -> Result<Status, LineError> {
        let sample = self.line().sample()?;
        Ok(Status::new(&self.config, sample, &self.links))
    }

    pub fn group_status(&self) -> Result<GroupStatus, LineError> {
        self.line().status()
    }

    /// Everything recorded since the last reset.
    pub fn report(&self, reset: bool) -> Result<Report, LineError> {
        self.line().report(reset)
    }

    /// To be called about once a second, so that rates are at hand when somebody asks, and snapshots taken at the other site can
    /// be asked for.
    pub fn tick(&self) {
        // A group that has ended has no rates.
        let _ = self.line().sample();
        let _ = self.line().show_snapshots();
        let _ = self.line().show_sizes();
        self.links.note_problems();
    }

    /// Ends early if nobody waits any more.
    fn wait(&self, goal: Goal, timeout: Duration, stream: &UnixStream) -> Result<Response, LineError> {
        let begun = Instant::now();
        let mut target = None;
        loop {
            if has_hung_up(stream) {
                return Ok(Response::TimedOut("nobody waits any more".to_owned()));
            }
            let status = match self.group_status() {
                // A machine that stands still for a while is waited for as well.
                Err(LineError::Silent) if begun.elapsed() < timeout => {
                    // A question that still lies there refuses the next one at once.
                    std::thread::sleep(WAIT_LOOKS_EVERY);
                    continue;
                }
                status => status?,
            };
            if status.state == GroupState::Failed {
                return Ok(Response::Failed("the site has left its group; see its log".to_owned()));
            }
            // What recovery will find is part of what is waited for.
            if status.state != GroupState::Recovering {
                let target = *target.get_or_insert(status.last);
                let missing = match goal {
                    Goal::InSync => in_sync(&status),
                    Goal::Settled => settled(&status, target),
                    Goal::Warm => warm(&status),
                };
                match missing {
                    None => return Ok(Response::Done),
                    Some(missing) if begun.elapsed() >= timeout => return Ok(Response::TimedOut(missing)),
                    Some(_) => {}
                }
            } else if begun.elapsed() >= timeout {
                return Ok(Response::TimedOut("the site is still recovering from its journal".to_owned()));
            }
            std::thread::sleep(WAIT_LOOKS_EVERY);
        }
    }
}

/// What keeps the pair from being in sync, or a third from having what is settled there; or nothing.
fn in_sync(status: &GroupStatus) -> Option<String> {
    if status.role == Role::Third {
        let pulled = status.sources.iter().flatten().find(|source| source.state == SourceState::Pulling);
        let copied = status.sources.iter().flatten().find(|source| source.state == SourceState::Copying);
        return match pulled {
            None if let Some(source) = copied => Some(format!(
                "this third is copied what it lacks, since no journal has it: {} MiB are staged",
                (source.staged_blocks * BLOCK_BYTES as u64) >> 20
            )),
            None => Some("this third pulls from nobody yet".to_owned()),
            Some(source) if status.durable < source.settled => Some(format!(
                "this third has everything up to {}, and {} is settled where it pulls from",
                status.durable, source.settled
            )),
            Some(_) => None,
        };
    }
    match status.peer {
        PeerState::NotConfigured => Some("this site has no peer to be in sync with".to_owned()),
        PeerState::InSync if !status.solo => None,
        PeerState::InSync => Some("the peer is there, but solo has not ended yet".to_owned()),
        PeerState::Disconnected => Some("there is no connection to the peer".to_owned()),
        PeerState::Greeting | PeerState::Reconciling => Some("the peer is still being greeted".to_owned()),
        PeerState::Resyncing => Some(format!(
            "the peer is being copied what it lacks{}: {} of {} MiB are left",
            if status.resync.whole { ", and all blocks are compared for that" } else { "" },
            (status.resync.blocks_left * BLOCK_BYTES as u64) >> 20,
            ((status.resync.blocks_left + status.resync.blocks_copied + status.resync.blocks_equal)
                * BLOCK_BYTES as u64)
                >> 20
        )),
        PeerState::CatchingUp if status.role != Role::Primary => {
            Some("this site is catching up, or the primary is alone still".to_owned())
        }
        PeerState::CatchingUp => Some(format!(
            "the peer is catching up: it holds {}, the last update is {}",
            status.peer_journaled, status.last
        )),
    }
}

/// What the cache still has to do, or nothing.
fn warm(status: &GroupStatus) -> Option<String> {
    let read_mib = (status.counters.warmed_blocks * BLOCK_BYTES as u64) >> 20;
    status.warming_up.then(|| format!("the cache has read {read_mib} MiB of its volumes so far"))
}

/// What keeps updates up to `target` from being settled and visible on the secondary, or nothing.
fn settled(status: &GroupStatus, target: crate::base::UpdateNumber) -> Option<String> {
    if status.settled < target {
        return Some(format!("settled is {}, the last update was {target}", status.settled));
    }
    let paired = status.role == Role::Primary && status.peer != PeerState::NotConfigured && !status.solo;
    if paired && status.peer_applied < target {
        return Some(format!(
            "the peer's volumes hold {}, the last update was {target}",
            status.peer_applied
        ));
    }
    None
}

/// Whether the other end has closed its connection; one that has only said all that it will say is still there.
fn has_hung_up(stream: &UnixStream) -> bool {
    let mut looked_at = [PollFd::new(stream, PollFlags::empty())];
    poll(&mut looked_at, Some(&Timespec::default())).is_ok()
        && looked_at[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

fn send(mut stream: &UnixStream, response: &Response) -> io::Result<()> {
    let mut line = serde_json::to_vec(response)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Listens with mode 0600. What a dead process left is replaced; a living one's socket is refused.
fn listen(path: &Path) -> Result<UnixListener, ControlError> {
    let system = |source: io::Error| ControlError::System { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ControlError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(system)?;
            }
            _ => return Err(ControlError::InUse { path: path.to_owned() }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(system(error)),
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(system)?;
    // The file takes the socket's mode when bind makes it: there is no moment in which others could connect.
    rustix::fs::fchmod(socket.as_fd(), Mode::RUSR | Mode::WUSR).map_err(|errno| system(errno.into()))?;
    socket.bind(&SockAddr::unix(path).map_err(system)?).map_err(system)?;
    socket.listen(CONNECTIONS_MAX as i32).map_err(system)?;
    Ok(UnixListener::from(std::os::fd::OwnedFd::from(socket)))
}
