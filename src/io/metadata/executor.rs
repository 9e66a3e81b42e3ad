//! The metadata executor: a plain thread, because redb blocks. Rings join it to the group like any other helper.

use std::sync::Arc;
use std::time::Duration;

use super::store::{RequestPages, Store};
use crate::base::*;
use crate::core::messages::{MetadataDone, MetadataRequest};
use crate::core::outbox::Tables;
use crate::io::arena::ArenaView;
use crate::reactor::{Port, Receiver, Sender};

/// Pause between looks for requests while the process stops: then a port does not sleep.
const STOPPING_LOOKS_EVERY: Duration = Duration::from_micros(200);

pub struct MetadataEdges {
    pub requests: Receiver<MetadataRequest>,
    pub done: Sender<MetadataDone>,
}

pub struct MetadataExecutor {
    edges: MetadataEdges,
    /// The thread's own.
    port: Port,
    store: Store,
    tables: Arc<Tables>,
    view: ArenaView,
}

impl MetadataExecutor {
    pub fn new(
        edges: MetadataEdges,
        port: Port,
        store: Store,
        tables: Arc<Tables>,
        view: ArenaView,
    ) -> MetadataExecutor {
        MetadataExecutor { edges, port, store, tables, view }
    }

    /// Carries out requests in order until the group is gone.
    pub fn run(mut self) {
        while !self.edges.requests.is_closed() {
            let Some(request) = self.edges.requests.pop() else {
                if self.port.stopping() {
                    self.port.flush_wakes();
                    std::thread::sleep(STOPPING_LOOKS_EVERY);
                    continue;
                }
                let requests = &self.edges.requests;
                if let Err(error) = self.port.park(|| !requests.is_empty() || requests.is_closed(), None) {
                    tracing::error!("the metadata thread cannot sleep: {error}");
                    std::thread::sleep(STOPPING_LOOKS_EVERY);
                }
                continue;
            };
            let slot = request.slot;
            let mut pages = Row { slot, tables: &self.tables, view: &mut self.view };
            let result = self.store.perform(&request.op, &mut pages);
            let result = result.map_err(|error| {
                tracing::error!("management information: {}", self.store.describe(&error));
                error.fault()
            });
            self.edges.done.push(MetadataDone { slot, result });
            self.port.flush_wakes();
        }
    }
}

struct Row<'a> {
    slot: SlotId,
    tables: &'a Tables,
    view: &'a mut ArenaView,
}

impl RequestPages for Row<'_> {
    fn answer(&mut self) -> &mut [u8; BLOCK_BYTES] {
        let page = self.tables.metadata_io.page(self.slot, 0);
        self.view.bytes_mut(page)
    }

    fn page(&self, index: usize) -> &[u8; BLOCK_BYTES] {
        self.view.bytes(self.tables.metadata_io.page(self.slot, index))
    }
}
