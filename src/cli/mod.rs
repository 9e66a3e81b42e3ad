//! Floor 6: the commands. Each parses its arguments, asks floor 5, and prints.

#[macro_use]
mod say;

mod demo;
mod extend;
pub mod histogram;
mod keys;
mod load;
mod log;
mod observe;
mod role;
mod scrub;
mod site;
mod snapshot;
mod stopped;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::io::disk::DiskError;
use crate::io::metadata::MetadataError;
use crate::io::quic::identity::IdentityError;
use crate::node::config::{Config, ConfigError, SAMPLE};
use crate::node::control::ClientError;
use crate::node::format::FormatError;
use crate::node::load::InsideError;
use crate::node::run::RunError;
use crate::node::stopped::ChangeError;
use crate::node::tables::Wrong;

/// Exit codes, the same for every command; `docs/OPERATIONS.md` lists them.
pub mod exit {
    /// It was tried and failed; the message says why.
    pub const FAILED: u8 = 1;
    /// The command line was not understood (clap's own code).
    pub const USAGE: u8 = 2;
    /// The configuration was refused.
    pub const CONFIG: u8 = 3;
    /// The site's files are missing, in use, not what the configuration says, or not to be overwritten.
    pub const FILES: u8 = 4;
    /// What was waited for did not come about in time.
    pub const TIMED_OUT: u8 = 5;
    /// What was read back is not what was acknowledged.
    pub const BROKEN: u8 = 6;
    /// The two sites are not the same.
    pub const DIFFER: u8 = 7;
}

#[derive(Parser)]
#[command(
    name = "lockstep",
    version,
    about = "Block storage whose every acknowledged write is held by two sites"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run two sites on this machine, write to them, and show that both hold every acknowledged write
    Demo(demo::Demo),
    /// Show what a configuration looks like
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Check a site's configuration and say everything that is wrong with it
    Check(ConfigArgument),
    /// Make the identity that this site shows its peer, and print its fingerprint
    Keygen(site::Keygen),
    /// Make a site's volumes, checksums, differential volume, journal and metadata
    Format(site::Format),
    /// Make the volumes of a site that is stopped as large as its configuration says
    Grow(stopped::Grow),
    /// Add the volumes to a site that is stopped which its configuration has behind the others
    AddVolume(stopped::AddVolume),
    /// Remove volumes of a site that is stopped, which its configuration has no longer
    RemoveVolume(stopped::RemoveVolume),
    /// Make the journal of a site that is stopped as large as its configuration says
    ResizeJournal(stopped::ResizeJournal),
    /// Run a site in the foreground until SIGTERM or SIGINT
    Run(site::Run),
    /// Show a running site: role, watermarks, peer, pending writes, rates, CPU
    Status(observe::StatusCommand),
    /// Show where the time of a running site's writes goes
    Histogram(observe::HistogramCommand),
    /// Wait until a running site's writes are settled, or its peer is in sync
    Wait(observe::WaitCommand),
    /// Take, show and delete snapshots, which both sites hold
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    /// Drive a volume, over NBD or from inside its site, and show the latencies
    Load(load::Load),
    /// Make a running secondary the primary, because the primary is dead
    Promote(role::Promote),
    /// Make the secondary the primary and the primary the secondary, both being in lockstep; at either site
    Switchover(role::Switchover),
    /// Let the primary step down, so that nobody is primary until a site is promoted
    Demote(role::Demote),
    /// Discard what one of two sites has that both went on alone: it follows the other one; at the site to be discarded
    Resolve(role::Resolve),
    /// Let hosts of running sites see more of a volume, out of its room; at the primary
    Extend(extend::Extend),
    /// Read all that a running site has on its disks, and repair what has gone bad
    Scrub(scrub::Scrub),
    /// Compare both sites' volumes while hosts write; at the primary
    Verify(verify::Verify),
    /// Replace the keys by which sites know each other, while they run
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Let a running site drain, checkpoint and end
    Stop(ConfigArgument),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print a commented configuration with every key
    Example,
}

#[derive(Clone, clap::Args)]
struct ConfigArgument {
    /// The site's configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

impl ConfigArgument {
    fn load(&self) -> Result<Config, ConfigError> {
        Config::load(&self.config)
    }
}

pub fn main() -> ExitCode {
    match perform(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", told(&error));
            ExitCode::from(code_of(&error))
        }
    }
}

/// The error and its causes, without those that its own text tells already.
fn told(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |told, cause| match cause.to_string() {
        cause if told.is_empty() => cause,
        cause if told.contains(&cause) => told,
        cause => format!("{told}: {cause}"),
    })
}

fn code_of(error: &anyhow::Error) -> u8 {
    let of_load = error.downcast_ref::<InsideError>().and_then(InsideError::of_run);
    let run_files = of_load.or(error.downcast_ref()).is_some_and(RunError::is_about_files)
        || error.downcast_ref().is_some_and(Wrong::is_about_files);
    let files = error.is::<FormatError>()
        || error.is::<IdentityError>()
        || error.is::<ChangeError>()
        || error.is::<DiskError>()
        || error.is::<MetadataError>();
    if error.is::<ConfigError>() {
        exit::CONFIG
    } else if files || run_files {
        exit::FILES
    } else if matches!(error.downcast_ref(), Some(ClientError::TimedOut(_))) {
        exit::TIMED_OUT
    } else if error.is::<load::Broken>() {
        exit::BROKEN
    } else if error.is::<verify::Differ>() {
        exit::DIFFER
    } else {
        exit::FAILED
    }
}

fn perform(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Demo(arguments) => arguments.run()?,
        Command::Config(ConfigCommand::Example) => say_as_is!("{SAMPLE}"),
        Command::Check(argument) => site::check(&argument.load()?),
        Command::Keygen(arguments) => arguments.run()?,
        Command::Format(arguments) => arguments.run()?,
        Command::Grow(arguments) => arguments.run()?,
        Command::AddVolume(arguments) => arguments.run()?,
        Command::RemoveVolume(arguments) => arguments.run()?,
        Command::ResizeJournal(arguments) => arguments.run()?,
        Command::Run(arguments) => arguments.run()?,
        Command::Status(arguments) => arguments.run()?,
        Command::Histogram(arguments) => arguments.run()?,
        Command::Wait(arguments) => arguments.run()?,
        Command::Snapshot(command) => command.run()?,
        Command::Load(arguments) => arguments.run()?,
        Command::Promote(arguments) => arguments.run()?,
        Command::Switchover(arguments) => arguments.run()?,
        Command::Demote(arguments) => arguments.run()?,
        Command::Resolve(arguments) => arguments.run()?,
        Command::Extend(arguments) => arguments.run()?,
        Command::Scrub(arguments) => arguments.run()?,
        Command::Verify(arguments) => arguments.run()?,
        Command::Keys(command) => command.run()?,
        Command::Stop(argument) => observe::stop(&argument)?,
    }
    Ok(())
}
