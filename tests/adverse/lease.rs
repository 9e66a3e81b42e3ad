//! A primary that lacks its secondary's promise does not read, and a secondary that made one does not take over before its end.

use super::*;

/// What both configurations make of it: four times the latency budget and the interval of heartbeats.
const LEASE: Nanos = Nanos::from_millis(600);
/// A secondary's clock may be that much slower than its primary's.
const KEPT: Nanos = Nanos::from_micros(637_500);

/// A primary that has written block 5, in lockstep.
fn leading() -> Site {
    let mut site = Site::formatted(config(Role::Primary));
    site.connect(&Hello { read_lease: LEASE, ..hello(Role::Primary, &[], 0, 0) });
    site.turns(20);
    site.ack(1, 1, 1, 0);
    site.write(0, 5, 7);
    site.turns(20);
    // The second time, of the heartbeat that says what has settled by the first.
    for _ in 0..2 {
        site.heard(site.beat());
        site.turns(20);
    }
    assert_eq!(site.reply(0), Some(Ok(())));
    site
}

/// A secondary in lockstep with a primary that suspends.
fn promising() -> Site {
    let mut site = Site::formatted(config(Role::Secondary));
    site.connect(&primary());
    site.stream(1, 1, generation(1, PEER), &[5, 6]);
    site.turns(100);
    site
}

fn primary() -> Hello {
    Hello { suspends: true, ..hello(Role::Secondary, &[], 0, 0) }
}

impl Site {
    /// Sleeps, as a process that was stopped.
    fn sleep(&mut self, time: Nanos) {
        self.now = self.now.plus(time);
    }

    /// The sequence of the last heartbeat.
    fn beat(&self) -> u64 {
        let beat = |message: &ToLink| match message {
            ToLink::Control(Control::Heartbeat { sequence, .. }) => Some(*sequence),
            _ => None,
        };
        self.sent.iter().rev().find_map(beat).expect("there was one")
    }

    fn heard(&mut self, heard: u64) {
        self.ack_hearing([2, 2, 2, 0], heard);
    }

    fn take_over(&mut self) {
        let request = AdminRequest { id: 1, op: AdminOp::Promote { fenced: false } };
        self.with(|group, turn| group.on_admin(turn, request));
        self.turns(20);
    }

    fn verdict(&mut self) -> Option<Result<(), AdminError>> {
        self.out.to_admin.pop().map(|reply| reply.result.map(|_| ()))
    }

    /// Asks, and says what was answered at once.
    fn takes_over(&mut self) -> Option<Result<(), AdminError>> {
        self.take_over();
        self.verdict()
    }
}

#[test]
fn a_primary_that_was_stopped_asks_its_peer_before_it_reads() {
    let mut site = leading();
    assert_eq!(site.read(1, 5), Ok(7));
    let before = site.beat();
    site.sleep(LEASE);
    let page = site.begin_read(1, 5);
    site.turn();
    assert!(site.beat() > before, "it asks at once");
    // What the peer said before it was asked is no promise that holds now.
    site.heard(before);
    site.turns(20);
    assert_eq!(site.reply(1), None);
    site.heard(site.beat());
    site.turns(2);
    assert_eq!((site.reply(1), site.memory.bytes(page)[0]), (Some(Ok(())), 7));
}

#[test]
fn a_promise_counts_from_when_it_was_asked_for() {
    let mut site = leading();
    site.sleep(LEASE);
    site.turn();
    let asked = site.beat();
    // The answer is long under way, and half of what it is worth is over when it comes: the peer is not lost so soon.
    site.sleep(Nanos::from_millis(40));
    site.heard(asked);
    site.sleep(Nanos::from_millis(559));
    site.request_read_now(1);
    assert_eq!(site.reply(1), Some(Ok(())));
    site.sleep(Nanos::from_millis(2));
    site.request_read_now(1);
    assert_eq!(site.reply(1), None);
}

impl Site {
    /// A read of block 5 that is answered before anything else happens, or not.
    fn request_read_now(&mut self, ticket: u32) {
        self.begin_read(ticket, 5);
        self.drain();
    }
}

#[test]
fn a_primary_that_suspends_reads_no_longer_than_its_lost_peer_promised() {
    let mut site = leading();
    site.disconnect();
    site.sleep(Nanos::from_millis(500));
    assert_eq!(site.read(1, 5), Ok(7));
    site.sleep(Nanos::from_millis(100));
    site.begin_read(1, 5);
    site.turns(20);
    assert_eq!(site.reply(1), None);
    // Writes wait in the same way, with the same deadline.
    site.write(2, 6, 1);
    site.turns(11_000);
    assert_eq!(
        (site.reply(1), site.reply(2)),
        (Some(Err(HostError::Deadline)), Some(Err(HostError::Deadline)))
    );
    // One that goes on alone by its operator's word needs nobody.
    let request = AdminRequest { id: 1, op: AdminOp::Promote { fenced: true } };
    site.begin_read(3, 5);
    site.turns(5);
    assert_eq!(site.reply(3), None);
    site = site.crashed();
    site.with(|group, turn| group.on_admin(turn, request));
    site.turns(20);
    assert_eq!(site.read(3, 5), Ok(7));
}

#[test]
fn a_secondary_takes_over_unasked_when_its_promise_is_over() {
    let mut site = promising();
    assert_eq!(site.takes_over(), Some(Err(AdminError::PrimaryAlive)));
    site.disconnect();
    let lost_at = site.now;
    assert_eq!(site.takes_over(), None);
    while site.verdict().is_none() {
        assert!(site.now < lost_at.plus(KEPT).plus(Nanos::from_millis(10)), "it is over");
        site.turn();
    }
    // The last acknowledgement went out up to a hundred turns before.
    assert!(site.now > lost_at.plus(LEASE), "after {:?}", site.now.since(lost_at));
    site.turns(20);
    assert_eq!((site.status().role, site.status().state), (Role::Primary, GroupState::Serving));
}

#[test]
fn a_secondary_does_not_take_over_unasked_what_it_may_lack_or_somebody_else_may_serve() {
    let refused = Some(Err(AdminError::NotFenced));
    let after = |mut site: Site| {
        site.disconnect();
        site.sleep(Nanos::from_millis(2000));
        site.takes_over()
    };
    assert_eq!(after(following(2, &[5])), refused, "its primary may go on alone");
    assert_eq!(after(promising().crashed()), refused, "it may have lost what it had");
    let met = |hello: Hello| {
        let mut site = promising();
        site.disconnect();
        site.connect(&hello);
        site
    };
    let stream = [(generation(1, PEER), 1)];
    let again = |last| Hello { suspends: true, ..hello(Role::Secondary, &stream, last, 1) };
    assert_eq!(after(met(again(3))), Some(Ok(())));
    assert_eq!(after(met(again(4))), Some(Err(AdminError::LacksUpdates)));
    assert_eq!(after(met(Hello { alone: true, ..again(3) })), refused);
    let mut site = met(again(3));
    let number = UpdateNumber(4);
    let begin =
        Update { number, generation: generation(1, PEER), kind: UpdateKind::SoloBegin, ..Update::EMPTY };
    site.update(1, begin, 0);
    assert_eq!(after(site), refused, "the stream says that it is alone");
    // It says its hello, and does not hear who else was met by that.
    let mut site = promising();
    site.disconnect();
    site.deliver(FromLink::Connected { connection: 9 });
    site.connection = 9;
    site.turns(5);
    assert_eq!(after(site), refused);
}
