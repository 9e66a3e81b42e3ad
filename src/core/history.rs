//! Where two sites' streams part: the leader-epoch rule of replicated logs (INV-7).

use crate::base::UpdateNumber;
use crate::format::history::History;

/// The last update that two streams share, each given as its history and its last number: within the newest generation both
/// have, the smaller of where each ends it. `NONE` when they share no generation.
pub fn common_point(
    ours: &History,
    our_last: UpdateNumber,
    theirs: &History,
    their_last: UpdateNumber,
) -> UpdateNumber {
    let end_of = |history: &History, generation, last: UpdateNumber| {
        let mut later = history.iter().skip_while(|(g, _)| *g != generation).skip(1);
        later.next().map_or(last, |(_, first)| first.previous().min(last))
    };
    let shared = ours.iter().rev().find(|(g, first)| theirs.iter().any(|(h, f)| h == *g && f == *first));
    match shared {
        Some((generation, _)) => {
            end_of(ours, generation, our_last).min(end_of(theirs, generation, their_last))
        }
        None => UpdateNumber::NONE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Generation;

    fn history(entries: &[(u64, u64)]) -> History {
        let mut history = History::default();
        entries.iter().for_each(|&(g, first)| history.push(Generation(g), UpdateNumber(first)));
        history
    }

    fn common(a: &[(u64, u64)], a_last: u64, b: &[(u64, u64)], b_last: u64) -> u64 {
        let forth = common_point(&history(a), UpdateNumber(a_last), &history(b), UpdateNumber(b_last));
        let back = common_point(&history(b), UpdateNumber(b_last), &history(a), UpdateNumber(a_last));
        assert_eq!(forth, back);
        forth.0
    }

    #[test]
    fn same_generation_shares_the_shorter_prefix() {
        assert_eq!(common(&[(1, 1)], 10, &[(1, 1)], 7), 7);
    }

    #[test]
    fn a_longer_history_shares_what_came_before_it_parted() {
        assert_eq!(common(&[(1, 1), (3, 8)], 20, &[(1, 1)], 12), 7);
        assert_eq!(common(&[(1, 1), (3, 8)], 20, &[(1, 1), (2, 6)], 12), 5);
        assert_eq!(common(&[(1, 1), (3, 8)], 20, &[(1, 1)], 4), 4);
    }

    #[test]
    fn strangers_share_nothing() {
        assert_eq!(common(&[(1, 1)], 10, &[(2, 1)], 10), 0);
        assert_eq!(common(&[], 0, &[(2, 1)], 10), 0);
    }
}
