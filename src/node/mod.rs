//! Floor 5: a site as one process: its configuration, files, placement, telemetry and control plane.

pub mod allocation;
pub mod config;
pub mod control;
pub mod events;
pub mod format;
pub mod group_actor;
pub mod load;
pub mod run;
pub mod stopped;
pub mod tables;
pub mod telemetry;
