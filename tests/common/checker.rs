//! A client that remembers what it wrote: every block it writes is stamped, so that after any crash each block can be
//! told to be the last acknowledged version, a later one whose outcome is unknown, or a loss.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use lockstep::format::nbd::Cookie;
use lockstep::io::nbd_client::{ClientError, Completed, NbdClient, Operation};

const BLOCK: usize = 4096;

/// Longest time without any answer; beyond, the server hangs.
const SILENCE_MAX: Duration = Duration::from_secs(90);

/// Blocks of the largest request.
const REQUEST_BLOCKS_MAX: u64 = 32;

/// Blocks that one read of a verification asks for.
const VERIFY_BLOCKS: u64 = 256;

/// The whole content of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Zeros,
    /// What [`stamp`] makes of the block and this number.
    Stamp(u64),
}

/// What is known of a block.
#[derive(Clone, Debug)]
struct Block {
    /// The last content that was acknowledged, or seen by a read.
    known: Content,
    /// Submitted after it, with unknown outcome: any of them may be there instead.
    unknown: Vec<Content>,
    /// What it held before, each with the acknowledgement that replaced it: where disks forget what was not flushed, it may
    /// be back until a flush covers that acknowledgement.
    replaced: Vec<(u64, Content)>,
    /// A request of the running session covers it, so no other may.
    busy: bool,
    /// What that request writes.
    submitted: Option<Content>,
}

/// What a snapshot's blocks may hold: what was acknowledged last before its create was sent, or what was submitted after that
/// and before the create returned.
#[derive(Debug)]
pub struct Frozen {
    known: Vec<Content>,
    /// By a block's place in the range.
    others: HashMap<usize, Vec<Content>>,
}

#[derive(Clone, Debug)]
struct Flight {
    blocks: Range<u64>,
    /// `None` for a read.
    content: Option<Content>,
    flush: bool,
    fua: bool,
    /// Acknowledgements before it was sent, which a completed flush or forced write makes durable.
    covers: u64,
}

/// What the hook of [`Checker::drive`] sees after every step.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    pub acknowledged: u64,
    pub writes_in_flight: usize,
    pub elapsed: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    GoOn,
    /// A snapshot's create is about to be sent.
    Freeze,
    /// It has returned, or nobody is left to carry it out: [`Checker::take_frozen`] has what it may hold.
    Frozen,
    /// Submit nothing more and wait for what is in flight.
    Drain,
    /// Return at once, with requests in flight.
    Abandon,
}

/// How a session ended.
#[derive(Debug, Default)]
pub struct Session {
    /// Writes, trims and zeroings that were acknowledged.
    pub acknowledged: u64,
    /// Those that were answered with an error: their outcome is unknown.
    pub refused: u64,
    /// Those still unanswered when the connection ended.
    pub unanswered: u64,
    /// The connection ended before the drain did.
    pub disconnected: bool,
    /// From a request's submission to its answer.
    pub latency_ns: Histogram,
}

/// Times up to ten minutes.
pub struct Histogram(pub hdrhistogram::Histogram<u64>);

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram(hdrhistogram::Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("bounds in order"))
    }
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} times, at most {} ns", self.0.len(), self.0.max())
    }
}

/// Owns a range of a volume's blocks; nobody else may write there.
pub struct Checker {
    range: Range<u64>,
    blocks: Vec<Block>,
    random: Random,
    stamps: u64,
    seed: u64,
    /// Acknowledgements so far, and how many of them are flushed.
    acknowledged: u64,
    flushed: u64,
    /// Blocks that [`Checker::verify_flushed`] found to have gone back.
    pub gone_back: u64,
    freezing: Option<Frozen>,
    frozen: VecDeque<Frozen>,
}

impl Checker {
    /// For a range that reads as zeros.
    pub fn new(range: Range<u64>, seed: u64) -> Checker {
        let fresh = Block {
            known: Content::Zeros,
            unknown: Vec::new(),
            replaced: Vec::new(),
            busy: false,
            submitted: None,
        };
        let blocks = vec![fresh; (range.end - range.start) as usize];
        Checker {
            range,
            blocks,
            random: Random(seed),
            stamps: 0,
            seed,
            acknowledged: 0,
            flushed: 0,
            gone_back: 0,
            freezing: None,
            frozen: VecDeque::new(),
        }
    }

    pub fn random(&mut self, below: u64) -> u64 {
        self.random.below(below)
    }

    /// Writes, zeroes, trims, reads and flushes at random with `depth` requests in flight, until `hook` says otherwise or
    /// the server goes away. Reads are checked as they come.
    pub fn drive(
        &mut self,
        client: &mut NbdClient,
        depth: usize,
        mut hook: impl FnMut(Progress) -> Next,
    ) -> Session {
        let began = Instant::now();
        let mut session = Session::default();
        let mut flights: HashMap<Cookie, (Flight, Instant)> = HashMap::new();
        let mut draining = false;
        let result = loop {
            let writes_in_flight = flights.values().filter(|(flight, _)| flight.content.is_some()).count();
            let progress =
                Progress { acknowledged: session.acknowledged, writes_in_flight, elapsed: began.elapsed() };
            match hook(progress) {
                Next::GoOn => {}
                Next::Freeze => self.freeze(),
                Next::Frozen => self.end_freeze(),
                Next::Drain => draining = true,
                Next::Abandon => break Ok(()),
            }
            if draining && flights.is_empty() {
                break Ok(());
            }
            if !draining && flights.len() < depth {
                let flight = self.plan();
                match self.submit(client, &flight) {
                    Ok(cookie) => flights.insert(cookie, (flight, Instant::now())),
                    Err(error) => {
                        self.unanswered(&flight, &mut session);
                        break Err(error);
                    }
                };
                continue;
            }
            match client.poll(Some(SILENCE_MAX)) {
                Ok(Some(completed)) => {
                    let (flight, sent) = flights.remove(&completed.cookie).expect("an answer to a request");
                    session.latency_ns.0.saturating_record(sent.elapsed().as_nanos() as u64);
                    self.complete(&flight, &completed, &mut session);
                }
                Ok(None) => panic!("no answer for {SILENCE_MAX:?} with {} in flight", flights.len()),
                Err(error) => break Err(error),
            }
        };
        for (flight, _) in flights.values() {
            self.unanswered(flight, &mut session);
        }
        match result {
            Ok(()) => {}
            Err(ClientError::Io(_) | ClientError::Closed(_)) => session.disconnected = true,
            Err(error) => panic!("{error}"),
        }
        session
    }

    fn plan(&mut self) -> Flight {
        let covers = self.acknowledged;
        if self.random.below(64) == 0 {
            return Flight { blocks: 0..0, content: None, flush: true, fua: false, covers };
        }
        let wanted = if self.random.below(4) == 0 { 1 + self.random.below(REQUEST_BLOCKS_MAX) } else { 1 };
        loop {
            let first = self.range.start + self.random.below(self.range.end - self.range.start);
            let free = (first..self.range.end.min(first + wanted))
                .take_while(|block| !self.block(*block).busy)
                .count() as u64;
            if free == 0 {
                continue;
            }
            let content = match self.random.below(8) {
                0 => None,
                1 => Some(Content::Zeros),
                _ => {
                    self.stamps += 1;
                    Some(Content::Stamp(self.stamps))
                }
            };
            let fua = content.is_some() && self.random.below(32) == 0;
            let flight = Flight { blocks: first..first + free, content, flush: false, fua, covers };
            for block in flight.blocks.clone() {
                let state = self.block(block);
                (state.busy, state.submitted) = (true, content);
                if let (Some(frozen), Some(content)) = (&mut self.freezing, content) {
                    frozen.others.entry((block - self.range.start) as usize).or_default().push(content);
                }
            }
            return flight;
        }
    }

    fn submit(&mut self, client: &mut NbdClient, flight: &Flight) -> Result<Cookie, ClientError> {
        let offset = flight.blocks.start * BLOCK as u64;
        let length = (flight.blocks.end - flight.blocks.start) as u32 * BLOCK as u32;
        let fua = flight.fua;
        match flight.content {
            _ if flight.flush => client.submit(Operation::Flush),
            None => client.submit(Operation::Read { offset, length }),
            Some(Content::Zeros) if self.random.below(2) == 0 => {
                client.submit(Operation::Trim { offset, length, fua })
            }
            Some(Content::Zeros) => {
                let no_hole = self.random.below(2) == 0;
                client.submit(Operation::WriteZeroes { offset, length, fua, no_hole, fast: false })
            }
            Some(Content::Stamp(number)) => {
                let data: Vec<u8> =
                    flight.blocks.clone().flat_map(|block| stamp(self.seed, block, number)).collect();
                client.submit(Operation::Write { offset, data: &data, fua })
            }
        }
    }

    fn complete(&mut self, flight: &Flight, completed: &Completed, session: &mut Session) {
        if completed.result.is_ok() && (flight.flush || flight.fua) {
            self.flushed = self.flushed.max(flight.covers);
        }
        if flight.flush {
            return;
        }
        if completed.result.is_err() {
            match flight.content {
                Some(_) => {
                    self.unanswered(flight, session);
                    session.unanswered -= 1;
                    session.refused += 1;
                }
                None => self.release(flight),
            }
            return;
        }
        match flight.content {
            Some(content) => {
                session.acknowledged += 1;
                self.acknowledged += 1;
                let (acknowledged, flushed) = (self.acknowledged, self.flushed);
                for block in flight.blocks.clone() {
                    let block = self.block(block);
                    if flight.fua {
                        block.replaced.clear();
                    } else {
                        block.replaced.retain(|(by, _)| *by > flushed);
                        let before = block.unknown.iter().chain([&block.known]);
                        block.replaced.extend(before.map(|content| (acknowledged, *content)));
                    }
                    block.known = content;
                    block.unknown.clear();
                }
            }
            None => self.check(flight.blocks.start, &completed.data, "a read under load"),
        }
        self.release(flight);
    }

    /// The request may or may not have been carried out.
    fn unanswered(&mut self, flight: &Flight, session: &mut Session) {
        if let Some(content) = flight.content {
            session.unanswered += 1;
            for block in flight.blocks.clone() {
                self.block(block).unknown.push(content);
            }
        }
        self.release(flight);
    }

    fn release(&mut self, flight: &Flight) {
        for block in flight.blocks.clone() {
            let block = self.block(block);
            (block.busy, block.submitted) = (false, None);
        }
    }

    /// What is known now is what a snapshot will hold; [`Checker::end_freeze`] once it is taken.
    pub fn freeze(&mut self) {
        let mut others: HashMap<usize, Vec<Content>> = HashMap::new();
        for (index, block) in self.blocks.iter().enumerate() {
            if block.submitted.is_some() || !block.unknown.is_empty() {
                others.insert(index, block.unknown.iter().copied().chain(block.submitted).collect());
            }
        }
        let known = self.blocks.iter().map(|block| block.known).collect();
        self.freezing = Some(Frozen { known, others });
    }

    /// For a create that was under way when a session ended, too.
    pub fn end_freeze(&mut self) {
        self.frozen.extend(self.freezing.take());
    }

    /// The oldest that was not taken yet.
    pub fn take_frozen(&mut self) -> Option<Frozen> {
        self.frozen.pop_front()
    }

    /// Reads a snapshot, which holds one of the things it may hold, and the same each time.
    pub fn verify_frozen(&self, frozen: &mut Frozen, client: &mut NbdClient, whose: &str) {
        for first in (0..frozen.known.len()).step_by(VERIFY_BLOCKS as usize) {
            let count = (frozen.known.len() - first).min(VERIFY_BLOCKS as usize);
            let at = (self.range.start + first as u64) * BLOCK as u64;
            let data = client
                .read(at, (count * BLOCK) as u32)
                .unwrap_or_else(|error| panic!("{whose} cannot be read: {error}"));
            for (index, bytes) in (first..).zip(data.chunks_exact(BLOCK)) {
                let block = self.range.start + index as u64;
                let found = recognise(self.seed, block, bytes).unwrap_or_else(|| {
                    panic!("{whose}: block {block} is torn or foreign: begins {:02x?}", &bytes[..32])
                });
                let known = frozen.known[index];
                let others = frozen.others.remove(&index).unwrap_or_default();
                assert!(
                    found == known || others.contains(&found),
                    "{whose}: block {block} holds {found:?}; {known:?} was acknowledged before the create and {others:?} under way"
                );
                frozen.known[index] = found;
            }
        }
    }

    fn block(&mut self, block: u64) -> &mut Block {
        &mut self.blocks[(block - self.range.start) as usize]
    }

    /// Reads the whole range back after both sites lost what was not flushed: a block may have gone back, but no further than to
    /// what the last flush covers.
    pub fn verify_flushed(&mut self, client: &mut NbdClient, whose: &str) {
        let before = self.blocks.clone();
        for block in &mut self.blocks {
            let unflushed = block.replaced.drain(..).filter(|(by, _)| *by > self.flushed);
            block.unknown.extend(unflushed.map(|(_, content)| content));
        }
        self.verify(client, whose);
        let went_back = |(now, before): &(&Block, Block)| {
            now.known != before.known && !before.unknown.contains(&now.known)
        };
        self.gone_back += self.blocks.iter().zip(before).filter(went_back).count() as u64;
    }

    /// Both sites are known to have everything on stable media.
    pub fn all_is_flushed(&mut self) {
        self.flushed = self.acknowledged;
    }

    /// Reads the whole range back. What is read is known from then on, so a second site or a later read has to agree.
    pub fn verify(&mut self, client: &mut NbdClient, whose: &str) {
        let mut first = self.range.start;
        while first < self.range.end {
            let count = VERIFY_BLOCKS.min(self.range.end - first);
            let data = client
                .read(first * BLOCK as u64, (count as usize * BLOCK) as u32)
                .unwrap_or_else(|error| panic!("{whose} cannot be read: {error}"));
            self.check(first, &data, whose);
            first += count;
        }
    }

    fn check(&mut self, first: u64, data: &[u8], whose: &str) {
        let seed = self.seed;
        // What a read shows is as good as acknowledged, and like that not flushed yet.
        self.acknowledged += 1;
        let acknowledged = self.acknowledged;
        for (block, bytes) in (first..).zip(data.chunks_exact(BLOCK)) {
            let log = self.block(block);
            let Some(found) = recognise(seed, block, bytes) else {
                panic!(
                    "{whose}: block {block} is torn or foreign: begins {:02x?}; known {log:?}",
                    &bytes[..32]
                );
            };
            assert!(
                found == log.known || log.unknown.contains(&found),
                "{whose}: block {block} holds {found:?}, which is neither what was acknowledged nor under way: {log:?}"
            );
            if log.known != found {
                let before = log.unknown.iter().chain([&log.known]);
                log.replaced.extend(before.map(|content| (acknowledged, *content)));
                log.known = found;
            }
            log.unknown.clear();
        }
    }
}

/// A block's content, different for every block, write and run, up to its last byte.
fn stamp(seed: u64, block: u64, number: u64) -> [u8; BLOCK] {
    let mut bytes = [0; BLOCK];
    let mut random = Random(seed ^ block.rotate_left(40) ^ number.rotate_left(20));
    for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
        let value = match index {
            0 => number,
            1 => block,
            2 => seed,
            _ => random.next(),
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// Which content this is; `None` when it is not a whole one of this block.
fn recognise(seed: u64, block: u64, bytes: &[u8]) -> Option<Content> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Some(Content::Zeros);
    }
    let number = u64::from_le_bytes(*bytes.first_chunk().expect("a block"));
    (bytes == stamp(seed, block, number)).then_some(Content::Stamp(number))
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}
