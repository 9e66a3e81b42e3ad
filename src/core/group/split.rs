//! Two sites that both went on alone: what each has after the last update they share. They refuse each other, and neither is
//! changed; an operator decides which of them is to lose what it has (`resolve`).

use super::Group;
use crate::base::{Generation, UpdateNumber};
use crate::core::history::common_point;
use crate::format::wire::Hello;

/// What one of them has after the common point, and would lose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Branch {
    pub generation: Generation,
    pub last: UpdateNumber,
    /// Up to where it may have acknowledged without the other.
    pub promised: UpdateNumber,
    /// It marks what it changes, and so can be copied to, or copy.
    pub marks: bool,
    /// It knows every block that it has changed after the common point. If one of them does not, all blocks are compared.
    pub covered: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitBrain {
    /// The last update that both have.
    pub common: UpdateNumber,
    pub ours: Branch,
    pub theirs: Branch,
}

impl Branch {
    fn of(hello: &Hello, common: UpdateNumber) -> Branch {
        let promised = hello.settled.max(hello.alone_upto).min(hello.last);
        let (marks, covered) = (hello.marks_after != UpdateNumber(u64::MAX), hello.marks_after <= common);
        Branch { generation: hello.last_generation, last: hello.last, promised, marks, covered }
    }
}

impl SplitBrain {
    /// How a site that says this of itself stands to another one, whose hello it has.
    pub(super) fn of(ours: &Hello, theirs: &Hello) -> SplitBrain {
        let common = common_point(&ours.history, ours.last, &theirs.history, theirs.last);
        SplitBrain { common, ours: Branch::of(ours, common), theirs: Branch::of(theirs, common) }
    }
}

impl Group {
    /// Two sites have met: what keeps them apart, or nothing.
    pub(super) fn note_split(&mut self, ours: &Hello, theirs: &Hello, split: bool) {
        self.split = split.then(|| SplitBrain::of(ours, theirs));
    }
}
