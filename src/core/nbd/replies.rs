//! How a session answers: pieces that the group completed become replies.

use std::ops::Range;

use super::desk::Job;
use super::handshake::{ALLOCATION_CONTEXT, CHANGES_CONTEXT};
use super::session::*;
use super::{AllAllocated, AllocationMap, Exported, Failure};
use crate::base::{BLOCK_BYTES, Lba, Memory, UpdateNumber};
use crate::core::messages::{HostReply, Ticket};
use crate::format::metadata::bit_at;
use crate::format::nbd::*;

impl Session {
    /// A piece of this session is answered: its ticket and pages go back to the desk and, when that completes something
    /// that can be sent, `out` gets it.
    pub fn complete<M: Memory>(
        &mut self,
        station: &mut Station<'_, M>,
        reply: HostReply,
        out: &mut impl Sink,
    ) {
        let job = station.desk.job(reply.ticket);
        assert_eq!(job.connection, self.connection, "ticket {} of another session", reply.ticket.0);
        self.pieces -= 1;
        let active = self.active[usize::from(job.request)].as_mut();
        let active = active.expect("a request outlives its pieces");
        active.pieces -= 1;
        let failure = reply.result.err().map(|error| Failure::of(error, !active.verb.reads()));
        active.failure = active.failure.or(failure);
        let active = *active;
        let last = active.issued && active.pieces == 0;
        match active.verb {
            Verb::Read => {
                self.reserved -= read_reply_bytes(job.length);
                if !self.muted {
                    let done = last && !active.cut;
                    self.put_read(station, reply.ticket, &active, failure, done, out);
                }
                station.desk.release(station.table, reply.ticket);
            }
            Verb::Stream => {
                let places = 0..self.stream.len();
                let mut pieces =
                    places.filter(|&at| self.stream.get(at).is_some_and(|it| it.ticket == reply.ticket));
                let place = pieces.next().and_then(|at| self.stream.get_mut(at));
                place.expect("a stream knows its pieces").done = true;
                self.put_stream(station, job.request, out);
            }
            Verb::Changes { one, .. } => {
                match active.failure {
                    _ if self.muted || active.cut => {}
                    Some(failure) => self.put_result(active.cookie, Some(failure), out),
                    None => self.put_changes(station, reply.ticket, &active, one, out),
                }
                station.desk.release(station.table, reply.ticket);
            }
            Verb::Write { .. } | Verb::Zero { .. } | Verb::Flush => {
                station.desk.release(station.table, reply.ticket);
                if last && !active.cut {
                    self.put_result(active.cookie, active.failure, out);
                }
            }
        }
        self.retire(job.request);
        assert!(out.len() + self.reserved <= self.send_bytes, "room for replies was promised twice");
    }

    /// Frees the request's place if nothing of it is outstanding.
    pub(super) fn retire(&mut self, request: u16) {
        let place = &mut self.active[usize::from(request)];
        if let Some(active) = place
            && active.issued
            && active.pieces == 0
        {
            self.reserved -= active.verb.reply_bytes();
            *place = None;
            self.free.push(request);
        }
    }

    /// Answers a request that has no data, or failed.
    pub(super) fn put_result(&self, cookie: Cookie, failure: Option<Failure>, out: &mut impl Sink) {
        match failure {
            _ if self.muted => {}
            Some(Failure { error, message }) if self.negotiated.structured => {
                put_error_chunk(out, cookie, true, error, message, None);
            }
            failure => put_simple_reply(out, cookie, failure.map_or(Ok(()), |failure| Err(failure.error))),
        }
    }

    /// Answers one piece of a read: the whole of it, or the chunk for this piece.
    fn put_read<M: Memory>(
        &self,
        station: &Station<'_, M>,
        ticket: Ticket,
        active: &Active,
        failure: Option<Failure>,
        done: bool,
        out: &mut impl Sink,
    ) {
        let job = station.desk.job(ticket);
        match failure {
            Some(Failure { error, message }) if self.negotiated.structured => {
                // A reply of one piece has one error and no data before it; only then is a place of no use.
                let offset = (job.length != active.length).then_some(job.offset);
                put_error_chunk(out, active.cookie, done, error, message, offset);
            }
            Some(failure) => put_simple_reply(out, active.cookie, Err(failure.error)),
            None => {
                if self.negotiated.structured {
                    put_data_chunk_header(out, active.cookie, done, job.offset, job.length);
                } else {
                    put_simple_reply(out, active.cookie, Ok(()));
                }
                put_data(station, ticket, &job, out);
            }
        }
    }

    /// Tells what was changed, out of the page that the group filled, and what is allocated if that was asked for as well.
    fn put_changes<M: Memory>(
        &self,
        station: &Station<'_, M>,
        ticket: Ticket,
        active: &Active,
        one: bool,
        out: &mut impl Sink,
    ) {
        let (export, contexts) = self.negotiated.contexts.expect("changes are told where they were selected");
        let job = station.desk.job(ticket);
        if contexts.allocation {
            let asked = (job.offset..job.offset + u64::from(active.length), one);
            put_allocation(station, &export, active.cookie, asked, false, out);
        }
        let bits = station.memory.bytes(station.table.page(ticket, 0));
        let first = job.offset / BLOCK_BYTES as u64;
        let asked = (job.offset..job.offset + u64::from(job.length), one);
        let extents = Extents::of(asked, |lba, most| {
            let is = |block: u64| bit_at(bits, block - first);
            let changed = is(lba.0);
            let run = (lba.0..lba.0 + most).take_while(|&block| is(block) == changed).count() as u64;
            (run, if changed { STATE_CHANGED } else { 0 })
        });
        extents.put(active.cookie, CHANGES_CONTEXT, true, out);
    }

    /// Sends on what is complete of the streamed read, in order.
    fn put_stream<M: Memory>(&mut self, station: &mut Station<'_, M>, request: u16, out: &mut impl Sink) {
        let active = self.active[usize::from(request)].expect("a stream outlives its pieces");
        if let Some(failure) = active.failure
            && !active.cut
        {
            if self.streamed == 0 {
                self.put_result(active.cookie, Some(failure), out);
            } else {
                self.leave(Farewell::ReadFailed);
            }
            self.cut();
            if let Some(active) = &mut self.active[usize::from(request)] {
                active.cut = true;
            }
        }
        while self.stream.front().is_some_and(|piece| piece.done) {
            let ticket = self.stream.pop().expect("it has a front").ticket;
            let job = station.desk.job(ticket);
            self.reserved -= read_reply_bytes(job.length);
            if active.failure.is_none() && !active.cut && !self.muted {
                if self.streamed == 0 {
                    put_simple_reply(out, active.cookie, Ok(()));
                }
                put_data(station, ticket, &job, out);
                self.streamed += u64::from(job.length);
            }
            station.desk.release(station.table, ticket);
        }
    }
}

/// Appends the piece's bytes out of the pages lent for it.
fn put_data<M: Memory>(station: &Station<'_, M>, ticket: Ticket, job: &Job, out: &mut impl Sink) {
    let (mut at, mut left) = ((job.offset % BLOCK_BYTES as u64) as usize, job.length as usize);
    for index in 0..job.lent as usize {
        let bytes = left.min(BLOCK_BYTES - at);
        out.put(&station.memory.bytes(station.table.page(ticket, index))[at..at + bytes]);
        (at, left) = (0, left - bytes);
    }
    assert_eq!(left, 0, "a read lends the pages its bytes need");
}

/// Bytes of a volume, and whether only the first extent in them is wanted.
type Asked = (Range<u64>, bool);

/// The extents at the beginning of a range, at most [`EXTENTS_MAX`] of them: lengths in bytes, and flags.
struct Extents {
    list: [(u32, u32); EXTENTS_MAX],
    count: usize,
}

impl Extents {
    /// `run` tells of how many blocks from the one given on, at most so many, the flags are the same, and what they are.
    fn of((range, one): Asked, mut run: impl FnMut(Lba, u64) -> (u64, u32)) -> Extents {
        let block = BLOCK_BYTES as u64;
        let mut extents = Extents { list: [(0, 0); EXTENTS_MAX], count: 0 };
        let extents_max = if one { 1 } else { EXTENTS_MAX };
        let mut at = range.start;
        // Runs may be reported in parts, so looking is bounded apart from the extents they merge into.
        for _ in 0..2 * EXTENTS_MAX {
            if at == range.end {
                break;
            }
            let lba = at / block;
            let most = range.end.div_ceil(block) - lba;
            let (blocks, state) = run(Lba(lba), most);
            assert!((1..=most).contains(&blocks), "a run of {blocks} blocks, of {most} at most");
            let stop = range.end.min((lba + blocks) * block);
            let length = (stop - at) as u32;
            match extents.list[..extents.count].last_mut() {
                Some((so_far, same)) if *same == state => *so_far += length,
                _ if extents.count == extents_max => break,
                _ => {
                    extents.list[extents.count] = (length, state);
                    extents.count += 1;
                }
            }
            at = stop;
        }
        extents
    }

    fn put(&self, cookie: Cookie, context: u32, done: bool, out: &mut impl Sink) {
        put_block_status_header(out, cookie, done, context, self.count as u32);
        self.list[..self.count].iter().for_each(|&(length, state)| put_extent(out, length, state));
    }
}

/// Tells what is known to read as zeros; `done` if no other context was selected.
pub(super) fn put_allocation<M: Memory>(
    station: &Station<'_, M>,
    export: &Exported,
    cookie: Cookie,
    asked: Asked,
    done: bool,
    out: &mut impl Sink,
) {
    // Which blocks are zeros is only known of the volume as it is.
    let map: &dyn AllocationMap =
        if export.snapshot == UpdateNumber::NONE { station.allocation } else { &AllAllocated };
    let extents = Extents::of(asked, |lba, most| {
        let run = map.run(export.volume, lba, most);
        (run.blocks, if run.zeros { STATE_HOLE | STATE_ZERO } else { 0 })
    });
    extents.put(cookie, ALLOCATION_CONTEXT, done, out);
}
