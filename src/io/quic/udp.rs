//! quinn's UDP socket on a reactor: batches, segmentation offload and ECN through quinn-udp on a nonblocking socket. The
//! reactor says when it is readable; a full send buffer is tried again after a moment.

use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::*};
use std::task::{Context, Poll};

use quinn::udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use rustix::net::sockopt::{set_socket_recv_buffer_size_force, set_socket_send_buffer_size_force};

use super::runtime::Shared;

/// Bytes received in one turn (about a millisecond of decryption), so that the reactor's other actors get theirs.
const RECEIVE_BYTES_A_TURN_MAX: usize = 1 << 20;

/// Bytes of kernel buffer asked for each way: twice the link's window, since the kernel counts a datagram's bookkeeping
/// too. With CAP_NET_ADMIN they are had; without, what `net.core.rmem_max` and `wmem_max` allow.
const SOCKET_BUFFER_BYTES: usize = 32 << 20;

/// Most bytes that the kernel coalesces into one buffer (GRO): the largest IP packet.
const COALESCED_BYTES_MAX: usize = 1 << 16;

/// Most bytes that the kernel takes to cut into datagrams (GSO): the largest UDP payload over IPv4. What is larger fails
/// like an oversize probe, silently.
const SEGMENTED_BYTES_MAX: usize = 65_507;

#[derive(Debug)]
pub(super) struct Socket {
    io: UdpSocket,
    state: UdpSocketState,
    shared: Arc<Shared>,
    /// Whether receiving may find something.
    readable: AtomicBool,
    /// The endpoint's task, once it has polled.
    receiver: AtomicU32,
    received: AtomicUsize,
    /// Largest datagram that peers are told to send.
    payload_max: usize,
}

const NO_RECEIVER: u32 = u32::MAX;

impl Socket {
    pub(super) fn bind(local: SocketAddr, payload_max: u16, shared: Arc<Shared>) -> io::Result<Arc<Socket>> {
        let io = UdpSocket::bind(local)?;
        let state = UdpSocketState::new(UdpSockRef::from(&io))?;
        // Best effort: without the privilege to exceed the system's limit, the limit is what there is.
        if set_socket_recv_buffer_size_force(&io, SOCKET_BUFFER_BYTES).is_err() {
            let _ = state.set_recv_buffer_size(UdpSockRef::from(&io), SOCKET_BUFFER_BYTES);
        }
        if set_socket_send_buffer_size_force(&io, SOCKET_BUFFER_BYTES).is_err() {
            let _ = state.set_send_buffer_size(UdpSockRef::from(&io), SOCKET_BUFFER_BYTES);
        }
        Ok(Arc::new(Socket {
            io,
            state,
            shared,
            readable: AtomicBool::new(true),
            receiver: AtomicU32::new(NO_RECEIVER),
            received: AtomicUsize::new(0),
            payload_max: payload_max.into(),
        }))
    }

    /// Datagrams may have arrived, or the last turn's bound left some: the endpoint's task is to look.
    pub(super) fn set_readable(&self) {
        self.readable.store(true, Relaxed);
        let receiver = self.receiver.load(Relaxed);
        if receiver != NO_RECEIVER {
            self.shared.wake(receiver);
        }
    }

    /// A new turn's bound begins. Returns whether the last one's was reached, so that datagrams may be waiting.
    pub(super) fn begin_turn(&self) -> bool {
        self.received.swap(0, Relaxed) >= RECEIVE_BYTES_A_TURN_MAX
    }

    /// Whether the turn's bound is reached.
    pub(super) fn turn_is_over(&self) -> bool {
        self.received.load(Relaxed) >= RECEIVE_BYTES_A_TURN_MAX
    }

    /// Bytes the kernel granted for receiving (it reports twice what may be asked for).
    pub(super) fn receive_buffer_bytes(&self) -> io::Result<usize> {
        self.state.recv_buffer_size(UdpSockRef::from(&self.io)).map(|bytes| bytes / 2)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.io.as_fd()
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(SendPoller(self.shared.clone()))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        // Anything but a full buffer is logged by quinn-udp and counts as a lost datagram, which QUIC mends.
        let sent = self.state.send(UdpSockRef::from(&self.io), transmit);
        if sent.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
            self.shared.block_send();
        }
        sent
    }

    fn poll_recv(
        &self,
        _: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.receiver.store(self.shared.polling(), Relaxed);
        if self.turn_is_over() || !self.readable.load(Relaxed) {
            return Poll::Pending;
        }
        match self.state.recv(UdpSockRef::from(&self.io), buffers, metas) {
            Ok(count) => {
                // A batch that is not full emptied the socket; what comes after it is announced by the reactor.
                self.readable.store(count == BATCH_SIZE, Relaxed);
                let bytes: usize = metas[..count].iter().map(|meta| meta.len).sum();
                self.received.fetch_add(bytes, Relaxed);
                Poll::Ready(Ok(count))
            }
            Err(error) => {
                self.readable.store(false, Relaxed);
                if error.kind() != ErrorKind::WouldBlock {
                    // quinn would end the endpoint; an unreachable peer, which this can be, ends by its idle timeout.
                    tracing::debug!(%error, "receiving from the link's socket failed");
                }
                Poll::Pending
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments().min(SEGMENTED_BYTES_MAX / self.payload_max)
    }

    /// quinn allocates a batch of this many datagrams of the largest size, so what the kernel cannot coalesce anyway
    /// is not asked for.
    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments().min(COALESCED_BYTES_MAX.div_ceil(self.payload_max))
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

#[derive(Debug)]
struct SendPoller(Arc<Shared>);

impl UdpPoller for SendPoller {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.0.send_blocked() { Poll::Pending } else { Poll::Ready(Ok(())) }
    }
}
