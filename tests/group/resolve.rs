//! Two groups that both go on alone, meet again, and of which one gives way, with either of them dying at any moment of it.

use super::*;
use lockstep::core::group::split::SplitBrain;
use std::collections::VecDeque;

/// Contents from before.
#[path = "adopting.rs"]
pub mod adopting;
/// Hosts that write faster than is copied.
#[path = "outrun.rs"]
mod outrun;
/// One whose disks are replaced.
#[path = "replacing.rs"]
mod replacing;
/// One whose disk does not give its journal back.
#[path = "reread.rs"]
mod reread;
/// One that was away for long.
#[path = "returning.rs"]
mod returning;

/// Blocks that the test touches.
const BLOCKS: u64 = 96;

/// The link is down at first, and the site of index `gone` is to be discarded.
struct Split {
    pair: Pair,
    connection: u32,
    linked: bool,
    gone: usize,
    admin: Vec<AdminReply>,
    /// What each site's hosts are to read.
    holds: [HashMap<u64, u8>; 2],
    /// Whether hosts of the kept site go on writing, and how often they have.
    busy: bool,
    written: u64,
    /// The one that is not answered: its block, what that held, and what it is to hold.
    pending: Option<(u64, u8, u8)>,
    /// Those that were never answered.
    unknown: Vec<(u64, u8, u8)>,
    installed: bool,
    steps: u64,
    /// The site that is copied to has a turn once in so many steps.
    turn_of_gone: u64,
    /// What waits for its pages.
    held: VecDeque<ToLink>,
}

fn solo_with_staging(role: Role) -> GroupConfig {
    let mut config = config(role, true);
    let peer = config.peer.as_mut().expect("a pair");
    peer.on_peer_loss = OnPeerLoss::Solo;
    config.resync = ResyncConfig { staging_blocks: 4096, p99_budget: Nanos::from_millis(10) };
    config
}

impl Split {
    /// Both sites have the same; the one of index `gone` is to be copied to.
    fn joined(gone: usize) -> Split {
        let mut pair = pair_of([solo_with_staging(Role::Primary), solo_with_staging(Role::Secondary)]);
        pair.sites.iter_mut().for_each(|site| site.may_refuse = true);
        let mut split = Split {
            pair,
            connection: 1,
            linked: true,
            gone,
            admin: Vec::new(),
            holds: Default::default(),
            busy: false,
            written: 0,
            pending: None,
            unknown: Vec::new(),
            installed: false,
            steps: 0,
            turn_of_gone: 1,
            held: VecDeque::new(),
        };
        for lba in (0..BLOCKS).step_by(3) {
            split.write(0, lba, 1);
        }
        split.holds[1] = split.holds[0].clone();
        split.until("all is settled", |split| {
            split.status(1).settled == split.status(0).last && split.status(0).settled == split.status(0).last
        });
        split
    }

    /// Both sites have acknowledged alone what the other has not, since they had the same.
    fn new(gone: usize) -> Split {
        let mut split = Split::joined(gone);
        split.unlink();
        split.until("the primary is alone", |split| split.status(0).solo);
        split.ask(1, 1, AdminOp::Promote { fenced: true });
        assert!(split.answer(1).is_ok());
        for lba in (0..BLOCKS / 2).chain(BLOCKS - 4..BLOCKS) {
            split.write(0, lba, 2);
        }
        for lba in (BLOCKS / 3..BLOCKS - 8).step_by(2) {
            split.write(1, lba, 3);
        }
        split
    }

    fn status(&self, site: usize) -> lockstep::core::group::status::GroupStatus {
        self.pair.sites[site].group.status(self.pair.now)
    }

    fn split(&self, site: usize) -> Option<SplitBrain> {
        self.status(site).split
    }

    fn unlink(&mut self) {
        self.linked = false;
        self.pair.disconnect(self.connection);
        for message in std::mem::take(&mut self.held) {
            self.discard(1 - self.gone, message);
        }
    }

    fn link(&mut self) {
        self.connection += 1;
        self.linked = true;
        self.pair.connect(self.connection);
    }

    fn crash(&mut self, index: usize) {
        let site = &mut self.pair.sites[index];
        let disks = std::mem::take(&mut site.disks);
        let marks = std::mem::take(&mut site.marks);
        let again = Site { marks, ..Site::started(site.config.clone(), disks) };
        self.start(index, again);
    }

    /// The site is dead, and there again as this one.
    fn start(&mut self, index: usize, mut again: Site) {
        self.unlink();
        again.may_refuse = true;
        again.with(self.pair.now, |group, turn| group.start(turn));
        self.pair.sites[index] = again;
        self.until("it has recovered", |split| split.status(index).state != GroupState::Recovering);
        if index != self.gone {
            self.unknown.extend(self.pending.take());
        }
    }

    /// What was sent to nobody gives its pages back.
    fn discard(&mut self, index: usize, message: ToLink) {
        let now = self.pair.now;
        let back = match message {
            ToLink::Page { page, .. } => FromLink::PageReturned { page },
            ToLink::Update { update, slot, source, .. } => {
                FromLink::Consumed { number: update.number, slot, source, popped_at: now, sent_at: now }
            }
            _ => return,
        };
        self.pair.sites[index].with(now, |group, turn| group.on_link(turn, back));
    }

    fn step(&mut self) {
        self.pair.now = self.pair.now.plus(Nanos::from_micros(200));
        let now = self.pair.now;
        self.steps += 1;
        for index in 0..2 {
            if index == self.gone && !self.steps.is_multiple_of(self.turn_of_gone) {
                continue;
            }
            if self.busy && index != self.gone && self.pair.sites[index].group.serving() {
                self.go_on();
            }
            self.pair.sites[index].with(now, |group, turn| group.end_turn(turn));
            let messages = self.pair.sites[index].drain(now);
            while let Some(reply) = self.pair.sites[index].out.to_admin.pop() {
                self.admin.push(reply);
            }
            for message in messages {
                if message == ToLink::Close && self.linked {
                    self.unlink();
                } else if self.linked && index != self.gone {
                    self.held.push_back(message);
                    self.deliver_held();
                } else if self.linked {
                    let [a, b] = &mut self.pair.sites;
                    let (from, to) = if index == 0 { (a, b) } else { (b, a) };
                    to.receive(now, from, message);
                } else {
                    self.discard(index, message);
                }
            }
            self.deliver_held();
            if self.pair.sites[index].group.starts_anew() {
                assert_eq!(index, self.gone);
                self.installed = true;
                self.crash(index);
            }
        }
    }

    /// The site that is copied to takes what it has pages for.
    fn deliver_held(&mut self) {
        while self.pair.sites[self.gone].link_pages.len() >= UPDATE_BLOCKS_MAX
            && let Some(message) = self.held.pop_front()
        {
            let [a, b] = &mut self.pair.sites;
            let (from, to) = if self.gone == 1 { (a, b) } else { (b, a) };
            to.receive(self.pair.now, from, message);
        }
    }

    /// One more write to the kept site, whose reply is awaited before the next.
    fn go_on(&mut self) {
        if self.pending.is_some() && !self.take_answer() {
            return;
        }
        self.written += 1;
        let (lba, fill) = (self.written * 7 % BLOCKS, (100 + self.written % 100) as u8);
        self.pair.sites[1 - self.gone].write(self.pair.now, 700, lba, fill, false);
        let before = self.holds[1 - self.gone].insert(lba, fill).unwrap_or(0);
        self.pending = Some((lba, before, fill));
    }

    fn take_answer(&mut self) -> bool {
        let replies = &mut self.pair.sites[1 - self.gone].replies;
        let Some(at) = replies.iter().position(|reply| reply.ticket == SlotId(700)) else { return false };
        assert_eq!(replies.swap_remove(at).result, Ok(()));
        self.pending = None;
        true
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&Split) -> bool) {
        for _ in 0..100_000 {
            if done(self) {
                return;
            }
            self.step();
        }
        panic!("never: {what}: {:#?}", [self.status(0), self.status(1)]);
    }

    fn reply(&mut self, site: usize, ticket: u32) -> Result<(), HostError> {
        let is = move |reply: &HostReply| reply.ticket == SlotId(ticket);
        self.until("a reply", |split| split.pair.sites[site].replies.iter().any(is));
        let at = self.pair.sites[site].replies.iter().position(is).expect("it is there");
        self.pair.sites[site].replies.swap_remove(at).result
    }

    fn write(&mut self, site: usize, lba: u64, fill: u8) {
        self.until("a page", |split| !split.pair.sites[site].front_pages.is_empty());
        let now = self.pair.now;
        self.pair.sites[site].write(now, 1, lba, fill, false);
        assert_eq!(self.reply(site, 1), Ok(()), "a write to site {site}");
        self.holds[site].insert(lba, fill);
    }

    fn ask(&mut self, site: usize, id: u64, op: AdminOp) {
        let now = self.pair.now;
        self.pair.sites[site].with(now, |group, turn| group.on_admin(turn, AdminRequest { id, op }));
    }

    fn answer(&mut self, id: u64) -> Result<UpdateNumber, AdminError> {
        self.until("an answer", |split| split.admin.iter().any(|reply| reply.id == id));
        self.admin.iter().find(|reply| reply.id == id).expect("it is there").result
    }

    /// A block of a site, as its readers see it.
    fn read(&mut self, site: usize, lba: u64) -> u8 {
        self.until("a page", |split| !split.pair.sites[site].front_pages.is_empty());
        let pages = self.pair.sites[site].begin_read(self.pair.now, 900, lba, 1);
        assert_eq!(self.reply(site, 900), Ok(()), "reading {lba} at site {site}");
        let (fill, whole) = self.pair.sites[site].end_read(pages)[0];
        assert!(whole, "block {lba} is torn");
        fill
    }

    fn check(&mut self, site: usize, when: &str) {
        for lba in 0..BLOCKS {
            let due = self.holds[site].get(&lba).copied().unwrap_or(0);
            assert_eq!(self.read(site, lba), due, "block {lba} at site {site} {when}");
        }
    }

    /// Both refuse each other, and each says what there is.
    fn meet(&mut self) {
        self.link();
        self.until("they refuse each other", |split| !split.linked);
        let [ours, theirs] = [0, 1].map(|site| self.split(site).expect("a split brain"));
        assert_eq!((ours.common, ours.ours, ours.theirs), (theirs.common, theirs.theirs, theirs.ours));
        assert!(ours.ours.covered && ours.theirs.covered, "{ours:?}");
    }

    fn give_way(&mut self) {
        let gone = self.gone;
        self.ask(gone, 2, AdminOp::GiveWay);
        self.ask(gone, 3, AdminOp::HostsGone);
        assert!(self.answer(2).is_ok(), "{:?}", self.answer(2));
        let status = self.status(gone);
        assert_eq!((status.role, status.gives_way, status.settled), (Role::Secondary, true, status.last));
    }

    /// Whether the discarded site follows, with everything.
    fn over(&self) -> bool {
        let [kept, gone] = [1 - self.gone, self.gone].map(|site| self.status(site));
        !kept.solo
            && kept.peer == PeerState::InSync
            && gone.peer == PeerState::InSync
            && kept.settled == kept.last
            && gone.settled == kept.last
    }

    fn finish(&mut self) {
        self.busy = false;
        let kept = 1 - self.gone;
        let is = |reply: &HostReply| reply.ticket == SlotId(700);
        self.until("the last write is answered", |split| {
            split.pending.is_none() || split.pair.sites[kept].replies.iter().any(is)
        });
        self.take_answer();
        for _ in 0..20 {
            if !self.linked {
                self.link();
            }
            let mut steps = 0;
            self.until("they are in lockstep, or have parted", |split| {
                steps += 1;
                split.over() || !split.linked || steps > 50_000
            });
            if self.over() {
                break;
            }
        }
        assert!(self.over(), "{:#?}", [self.status(0), self.status(1)]);
        for (lba, before, after) in std::mem::take(&mut self.unknown) {
            let found = self.read(kept, lba);
            assert!([before, after, self.holds[kept][&lba]].contains(&found), "block {lba} is {found}");
            self.holds[kept].insert(lba, found);
        }
        self.holds[self.gone] = self.holds[kept].clone();
        assert!(!self.status(self.gone).gives_way);
        self.check(kept, "in the end");
        self.check(self.gone, "in the end");
        // And so on the disks alone.
        self.crash(self.gone);
        self.crash(kept);
        self.link();
        self.until("they are in lockstep again", |split| split.over());
        self.check(kept, "after a restart");
        self.check(self.gone, "after a restart");
        assert_eq!(self.status(kept).resync.changed_blocks, 0, "nothing is marked any more");
        assert!(!self.status(kept).resync.active);
    }
}

#[test]
fn the_discarded_site_is_copied_what_the_kept_one_has_and_neither_changes_before() {
    for gone in 0..2 {
        let mut split = Split::new(gone);
        split.meet();
        split.check(0, "after they met");
        split.check(1, "after they met");
        // One restarts meanwhile.
        split.crash(gone);
        split.meet();
        split.busy = true;
        split.give_way();
        split.check(gone, "having given way");
        split.crash(gone);
        assert!(split.status(gone).gives_way, "a restart forgets nothing");
        split.check(gone, "after a restart");
        split.link();
        split.until("what it is copied is whole", |split| split.installed);
        split.finish();
        assert!(split.written > 20, "hosts went on");
    }
}

#[test]
fn either_site_may_die_at_any_moment_of_it() {
    for gone in 0..2 {
        // Each run kills one site, or both, somewhat later than the one before.
        for (run, steps) in (0..60).map(|run| (run, run * run / 8)) {
            let mut split = Split::new(gone);
            split.meet();
            split.give_way();
            split.busy = run % 2 == 0;
            split.link();
            for _ in 0..steps {
                split.step();
                if !split.linked {
                    split.link();
                }
            }
            if run % 5 == 4 && split.linked {
                split.unlink();
                (0..50).for_each(|_| split.step());
                if !split.installed {
                    split.check(gone, "cut off while it was copied to");
                }
            }
            match run % 3 {
                0 => split.crash(gone),
                1 => split.crash(1 - gone),
                _ => {
                    split.crash(gone);
                    split.crash(1 - gone);
                }
            }
            split.finish();
        }
    }
}

#[test]
fn a_promotion_takes_it_back_and_the_other_side_may_give_way_then() {
    let mut split = Split::new(1);
    split.meet();
    split.give_way();
    split.link();
    split.until("it is being copied to", |split| split.status(1).peer == PeerState::Resyncing);
    (0..6).for_each(|_| split.step());
    split.ask(1, 4, AdminOp::Promote { fenced: true });
    assert!(split.answer(4).is_ok());
    split.write(1, 90, 9);
    split.check(1, "promoted again");
    let before = split.status(1).checkpoint;
    split.crash(1);
    assert_eq!((split.status(1).role, split.status(1).gives_way), (Role::Primary, false));
    split.check(1, "promoted again, and restarted");
    // Its next superblock knows of the promotion, while the journal begins before the site gave way.
    split.until("a superblock of the new life", |split| split.status(1).checkpoint > before);
    split.crash(1);
    assert_eq!((split.status(1).role, split.status(1).gives_way), (Role::Primary, false));
    if split.linked {
        split.unlink();
    }
    split.admin.clear();
    split.meet();
    split.gone = 0;
    split.give_way();
    split.finish();
}

#[test]
fn nobody_gives_way_where_nothing_keeps_the_sites_apart_or_the_difference_is_not_known() {
    let mut split = Split::new(1);
    split.ask(1, 2, AdminOp::GiveWay);
    assert_eq!(split.answer(2), Err(AdminError::NoSplitBrain), "they have not met");
    // Without a staging file nobody marks what changes.
    let mut pair = pair_of([Role::Primary, Role::Secondary].map(|role| {
        let mut config = config(role, true);
        config.peer.as_mut().expect("a pair").on_peer_loss = OnPeerLoss::Solo;
        config
    }));
    pair.sites.iter_mut().for_each(|site| site.may_refuse = true);
    let mut split = Split { pair, connection: 1, linked: true, ..split };
    split.admin.clear();
    split.unlink();
    split.until("the primary is alone", |split| split.status(0).solo);
    split.ask(1, 1, AdminOp::Promote { fenced: true });
    assert!(split.answer(1).is_ok());
    split.write(0, 3, 2);
    split.write(1, 4, 3);
    split.link();
    split.until("they refuse each other", |split| !split.linked);
    assert!(split.split(0).is_some_and(|split| !split.ours.covered && !split.theirs.covered));
    split.ask(1, 2, AdminOp::GiveWay);
    assert_eq!(split.answer(2), Err(AdminError::DifferenceUnknownHere));
    assert_eq!(split.status(1).role, Role::Primary);
}
