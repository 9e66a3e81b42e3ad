//! Where hosts connect: a Unix socket that only its owner may use, and TCP when asked for.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use socket2::{Domain, SockAddr, Socket, Type};

/// Connections the kernel holds for us while we are busy with those we have.
const BACKLOG: i32 = 1024;

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("another process serves NBD on {}: stop it, or give this site another nbd.socket", .0.display())]
    InUse(PathBuf),
    #[error("{} exists and is no socket: move it away, or give this site another nbd.socket", .0.display())]
    NotASocket(PathBuf),
    #[error("the NBD socket {} cannot be opened: {source}", .path.display())]
    Unix { path: PathBuf, source: io::Error },
    #[error("NBD cannot listen on {address}: {source}")]
    Tcp { address: SocketAddr, source: io::Error },
    #[error(
        "{0} is open to the network, and NBD asks nobody who they are; use a loopback address, or say \
         nbd.allow_unauthenticated_tcp = true"
    )]
    BeyondLoopback(SocketAddr),
}

/// A listening Unix socket, and the file that is removed with it.
#[derive(Debug)]
pub(super) struct UnixListener {
    pub fd: OwnedFd,
    pub file: SocketFile,
}

/// The socket's file. Removed when dropped, unless another process has put its own there.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).ok() == Some(self.identity)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!("the NBD socket {} stays behind: {error}", self.path.display());
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Listens on `path` with mode 0600. What a dead process left there is replaced; a living one's is refused.
pub(super) fn unix(path: &Path) -> Result<UnixListener, ListenError> {
    let failed = |source: io::Error| ListenError::Unix { path: path.into(), source };
    remove_stale(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
    // The file is created by bind, with the socket's own mode: there is no moment in which others could connect.
    rustix::fs::fchmod(socket.as_fd(), Mode::RUSR | Mode::WUSR).map_err(|errno| failed(errno.into()))?;
    let address = SockAddr::unix(path).map_err(failed)?;
    match socket.bind(&address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            return Err(ListenError::InUse(path.into()));
        }
        bound => bound.map_err(failed)?,
    }
    let identity = identity(path).map_err(failed)?;
    let file = SocketFile { path: path.into(), identity };
    socket.listen(BACKLOG).map_err(failed)?;
    Ok(UnixListener { fd: socket.into(), file })
}

fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let failed = |source: io::Error| ListenError::Unix { path: path.into(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NotASocket(path.into()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        // Nobody listens any more.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Somebody does, or did not let us see.
        _ => Err(ListenError::InUse(path.into())),
    }
}

/// Listens on `address`, which is on loopback unless `beyond_loopback` says that open access is meant.
pub(super) fn tcp(address: SocketAddr, beyond_loopback: bool) -> Result<(OwnedFd, SocketAddr), ListenError> {
    if !address.ip().is_loopback() && !beyond_loopback {
        return Err(ListenError::BeyondLoopback(address));
    }
    let listen = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        // A restart must not wait for the connections of the last run to be forgotten.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let bound = socket.local_addr()?.as_socket().unwrap_or(address);
        Ok((socket.into(), bound))
    };
    listen().map_err(|source| ListenError::Tcp { address, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_socket_is_its_owners_and_goes_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nbd.sock");
        let listener = unix(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        assert!(matches!(unix(&path), Err(ListenError::InUse(_))), "a living one is not replaced");
        UnixStream::connect(&path).unwrap();
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_processs_socket_is_replaced_and_a_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nbd.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let first = unix(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let second = unix(&path).unwrap();
        drop(first);
        assert!(path.exists(), "the file is another's now");
        drop(second);
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(unix(&path), Err(ListenError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_path_that_cannot_be_is_an_error_that_names_it() {
        let path = PathBuf::from(format!("/tmp/{}", "x".repeat(120)));
        let error = unix(&path).unwrap_err().to_string();
        assert!(error.contains("xxx"), "{error}");
    }

    #[test]
    fn the_network_is_refused_unless_meant() {
        let any: SocketAddr = "0.0.0.0:0".parse().unwrap();
        assert!(matches!(tcp(any, false), Err(ListenError::BeyondLoopback(_))));
        tcp(any, true).unwrap();
        let (_, bound) = tcp("127.0.0.1:0".parse().unwrap(), false).unwrap();
        assert_ne!(bound.port(), 0);
    }
}
