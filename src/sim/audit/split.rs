//! The auditor and split brains: from the moment that two sites both go on alone there are two histories, and an auditor for each. What the
//! other site does is none of its business, until that has given its own history up and installs this one.

use crate::sim::audit::{Auditor, Media, Op, OpKind, OpSpec};

impl Auditor {
    /// Another site's host has asked something: its number is no operation of this history's.
    pub fn skips_operation(&mut self) {
        let spec = OpSpec { volume: 0, lba: 0, count: 0, kind: OpKind::Flush, zeros: false, snapshot: 0 };
        self.ops.push(Op {
            spec,
            site: 0,
            host: false,
            submitted_at: self.now,
            outstanding: false,
            succeeded: false,
            floor: 0,
            replacements: 0,
            number: None,
            limit: 0,
            read_floors: Vec::new(),
        });
    }

    /// Whether what the site holds is about to be another history's: it has a mark, whoever wrote that.
    pub fn is_marked(&self, media: &dyn Media) -> bool {
        self.mark_of(media).is_some()
    }

    /// The site, which had a history of its own, is going to install this one.
    pub fn adopts(&mut self, site: usize, other: &Auditor) {
        self.sites[site] = other.sites[site].clone();
    }
}
