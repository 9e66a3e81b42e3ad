//! Floor 6: the commands. Each parses its arguments, asks floor 5, and prints.

pub mod histogram;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::node::config::{Config, ConfigError, SAMPLE};

/// Exit codes, the same for every command; `docs/OPERATIONS.md` lists them.
pub mod exit {
    /// It was tried and failed; the message says why.
    pub const FAILED: u8 = 1;
    /// The command line was not understood (clap's own code).
    pub const USAGE: u8 = 2;
    /// The configuration was refused.
    pub const CONFIG: u8 = 3;
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
    /// Check a site's configuration and say everything that is wrong with it
    Check(ConfigArgument),
    /// Show what a configuration looks like
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print a commented configuration with every key
    Example,
}

#[derive(clap::Args)]
struct ConfigArgument {
    /// The site's configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

pub fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(code_of(&error))
        }
    }
}

fn code_of(error: &anyhow::Error) -> u8 {
    if error.is::<ConfigError>() { exit::CONFIG } else { exit::FAILED }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Check(ConfigArgument { config }) => {
            let config = Config::load(&config)?;
            println!("{}: correct", config.file.display());
        }
        Command::Config(ConfigCommand::Example) => print!("{SAMPLE}"),
    }
    Ok(())
}
