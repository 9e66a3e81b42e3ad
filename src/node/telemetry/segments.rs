//! A write's time, cut at its stamps along the branch (local journal or peer) that finished last, so that the segments
//! add up to the whole, exactly.

use crate::base::Nanos;
use crate::core::config::AckLevel;
use crate::core::outbox::WriteStamps;

/// What a histogram is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Stage {
    /// The whole: the front has the request, until the group lets the reply go.
    Write,
    /// In the ring from the front.
    FrontRing,
    /// Taken, but held back until the group had room to number it.
    Admission,
    /// Old blocks read first, to be sent with it: `differential = "value"`.
    OldRead,
    /// Numbered, waiting for its journal batch.
    Batch,
    /// Its batch in the local journal.
    Journal,
    /// In the ring to the link.
    LinkRing,
    /// Framed and handed to QUIC.
    Send,
    /// The peer's journal, as the peer measured it.
    PeerJournal,
    /// The rest of the round trip: encryption, network, the peer's rings.
    Wire,
    /// From the end of the later branch until the reply is let go.
    Acknowledge,
    /// In the ring back to the front; after `Write`, not part of it.
    ReplyRing,
}

/// Whether a stage is waiting in a ring or queue, or being worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageKind {
    Total,
    Wait,
    Service,
}

pub const STAGES: [Stage; 12] = [
    Stage::Write,
    Stage::FrontRing,
    Stage::Admission,
    Stage::OldRead,
    Stage::Batch,
    Stage::Journal,
    Stage::LinkRing,
    Stage::Send,
    Stage::PeerJournal,
    Stage::Wire,
    Stage::Acknowledge,
    Stage::ReplyRing,
];

impl Stage {
    /// The name in tables, JSON, CSV and plots.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Write => "write",
            Stage::FrontRing => "front_ring",
            Stage::Admission => "admission",
            Stage::OldRead => "old_read",
            Stage::Batch => "batch",
            Stage::Journal => "journal",
            Stage::LinkRing => "link_ring",
            Stage::Send => "send",
            Stage::PeerJournal => "peer_journal",
            Stage::Wire => "wire",
            Stage::Acknowledge => "acknowledge",
            Stage::ReplyRing => "reply_ring",
        }
    }

    pub fn kind(self) -> StageKind {
        match self {
            Stage::Write => StageKind::Total,
            Stage::FrontRing | Stage::Admission | Stage::Batch | Stage::LinkRing | Stage::ReplyRing => {
                StageKind::Wait
            }
            Stage::OldRead
            | Stage::Journal
            | Stage::Send
            | Stage::PeerJournal
            | Stage::Wire
            | Stage::Acknowledge => StageKind::Service,
        }
    }
}

impl StageKind {
    pub fn name(self) -> &'static str {
        match self {
            StageKind::Total => "total",
            StageKind::Wait => "wait",
            StageKind::Service => "service",
        }
    }
}

/// One write's spans by stage; a stage that was not on its way has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segments([Option<Nanos>; STAGES.len()]);

impl Segments {
    pub fn get(&self, stage: Stage) -> Option<Nanos> {
        self.0[stage as usize]
    }

    pub fn iter(&self) -> impl Iterator<Item = (Stage, Nanos)> {
        STAGES.into_iter().filter_map(|stage| Some((stage, self.get(stage)?)))
    }
}

/// Cuts one write's time. Stamps of different cores may be nanoseconds out of order, and a stamp may be missing (zero):
/// a cut never goes backwards, and the time up to a missing one belongs to the next.
pub fn segments(stamps: &WriteStamps, ack: AckLevel) -> Segments {
    let end = stamps.replied_at.max(stamps.received_at);
    let mut cut = Cut { spans: Segments::default(), at: stamps.received_at, end };
    cut.spans.0[Stage::Write as usize] = Some(end.since(stamps.received_at));
    cut.until(Stage::FrontRing, stamps.taken_at);
    if stamps.old_read_ns > 0 {
        // It may have waited for room before reading, after it, or both: all of that is admission.
        let read_at = Nanos(stamps.numbered_at.0.saturating_sub(stamps.old_read_ns).max(1));
        cut.until(Stage::Admission, read_at);
        cut.until(Stage::OldRead, stamps.numbered_at);
    } else {
        cut.until(Stage::Admission, stamps.numbered_at);
    }
    if stamps.peer_acknowledged_at > stamps.journaled_at {
        cut.until(Stage::LinkRing, stamps.link_popped_at);
        cut.until(Stage::Send, stamps.sent_at);
        if ack >= AckLevel::Journaled && stamps.peer_journal_ns > 0 {
            let back = stamps.peer_acknowledged_at.min(end);
            let journal = Nanos(u64::from(stamps.peer_journal_ns)).min(back.since(cut.at));
            cut.until(Stage::PeerJournal, cut.at.plus(journal));
        }
        cut.until(Stage::Wire, stamps.peer_acknowledged_at);
    } else {
        cut.until(Stage::Batch, stamps.journal_submitted_at);
        cut.until(Stage::Journal, stamps.journaled_at);
    }
    cut.until(Stage::Acknowledge, end);
    cut.spans
}

struct Cut {
    spans: Segments,
    at: Nanos,
    end: Nanos,
}

impl Cut {
    fn until(&mut self, stage: Stage, stamp: Nanos) {
        if stamp == Nanos(0) {
            return;
        }
        let stamp = stamp.clamp(self.at, self.end);
        self.spans.0[stage as usize] = Some(stamp.since(self.at));
        self.at = stamp;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stamps() -> WriteStamps {
        WriteStamps {
            received_at: Nanos(100),
            taken_at: Nanos(110),
            numbered_at: Nanos(130),
            old_read_ns: 0,
            journal_submitted_at: Nanos(140),
            journaled_at: Nanos(500),
            link_popped_at: Nanos(160),
            sent_at: Nanos(190),
            peer_acknowledged_at: Nanos(700),
            peer_journal_ns: 300,
            replied_at: Nanos(705),
        }
    }

    fn spans(stamps: &WriteStamps, ack: AckLevel) -> Vec<(&'static str, u64)> {
        segments(stamps, ack).iter().map(|(stage, span)| (stage.name(), span.0)).collect()
    }

    #[test]
    fn the_branch_that_finished_last_is_shown() {
        let remote = [
            ("write", 605),
            ("front_ring", 10),
            ("admission", 20),
            ("link_ring", 30),
            ("send", 30),
            ("peer_journal", 300),
            ("wire", 210),
            ("acknowledge", 5),
        ];
        assert_eq!(spans(&stamps(), AckLevel::Journaled), remote);
        let local = WriteStamps { journaled_at: Nanos(702), ..stamps() };
        let expected = [
            ("write", 605),
            ("front_ring", 10),
            ("admission", 20),
            ("batch", 10),
            ("journal", 562),
            ("acknowledge", 3),
        ];
        assert_eq!(spans(&local, AckLevel::Journaled), expected);
    }

    #[test]
    fn what_was_read_first_is_no_admission() {
        let read = segments(&WriteStamps { old_read_ns: 15, ..stamps() }, AckLevel::Journaled);
        assert_eq!((read.get(Stage::Admission), read.get(Stage::OldRead)), (Some(Nanos(5)), Some(Nanos(15))));
        assert_eq!(segments(&stamps(), AckLevel::Journaled).get(Stage::OldRead), None);
    }

    #[test]
    fn a_peer_that_did_not_wait_for_its_journal_is_not_charged_for_it() {
        let received = segments(&stamps(), AckLevel::Received);
        assert_eq!(received.get(Stage::PeerJournal), None);
        assert_eq!(received.get(Stage::Wire), Some(Nanos(510)));
    }

    #[test]
    fn the_peers_journal_time_cannot_exceed_the_round_trip() {
        let long = WriteStamps { peer_journal_ns: 9_999_999, ..stamps() };
        let spans = segments(&long, AckLevel::Durable);
        assert_eq!(
            (spans.get(Stage::PeerJournal), spans.get(Stage::Wire)),
            (Some(Nanos(510)), Some(Nanos(0)))
        );
    }

    proptest! {
        #[test]
        fn segments_add_up_whatever_the_stamps(at in prop::array::uniform9(0u64..1000), peer_journal_ns in 0u32..1000, old_read_ns in 0u64..1000, level in 0usize..4) {
            let ack = [AckLevel::Received, AckLevel::Journaled, AckLevel::Durable, AckLevel::Applied][level];
            let at = at.map(Nanos);
            let stamps = WriteStamps {
                received_at: at[0], taken_at: at[1], numbered_at: at[2], journal_submitted_at: at[3], journaled_at: at[4],
                link_popped_at: at[5], sent_at: at[6], peer_acknowledged_at: at[7], replied_at: at[8], peer_journal_ns, old_read_ns,
            };
            let spans = segments(&stamps, ack);
            let parts: u64 = spans.iter().filter(|(stage, _)| *stage != Stage::Write).map(|(_, span)| span.0).sum();
            prop_assert_eq!(spans.get(Stage::Write), Some(Nanos(parts)));
        }
    }
}
