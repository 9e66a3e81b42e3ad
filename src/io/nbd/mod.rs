//! NBD's sockets: the front that serves hosts, an actor of a reactor.

mod connection;
mod front;
mod listen;

pub use front::{CONNECTIONS_DEFAULT, FrontConfig, FrontEdges, NbdFront};
pub use listen::ListenError;

use crate::format::nbd::Sink;
use crate::io::ring::OwnedBuf;

impl Sink for OwnedBuf {
    #[track_caller]
    fn put(&mut self, bytes: &[u8]) {
        let appended = self.append(bytes);
        assert_eq!(appended, bytes.len(), "a reply was put where it has no room");
    }

    fn len(&self) -> usize {
        self.filled().len()
    }
}
