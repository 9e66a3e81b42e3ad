//! The auditor and the hosts: what was asked, what was promised, what a read may return, who waits too long.

use crate::sim::audit::{Auditor, BlockHistory, Op, OpKind, OpSpec, THIRD};
use crate::sim::content::Print;

impl Auditor {
    /// A host of the primary, or a reader at a secondary, sends an operation to `site`; returns its id, which its data must carry.
    pub fn submitted(&mut self, site: usize, host: bool, spec: OpSpec) -> u64 {
        let id = self.ops.len() as u64;
        let read_floors = if spec.kind == OpKind::Read {
            let range = spec.lba as usize..(spec.lba + spec.count) as usize;
            let floor = |block: &BlockHistory| match host {
                true => block.acknowledged.max(block.read),
                false if site == THIRD => block.read_at_third,
                false => block.read_at_secondary[site],
            };
            self.blocks[usize::from(spec.volume)][range].iter().map(floor).collect()
        } else {
            Vec::new()
        };
        self.ops.push(Op {
            spec,
            site,
            host,
            submitted_at: self.now,
            outstanding: true,
            succeeded: false,
            floor: match spec.kind {
                // What its own journal has, the secondary knows.
                OpKind::Changes { .. } if !host => self.durable(site),
                _ => self.promised,
            },
            replacements: self.replacements,
            number: None,
            limit: u64::MAX,
            read_floors,
        });
        if spec.kind.changes() && host {
            self.unnumbered.push(id);
        }
        id
    }

    pub(super) fn end(&mut self, id: u64) {
        let now = self.now;
        let op = &mut self.ops[id as usize];
        assert!(op.outstanding, "INV-11: op {id} {:?} was answered twice", op.spec);
        op.outstanding = false;
        let waited = now - op.submitted_at;
        assert!(waited <= self.config.wait_ns_max, "INV-11: op {id} {:?} waited {waited} ns", op.spec);
    }

    /// The host got an error: the operation may have happened, or may yet.
    pub fn failed(&mut self, id: u64) {
        self.end(id);
    }

    /// The host got its reply; `prints` are the blocks that a read returned.
    pub fn succeeded(&mut self, id: u64, prints: &[Print]) {
        self.end(id);
        let spec = self.ops[id as usize].spec;
        self.ops[id as usize].succeeded = true;
        match spec.kind {
            OpKind::Read if spec.snapshot > 0 => self.check_snapshot_read(id, prints),
            OpKind::Read => self.check_read(id, prints),
            OpKind::Changes { .. } => unreachable!("told_changes has the answer"),
            OpKind::Flush => {
                let floor = self.ops[id as usize].floor;
                if let Err(why) = self.settled(floor) {
                    panic!("INV-2: flush {id} completed, but {why}");
                }
            }
            _ => {
                assert!(self.ops[id as usize].host, "a secondary acknowledged {spec:?}");
                let number = self.confirm(id);
                self.acknowledged_writes += 1;
                for lba in spec.lba..spec.lba + spec.count {
                    let block = &mut self.blocks[usize::from(spec.volume)][lba as usize];
                    // An operation in several updates has its blocks at several numbers, none of them above its own.
                    let number = block.latest_at(number);
                    block.acknowledged = block.acknowledged.max(number);
                }
            }
        }
    }

    pub(super) fn promise(&mut self, number: u64) {
        if number > 0 {
            let alone = self.alone(self.leader, number);
            let entry = &mut self.stream[number as usize - 1];
            entry.alone = if entry.promised { entry.alone && alone } else { alone };
            entry.promised = true;
            self.promised = self.promised.max(number);
        }
    }

    pub(super) fn check_read(&mut self, id: u64, prints: &[Print]) {
        let Op { spec, site, host, .. } = self.ops[id as usize];
        assert_eq!(prints.len() as u64, spec.count);
        for (index, &print) in prints.iter().enumerate() {
            let floor = self.ops[id as usize].read_floors[index];
            let lba = spec.lba + index as u64;
            let block = &self.blocks[usize::from(spec.volume)][lba as usize];
            let mut reason = None;
            let found = block.numbers_of(print).filter(|&number| number >= floor).find(|&number| {
                // What was acknowledged may be read though the peer has died since; and what is durable on both sites, though
                // the level asks for more, since nothing undoes it.
                // A reader whose site has taken over since is answered like a host.
                let held = || match host || site == self.leader {
                    true if number <= self.promised.max(self.acknowledged) => Ok(()),
                    true => self.held(site, number).map_err(Some),
                    false => Err(None),
                };
                let check = self.settled(number).or_else(|why| held().map_err(|more| (why, more)));
                reason = check.err();
                check.is_ok()
            });
            let Some(newest) = found else {
                let versions: Vec<_> =
                    block.versions.iter().map(|v| (v.number, v.content.print.describe())).collect();
                panic!(
                    "INV-5: read {id} at site {site} of volume {} block {lba} returned {}, where #{floor} or later was due: \
                     {}; versions {versions:?}",
                    spec.volume,
                    print.describe(),
                    match reason {
                        None => "no such version".into(),
                        Some((why, None)) => why.to_string(),
                        Some((why, Some(more))) => format!("{why}; {more}"),
                    }
                );
            };
            // Zeros may be any of several updates; the oldest that explains them promises least.
            let number = block
                .numbers_of(print)
                .filter(|&number| number >= floor)
                .last()
                .expect("one was found above")
                .min(newest);
            let block = &mut self.blocks[usize::from(spec.volume)][lba as usize];
            if host {
                block.read = block.read.max(number);
                self.promise(number);
            } else if site == THIRD {
                block.read_at_third = block.read_at_third.max(number);
            } else if site != self.leader {
                block.read_at_secondary[site] = block.read_at_secondary[site].max(number);
            }
        }
    }

    /// At any time: nobody has waited too long.
    pub fn check_waits(&self, site: usize) {
        for (id, op) in self.ops.iter().enumerate().filter(|(_, op)| op.outstanding && op.site == site) {
            let waited = self.now - op.submitted_at;
            assert!(
                waited <= self.config.wait_ns_max,
                "INV-11: op {id} {:?} still waits after {waited} ns",
                op.spec
            );
        }
    }
}
