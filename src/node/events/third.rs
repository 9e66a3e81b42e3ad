//! What is logged of a third site, and at one.

use super::{Level, Names, mib_of};
use crate::base::UpdateNumber;
use crate::core::outbox::Event;

impl Names {
    pub(super) fn sentence_of_third(&self, event: &Event) -> (Level, String) {
        match *event {
            Event::ThirdFed { from } => {
                (Level::Info, format!("{} is sent what is settled, from {from} on", self.third()))
            }
            Event::ThirdPromoted { common, stays } => {
                let third = self.third();
                let then = match stays {
                    true => format!(
                        "this site has promised hosts what {third} does not have: there are two histories, and `lockstep status` shows both. \
                         Decide which is kept; the sites of the other one are formatted anew (docs/OPERATIONS.md)"
                    ),
                    false => format!(
                        "this site has promised nothing that {third} lacks, and serves no hosts: make it {third}'s peer or third in both \
                         configurations, or take the word back by `lockstep promote --fenced --config {}`",
                        self.file
                    ),
                };
                (
                    Level::Error,
                    format!("{third} was made primary over what this site has up to {common}: {then}"),
                )
            }
            Event::ThirdResumed { after, upto, sent_bytes, took } => (
                Level::Info,
                format!(
                    "{} has all that it lacked when it went on from here, {} updates after {after}: it was sent {sent_bytes} bytes in {} ms",
                    self.third(),
                    upto.0 - after.0,
                    took.0 / 1_000_000
                ),
            ),
            Event::ThirdLapsesSoon { position, kept_percent } => (
                Level::Warn,
                format!(
                    "{} may lapse soon: it has everything up to {position}, and what it lacks is {kept_percent}% of what the journal keeps for it. \
                     Bring it back, or see to its path; hosts are not made to wait for it",
                    self.third()
                ),
            ),
            Event::ThirdLost { reason } => (Level::Warn, self.loss(&self.third(), reason)),
            Event::ThirdLapsed { position, oldest } => (
                Level::Error,
                format!(
                    "{} has lapsed: it has everything up to {position}, and the journal begins with {oldest}, since hosts are not made to wait for \
                     a third; if no other site has what it lacks in its journal, all its blocks are compared, and it is copied what differs",
                    self.third()
                ),
            ),
            Event::SourceFollowed { site, from } => {
                (Level::Info, format!("this site pulls from {}, from {from} on", self.other(site)))
            }
            Event::SourceLost { site, reason } => (Level::Warn, self.loss(&self.other(site), reason)),
            Event::SourceLapsed { site, position, oldest } => (
                Level::Error,
                format!(
                    "{} does not have what this site lacks: this site has everything up to {position}, and the journal there begins with {oldest}",
                    self.other(site)
                ),
            ),
            Event::CopyToThirdBegan { position, oldest, blocks, goes_on } => (
                Level::Warn,
                format!(
                    "a copy to {} {}, not a delta: it has {}, and this site's journal begins with {oldest}, so {} MiB {} compared, and what \
                     differs is copied; until it has all of it its volumes stay what they were",
                    self.third(),
                    if goes_on { "goes on" } else { "begins" },
                    match position {
                        UpdateNumber::NONE => "nothing (it lost its disks, or was formatted)".to_owned(),
                        position => format!("everything up to {position}"),
                    },
                    mib_of(blocks),
                    if goes_on { "are left to be" } else { "are" },
                ),
            ),
            Event::CopyToThirdEnded { at, blocks, equal, took_ns } => (
                Level::Info,
                format!(
                    "{} has been copied what it lacked, {} MiB (and not {} MiB that are equal, or zeros) in {} s, and follows from {at}",
                    self.third(),
                    mib_of(blocks),
                    mib_of(equal),
                    took_ns / 1_000_000_000
                ),
            ),
            Event::CopyBegan { site, blocks } => (
                Level::Warn,
                format!(
                    "{} copies to this site, and sends no delta: no journal that this site could ask has what it lacks, so {} MiB are compared, \
                     and what differs is copied; until all of it is here the volumes stay what they were",
                    self.other(site),
                    mib_of(blocks)
                ),
            ),
            _ => unreachable!("no event of a third: {event:?}"),
        }
    }
}
