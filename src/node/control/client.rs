//! The other end of the control socket: what `lockstep status` and its siblings use.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Goal, KeysReloaded, Request, Response, SnapshotList, Status, Verified};
use crate::node::telemetry::{Report, ReportError};

/// Longest a request that does not wait may take.
const REPLY_MAX: Duration = Duration::from_secs(10);

/// Longest a request may take that both sites must agree on: beyond the longest host deadline there can be, an hour, and the longest promise
/// that may have to run out before that begins, five minutes.
const AGREEMENT_MAX: Duration = Duration::from_secs(4_000);

/// Longest a site takes to end: it has ten seconds to drain and checkpoint, and says so if those were not enough.
const ENDING_MAX: Duration = Duration::from_secs(15);

/// Pause between attempts to reach a site that is starting.
const CONNECT_EVERY: Duration = Duration::from_millis(50);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{path}: no site answers ({source}); is `lockstep run` running with this configuration?")]
    Connect { path: PathBuf, source: std::io::Error },
    #[error(
        "{path}: this user may not ask the site, but only the one that it runs as, and root: give the command as that one (`sudo -u USER lockstep \
         ...`)"
    )]
    Forbidden { path: PathBuf },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: the site ended before it answered; its log says why")]
    Ended { path: PathBuf },
    #[error(
        "{path}: no answer within {} s; what was asked may still be carried out: `lockstep status` and the site's log tell",
        reply_max.as_secs()
    )]
    Unanswered { path: PathBuf, reply_max: Duration },
    #[error(
        "{path}: an answer that is not understood ({reason}); both ends must be the same version of lockstep"
    )]
    Protocol { path: PathBuf, reason: String },
    #[error("{0}")]
    TimedOut(String),
    #[error("{0}")]
    Failed(String),
}

/// Asks one site.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    pub fn new(control: &Path) -> Client {
        Client { path: control.to_owned() }
    }

    fn request(&self, request: Request, reply_max: Duration) -> Result<Response, ClientError> {
        let mut replies = self.ask(&request, reply_max)?;
        self.reply(&mut replies)
    }

    fn io(&self, source: std::io::Error) -> ClientError {
        ClientError::Io { path: self.path.clone(), source }
    }

    /// Whoever may not ask now may not later either, so that this is told from a site that is about to answer.
    fn not_connected(&self, source: std::io::Error) -> ClientError {
        let path = self.path.clone();
        match source.kind() {
            ErrorKind::PermissionDenied => ClientError::Forbidden { path },
            _ => ClientError::Connect { path, source },
        }
    }

    fn ended(&self) -> ClientError {
        ClientError::Ended { path: self.path.clone() }
    }

    fn protocol(&self, reason: String) -> ClientError {
        ClientError::Protocol { path: self.path.clone(), reason }
    }

    fn ask(&self, request: &Request, reply_max: Duration) -> Result<BufReader<UnixStream>, ClientError> {
        let stream = UnixStream::connect(&self.path).map_err(|source| self.not_connected(source))?;
        stream.set_read_timeout(Some(reply_max)).map_err(|error| self.io(error))?;
        let mut line = serde_json::to_string(request).map_err(|error| self.protocol(error.to_string()))?;
        line.push('\n');
        (&stream).write_all(line.as_bytes()).map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => self.ended(),
            _ => self.io(error),
        })?;
        Ok(BufReader::new(stream))
    }

    fn reply(&self, replies: &mut BufReader<UnixStream>) -> Result<Response, ClientError> {
        let reply = self.line(replies)?.ok_or_else(|| self.ended())?;
        match serde_json::from_str(&reply).map_err(|error| self.protocol(error.to_string()))? {
            Response::Failed(reason) => Err(ClientError::Failed(reason)),
            Response::TimedOut(reason) => Err(ClientError::TimedOut(reason)),
            response => Ok(response),
        }
    }

    /// The next line, or nothing if the connection has ended.
    fn line(&self, replies: &mut BufReader<UnixStream>) -> Result<Option<String>, ClientError> {
        let mut line = String::new();
        match replies.read_line(&mut line) {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(line)),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(None),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let reply_max = replies.get_ref().read_timeout().ok().flatten().unwrap_or_default();
                Err(ClientError::Unanswered { path: self.path.clone(), reply_max })
            }
            Err(error) => Err(self.io(error)),
        }
    }

    fn unexpected(&self) -> ClientError {
        ClientError::Protocol { path: self.path.clone(), reason: "it answers another question".to_owned() }
    }

    pub fn status(&self) -> Result<Status, ClientError> {
        match self.request(Request::Status, REPLY_MAX)? {
            Response::Status(status) => Ok(*status),
            _ => Err(self.unexpected()),
        }
    }

    pub fn histogram(&self, reset: bool) -> Result<Report, ClientError> {
        match self.request(Request::Histogram { reset }, REPLY_MAX)? {
            Response::Histogram(report) => Report::try_from(report).map_err(|error: ReportError| {
                ClientError::Protocol { path: self.path.clone(), reason: error.to_string() }
            }),
            _ => Err(self.unexpected()),
        }
    }

    /// Waits for a goal, and for the site to answer at all: it may be starting, or end to start anew.
    pub fn wait(&self, goal: Goal, timeout: Duration) -> Result<(), ClientError> {
        let begun = Instant::now();
        loop {
            let left = timeout.saturating_sub(begun.elapsed());
            let timeout_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            match self.request(Request::Wait { goal, timeout_ms }, left.saturating_add(REPLY_MAX)) {
                Ok(Response::Done) => return Ok(()),
                Ok(_) => return Err(self.unexpected()),
                Err(ClientError::Connect { .. } | ClientError::Ended { .. }) if begun.elapsed() < timeout => {
                    std::thread::sleep(CONNECT_EVERY);
                }
                Err(error @ (ClientError::Connect { .. } | ClientError::Ended { .. })) => {
                    return Err(ClientError::TimedOut(error.to_string()));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes a snapshot of the volumes named, or of all if none is. Answered within the site's host deadline.
    pub fn create_snapshot(
        &self,
        name: &str,
        volumes: &[String],
        protected: bool,
    ) -> Result<(), ClientError> {
        let (name, volumes) = (name.to_owned(), volumes.to_vec());
        self.done(Request::SnapshotCreate { name, volumes, protected }, AGREEMENT_MAX)
    }

    pub fn extend(&self, volume: &str, bytes: u64) -> Result<(), ClientError> {
        self.done(Request::Extend { volume: volume.to_owned(), bytes }, AGREEMENT_MAX)
    }

    pub fn delete_snapshot(&self, name: &str) -> Result<(), ClientError> {
        self.done(Request::SnapshotDelete { name: name.to_owned() }, AGREEMENT_MAX)
    }

    pub fn protect_snapshot(&self, name: &str, protected: bool) -> Result<(), ClientError> {
        self.done(Request::SnapshotProtect { name: name.to_owned(), protected }, AGREEMENT_MAX)
    }

    /// `progress` is told how many bytes are written back, of how many.
    pub fn roll_back(
        &self,
        name: &str,
        volumes: &[String],
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), ClientError> {
        let request = Request::SnapshotRollback { name: name.to_owned(), volumes: volumes.to_vec() };
        let mut replies = self.ask(&request, AGREEMENT_MAX)?;
        loop {
            match self.reply(&mut replies)? {
                Response::Progress { done, total } => progress(done, total),
                Response::Done => return Ok(()),
                _ => return Err(self.unexpected()),
            }
        }
    }

    pub fn snapshots(&self) -> Result<SnapshotList, ClientError> {
        match self.request(Request::SnapshotList, REPLY_MAX)? {
            Response::Snapshots(list) => Ok(list),
            _ => Err(self.unexpected()),
        }
    }

    fn done(&self, request: Request, reply_max: Duration) -> Result<(), ClientError> {
        match self.request(request, reply_max)? {
            Response::Done => Ok(()),
            _ => Err(self.unexpected()),
        }
    }

    /// Answered when the site takes writes.
    pub fn promote(&self, fenced: bool, accept_loss: Option<u64>) -> Result<(), ClientError> {
        self.done(Request::Promote { fenced, accept_loss }, AGREEMENT_MAX)
    }

    /// Answered when this site is what it becomes: a primary that takes writes, or a secondary.
    pub fn switch_over(&self) -> Result<(), ClientError> {
        self.done(Request::Switchover, AGREEMENT_MAX)
    }

    pub fn demote(&self) -> Result<(), ClientError> {
        self.done(Request::Demote, AGREEMENT_MAX)
    }

    /// Answered when this site, which is to be the one named, has given way.
    pub fn resolve(&self, discard: &str) -> Result<(), ClientError> {
        self.done(Request::Resolve { discard: discard.to_owned() }, AGREEMENT_MAX)
    }

    /// Answered when it has begun, or with 0 bytes a second has ended; the status says the rest.
    pub fn scrub(&self, bytes_per_second: u64) -> Result<(), ClientError> {
        self.done(Request::Scrub { bytes_per_second }, AGREEMENT_MAX)
    }

    /// `repair` names the site whose content is to be at both where they differ. `progress` is told how many bytes are compared, of how many.
    pub fn verify(
        &self,
        volumes: &[String],
        bytes_per_second: u64,
        repair: Option<&str>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Verified, ClientError> {
        let repair = repair.map(str::to_owned);
        let request = Request::Verify { volumes: volumes.to_vec(), bytes_per_second, repair };
        let mut replies = self.ask(&request, AGREEMENT_MAX)?;
        loop {
            match self.reply(&mut replies)? {
                Response::Progress { done, total } => progress(done, total),
                Response::Verified(verified) => return Ok(verified),
                _ => return Err(self.unexpected()),
            }
        }
    }

    /// Answered when the other sites have taken what is new.
    pub fn reload_keys(&self, disconnect: bool) -> Result<KeysReloaded, ClientError> {
        match self.request(Request::KeysReload { disconnect }, AGREEMENT_MAX)? {
            Response::Keys(reloaded) => Ok(reloaded),
            _ => Err(self.unexpected()),
        }
    }

    /// Answered when the site has ended, so that whoever works on its files next finds them free.
    pub fn stop(&self) -> Result<(), ClientError> {
        let mut replies = self.ask(&Request::Stop, REPLY_MAX)?;
        let Response::Done = self.reply(&mut replies)? else { return Err(self.unexpected()) };
        // The connection ends with the process.
        replies.get_ref().set_read_timeout(Some(ENDING_MAX)).map_err(|error| self.io(error))?;
        match self.line(&mut replies)? {
            None => Ok(()),
            Some(_) => Err(self.unexpected()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_not_ask_is_told_so_and_not_that_nobody_answers() {
        let client = Client::new(Path::new("control.sock"));
        let told = |kind: ErrorKind| client.not_connected(kind.into()).to_string();
        let said = told(ErrorKind::PermissionDenied);
        assert!(
            said.starts_with("control.sock: this user may not ask the site") && said.contains("sudo -u"),
            "{said}"
        );
        assert!(told(ErrorKind::NotFound).contains("is `lockstep run` running"));
        assert!(told(ErrorKind::ConnectionRefused).contains("is `lockstep run` running"));
    }
}
