//! Hosts that write as much as their site takes, which is more than is copied to the other meanwhile: the copy ends all the same.

use super::*;

/// Each of them overwrites blocks of its own, as many as one write may have, again and again: all of the volume.
const WRITERS: u32 = VOLUME_BLOCKS as u32 / UPDATE_BLOCKS_MAX as u32;

/// What writers of the kept site wait for, and how long any of them has waited.
#[derive(Default)]
struct Flood {
    since: HashMap<u32, Nanos>,
    longest: Nanos,
    written: u64,
}

impl Flood {
    /// Takes what is answered, and writes anew.
    fn go_on(&mut self, split: &mut Split) {
        let (now, kept) = (split.pair.now, 1 - split.gone);
        for reply in std::mem::take(&mut split.pair.sites[kept].replies) {
            assert_eq!(reply.result, Ok(()), "a write by {:?}", reply.ticket);
            let since = self.since.remove(&reply.ticket.0).expect("it was written");
            self.longest = self.longest.max(now.since(since));
        }
        for writer in 0..WRITERS {
            let site = &mut split.pair.sites[kept];
            if self.since.contains_key(&writer) || site.front_pages.len() < UPDATE_BLOCKS_MAX {
                continue;
            }
            self.written += 1;
            let (first, fill) =
                (u64::from(writer) * UPDATE_BLOCKS_MAX as u64, (10 + self.written % 200) as u8);
            for index in 0..UPDATE_BLOCKS_MAX {
                let page = site.front_pages.pop().expect("counted above");
                site.memory.bytes_mut(page).fill(fill);
                let sum = sum_of_block(site.memory.bytes(page));
                site.tables.fronts[0].set(SlotId(writer), index, page, sum);
                split.holds[kept].insert(first + index as u64, fill);
            }
            let write = HostOp::Write { lba: Lba(first), count: UPDATE_BLOCKS_MAX as u32, fua: false };
            site.request(now, writer, write);
            self.since.insert(writer, now);
        }
    }

    fn until(&mut self, split: &mut Split, what: &str, mut done: impl FnMut(&Split) -> bool) {
        for _ in 0..20_000 {
            if done(split) {
                return;
            }
            self.go_on(split);
            split.step();
        }
        panic!("never: {what}: {:#?}", [split.status(0), split.status(1)]);
    }

    fn end(&mut self, split: &mut Split) {
        while !self.since.is_empty() {
            split.step();
            let kept = 1 - split.gone;
            split.pair.sites[kept].replies.retain(|reply| self.since.remove(&reply.ticket.0).is_none());
        }
    }
}

/// A secondary that was away for longer than the journal lasts comes back, and has a turn once in so many steps.
fn outrun(turn_of_gone: u64) -> (Split, Flood) {
    let mut split = Split::joined(1);
    split.unlink();
    split.until("the primary is alone", |split| split.status(0).solo);
    let alone_since = split.pair.now;
    let mut flood = Flood::default();
    let ring = split.status(0).journal_blocks;
    flood.until(&mut split, "the ring has gone round", |split| {
        split.status(0).counters.journal_blocks > 3 * ring
    });
    // What the peer lacks first left the window long ago.
    let (lacks, alone) = (split.status(0).remote_pending, split.pair.now.since(alone_since));
    assert!(lacks.oldest_ns >= alone.0 / 10 * 9, "{lacks:?} after {alone:?}");
    assert!(lacks.bytes >= VOLUME_BLOCKS * BLOCK_BYTES as u64, "{lacks:?}");
    split.turn_of_gone = turn_of_gone;
    split.link();
    (split, flood)
}

#[test]
fn a_copy_ends_though_hosts_write_faster_than_is_copied() {
    // The slowest needs more patience than hosts have at first.
    for turn_of_gone in [1, 10, 40, 100] {
        let (mut split, mut flood) = outrun(turn_of_gone);
        let before = flood.written;
        flood.until(&mut split, "what it is copied is whole", |split| {
            assert!(
                split.linked || split.installed,
                "a turn in {turn_of_gone} steps: they part, and the copy begins anew"
            );
            split.installed
        });
        assert!(flood.written > before, "hosts went on");
        let most = Nanos(split.pair.sites[0].config.host_deadline.0 * 5 / 8);
        assert!(flood.longest < most, "one waited for {:?}", flood.longest);
        flood.end(&mut split);
        split.turn_of_gone = 1;
        split.finish();
    }
}

#[test]
fn hosts_that_wait_for_the_end_of_a_copy_go_on_when_the_peer_is_gone() {
    let (mut split, mut flood) = outrun(1000);
    let mut last = (0, 0);
    // Nothing was answered for fifty steps: the ring is full.
    flood.until(&mut split, "hosts wait", |split| {
        let writes = split.status(0).counters.writes;
        last = if writes == last.0 { (writes, last.1 + 1) } else { (writes, 0) };
        last.1 == 50
    });
    assert_eq!(split.status(0).peer, PeerState::Resyncing);
    split.unlink();
    flood.longest = Nanos(0);
    let gone_at = split.pair.now;
    let writes = split.status(0).counters.writes;
    flood.until(&mut split, "hosts go on", |split| split.status(0).counters.writes > writes);
    let took = split.pair.now.since(gone_at);
    assert!(took < Nanos::from_millis(10), "they wait for {took:?}");
}
