//! A primary alone whose disk does not give its journal back when the peer comes to catch up.

use super::*;

impl Split {
    /// The second site is away, and the first has gone on alone.
    fn without_the_second() -> Split {
        let mut split = Split::joined(1);
        split.unlink();
        split.until("the primary is alone", |split| split.status(0).solo);
        for lba in (0..BLOCKS).step_by(2) {
            split.write(0, lba, 2);
        }
        split
    }
}

#[test]
fn what_the_disk_gives_the_second_time_the_peer_gets_from_the_journal() {
    let mut split = Split::without_the_second();
    let primary = &mut split.pair.sites[0];
    primary.unread_once.extend(primary.ring());
    let before = split.pair.sites[0].unread_once.len();
    split.finish();
    assert!(split.pair.sites[0].unread_once.len() < before, "the journal was read");
    assert!(!split.installed);
}

/// A journal that cannot be read is no reason for hosts to lose the site that they have.
#[test]
fn a_peer_for_which_the_journal_cannot_be_read_is_copied_what_it_lacks() {
    for busy in [false, true] {
        let mut split = Split::without_the_second();
        let primary = &mut split.pair.sites[0];
        primary.unreadable.extend(primary.ring());
        split.busy = busy;
        let mut connections = 0;
        while !split.installed {
            connections += 1;
            assert!(connections < 20, "the journal lets go of it, and it is copied");
            split.link();
            split.until("the connection ends", |split| {
                assert_eq!(split.status(0).state, GroupState::Serving);
                !split.linked
            });
        }
        assert!(connections > 1, "the journal was read first");
        split.pair.sites[0].unreadable.clear();
        split.finish();
    }
}
