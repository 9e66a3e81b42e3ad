//! The commands that prepare a site and run it: `check`, `keygen`, `format`, `run`.

use std::path::PathBuf;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};

use super::{ConfigArgument, log};
use crate::io::disk::FaultPlan;
use crate::io::quic::identity::Identity;
use crate::node::config::Config;
use crate::node::config::quantity::show_size;
use crate::node::format::{self, Existing, Progress};
use crate::node::run;

/// Says what a correct configuration amounts to.
pub fn check(config: &Config) {
    let role = config.site.role.name();
    say!("{}: correct", config.file.display());
    say!("site {} (id {}), {role} of group {}", config.site.name, config.site.id.0, config.group.name);
    for volume in &config.volumes {
        say!("volume {}: {} in {}", volume.name, volume.shown_size(), volume.path.display());
    }
    say!("journal: {} in {}", show_size(config.journal.bytes), config.journal.path.display());
    match &config.replication {
        Some(pair) => say!(
            "peer {} (id {}) at {}, known as {}",
            pair.peer.name,
            pair.peer.id.0,
            pair.peer.address,
            pair.peer.fingerprints
        ),
        None if config.sources.is_empty() => say!("no peer: writes are held by this site alone"),
        None => {}
    }
    for remote in config.remotes() {
        match remote.address {
            Some(address) => say!(
                "pulls from {} (id {}) at {address}, known as {}",
                remote.name,
                remote.id.0,
                remote.fingerprints
            ),
            None => say!(
                "third {} (id {}), awaited at {}, known as {}",
                remote.name,
                remote.id.0,
                remote.link.listen,
                remote.fingerprints
            ),
        }
    }
    let reactors = &config.reactors;
    say!(
        "CPUs {:?}: group {}, link {}, capture and destage {}, front {}",
        reactors.cores,
        reactors.group,
        reactors.link,
        reactors.capture,
        reactors.front
    );
}

#[derive(clap::Args)]
pub struct Keygen {
    /// The identity file: the configuration's link.identity
    #[arg(long, value_name = "FILE")]
    identity: PathBuf,
    /// The site's name, which goes into the certificate
    #[arg(long, value_name = "NAME", required_unless_present = "show")]
    site: Option<String>,
    /// Print the fingerprint of an identity that is there, and make nothing
    #[arg(long, conflicts_with = "site")]
    show: bool,
}

impl Keygen {
    pub fn run(&self) -> anyhow::Result<()> {
        let identity = match &self.site {
            Some(site) => {
                let identity = Identity::generate(site)?;
                identity.save(&self.identity)?;
                identity
            }
            None => Identity::load(&self.identity)?,
        };
        say!("{}", identity.fingerprint());
        Ok(())
    }
}

#[derive(clap::Args)]
pub struct Format {
    #[command(flatten)]
    config: ConfigArgument,
    /// Destroy what the site's files and devices hold
    #[arg(long)]
    force: bool,
    /// Keep what the volumes hold: this site begins as primary, and the other one is copied it
    #[arg(long)]
    adopt: bool,
}

impl Format {
    pub fn run(&self) -> anyhow::Result<()> {
        let config = self.config.load()?;
        let existing = Existing { force: self.force, adopt: self.adopt };
        format_site(&config, existing)?;
        let adopts = if self.adopt { " with what its volumes hold, and begins as primary" } else { "" };
        say!(
            "site {} is formatted{adopts}; `lockstep run --config {}` starts it",
            config.site.name,
            config.file.display()
        );
        Ok(())
    }
}

#[derive(clap::Args)]
pub struct Run {
    #[command(flatten)]
    config: ConfigArgument,
    /// A file of faults for this site's disks to show, for rehearsals
    #[arg(long, value_name = "FILE", hide = true)]
    faults: Option<PathBuf>,
    /// Stop, as SIGTERM does, when whoever started this process is gone
    #[arg(long, hide = true)]
    with_parent: bool,
}

impl Run {
    pub fn run(&self) -> anyhow::Result<()> {
        let config = self.config.load()?;
        let faults = match &self.faults {
            None => FaultPlan::default(),
            Some(file) => {
                let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
                FaultPlan::parse(&text).with_context(|| file.display().to_string())?
            }
        };
        let _guard = log::start(&config.log);
        if self.with_parent {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
                .context("the end of the parent process cannot be watched")?;
        }
        Ok(run::run(&config, faults)?)
    }
}

pub fn format_site(config: &Config, existing: Existing) -> anyhow::Result<()> {
    Ok(with_bars(|show| format::format(config, existing, show))??)
}

/// Does it with a progress bar for each file that is written through.
pub fn with_bars<T>(work: impl FnOnce(&mut dyn FnMut(Progress<'_>)) -> T) -> anyhow::Result<T> {
    let style =
        ProgressStyle::with_template("{msg:<14} {bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
            .context("the progress bar's template")?;
    let mut bar: Option<(PathBuf, ProgressBar)> = None;
    let mut show = |progress: Progress<'_>| {
        if bar.as_ref().is_none_or(|(path, _)| path != progress.path) {
            let next = ProgressBar::new(progress.total).with_style(style.clone());
            let name = progress.path.file_name().unwrap_or(progress.path.as_os_str());
            next.set_message(name.to_string_lossy().into_owned());
            bar = Some((progress.path.to_owned(), next));
        }
        if let Some((_, bar)) = &bar {
            bar.set_position(progress.done);
            if progress.done == progress.total {
                bar.finish();
            }
        }
    };
    Ok(work(&mut show))
}
