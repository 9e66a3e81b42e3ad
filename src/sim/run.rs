//! Running seeds: a violation, or any panic of a core, becomes text that names the seed.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};

use crate::sim::far::{Far, FarSeen};
use crate::sim::minimise::{Case, Ingredient};
use crate::sim::world::{Outcome, World};

thread_local! {
    static REASON: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// What went wrong in a seed.
#[derive(Clone, Debug)]
pub struct Violation {
    pub seed: u64,
    /// The panic's message and place.
    pub what: String,
    /// Faults that were to strike until then.
    pub strikes: u32,
}

/// Panics are kept for [`run_seed`] to report, and printed as usual too if `print`; call once, before the first.
pub fn keep_panics(print: bool) {
    let before = take_hook();
    set_hook(Box::new(move |info| {
        let place =
            info.location().map_or(String::new(), |place| format!("{}:{}", place.file(), place.line()));
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let what =
            text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
        REASON.with(|reason| *reason.borrow_mut() = Some(format!("{what} [{place}]")));
        if print {
            before(info);
        }
    }));
}

/// One seed from start to end, with its trace on standard output if `print`.
pub fn run_seed(seed: u64, print: bool) -> Result<Outcome, Violation> {
    run_case(&Case::from(seed), print)
}

/// One seed, less what the case leaves out.
pub fn run_case(case: &Case, print: bool) -> Result<Outcome, Violation> {
    run_world(case, print).map(|(outcome, _)| outcome)
}

fn run_world(case: &Case, print: bool) -> Result<(Outcome, Option<Box<Far>>), Violation> {
    let mut world = World::new(case, print);
    let outcome = catch_unwind(AssertUnwindSafe(|| world.run())).map_err(|_| Violation {
        seed: case.seed,
        what: REASON.with(|reason| reason.borrow_mut().take()).unwrap_or("a panic nobody kept".into()),
        strikes: world.strikes,
    })?;
    Ok((outcome, world.far.take()))
}

/// One seed with a third far away and without one, which are to be the same to their hosts; nothing if it has no pair.
pub fn run_far(seed: u64) -> Result<Option<FarSeen>, Violation> {
    let mut case = Case { far: true, ..Case::from(seed) };
    let (outcome, with) = run_world(&case, false)?;
    case.without.insert(Ingredient::Third);
    let (_, without) = run_world(&case, false)?;
    let (Some(with), Some(without)) = (with, without) else { return Ok(None) };
    let seen = with.compare(&without).map_err(|what| Violation { seed, what, strikes: 0 })?;
    Ok(Some(FarSeen { virtual_ns: outcome.virtual_ns, ..seen }))
}

impl Violation {
    /// Where it was found, which a smaller case is to share: what is said there may name other numbers.
    pub fn place(&self) -> &str {
        self.what.rsplit('[').next().unwrap_or(&self.what)
    }
}
