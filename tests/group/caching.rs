//! What a group keeps in memory, and reads before anybody asks.

use super::*;
use lockstep::core::cache::{Cache, Value};

#[test]
fn a_cache_that_holds_its_volume_reads_it_at_start() {
    let mut pair = pair();
    let mut expected = HashMap::new();
    exercise(&mut pair, &mut expected, 40, 7);
    pair.run_until("a checkpoint of everything", |pair| {
        pair.sites.iter().all(|site| {
            let status = site.group.status(pair.now);
            status.checkpoint == status.last
        })
    });
    for (site, pages) in [(0, PAGES_MIN + 2000), (1, PAGES_MIN + 8)] {
        let Site { disks, config, .. } = &pair.sites[site];
        let config = GroupConfig { warm_up: true, pages, ..config.clone() };
        let mut site = Site::started(config, disks.clone());
        site.with(pair.now, |group, turn| group.start(turn));
        for _ in 0..1000 {
            pair.now = pair.now.plus(Nanos::from_millis(1));
            site.with(pair.now, |group, turn| group.end_turn(turn));
            site.drain(pair.now);
        }
        let status = site.group.status(pair.now);
        assert!(!status.warming_up);
        // The other's pages are too few to begin.
        let warmed = if pages > PAGES_MIN + VOLUME_BLOCKS as u32 { VOLUME_BLOCKS } else { 0 };
        assert_eq!(status.counters.warmed_blocks, warmed);
    }
}

/// Simulator seed 398417 (at 340fbb6): readers had warmed what a secondary could not settle yet, and it had no page for a hello.
#[test]
fn a_settled_block_beneath_an_unsettled_one_is_evicted_once_the_volume_has_it() {
    let mut memory = Pages((0..8).map(|_| Box::new([0; BLOCK_BYTES])).collect());
    let mut pages = lockstep::core::pages::Pages::new(8);
    let mut cache = Cache::new(8, [16].into_iter());
    let (volume, lba) = (VolumeId(0), Lba(3));
    let value = |page, number| Value { page, sum: BlockSum(7), number: UpdateNumber(number) };
    let [first, second] = [1, 2].map(|number| value(pages.take().expect("it has seven"), number));
    cache.number(volume, lba, first);
    cache.settle(volume, lba, first, &mut pages, &mut memory);
    pages.release(first.page, &mut memory);
    cache.number(volume, lba, second);
    let all = pages.total();
    cache.evict(all, 0, 32, &mut pages, &mut memory);
    assert_eq!(cache.settled(volume, lba), Some(first), "the volume lacks it");

    let written = cache.destage_begin(volume, lba, &mut pages).expect("it is dirty");
    cache.evict(all, 0, 32, &mut pages, &mut memory);
    cache.destage_end(volume, lba, written, &mut pages, &mut memory);
    cache.evict(all, 0, 32, &mut pages, &mut memory);
    assert_eq!((cache.settled(volume, lba), cache.newest(volume, lba)), (None, Some(second)));
    assert_eq!(pages.free(), all - 1, "what is not settled stays");

    cache.settle(volume, lba, second, &mut pages, &mut memory);
    assert_eq!(cache.settled(volume, lba), Some(second));
}
