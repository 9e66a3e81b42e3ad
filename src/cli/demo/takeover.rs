//! `lockstep demo takeover`: the primary is killed under load, the other site takes over, the old one comes back and follows.

use std::time::{Duration, Instant};

use serde_json::json;

use super::hosts::Hosts;
use super::pair::{DATA, LOG, LOG_BYTES, Pair, Setup};
use super::{Demo, READY_MAX, SETTLED_MAX, SiteSeen, judge, plant_loss, shown};
use crate::base::BLOCK_BYTES;
use crate::io::nbd_client::{ClientOptions, NbdClient};
use crate::node::control::Goal;
use crate::reactor::Clock;

pub const SETUP: Setup = Setup { data_bytes: 64 << 20, ..Setup::STEADY };

struct Seen {
    takeover: Duration,
    rejoin: Duration,
}

impl Demo {
    pub(super) fn run_takeover(&self) -> anyhow::Result<()> {
        let mut pair = self.pair_in_lockstep(SETUP)?;
        let places = [pair.uri(0, LOG), pair.uri(1, LOG)];
        let acted = Hosts::write_while(&places, LOG_BYTES, &Clock::new(), || self.take_over(&mut pair));
        let (mut hosts, seen) = acted.map_err(|error| pair.explain(error))?;
        for site in [1, 0] {
            pair.client(site).wait(Goal::Settled, SETTLED_MAX).map_err(|error| pair.explain(error.into()))?;
        }
        self.say("settled; reading both sites back");
        if self.plant_loss {
            plant_loss(&mut hosts.0[0].ledger);
        }
        let sites = [hosts.look(&pair, 0, LOG)?, hosts.look(&pair, 1, LOG)?];
        pair.stop()?;
        self.conclude_takeover(&hosts, &seen, &sites)?;
        self.finish(pair);
        Ok(())
    }

    fn take_over(&self, pair: &mut Pair) -> anyhow::Result<Seen> {
        let third = self.seconds / 3;
        std::thread::sleep(third);
        self.say("the primary is killed (SIGKILL); the other site is promoted");
        pair.kill(0)?;
        let (client, data) = (pair.client(1), pair.uri(1, DATA));
        let begun = Instant::now();
        client.promote(true, None)?;
        let mut host = NbdClient::connect(&data, ClientOptions::default())?;
        host.write(0, &[0x5a; BLOCK_BYTES], false)?;
        let takeover = begun.elapsed();
        self.say(&format!("it took its first write {} after the command", shown(takeover)));
        std::thread::sleep(third);
        let begun = Instant::now();
        pair.start_again(0)?;
        client.wait(Goal::InSync, READY_MAX)?;
        let rejoin = begun.elapsed();
        self.say(&format!("the old primary was in lockstep {} after its start", shown(rejoin)));
        std::thread::sleep(third);
        Ok(Seen { takeover, rejoin })
    }

    fn conclude_takeover(&self, hosts: &Hosts, seen: &Seen, sites: &[SiteSeen]) -> anyhow::Result<()> {
        if self.json {
            let ms = |time: Duration| time.as_secs_f64() * 1000.0;
            self.print_with_hosts(
                hosts,
                sites,
                &json!({ "takeover_ms": ms(seen.takeover), "rejoin_ms": ms(seen.rejoin) }),
            );
        } else {
            self.say_with_hosts(hosts, sites);
        }
        judge(sites)
    }
}
