//! Page tables, which are large while a seed uses little of them: each thread keeps them from one seed to the next.

use std::cell::RefCell;

use crate::core::config::GroupConfig;
use crate::core::outbox::Tables;

thread_local! {
    static KEPT: RefCell<Vec<Tables>> = const { RefCell::new(Vec::new()) };
}

/// Tables that name no page.
pub fn take(config: &GroupConfig) -> Tables {
    let (fronts, remotes) = (config.fronts, config.remotes());
    KEPT.with_borrow_mut(|kept| {
        let place = kept
            .iter()
            .position(|tables| (tables.fronts.len(), tables.remotes.len()) == (fronts, remotes))?;
        Some(kept.swap_remove(place))
    })
    .unwrap_or_else(|| Tables::of(config))
}

pub fn keep(mut tables: Tables) {
    tables.clear();
    KEPT.with_borrow_mut(|kept| kept.push(tables));
}
