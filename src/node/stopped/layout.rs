//! Where the batches of a ring go when its size changes. They follow each other without a gap but at the ring's end, and nothing is written
//! over any of them: what is copied counts only once a superblock says so.

use crate::format::superblock::RING_FIRST_BLOCK;

/// Blocks that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub block: u64,
    pub blocks: u64,
}

impl Extent {
    fn end(self) -> u64 {
        self.block + self.blocks
    }

    fn overlaps(self, other: Extent) -> bool {
        self.block < other.end() && other.block < self.end()
    }
}

/// A batch that is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Move {
    pub from: u64,
    pub to: u64,
    pub blocks: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// Where a start is to look for the first batch.
    pub first: u64,
    pub moves: Vec<Move>,
    /// Ring blocks that are in use then, with those that are skipped at the ring's end.
    pub used: u64,
}

/// Where batches that lie like this, oldest first, and whose next one would go to `head`, go in a ring that ends at `end`: so that they take
/// little of it, and that little is copied. `None` if they cannot be had there by copying each once.
pub(super) fn layout(batches: &[Extent], head: u64, end: u64) -> Option<Layout> {
    let Some(first) = batches.first() else {
        let first = if head < end { head } else { RING_FIRST_BLOCK };
        return Some(Layout { first, ..Layout::default() });
    };
    let wrap = batches.windows(2).position(|pair| pair[1].block < pair[0].block).map_or(0, |last| last + 1);
    let before_wrap: u64 = batches[..wrap].iter().map(|batch| batch.blocks).sum();
    let starts = [
        // Those at the ring's end stay, and what follows them goes behind them, or stays as well.
        Some(first.block),
        // Those at the ring's end go to the new one, and what follows them stays.
        end.checked_sub(before_wrap).filter(|_| wrap > 0),
        // All of them go to where nothing is that counts.
        Some(head),
        Some(RING_FIRST_BLOCK),
    ];
    let starts = starts.into_iter().flatten().filter(|start| (RING_FIRST_BLOCK..end).contains(start));
    let taken = joined(batches);
    let laid = starts.filter_map(|start| laid_from(batches, &taken, start, end));
    let laid = laid.chain(as_they_lie(batches, end));
    laid.min_by_key(|layout| (layout.used, layout.moves.iter().map(|moved| moved.blocks).sum::<u64>()))
}

/// What they take of the ring, in one piece or two.
fn joined(batches: &[Extent]) -> Vec<Extent> {
    let mut joined: Vec<Extent> = Vec::new();
    for batch in batches {
        match joined.last_mut() {
            Some(last) if last.end() == batch.block => last.blocks += batch.blocks,
            _ => joined.push(*batch),
        }
    }
    joined
}

/// One behind the other from `start` on, those that do not lie there already where nothing is taken.
fn laid_from(batches: &[Extent], taken: &[Extent], start: u64, end: u64) -> Option<Layout> {
    let (mut at, mut layout) = (start, Layout { first: start, ..Layout::default() });
    for batch in batches {
        if batch.blocks > end - at {
            layout.used += end - at;
            at = RING_FIRST_BLOCK;
        }
        if at != batch.block {
            let place = Extent { block: at, ..*batch };
            if taken.iter().any(|taken| taken.overlaps(place)) {
                return None;
            }
            layout.moves.push(Move { from: batch.block, to: at, blocks: batch.blocks });
        }
        layout.used += batch.blocks;
        at += batch.blocks;
        if at == end {
            at = RING_FIRST_BLOCK;
        }
    }
    (layout.used <= end - RING_FIRST_BLOCK).then_some(layout)
}

/// A start that finds no batch where the next one would be looks for it at the ring's beginning, so those that lie there already may stay there,
/// whatever room the ring has behind the others.
fn as_they_lie(batches: &[Extent], end: u64) -> Option<Layout> {
    let (first, last) = (batches.first()?, batches.last()?);
    if batches.iter().any(|batch| batch.end() > end) {
        return None;
    }
    let used = match last.block < first.block {
        true => end - first.block + last.end() - RING_FIRST_BLOCK,
        false => last.end() - first.block,
    };
    Some(Layout { first: first.block, moves: Vec::new(), used })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Batches in a ring that ends at `end`, from `start` on, as many as leave some room.
    fn ring(start: u64, end: u64, lengths: &[u64], room: u64) -> (Vec<Extent>, u64) {
        let (mut at, mut used, mut batches) = (start, 0, Vec::new());
        for &blocks in lengths {
            let waste = if blocks > end - at { end - at } else { 0 };
            if used + waste + blocks + room > end - RING_FIRST_BLOCK {
                break;
            }
            used += waste + blocks;
            at = if waste > 0 || at == end { RING_FIRST_BLOCK } else { at };
            batches.push(Extent { block: at, blocks });
            at += blocks;
            at = if at == end { RING_FIRST_BLOCK } else { at };
        }
        (batches, at)
    }

    /// What a start finds in a ring whose blocks have these batches, by their place in the stream.
    fn found(blocks: &[Option<(usize, u64)>], first: u64, batches: &[Extent]) -> (usize, u64) {
        let end = blocks.len() as u64;
        let (mut head, mut used) = (first, 0);
        for (index, batch) in batches.iter().enumerate() {
            let lies_at = |at: u64| {
                (0..batch.blocks).all(|block| {
                    blocks.get((at + block) as usize).is_some_and(|held| *held == Some((index, block)))
                })
            };
            let Some(at) = [head, RING_FIRST_BLOCK].into_iter().find(|&at| lies_at(at)) else {
                return (index, used);
            };
            used += batch.blocks + if at == head { 0 } else { end - head };
            head = if at + batch.blocks == end { RING_FIRST_BLOCK } else { at + batch.blocks };
        }
        (batches.len(), used)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
        #[test]
        fn whatever_the_ring_holds_is_found_in_the_new_one_and_lay_where_it_was_meanwhile(
            start in 0u64..1000, end in 200u64..1000, to in 200u64..1400, room in 0u64..200,
            lengths in prop::collection::vec(1u64..20, 0..80),
        ) {
            let start = RING_FIRST_BLOCK + start % (end - RING_FIRST_BLOCK);
            let (batches, head) = ring(start, end, &lengths, room);
            let kept: u64 = batches.iter().map(|batch| batch.blocks).sum();
            let Some(layout) = layout(&batches, head, to) else {
                // A larger ring always does; a smaller one if the batches take at most half of it, and two of them are to spare.
                prop_assert!(to < end && kept + 40 > (to - RING_FIRST_BLOCK) / 2, "{kept} blocks from {end} to {to}");
                return Ok(());
            };
            let mut blocks = vec![None; end.max(to) as usize];
            for (index, batch) in batches.iter().enumerate() {
                (0..batch.blocks).for_each(|block| blocks[(batch.block + block) as usize] = Some((index, block)));
            }
            let before = blocks.clone();
            for moved in &layout.moves {
                for block in 0..moved.blocks {
                    let to = (moved.to + block) as usize;
                    prop_assert!(before[to].is_none(), "a batch is written over");
                    blocks[to] = before[(moved.from + block) as usize];
                }
            }
            // Killed before the superblock: the old ring has all of it.
            let first = batches.first().map_or(head, |batch| batch.block);
            prop_assert_eq!(found(&blocks[..end as usize], first, &batches).0, batches.len());
            blocks.truncate(to as usize);
            let (count, used) = found(&blocks, layout.first, &batches);
            prop_assert_eq!((count, used), (batches.len(), layout.used));
            prop_assert!((RING_FIRST_BLOCK..to).contains(&layout.first));
            prop_assert!(used <= to - RING_FIRST_BLOCK);
        }
    }

    #[test]
    fn a_ring_that_wraps_gains_all_the_room_there_is_to_gain() {
        // 80 blocks before the end, 60 behind the beginning.
        let (batches, head) = ring(120, 200, &[20; 7], 0);
        assert_eq!((batches[0].block, head), (120, 62));
        // What is at the beginning goes behind what is at the end.
        let behind = layout(&batches, head, 300).expect("it fits");
        assert_eq!((behind.first, behind.used, behind.moves.len()), (120, 140, 3));
        // Or what is at the end to the new end.
        let (batches, head) = ring(140, 200, &[20; 9], 0);
        assert_eq!((batches[0].block, head), (140, 122));
        let to_the_end = layout(&batches, head, 270).expect("it fits");
        assert_eq!((to_the_end.first, to_the_end.used, to_the_end.moves.len()), (210, 180, 3));
        // Or nothing moves, and the room behind the end is had once what is before it has been let go of.
        let stays = layout(&batches, head, 230).expect("it fits");
        assert_eq!((stays.first, stays.used, stays.moves.len()), (140, 90 + 120, 0));
    }
}
