//! The ring's files and sockets: held open while anything is in flight on them, registered where the kernel can.

use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::types;

use crate::io::ring::Ring;

/// A file of one ring. Not reused by a later file, so a stale one is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    index: u32,
    generation: u32,
}

#[derive(Default)]
struct Slot {
    fd: Option<OwnedFd>,
    generation: u32,
    in_flight: u32,
    removed: bool,
}

pub struct Files {
    slots: Box<[Slot]>,
    free: Vec<u32>,
}

impl Files {
    pub fn new(slots: u32) -> Files {
        Files { slots: (0..slots).map(|_| Slot::default()).collect(), free: (0..slots).rev().collect() }
    }

    #[track_caller]
    fn slot(&mut self, file: FileId) -> &mut Slot {
        let slot = &mut self.slots[file.index as usize];
        assert!(
            slot.generation == file.generation && slot.fd.is_some(),
            "file {} was removed from the ring",
            file.index
        );
        slot
    }
}

/// What an entry names a file by.
#[derive(Clone, Copy)]
pub enum Target {
    Fixed(types::Fixed),
    Fd(types::Fd),
}

/// Finishes an opcode's builder with whichever of the two names the file has; the crate takes each as its own type.
macro_rules! on_target {
    ($target:expr, |$fd:ident| $entry:expr) => {
        match $target {
            $crate::io::ring::files::Target::Fixed($fd) => $entry,
            $crate::io::ring::files::Target::Fd($fd) => $entry,
        }
    };
}
pub(super) use on_target;

impl Ring {
    /// The ring takes the file; `None` (and the file is closed) if it has no room for more.
    pub fn add_file(&mut self, fd: OwnedFd) -> Option<FileId> {
        let index = self.files.free.pop()?;
        if self.features.registered_files {
            let registered = self.uring.submitter().register_files_update(index, &[fd.as_raw_fd()]);
            if let Err(error) = registered {
                tracing::warn!("io_uring did not register a file: {error}");
                self.files.free.push(index);
                return None;
            }
        }
        let slot = &mut self.files.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.fd = Some(fd);
        slot.in_flight = 0;
        slot.removed = false;
        Some(FileId { index, generation: slot.generation })
    }

    /// Cancels what is in flight on the file and closes it with the last completion, or now if there is nothing. Its
    /// operations still complete, most with `-ECANCELED`; no new ones may be submitted.
    pub fn remove_file(&mut self, file: FileId) {
        self.cancel_file(file);
        let slot = self.files.slot(file);
        assert!(!slot.removed, "file {} is removed twice", file.index);
        slot.removed = true;
        if slot.in_flight == 0 {
            self.close_file(file);
        }
    }

    /// The file's name for an entry of one operation, which is in flight from here on.
    #[track_caller]
    pub(super) fn claim_file(&mut self, file: FileId) -> Target {
        let slot = self.files.slot(file);
        assert!(!slot.removed, "an operation on file {}, which is being removed", file.index);
        slot.in_flight += 1;
        match &slot.fd {
            Some(fd) if !self.features.registered_files => Target::Fd(types::Fd(fd.as_raw_fd())),
            _ => Target::Fixed(types::Fixed(file.index)),
        }
    }

    /// An operation's last completion was seen.
    pub(super) fn release_file(&mut self, file: Option<FileId>) {
        let Some(file) = file else { return };
        let slot = self.files.slot(file);
        slot.in_flight -= 1;
        if slot.in_flight == 0 && slot.removed {
            self.close_file(file);
        }
    }

    fn close_file(&mut self, file: FileId) {
        // Before Linux 6.13 a registered file outlives its last operation until older ones are through, such as an accept that never is. A
        // peer is to see the end now; what is no connection has none.
        if let Some(fd) = &self.files.slot(file).fd {
            let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Both);
        }
        if self.features.registered_files
            && let Err(error) = self.uring.submitter().register_files_update(file.index, &[-1])
        {
            tracing::warn!("io_uring did not unregister a file: {error}");
        }
        self.files.slot(file).fd = None;
        self.files.free.push(file.index);
    }
}
