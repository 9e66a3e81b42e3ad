//! What administrators ask: snapshots created, deleted and protected. Each is one update in the stream, so nobody is paused for it.

use super::{Group, Phase, Turn};
use crate::base::*;
use crate::core::config::Role;
use crate::core::messages::*;
use crate::core::outbox::{Event, WriteStamps};
use crate::format::snapshot::{SnapshotName, SnapshotRecord, decode_payload, encode_snapshots};
use crate::format::update::{Update, UpdateKind};

/// A request that has not been answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    request: AdminRequest,
    since: Nanos,
    /// Its update; `NONE` until there is room for one.
    number: UpdateNumber,
}

impl Group {
    pub fn on_admin(&mut self, turn: &mut Turn<impl Memory>, request: AdminRequest) {
        if let AdminOp::Scrub { blocks_per_second } = request.op {
            return self.on_scrub(turn, request, blocks_per_second);
        }
        if let AdminOp::Compare { extent } = request.op {
            return self.on_compare(turn, request, extent, None);
        }
        if let AdminOp::Equalise { volume, lba, theirs } = request.op {
            let extent = Extent { volume, first: lba, count: 1, reads: true };
            return self.on_compare(turn, request, extent, Some(theirs));
        }
        if let AdminOp::Extend { volume, blocks } = request.op {
            return self.on_extend(turn, request.id, volume, blocks);
        }
        if matches!(request.op, AdminOp::Switchover | AdminOp::Demote | AdminOp::GiveWay | AdminOp::HostsGone)
        {
            return self.on_leave(turn, request);
        }
        let verdict = match self.judge_admin(turn.now, &request.op) {
            Ok(()) if self.admin.room() == 0 => Err(AdminError::Busy),
            verdict => verdict,
        };
        match verdict {
            Ok(()) => self.admin.push(Waiting { request, since: turn.now, number: UpdateNumber::NONE }),
            Err(error) => turn.out.to_admin.push(AdminReply { id: request.id, result: Err(error) }),
        }
    }

    /// The snapshots that live, oldest first, and whether each can be read here.
    pub fn snapshots(&self) -> impl Iterator<Item = (&SnapshotRecord, bool)> {
        let visible = self.visible();
        self.snapshots.living().map(move |record| (record, record.number <= visible))
    }

    fn judge_admin(&self, now: Nanos, op: &AdminOp) -> Result<(), AdminError> {
        if let AdminOp::Promote { fenced } = *op {
            return self.judge_promotion(now, fenced);
        }
        if let AdminOp::PromoteThird { fenced, accepted } = *op {
            return self.judge_third(now, fenced, accepted);
        }
        if !self.serving() || self.stopping {
            return Err(AdminError::NotServing);
        }
        if self.role != Role::Primary {
            return Err(AdminError::ReadOnly);
        }
        if self.config.differential_blocks == 0 {
            return Err(AdminError::NoDifferential);
        }
        match op {
            AdminOp::CreateSnapshot { name, volumes, .. } => {
                let taken = |name: &SnapshotName| self.snapshots.living().any(|record| record.name == *name);
                if name.is_empty() {
                    Err(AdminError::NoName)
                } else if volumes.is_empty()
                    || !volumes.is_within(VolumeSet::first(self.config.volumes.len()))
                {
                    Err(AdminError::NoSuchVolume)
                } else if taken(name) {
                    Err(AdminError::NameTaken)
                } else if self.snapshots.living().count() == SNAPSHOTS_MAX {
                    Err(AdminError::TooMany)
                } else {
                    Ok(())
                }
            }
            AdminOp::DeleteSnapshot { snapshot } | AdminOp::ProtectSnapshot { snapshot, .. } => {
                let lives = self.snapshots.lives(*snapshot);
                lives.then_some(()).ok_or(AdminError::NoSuchSnapshot)
            }
            AdminOp::Promote { .. }
            | AdminOp::PromoteThird { .. }
            | AdminOp::Switchover
            | AdminOp::Demote
            | AdminOp::GiveWay
            | AdminOp::HostsGone
            | AdminOp::Compare { .. }
            | AdminOp::Equalise { .. }
            | AdminOp::Extend { .. }
            | AdminOp::Scrub { .. } => unreachable!("judged elsewhere"),
        }
    }

    /// Numbers what waits, in order, and answers what is acknowledged or has waited too long.
    pub(super) fn admin_turn(&mut self, turn: &mut Turn<impl Memory>) {
        let mut blocked = false;
        for _ in 0..self.admin.len() {
            let mut waiting = self.admin.pop().expect("counted");
            if waiting.number == UpdateNumber::NONE && !blocked {
                // Another request may have changed what this one was judged by.
                if let Err(error) = self.judge_admin(turn.now, &waiting.request.op) {
                    self.answer_admin(turn, waiting, Err(error));
                    continue;
                }
                waiting.number = self.number_admin(turn, &waiting.request.op);
                if self.awaits_promise(turn.now, &waiting).is_some() {
                    // Nobody is late before that.
                    waiting.since = turn.now;
                }
                blocked = waiting.number == UpdateNumber::NONE;
            }
            if waiting.number != UpdateNumber::NONE && waiting.number <= self.acknowledged {
                self.answer_admin(turn, waiting, Ok(waiting.number));
            } else if turn.now.since(waiting.since) >= self.config.host_deadline {
                self.answer_admin(turn, waiting, Err(AdminError::Deadline));
            } else {
                self.admin.push(waiting);
            }
        }
    }

    fn answer_admin(
        &mut self,
        turn: &mut Turn<impl Memory>,
        waiting: Waiting,
        result: Result<UpdateNumber, AdminError>,
    ) {
        turn.out.to_admin.push(AdminReply { id: waiting.request.id, result });
    }

    /// The site leaves, or stops: nobody waits for it any more.
    pub(super) fn answer_administrators(&mut self, turn: &mut Turn<impl Memory>) {
        while let Some(waiting) = self.admin.pop() {
            self.answer_admin(turn, waiting, Err(AdminError::NotServing));
        }
        self.forget_leaving(turn);
        self.forget_extension(turn);
    }

    /// When this site may take over, if that is asked and has to wait.
    fn awaits_promise(&self, now: Nanos, waiting: &Waiting) -> Option<Nanos> {
        let asked = waiting.request.op == AdminOp::Promote { fenced: false };
        self.promised_until(now).filter(|_| asked && waiting.number == UpdateNumber::NONE)
    }

    pub(super) fn admin_deadline(&self) -> Option<Nanos> {
        let oldest = self.admin.iter().map(|waiting| waiting.since).min()?;
        let promised =
            self.admin.iter().filter_map(|waiting| self.awaits_promise(self.turned_at, waiting)).min();
        [Some(oldest.plus(self.config.host_deadline)), promised].into_iter().flatten().min()
    }

    /// Whether a control update with so many blocks of payload can be numbered now.
    pub(super) fn room_for_control(&self, payload: usize) -> bool {
        self.window.room() > super::stream::CONTROL_UPDATES
            && self.journal_has_room(1, payload)
            && self.held_pages() + payload as u64 <= self.holdable_pages as u64
            && self.pages.free() > BATCH_BLOCKS_MAX
    }

    /// Gives the request its number; `NONE` if there is no room for it now.
    fn number_admin(&mut self, turn: &mut Turn<impl Memory>, op: &AdminOp) -> UpdateNumber {
        match *op {
            AdminOp::CreateSnapshot { name, volumes, protected, taken_at_ns } => {
                if !self.room_for_control(1) || self.snapshots.room() == 0 {
                    self.sweep_wanted = true;
                    return UpdateNumber::NONE;
                }
                let number = self.window.last().next();
                let record = SnapshotRecord { number, taken_at_ns, volumes, protected, name };
                let page = self.pages.take().expect("room_for_control left pages");
                encode_snapshots([record].iter(), turn.memory.bytes_mut(page));
                let sum = sum_of_block(turn.memory.bytes(page));
                let update = Update {
                    number,
                    generation: self.generation,
                    count: 1,
                    sum: sum_of_sums([sum].into_iter()),
                    kind: UpdateKind::SnapshotCreate,
                    ..Update::EMPTY
                };
                let stamps = WriteStamps { numbered_at: turn.now, ..WriteStamps::default() };
                self.append(turn, update, None, stamps, |_| (page, sum), None);
                number
            }
            AdminOp::DeleteSnapshot { snapshot } => match self.room_for_control(0) {
                true => self.append_delete(turn, snapshot),
                false => UpdateNumber::NONE,
            },
            AdminOp::ProtectSnapshot { snapshot, protected } => {
                if !self.room_for_control(0) || !self.snapshots.room_to_protect() {
                    self.sweep_wanted = true;
                    return UpdateNumber::NONE;
                }
                let kind =
                    if protected { UpdateKind::SnapshotProtect } else { UpdateKind::SnapshotUnprotect };
                self.append_naming(turn, kind, self.generation, Lba(snapshot.0))
            }
            AdminOp::Promote { fenced: false } if self.promised_until(turn.now).is_some() => {
                UpdateNumber::NONE
            }
            AdminOp::Promote { .. } | AdminOp::PromoteThird { .. } => self.promote(turn),
            AdminOp::Switchover
            | AdminOp::Demote
            | AdminOp::GiveWay
            | AdminOp::HostsGone
            | AdminOp::Compare { .. }
            | AdminOp::Equalise { .. }
            | AdminOp::Extend { .. }
            | AdminOp::Scrub { .. } => {
                unreachable!("never queued")
            }
        }
    }

    pub(super) fn append_delete(
        &mut self,
        turn: &mut Turn<impl Memory>,
        snapshot: UpdateNumber,
    ) -> UpdateNumber {
        self.append_naming(turn, UpdateKind::SnapshotDelete, self.generation, Lba(snapshot.0))
    }

    /// What a snapshot's creation, deletion or protection changes in the group itself, on every site that takes it.
    pub(super) fn note_snapshot(&mut self, turn: &mut Turn<impl Memory>, update: &Update) {
        // Replay tells of nothing that was told before.
        let news = matches!(self.phase, Phase::Running);
        if let UpdateKind::SnapshotProtect | UpdateKind::SnapshotUnprotect = update.kind {
            let (snapshot, protected) =
                (UpdateNumber(update.lba.0), update.kind == UpdateKind::SnapshotProtect);
            self.snapshots.protect(snapshot, update.number, protected);
            let found = self.snapshots.find(snapshot).filter(|_| news);
            found.iter().for_each(|found| turn.event(Event::SnapshotProtected { snapshot: found.record }));
            return;
        }
        if update.kind == UpdateKind::SnapshotDelete {
            let snapshot = UpdateNumber(update.lba.0);
            self.snapshots.delete(snapshot, update.number);
            let found = self.snapshots.find(snapshot).filter(|_| news);
            found.iter().for_each(|found| turn.event(Event::SnapshotDeleted { snapshot: found.record }));
            return;
        }
        let (page, _) = crate::core::window::Window::block(&turn.tables.window, update, 0);
        let record = decode_payload(turn.memory.bytes(page)).expect("judged before it was taken");
        self.snapshots.create(record);
        for (volume, captured) in self.captured.iter_mut().enumerate() {
            if record.volumes.contains(VolumeId(volume as u16)) {
                captured.clear();
            }
        }
        if news {
            turn.event(Event::SnapshotCreated { snapshot: record });
        }
    }

    /// Whether an update of somebody else's that concerns snapshots makes sense here. `page` is its payload's first.
    pub(super) fn judge_snapshots(
        &self,
        memory: &impl Memory,
        update: &Update,
        page: PageId,
    ) -> Result<(), &'static str> {
        match update.kind {
            // The tables have what it did already.
            _ if update.number <= self.applied => Ok(()),
            kind if (kind == UpdateKind::SnapshotCreate || kind.names_snapshot())
                && self.config.differential_blocks == 0 =>
            {
                Err("a snapshot, for which this site has no differential volume")
            }
            UpdateKind::SnapshotCreate => {
                let volumes = VolumeSet::first(self.config.volumes.len());
                match decode_payload(memory.bytes(page)) {
                    Ok(record) if record.number == update.number && record.volumes.is_within(volumes) => {
                        Ok(())
                    }
                    _ => Err("a snapshot whose record is wrong"),
                }
            }
            kind if kind.names_snapshot() && !self.snapshots.lives(UpdateNumber(update.lba.0)) => {
                Err("the deletion or protection of a snapshot that does not exist")
            }
            UpdateKind::Write | UpdateKind::Zero
                if update.captures() && self.snapshots.newest(update.volume) == UpdateNumber::NONE =>
            {
                Err("an update that captures for no snapshot")
            }
            _ => Ok(()),
        }
    }
}
