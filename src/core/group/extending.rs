//! How much of each volume hosts see, and showing them more of it while they are connected. What a volume may come to is laid out from
//! the beginning; a size is in force at a site once its superblock says so durably. A primary shows no more than its peer does, so whoever
//! takes over shows all that hosts have written to. Sizes only grow, so of sites that meet each takes the larger one of each volume, and
//! who follows does so before it hears anything else.

use super::peering::{LINK_SPARE, Talk};
use super::status::PeerState;
use super::storage::VolumeIo;
use super::{Alone, Group, Turn};
use crate::base::*;
use crate::core::config::Role;
use crate::core::messages::*;
use crate::core::outbox::{Event, LossReason};
use crate::format::wire::{Hello, PROTOCOL_EXTENDS};

/// Blocks that are reserved with one operation: a gibibyte, for which a filesystem takes some milliseconds and then gets to the others.
const RESERVED_AT_ONCE: u64 = 1 << 18;

/// Space is reserved on both sites and two superblocks are written within this time, each perhaps behind a sweep.
const EXTEND_MAX: Nanos = Nanos::from_millis(60_000);

/// What a site says to one that asks while it is at another one, and to one that asks for more than is laid out: EBUSY and EFBIG.
const BUSY: i32 = 16;
const TOO_LARGE: i32 = 27;
/// Of a fault that has no error number: EIO.
const FAULTY: i32 = 5;

/// Why sites part that meet again in a moment.
pub(super) const SHOWS_LESS: &str = "it shows its hosts more of a volume, and this site is about to";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    Administrator(u64),
    /// On this connection.
    Peer(u32),
    /// Was answered, or is gone.
    Nobody,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The volume's space is reserved up to here.
    Reserving { upto: u64, in_flight: bool },
    /// The peer does the same.
    Asking,
    /// The superblock is to say it.
    Showing,
}

/// A volume that is being extended, and to how many blocks.
#[derive(Clone, Copy, Debug)]
struct Extension {
    asker: Asker,
    volume: VolumeId,
    blocks: u64,
    since: Nanos,
    step: Step,
}

#[derive(Debug, Default)]
pub(super) struct Extending {
    in_force: VolumeSizes,
    /// What is to be in force; a superblock is due as long as that is more.
    wanted: VolumeSizes,
    /// What the superblock on its way says.
    written: VolumeSizes,
    extension: Option<Extension>,
}

impl Extending {
    /// What hosts see.
    pub fn in_force(&self) -> &VolumeSizes {
        &self.in_force
    }

    /// What the superblock that is written now says.
    pub fn write(&mut self) -> VolumeSizes {
        self.written = self.wanted;
        self.written
    }

    /// As a start finds it.
    pub fn found(&mut self, sizes: VolumeSizes) {
        (self.in_force, self.wanted, self.written) = (sizes, sizes, sizes);
    }

    pub fn is_superblock_due(&self) -> bool {
        self.wanted != self.in_force
    }

    pub fn is_idle(&self) -> bool {
        self.extension.is_none()
    }
}

impl Group {
    /// What hosts see of each volume; nothing until the superblock was read.
    pub fn sizes(&self) -> &VolumeSizes {
        self.extending.in_force()
    }

    // -------------------------------------------------------------------------------------------------------- asking

    pub(super) fn on_extend(&mut self, turn: &mut Turn<impl Memory>, id: u64, volume: VolumeId, blocks: u64) {
        match self.judge_extension(volume, blocks) {
            Ok(()) => self.begin_extension(turn.now, Asker::Administrator(id), volume, blocks),
            Err(error) => turn.out.to_admin.push(AdminReply { id, result: Err(error) }),
        }
    }

    fn judge_extension(&self, volume: VolumeId, blocks: u64) -> Result<(), AdminError> {
        self.judge_phase()?;
        if self.role != Role::Primary {
            return Err(AdminError::ReadOnly);
        }
        if !self.serving() {
            return Err(AdminError::NotServing);
        }
        let Some(spec) = self.config.volumes.get(usize::from(volume.0)) else {
            return Err(AdminError::NoSuchVolume);
        };
        if blocks <= self.extending.in_force.get(volume) {
            return Err(AdminError::NotLarger);
        }
        if blocks > spec.blocks {
            return Err(AdminError::BeyondRoom);
        }
        if self.extending.extension.is_some() {
            return Err(AdminError::Busy);
        }
        self.judge_peer_to_extend()
    }

    /// A peer that is away, or lacks something, cannot be asked.
    fn judge_peer_to_extend(&self) -> Result<(), AdminError> {
        if self.config.peer.is_none() {
            return Ok(());
        }
        if self.alone != Alone::No || self.peer_state() != PeerState::InSync {
            return Err(AdminError::NotInLockstep);
        }
        if self.peer.protocol < PROTOCOL_EXTENDS {
            return Err(AdminError::PeerTooOld);
        }
        Ok(())
    }

    fn begin_extension(&mut self, now: Nanos, asker: Asker, volume: VolumeId, blocks: u64) {
        let step = Step::Reserving { upto: self.extending.in_force.get(volume), in_flight: false };
        self.extending.extension = Some(Extension { asker, volume, blocks, since: now, step });
    }

    /// The primary wants this site to show so much.
    pub(super) fn on_extension_wanted(
        &mut self,
        turn: &mut Turn<impl Memory>,
        volume: VolumeId,
        blocks: u64,
    ) {
        let Some(spec) = self.config.volumes.get(usize::from(volume.0)) else {
            return self
                .lose_peer(turn, LossReason::Protocol("an extension of a volume that does not exist"));
        };
        let laid_out = spec.blocks;
        let busy = self.extending.extension.is_some();
        let Some(connection) = self.peer.connection else { return };
        if busy || blocks > laid_out {
            let errno = if busy { BUSY } else { TOO_LARGE };
            return self.tell_extended(turn, volume, blocks, errno);
        }
        self.begin_extension(turn.now, Asker::Peer(connection), volume, blocks);
    }

    /// The peer shows it, or does not.
    pub(super) fn on_extended(
        &mut self,
        turn: &mut Turn<impl Memory>,
        volume: VolumeId,
        blocks: u64,
        errno: i32,
    ) {
        let Some(extension) = &mut self.extending.extension else { return };
        let asked = (extension.step, extension.volume, extension.blocks) == (Step::Asking, volume, blocks);
        if !asked {
            // Of one that nobody waits for any more.
            return;
        }
        if errno != 0 {
            return self.end_extension(turn, Err(AdminError::PeerCannotReserve { errno }));
        }
        extension.step = Step::Showing;
        self.peer.sizes = self.peer.sizes.extended(volume, blocks);
        self.extending.wanted = self.extending.wanted.extended(volume, blocks);
    }

    // ---------------------------------------------------------------------------------------------------------- doing

    pub(super) fn extend_turn(&mut self, turn: &mut Turn<impl Memory>) {
        let Some(Extension { asker, volume, blocks, since, step }) = self.extending.extension else { return };
        let gone = match asker {
            Asker::Administrator(_) => false,
            Asker::Peer(connection) => !self.is_met_on(connection) || self.role != Role::Secondary,
            Asker::Nobody => true,
        };
        if let Step::Reserving { in_flight: true, .. } = step {
            // Its completion is to find what it belongs to.
        } else if self.stopping {
            self.forget_extension(turn);
        } else if gone {
            self.extending.extension = None;
        } else if turn.now.since(since) >= EXTEND_MAX {
            self.end_extension(turn, Err(AdminError::Deadline));
        } else {
            match step {
                Step::Reserving { upto, .. } if upto < blocks => self.reserve(turn, volume, upto, blocks),
                Step::Reserving { .. } => self.reserved_all(turn, asker, volume, blocks),
                Step::Asking if self.peer_state() != PeerState::InSync => {
                    self.end_extension(turn, Err(AdminError::Deadline));
                }
                Step::Showing if self.extending.in_force.get(volume) >= blocks => {
                    self.end_extension(turn, Ok(()))
                }
                Step::Asking | Step::Showing => {}
            }
        }
    }

    /// Whether the conversation on this connection goes on.
    fn is_met_on(&self, connection: u32) -> bool {
        self.peer.connection == Some(connection)
            && !matches!(self.peer.talk, Talk::Absent | Talk::Greeting { .. })
    }

    fn reserve(&mut self, turn: &mut Turn<impl Memory>, volume: VolumeId, upto: u64, blocks: u64) {
        let Some(slot) = self.volume_slots.pop() else { return };
        let count = (blocks - upto).min(RESERVED_AT_ONCE) as u32;
        let step = Step::Reserving { upto, in_flight: true };
        self.extending.extension.as_mut().expect("the caller has it").step = step;
        let target = IoTarget::Volume(volume);
        let request = IoRequest { slot, target, op: IoOp::Reserve, block: upto, count };
        self.submit_volume(turn, slot, VolumeIo::Reserve { count }, request);
    }

    pub(super) fn reserved(&mut self, turn: &mut Turn<impl Memory>, count: u32, result: Result<(), IoFault>) {
        let Some(Extension { step: Step::Reserving { upto, in_flight }, .. }) = &mut self.extending.extension
        else {
            panic!("group {}: space was reserved that nobody asked for", self.config.group)
        };
        assert!(*in_flight, "group {}: space was reserved twice", self.config.group);
        *in_flight = false;
        match result {
            Ok(()) => *upto += u64::from(count),
            Err(IoFault::Errno(errno)) => self.end_extension(turn, Err(AdminError::CannotReserve { errno })),
            Err(_) => self.end_extension(turn, Err(AdminError::CannotReserve { errno: FAULTY })),
        }
    }

    fn reserved_all(&mut self, turn: &mut Turn<impl Memory>, asker: Asker, volume: VolumeId, blocks: u64) {
        let asks = matches!(asker, Asker::Administrator(_)) && self.config.peer.is_some();
        let step = if asks { Step::Asking } else { Step::Showing };
        if asks {
            if let Err(error) = self.judge_peer_to_extend() {
                return self.end_extension(turn, Err(error));
            }
            if turn.out.to_link.room() <= LINK_SPARE {
                return;
            }
            turn.out.to_link.push(ToLink::Control(Control::Extend { volume, blocks }));
        } else {
            // A primary that asks shows it only after this site does.
            self.peer.sizes = self.peer.sizes.extended(volume, blocks);
            self.extending.wanted = self.extending.wanted.extended(volume, blocks);
        }
        self.extending.extension.as_mut().expect("the caller has it").step = step;
    }

    fn end_extension(&mut self, turn: &mut Turn<impl Memory>, result: Result<(), AdminError>) {
        let Some(Extension { asker, volume, blocks, .. }) = self.extending.extension.take() else { return };
        match asker {
            Asker::Administrator(id) => {
                let result = result.map(|()| self.window.last());
                turn.out.to_admin.push(AdminReply { id, result });
            }
            Asker::Peer(connection) if self.is_met_on(connection) => {
                let errno = match result {
                    Ok(()) => 0,
                    Err(AdminError::CannotReserve { errno }) => errno,
                    Err(_) => BUSY,
                };
                self.tell_extended(turn, volume, blocks, errno);
            }
            Asker::Peer(_) | Asker::Nobody => {}
        }
    }

    /// A primary that hears nothing gives up after a while.
    fn tell_extended(&mut self, turn: &mut Turn<impl Memory>, volume: VolumeId, blocks: u64, errno: i32) {
        if turn.out.to_link.room() > LINK_SPARE {
            turn.out.to_link.push(ToLink::Control(Control::Extended { volume, blocks, errno }));
        }
    }

    /// The site leaves, or its role, or stops. Space that is being reserved is waited for.
    pub(super) fn forget_extension(&mut self, turn: &mut Turn<impl Memory>) {
        let reserving =
            self.extending.extension.filter(|it| matches!(it.step, Step::Reserving { in_flight: true, .. }));
        self.end_extension(turn, Err(AdminError::NotServing));
        self.extending.extension = reserving.map(|it| Extension { asker: Asker::Nobody, ..it });
    }

    pub(super) fn extend_deadline(&self) -> Option<Nanos> {
        self.extending.extension.map(|extension| extension.since.plus(EXTEND_MAX))
    }

    // --------------------------------------------------------------------------------------------------------- meeting

    /// Whether this site shows as much as the one that says hello. If not, it is about to. One that is to be sent what hosts write there meets
    /// the other one only then, in a new conversation: what follows a hello comes right behind it.
    pub(super) fn shows_as_much(&mut self, hello: &Hello) -> bool {
        self.extending.wanted = self.extending.wanted.joined(hello.sizes());
        self.extending.in_force.cover(&hello.sizes())
    }

    /// The superblock that was on its way is durable.
    pub(super) fn note_shown(&mut self, turn: &mut Turn<impl Memory>) {
        let (before, shown) = (self.extending.in_force, self.extending.written);
        if before == shown {
            return;
        }
        assert!(
            shown.cover(&before),
            "group {}: volumes would become smaller: {before:?} to {shown:?}",
            self.config.group
        );
        self.extending.in_force = shown;
        for (volume, (from, to)) in (0..).map(VolumeId).zip(before.iter().zip(shown.iter())) {
            if from != to {
                turn.event(Event::VolumeExtended { volume, from, to });
            }
        }
        // Whoever was told less, and has not said that it shows as much, is told anew.
        let why = LossReason::Protocol("a volume was extended since its hello");
        if !self.peer.sizes.cover(&shown) && self.peer.is_greeted() {
            self.lose_peer(turn, why);
        }
        if self.feed.as_ref().is_some_and(|feed| feed.is_greeted() && !feed.sizes.cover(&shown)) {
            self.lose_third(turn, why);
        }
        for index in 0..self.sources.len() {
            let source = &self.sources[index];
            if source.is_greeted() && !source.sizes.cover(&shown) {
                self.lose_source(turn, index, why);
            }
        }
    }
}
