//! A site's management information: atomic, durable once it has answered, and at a crash either all there or not at all.

use std::collections::{BTreeMap, VecDeque};

use crate::base::*;
use crate::core::messages::*;
use crate::core::outbox::Tables;
use crate::format::metadata::*;
use crate::format::runs::RUN_BLOCKS;
use crate::format::snapshot::{SNAPSHOTS_PAGE_MAX, SnapshotRecord, decode_payload, encode_snapshots};
use crate::format::tables::*;
use crate::sim::memory::SimMemory;
use crate::sim::rng::Rng;

/// Volume, block, snapshot.
pub type Key = (u16, u64, u64);

#[derive(Clone, Debug, Default)]
pub struct Metadata {
    pub applied: u64,
    pub snapshots: BTreeMap<u64, SnapshotRecord>,
    /// Slot and sum.
    pub captured: BTreeMap<Key, (u64, u32)>,
    /// Where the changed-block set begins, and its pages.
    pub changed: Option<u64>,
    pub marks: BTreeMap<(u16, u64), [u8; BLOCK_BYTES]>,
    in_flight: VecDeque<(u64, MetadataRequest)>,
    busy_until: u64,
    /// Entries a step of a reclaim looks at: few, so that passes take several.
    step: usize,
    /// Pages of tables that are being lent, and of those that are to take the place of these.
    lent: VecDeque<[u8; BLOCK_BYTES]>,
    taking: Vec<[u8; BLOCK_BYTES]>,
}

impl Metadata {
    pub fn new(step: usize) -> Metadata {
        Metadata { step, ..Metadata::default() }
    }

    /// Has what the other one has.
    pub fn take_from(&mut self, other: &Metadata) {
        assert!(self.in_flight.is_empty(), "nothing runs meanwhile");
        self.applied = other.applied;
        self.snapshots.clone_from(&other.snapshots);
        self.captured.clone_from(&other.captured);
    }

    /// When the newest request is done.
    pub fn busy_until(&self) -> u64 {
        self.busy_until
    }

    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// A request comes off its ring; `latency` is what it takes once those before it are done.
    pub fn submit(
        &mut self,
        now: u64,
        latency: u64,
        request: MetadataRequest,
        memory: &mut SimMemory,
        tables: &Tables,
    ) {
        let page = |index: usize| tables.metadata_io.page(request.slot, index);
        memory.pin_for_writing(page(0));
        (1..=request.op.given_pages()).for_each(|index| memory.pin_for_reading(page(index)));
        self.busy_until = self.busy_until.max(now) + latency;
        self.in_flight.push_back((self.busy_until, request));
    }

    /// Carries out the oldest request.
    pub fn complete(&mut self, memory: &mut SimMemory, tables: &Tables) -> MetadataDone {
        let (_, request) = self.in_flight.pop_front().expect("a request completes once");
        let page = |index: usize| tables.metadata_io.page(request.slot, index);
        let pages = request.op.given_pages();
        let given: Vec<_> = (1..=pages).map(|index| *memory.bytes(page(index))).collect();
        let mut answer = [0; BLOCK_BYTES];
        let result = Ok(self.carry_out(&request.op, &given, &mut answer));
        *memory.fill(page(0)) = answer;
        (0..=pages).for_each(|index| memory.unpin(page(index)));
        MetadataDone { slot: request.slot, result }
    }

    /// The process or the power is gone: a commit under way happened, or it did not.
    pub fn crash(&mut self, rng: &mut Rng, memory: &SimMemory, tables: &Tables) {
        self.busy_until = 0;
        while let Some((_, request)) = self.in_flight.pop_front() {
            if !rng.once_in(2) {
                break;
            }
            let pages = request.op.given_pages();
            let page = |index: usize| tables.metadata_io.page(request.slot, index);
            let given: Vec<_> = (1..=pages).map(|index| *memory.bytes(page(index))).collect();
            self.carry_out(&request.op, &given, &mut [0; BLOCK_BYTES]);
        }
        self.in_flight.clear();
        self.lent.clear();
        self.taking.clear();
    }

    fn carry_out(
        &mut self,
        op: &MetadataOp,
        given: &[[u8; BLOCK_BYTES]],
        answer: &mut [u8; BLOCK_BYTES],
    ) -> MetadataAnswer {
        match *op {
            MetadataOp::LoadSnapshots { first } => {
                let all: Vec<SnapshotRecord> = self.snapshots.values().copied().collect();
                let part: Vec<_> = all.iter().skip(first as usize).take(SNAPSHOTS_PAGE_MAX).collect();
                encode_snapshots(part.iter().copied(), answer);
                MetadataAnswer::Snapshots {
                    count: part.len() as u32,
                    total: all.len() as u32,
                    applied: UpdateNumber(self.applied),
                    entries: self.captured.len() as u64,
                }
            }
            MetadataOp::LoadCaptured { volume, since, first } => {
                for &(of, lba, snapshot) in self.captured.keys() {
                    if of == volume.0
                        && snapshot >= since.0
                        && (first.0..first.0 + BITS_PAGE_MAX).contains(&lba)
                    {
                        set_bit(answer, lba - first.0);
                    }
                }
                MetadataAnswer::Bits
            }
            MetadataOp::LoadSlots { first } => {
                for &(slot, _) in self.captured.values() {
                    if (first.0..first.0 + BITS_PAGE_MAX).contains(&slot) {
                        set_bit(answer, slot - first.0);
                    }
                }
                MetadataAnswer::Bits
            }
            MetadataOp::Commit { applied, .. } => {
                self.commit(given, answer);
                assert!(applied.0 >= self.applied, "commits go on");
                self.applied = applied.0;
                MetadataAnswer::Committed
            }
            MetadataOp::Reclaim { volume, lba } => self.reclaim(volume.0, lba.0, answer),
            MetadataOp::LookUp { snapshot, volume, lba, count } => {
                for index in 0..u64::from(count) {
                    let block = lba.0 + index;
                    let kept = self.first_from(volume.0, block, snapshot.0).map(|(snapshot, slot, sum)| {
                        Kept { snapshot: UpdateNumber(snapshot), slot: Slot(slot), sum: BlockSum(sum) }
                    });
                    put_kept(answer, index as usize, kept);
                }
                MetadataAnswer::Found
            }
            MetadataOp::Changed { since, before, volume, lba, count } => {
                for index in 0..u64::from(count) {
                    let first = self.first_from(volume.0, lba.0 + index, since.0);
                    if first.is_some_and(|(snapshot, ..)| snapshot < before.0) {
                        set_bit(answer, index);
                    }
                }
                MetadataAnswer::Bits
            }
            MetadataOp::Entries { from } => self.entries(from, answer),
            MetadataOp::Check => MetadataAnswer::Checked { entries: self.captured.len() as u64 },
            MetadataOp::Lend { page, applied } => {
                if page == 0 {
                    self.begin_lending(applied);
                }
                *answer = self.lent.pop_front().expect("whoever asks for pages begins with the first");
                MetadataAnswer::Lent
            }
            MetadataOp::TakeTables => {
                self.take_tables(given[0]);
                MetadataAnswer::Taken
            }
            MetadataOp::LoadMarks { volume, chunk } => {
                let base = self.changed.map(UpdateNumber);
                let page = self.marks.range((volume.0, chunk)..).next().map(|(_, page)| *page);
                *answer = page.unwrap_or(*answer);
                MetadataAnswer::Marks { base, found: page.is_some() }
            }
            MetadataOp::SaveMarks { base, .. } => {
                for page in given {
                    let (volume, chunk, _) = take_marks(page).expect("a page that was put there");
                    self.marks.insert((volume.0, chunk), *page);
                }
                self.changed = Some(base.0);
                MetadataAnswer::Saved
            }
            MetadataOp::DropMarks => {
                self.changed = None;
                self.marks.clear();
                MetadataAnswer::Saved
            }
        }
    }

    /// A row is what a snapshot keeps of a run; few a page, so that tables take several.
    fn entries(&self, from: EntriesFrom, answer: &mut [u8; BLOCK_BYTES]) -> MetadataAnswer {
        let row_of = |&(volume, lba, snapshot): &Key| (volume, lba / RUN_BLOCKS, snapshot);
        let from = (from.volume.0, from.lba.0 / RUN_BLOCKS, from.snapshot.0);
        let mut keys: Vec<&Key> = self.captured.keys().filter(|key| row_of(key) >= from).collect();
        keys.sort_by_key(|key| row_of(key));
        let (mut count, mut next) = (0, None);
        for row in keys.chunk_by(|one, other| row_of(one) == row_of(other)) {
            let (volume, run, snapshot) = row_of(row[0]);
            if count > 0 && count + row.len() > self.step.min(TABLE_ENTRIES_MAX) {
                let (volume, lba) = (VolumeId(volume), Lba(run * RUN_BLOCKS));
                next = Some(EntriesFrom { volume, lba, snapshot: UpdateNumber(snapshot) });
                break;
            }
            for key in row {
                put_entry(answer, count, &self.entry(key));
                count += 1;
            }
        }
        MetadataAnswer::Entries { count: count as u32, next }
    }

    fn entry(&self, key: &Key) -> Captured {
        let (&(volume, lba, snapshot), &(slot, sum)) = (key, &self.captured[key]);
        let (volume, lba, snapshot) = (VolumeId(volume), Lba(lba), UpdateNumber(snapshot));
        Captured { volume, lba, snapshot, slot: Slot(slot), sum: BlockSum(sum) }
    }

    /// Few rows a page, so that tables take several.
    fn begin_lending(&mut self, applied: UpdateNumber) {
        let applied = applied.max(UpdateNumber(self.applied));
        let records: Vec<_> = self.snapshots.values().copied().collect();
        let entries: Vec<_> = self.captured.keys().map(|key| self.entry(key)).collect();
        self.lent.clear();
        let mut put = |kind, count, last, rows: &dyn Fn(&mut [u8; BLOCK_BYTES])| {
            let mut page = [0; BLOCK_BYTES];
            let index = self.lent.len() as u32;
            put_header(&mut page, &TablesHeader { applied, index, kind, count, last });
            rows(&mut page);
            self.lent.push_back(page);
        };
        for rows in records.chunks(self.step.min(TABLE_RECORDS_MAX)) {
            put(TablesKind::Snapshots, rows.len(), false, &|page| {
                (0..).zip(rows).for_each(|(index, record)| put_record(page, index, record));
            });
        }
        for rows in entries.chunks(self.step.min(TABLE_ENTRIES_MAX)) {
            put(TablesKind::Entries, rows.len(), false, &|page| {
                (0..).zip(rows).for_each(|(index, entry)| put_entry(page, index, entry));
            });
        }
        put(TablesKind::Entries, 0, true, &|_| ());
    }

    fn take_tables(&mut self, page: [u8; BLOCK_BYTES]) {
        let header = header_of(&page).expect("a page of tables");
        if header.index == 0 {
            self.taking.clear();
        }
        assert_eq!(header.index as usize, self.taking.len(), "pages of tables come in their order");
        self.taking.push(page);
        if !header.last {
            return;
        }
        self.applied = header.applied.0;
        self.snapshots.clear();
        self.captured.clear();
        for page in std::mem::take(&mut self.taking) {
            let header = header_of(&page).expect("looked at it");
            for index in 0..header.count {
                if header.kind == TablesKind::Snapshots {
                    let record = record_at(&page, index).expect("a record");
                    self.snapshots.insert(record.number.0, record);
                } else {
                    let entry = entry_at(&page, index).expect("an entry");
                    let key = (entry.volume.0, entry.lba.0, entry.snapshot.0);
                    self.captured.insert(key, (entry.slot.0, entry.sum.0));
                }
            }
        }
    }

    fn commit(&mut self, given: &[[u8; BLOCK_BYTES]], answer: &mut [u8; BLOCK_BYTES]) {
        let mut number = 0;
        let mut pages = given.iter();
        while let Some(page) = pages.next() {
            for index in 0..changes_in(page) {
                match change_at(page, index).expect("a change that was put there") {
                    Change::Captured(entry) => {
                        let key = (entry.volume.0, entry.lba.0, entry.snapshot.0);
                        let kept = self.first_from(key.0, key.1, key.2);
                        match kept {
                            None => drop(self.captured.insert(key, (entry.slot.0, entry.sum.0))),
                            Some((snapshot, slot, _)) if (snapshot, slot) == (key.2, entry.slot.0) => (),
                            Some(_) => set_bit(answer, number),
                        }
                        number += 1;
                    }
                    Change::Created(snapshot) => {
                        let record =
                            decode_payload(pages.next().expect("a record follows")).expect("a record");
                        assert_eq!(record.number, snapshot);
                        self.snapshots.insert(snapshot.0, record);
                    }
                    Change::Deleted(snapshot) => drop(self.snapshots.remove(&snapshot.0)),
                    Change::Protected(snapshot, protected) => {
                        self.snapshots.entry(snapshot.0).and_modify(|record| record.protected = protected);
                    }
                }
            }
        }
    }

    /// Snapshot, slot and sum of the block's first entry at or after a snapshot.
    pub fn first_from(&self, volume: u16, lba: u64, snapshot: u64) -> Option<(u64, u64, u32)> {
        let range = (volume, lba, snapshot)..=(volume, lba, u64::MAX);
        self.captured.range(range).next().map(|((_, _, snapshot), (slot, sum))| (*snapshot, *slot, *sum))
    }

    fn reclaim(&mut self, volume: u16, lba: u64, answer: &mut [u8; BLOCK_BYTES]) -> MetadataAnswer {
        let keys: Vec<Key> = self.captured.range((volume, lba, 0)..).map(|(key, _)| *key).collect();
        let mut garbage = Vec::new();
        let mut next = None;
        for (seen, &(volume, lba, snapshot)) in keys.iter().enumerate() {
            let before = keys[..seen].last().filter(|before| (before.0, before.1) == (volume, lba));
            if before.is_none() && seen >= self.step {
                next = Some((VolumeId(volume), Lba(lba)));
                break;
            }
            let after = before.map_or(0, |before| before.2);
            let of_volume = |record: &&SnapshotRecord| record.volumes.contains(VolumeId(volume));
            let living = self.snapshots.values().filter(of_volume);
            if !living.map(|record| record.number.0).any(|number| number > after && number <= snapshot) {
                garbage.push((volume, lba, snapshot));
            }
        }
        for (index, key) in garbage.iter().enumerate() {
            let (slot, _) = self.captured.remove(key).expect("listed above");
            put_slot(answer, index, Slot(slot));
        }
        MetadataAnswer::Reclaimed { freed: garbage.len() as u32, next }
    }
}
