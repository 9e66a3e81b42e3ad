//! A failing seed made smaller: the same draws with parts of the plan left out, faults that do not strike, and fewer operations, as long as it
//! fails in the same place. What is left is another run than the seed's, which needs no more than what it shows.

use std::collections::BTreeSet;
use std::fmt;

/// Runs in which leaving something out is tried, at most: a run takes some milliseconds, or as long as it takes to be called a livelock.
const TRIES_MAX: u32 = 2_000;

/// What may be left out of a plan as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ingredient {
    Third,
    Handover,
    StepDown,
    Resync,
    Replace,
    Split,
    Rot,
    Aimed,
    Adopt,
    Unasked,
    Extend,
    Upkeep,
}

impl Ingredient {
    pub const ALL: [Ingredient; 12] = [
        Ingredient::Third,
        Ingredient::Handover,
        Ingredient::StepDown,
        Ingredient::Resync,
        Ingredient::Replace,
        Ingredient::Split,
        Ingredient::Rot,
        Ingredient::Aimed,
        Ingredient::Adopt,
        Ingredient::Unasked,
        Ingredient::Extend,
        Ingredient::Upkeep,
    ];

    fn name(self) -> &'static str {
        match self {
            Ingredient::Third => "third",
            Ingredient::Handover => "handover",
            Ingredient::StepDown => "step-down",
            Ingredient::Resync => "resync",
            Ingredient::Replace => "replace",
            Ingredient::Split => "split",
            Ingredient::Rot => "rot",
            Ingredient::Aimed => "aimed",
            Ingredient::Adopt => "adopt",
            Ingredient::Unasked => "unasked",
            Ingredient::Extend => "extend",
            Ingredient::Upkeep => "upkeep",
        }
    }
}

/// A seed, and what of it is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Case {
    pub seed: u64,
    pub without: BTreeSet<Ingredient>,
    /// Faults that do not strike, in the order in which they would, from 0.
    pub spared: BTreeSet<u32>,
    /// Hosts submit no more than these while faults strike.
    pub operations: Option<u64>,
    /// No faults but a third's, far away: see `far.rs`.
    pub far: bool,
}

impl From<u64> for Case {
    fn from(seed: u64) -> Case {
        Case { seed, ..Case::default() }
    }
}

impl Case {
    /// Whether it is all of the seed, with the least of everything that a seed has.
    pub fn is_whole(&self) -> bool {
        *self == Case::from(self.seed)
    }

    /// Parts by name and faults by number, as [`Case`] prints them.
    ///
    /// # Errors
    /// What is neither.
    pub fn leave_out(&mut self, list: &str) -> Result<(), String> {
        for item in list.split(',').filter(|item| !item.is_empty()) {
            if let Some(part) = Ingredient::ALL.into_iter().find(|part| part.name() == item) {
                self.without.insert(part);
                continue;
            }
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            let number = |text: &str| text.parse::<u32>().map_err(|error| format!("{item}: {error}"));
            self.spared.extend(number(first)?..=number(last)?);
        }
        Ok(())
    }
}

/// As arguments of `lockstep-sim`.
impl fmt::Display for Case {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "--seed {}", self.seed)?;
        if self.far {
            write!(out, " --far")?;
        }
        if let Some(operations) = self.operations {
            write!(out, " --operations {operations}")?;
        }
        let mut left_out: Vec<String> = self.without.iter().map(|part| part.name().to_owned()).collect();
        let mut spared = self.spared.iter().copied().peekable();
        while let Some(first) = spared.next() {
            let mut last = first;
            while let Some(next) = spared.next_if_eq(&(last + 1)) {
                last = next;
            }
            left_out.push(if first == last { first.to_string() } else { format!("{first}-{last}") });
        }
        if !left_out.is_empty() {
            write!(out, " --without {}", left_out.join(","))?;
        }
        Ok(())
    }
}

/// What became of a run: how many faults were to strike, and whether it failed as the whole one did.
#[derive(Clone, Copy, Debug)]
pub struct Tried {
    pub strikes: u32,
    pub fails: bool,
}

/// The smallest case that still fails when nothing more of it can be left out alone. `whole` fails, with so many `strikes`.
pub fn minimise(whole: Case, strikes: u32, mut run: impl FnMut(&Case) -> Tried) -> Case {
    let mut best = whole;
    let mut strikes = strikes;
    let mut tries = 0;
    let mut smaller = |best: &mut Case, strikes: &mut u32, case: Case| {
        if tries == TRIES_MAX {
            return false;
        }
        tries += 1;
        let tried = run(&case);
        if tried.fails {
            (*best, *strikes) = (case, tried.strikes);
        }
        tried.fails
    };
    loop {
        let before = best.clone();
        for part in Ingredient::ALL {
            if !best.without.contains(&part) {
                let mut case = best.clone();
                case.without.insert(part);
                smaller(&mut best, &mut strikes, case);
            }
        }
        // Many at once first: each that is spared may change what comes after it.
        let mut run_length = strikes.max(1).next_power_of_two();
        while run_length > 0 {
            let mut first = 0;
            while first < strikes {
                let wanted = first..(first + run_length).min(strikes);
                let mut case = best.clone();
                case.spared.extend(wanted);
                if case != best {
                    smaller(&mut best, &mut strikes, case);
                }
                first += run_length;
            }
            run_length /= 2;
        }
        let mut step = best.operations.unwrap_or(crate::sim::plan::HOST_OPERATIONS_MIN + 200) / 2;
        while step > 0 {
            let now = best.operations.unwrap_or(crate::sim::plan::HOST_OPERATIONS_MIN + 200);
            let case = Case { operations: Some(now - step), ..best.clone() };
            if now <= step || !smaller(&mut best, &mut strikes, case) {
                step /= 2;
            }
        }
        if best == before {
            // What is spared beyond the last strike says nothing.
            best.spared.retain(|&strike| strike < strikes);
            return best;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_is_left_and_nothing_else() {
        // It takes the faults 3 and 11 of 20, a third, and 137 operations.
        let fails = |case: &Case| {
            !case.spared.contains(&3)
                && !case.spared.contains(&11)
                && !case.without.contains(&Ingredient::Third)
                && case.operations.is_none_or(|operations| operations >= 137)
        };
        let least = minimise(Case::from(7), 20, |case| Tried { strikes: 20, fails: fails(case) });
        assert_eq!(least.spared.len(), 18);
        assert_eq!(least.operations, Some(137));
        assert_eq!(least.without.len(), Ingredient::ALL.len() - 1);
        assert!(fails(&least));
    }

    #[test]
    fn a_case_is_told_as_arguments_and_read_again() {
        let mut case = Case { operations: Some(40), ..Case::from(9) };
        case.leave_out("third,rot,0-2,5").expect("a list");
        assert_eq!(case.to_string(), "--seed 9 --operations 40 --without third,rot,0-2,5");
        assert!(!case.is_whole() && Case::from(9).is_whole());
        assert!(case.leave_out("weather").is_err());
    }
}
