//! What is said of I/O that failed.

use crate::core::messages::IoFault;

/// What a fault is, and what to do about it.
pub(super) fn fault_words(fault: IoFault) -> (String, &'static str) {
    let restart = "see to the disk, then restart the site";
    match fault {
        IoFault::Errno(errno) if errno == libc::ENOSPC => (
            std::io::Error::from_raw_os_error(errno).to_string(),
            "make room on its filesystem, then restart the site",
        ),
        IoFault::Errno(errno) | IoFault::Unreadable { errno, .. } => {
            (std::io::Error::from_raw_os_error(errno).to_string(), restart)
        }
        IoFault::Short => ("the transfer stopped short".to_owned(), restart),
        IoFault::Corrupt => (
            "what was read is not what was written".to_owned(),
            "do not overwrite it; see docs/OPERATIONS.md on damaged journals",
        ),
        IoFault::Foreign => (
            "it belongs to another group or site, or was formatted with other sizes".to_owned(),
            "correct the configuration, or format the site anew",
        ),
    }
}
