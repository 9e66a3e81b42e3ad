//! Floor 5: a site as one process: its configuration, files, placement, telemetry and control plane.

pub mod config;
pub mod format;
pub mod telemetry;
