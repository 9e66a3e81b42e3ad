//! A load over NBD: one connection, as many requests in flight as the plan says.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::{Check, Engine, Ledger, Outcome, Plan, Step};
use crate::base::BLOCK_BYTES;
use crate::format::nbd::{Cookie, DIFF_CONTEXT, STATE_CHANGED};
use crate::io::nbd_client::{ClientError, ClientOptions, NbdClient, NbdUri, Operation};
use crate::reactor::Clock;

/// Longest an operation may take: beyond the longest host deadline that is not meant for people.
const ANSWER_MAX: Duration = Duration::from_secs(120);

/// Bytes of one read when a whole volume is read.
const READ_BYTES: u32 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{uri}: {source}")]
    Client { uri: String, source: ClientError },
    #[error("{0}")]
    Plan(String),
    #[error("{uri}: an operation has not been answered for {} s", ANSWER_MAX.as_secs())]
    Silent { uri: String },
}

/// Runs a plan. Its times are `clock`'s; `progress` is told the number of operations completed, often.
pub fn over_nbd(
    uri: &NbdUri,
    plan: &Plan,
    clock: &Clock,
    progress: &mut dyn FnMut(u64),
) -> Result<Outcome, LoadError> {
    let failed = |source| LoadError::Client { uri: uri.to_string(), source };
    let mut client = NbdClient::connect(uri, ClientOptions::default()).map_err(failed)?;
    if let Some(problem) = plan.problem(client.size()) {
        return Err(LoadError::Plan(problem));
    }
    let mut engine = Engine::new(plan.clone(), clock.now());
    let mut cookies: Vec<(Cookie, usize, u64)> = Vec::with_capacity(plan.depth);
    let mut buffer = vec![0x5a; plan.lengths.iter().copied().max().unwrap_or(0) as usize];
    let mut over = false;
    loop {
        let mut wait = ANSWER_MAX;
        while !over {
            match engine.next(clock.now()) {
                Step::Begin(index, doing) => {
                    let (offset, length) = (doing.offset, doing.length);
                    let operation = if doing.write {
                        let data = &mut buffer[..length as usize];
                        let chunks = Engine::blocks_of(&doing).zip(data.chunks_mut(BLOCK_BYTES));
                        chunks.for_each(|(block, chunk)| engine.fill(block, chunk));
                        Operation::Write { offset, data, fua: false }
                    } else {
                        Operation::Read { offset, length }
                    };
                    let cookie = client.submit(operation).map_err(failed)?;
                    cookies.push((cookie, index, offset / BLOCK_BYTES as u64));
                }
                Step::Wait(until) => {
                    wait = Duration::from_nanos(until.since(clock.now()).0);
                    break;
                }
                Step::Full => break,
                Step::Over => over = true,
            }
        }
        progress(engine.completed());
        if engine.in_flight() == 0 {
            if over {
                break;
            }
            std::thread::sleep(wait);
            continue;
        }
        let Some(done) = client.poll(Some(wait)).map_err(failed)? else {
            if wait == ANSWER_MAX {
                return Err(LoadError::Silent { uri: uri.to_string() });
            }
            continue;
        };
        let now = clock.now();
        let place = cookies.iter().position(|(cookie, ..)| *cookie == done.cookie);
        let (_, index, first) = cookies.swap_remove(place.expect("the client returns what was submitted"));
        if plan.verify {
            (first..)
                .zip(done.data.chunks_exact(BLOCK_BYTES))
                .for_each(|(block, data)| engine.check(block, data));
        }
        let result = done.result.map_err(|(error, message)| format!("{error}: {message}"));
        engine.complete(now, index, result);
        client.recycle(done.data);
    }
    // The server sees its client go either way; what was measured stands.
    let _ = client.disconnect();
    Ok(engine.finish())
}

/// Reads every block that a ledger knows of, and compares.
pub fn check(uri: &NbdUri, ledger: &Ledger) -> Result<Check, LoadError> {
    let failed = |source| LoadError::Client { uri: uri.to_string(), source };
    let mut client = NbdClient::connect(uri, ClientOptions::default()).map_err(failed)?;
    let mut check = Check::default();
    for block in ledger.written() {
        match client.read(block * BLOCK_BYTES as u64, BLOCK_BYTES as u32) {
            Ok(bytes) => check.note(ledger, block, Some(&bytes)),
            Err(ClientError::Failed { .. }) => check.note(ledger, block, None),
            Err(error) => return Err(failed(error)),
        }
    }
    let _ = client.disconnect();
    Ok(check)
}

/// The xxh3-128 of all bytes of an export, as hex: read a MiB at a time, and at most so many bytes a second. `progress` is told how
/// many bytes were read, of how many.
pub fn digest(
    uri: &NbdUri,
    bytes_a_second: Option<u64>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<String, LoadError> {
    let failed = |source| LoadError::Client { uri: uri.to_string(), source };
    let begun = Instant::now();
    let mut client = NbdClient::connect(uri, ClientOptions::default()).map_err(failed)?;
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    let mut offset = 0;
    while offset < client.size() {
        let length = (client.size() - offset).min(u64::from(READ_BYTES)) as u32;
        let bytes = client.read(offset, length).map_err(failed)?;
        hasher.update(&bytes);
        client.recycle(bytes);
        offset += u64::from(length);
        progress(offset, client.size());
        if let Some(rate) = bytes_a_second {
            let due = Duration::from_secs_f64(offset as f64 / rate.max(1) as f64);
            std::thread::sleep(due.saturating_sub(begun.elapsed()));
        }
    }
    let _ = client.disconnect();
    Ok(format!("{:032x}", hasher.digest128()))
}

/// How long a block that cannot be read has to be replaced by the other site's, and how often that is tried.
const REPAIR_MAX: Duration = Duration::from_secs(3);
const REPAIR_AGAIN: Duration = Duration::from_millis(20);

/// What was found when an export was read in full.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    pub blocks: u64,
    /// Could not be read at first, and can now; several within a MiB may count as one.
    pub repaired: u64,
    /// Cannot be read.
    pub damaged: Vec<u64>,
}

/// Reads all of an export, at most so many bytes a second. A read of a bad block has the site ask its peer for it, so such a block is
/// read again until it is well or [`REPAIR_MAX`] has passed. `progress` is told how many bytes were read, of how many.
pub fn repair(
    uri: &NbdUri,
    bytes_a_second: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Repaired, LoadError> {
    let failed = |source| LoadError::Client { uri: uri.to_string(), source };
    let begun = Instant::now();
    let mut client = NbdClient::connect(uri, ClientOptions::default()).map_err(failed)?;
    let mut found = Repaired { blocks: client.size().div_ceil(BLOCK_BYTES as u64), ..Repaired::default() };
    let mut offset = 0;
    while offset < client.size() {
        let length = (client.size() - offset).min(u64::from(READ_BYTES)) as u32;
        if !reads(&mut client, offset, length).map_err(failed)? {
            let before = (found.repaired, found.damaged.len());
            for at in (offset..offset + u64::from(length)).step_by(BLOCK_BYTES) {
                let until = Instant::now() + REPAIR_MAX;
                let mut tries = 0;
                let bytes = (client.size() - at).min(BLOCK_BYTES as u64) as u32;
                while !reads(&mut client, at, bytes).map_err(failed)? {
                    tries += 1;
                    if Instant::now() >= until {
                        found.damaged.push(at / BLOCK_BYTES as u64);
                        break;
                    }
                    std::thread::sleep(REPAIR_AGAIN);
                }
                let damaged = found.damaged.last() == Some(&(at / BLOCK_BYTES as u64));
                found.repaired += u64::from(tries > 0 && !damaged);
            }
            // One that was well again before it was looked at alone.
            found.repaired += u64::from(before == (found.repaired, found.damaged.len()));
        }
        offset += u64::from(length);
        progress(offset, client.size());
        let due = Duration::from_secs_f64(offset as f64 / bytes_a_second.max(1) as f64);
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
    }
    let _ = client.disconnect();
    Ok(found)
}

/// Whether these bytes can be read.
fn reads(client: &mut NbdClient, offset: u64, length: u32) -> Result<bool, ClientError> {
    match client.read(offset, length) {
        Ok(bytes) => {
            client.recycle(bytes);
            Ok(true)
        }
        Err(ClientError::Failed { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Bytes of one question for changes; the server answers as much of it as it likes.
const CHANGES_BYTES: u64 = 1 << 30;

/// The ranges of an export, in bytes, that were changed since a snapshot. `progress` is told how many bytes were looked at, of how
/// many.
pub fn changes(
    uri: &NbdUri,
    since: &str,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<Range<u64>>, LoadError> {
    let failed = |source| LoadError::Client { uri: uri.to_string(), source };
    let mut client = connect_since(uri, since).map_err(failed)?;
    let changed = changes_seen_by(&mut client, progress).map_err(failed)?;
    let _ = client.disconnect();
    Ok(changed)
}

/// A client whose block status is about changes since a snapshot.
pub fn connect_since(uri: &NbdUri, since: &str) -> Result<NbdClient, ClientError> {
    let context = [DIFF_CONTEXT, since.as_bytes()].concat();
    NbdClient::connect_for(uri, ClientOptions::default(), Some(&context))
}

/// What was changed, by a client of [`connect_since`].
pub fn changes_seen_by(
    client: &mut NbdClient,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<Range<u64>>, ClientError> {
    let mut changed: Vec<Range<u64>> = Vec::new();
    let mut offset = 0;
    while offset < client.size() {
        let length = (client.size() - offset).min(CHANGES_BYTES) as u32;
        let asked = Operation::BlockStatus { offset, length, one: false };
        let before = offset;
        for (length, state) in client.call(asked)?.extents {
            let end = offset + u64::from(length);
            if state & STATE_CHANGED != 0 {
                match changed.last_mut().filter(|last| last.end == offset) {
                    Some(last) => last.end = end,
                    None => changed.push(offset..end),
                }
            }
            offset = end;
        }
        if offset == before {
            return Err(ClientError::Unexpected("its block status tells of nothing"));
        }
        progress(offset, client.size());
    }
    Ok(changed)
}
