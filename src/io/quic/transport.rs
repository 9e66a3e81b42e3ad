//! How the link uses QUIC: acknowledgement frequency, windows, datagram sizes and congestion control.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::HashedConnectionIdGenerator;
use ring::hmac;

use super::identity::Identity;
use quinn::congestion::{Controller, ControllerFactory, CubicConfig};
use quinn::{AckFrequencyConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

/// UDP payload that every path QUIC runs on takes (RFC 9000, section 14).
pub const PAYLOAD_BYTES_MIN: u16 = 1200;

/// UDP payload of a 9000-byte MTU over IPv6 or IPv4.
pub const PAYLOAD_BYTES_JUMBO: u16 = 8952;

/// Largest UDP payload: QUIC's first packets write their length in 14 bits.
pub const PAYLOAD_BYTES_MAX: u16 = 16_000;

/// Longest the peer may put off a QUIC acknowledgement. Without it one lost datagram at queue depth 1 costs the default
/// 25 ms and a round trip; with it 3 ms.
const ACK_DELAY_MAX: Duration = Duration::from_millis(1);

/// Datagrams after which the peer acknowledges at once: about one acknowledgement for each batch received.
const ACK_THRESHOLD: u32 = 64;

/// Round trip taken for granted until one is measured: a lost first datagram is sent again after three of it, so a peer
/// that comes up is found soon.
const ROUND_TRIP_GUESS: Duration = Duration::from_millis(100);

/// A silent path is used this often, so that it stays open in firewalls and its loss is seen.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// A path that was silent for this long is gone. The group's latency budget decides about the peer long before.
const IDLE_TIMEOUT_MS: u32 = 3_000;

/// How datagrams share the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Congestion {
    /// The path is ours: what is in flight is bounded by the window alone, and loss does not shrink it.
    Dedicated,
    /// Others use the path too: Cubic (RFC 9438), paced.
    Shared,
}

/// The largest datagrams to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadSize {
    /// UDP payload that the whole path is known to take, 1200 to 16,000 bytes; sent from the first datagram on.
    Known(u16),
    /// Start at what every path takes and probe up to a 9000-byte MTU.
    Discover,
}

impl PayloadSize {
    /// The payload for a path whose every hop has an MTU of `mtu` bytes (IPv6 and UDP headers taken off).
    pub fn of_mtu(mtu: u16) -> PayloadSize {
        PayloadSize::Known(mtu.saturating_sub(48).clamp(PAYLOAD_BYTES_MIN, PAYLOAD_BYTES_MAX))
    }

    pub(super) fn largest(self) -> u16 {
        match self {
            PayloadSize::Known(bytes) => {
                assert!(
                    (PAYLOAD_BYTES_MIN..=PAYLOAD_BYTES_MAX).contains(&bytes),
                    "a payload of {bytes} bytes"
                );
                bytes
            }
            PayloadSize::Discover => PAYLOAD_BYTES_JUMBO,
        }
    }
}

/// Bytes in flight at most, each way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) send_bytes: u32,
    pub(super) receive_bytes: u32,
}

/// What Cubic has in flight at first where datagrams are small (RFC 9002, section 7.2).
const INITIAL_WINDOW_BYTES: u64 = 14_720;

pub(super) fn transport(payload: PayloadSize, congestion: Congestion, window: Window) -> TransportConfig {
    let receive_window = VarInt::from_u32(window.receive_bytes);
    let send_window = u64::from(window.send_bytes);
    let mut acks = AckFrequencyConfig::default();
    acks.max_ack_delay(Some(ACK_DELAY_MAX)).ack_eliciting_threshold(ACK_THRESHOLD.into());
    let mut config = TransportConfig::default();
    config
        .ack_frequency_config(Some(acks))
        .max_concurrent_bidi_streams(1u32.into())
        .max_concurrent_uni_streams(0u32.into())
        .datagram_receive_buffer_size(None)
        .stream_receive_window(receive_window)
        .receive_window(receive_window)
        .send_window(send_window)
        .send_fairness(false)
        .initial_rtt(ROUND_TRIP_GUESS)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))));
    match payload {
        PayloadSize::Known(bytes) => config.initial_mtu(bytes).min_mtu(bytes).mtu_discovery_config(None),
        PayloadSize::Discover => {
            let mut discovery = MtuDiscoveryConfig::default();
            discovery.upper_bound(PAYLOAD_BYTES_JUMBO);
            config.mtu_discovery_config(Some(discovery))
        }
    };
    match congestion {
        Congestion::Dedicated => {
            config.congestion_controller_factory(Arc::new(Dedicated { window_bytes: send_window }))
        }
        Congestion::Shared => {
            // RFC 9002, section 7.2: two datagrams at least, or those of a jumbo path wait for each other in the handshake.
            let mut cubic = CubicConfig::default();
            cubic.initial_window(INITIAL_WINDOW_BYTES.max(2 * u64::from(payload.largest())));
            config.congestion_controller_factory(Arc::new(cubic))
        }
    };
    config
}

/// Connection ids and their reset tokens come from the identity, so that a site which restarts tells its peer at the next
/// datagram that their connection is gone (RFC 9000, section 10.3), and the peer need not wait out the idle timeout.
pub(super) fn endpoint(payload: PayloadSize, identity: &Identity) -> EndpointConfig {
    let reset_key = identity.derive(b"stateless reset");
    let id_key = identity.derive(b"connection ids");
    let id_key = u64::from_le_bytes(id_key[..8].try_into().expect("eight of 32 bytes"));
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &reset_key)));
    config
        .cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(id_key)))
        .max_udp_payload_size(payload.largest())
        .expect("`largest` is within 1200 and 65,527");
    config
}

/// A constant window: it bounds what is in flight, so that a busy peer's socket is not flooded, and no loss shrinks it.
#[derive(Clone, Copy, Debug)]
struct Dedicated {
    window_bytes: u64,
}

impl Controller for Dedicated {
    fn on_congestion_event(&mut self, _: Instant, _: Instant, _: bool, _: u64) {}

    fn on_mtu_update(&mut self, _: u16) {}

    fn window(&self) -> u64 {
        self.window_bytes
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(*self)
    }

    fn initial_window(&self) -> u64 {
        self.window_bytes
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

impl ControllerFactory for Dedicated {
    fn build(self: Arc<Self>, _: Instant, _: u16) -> Box<dyn Controller> {
        Box::new(*self)
    }
}
