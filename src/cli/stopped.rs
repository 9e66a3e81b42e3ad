//! The commands that change a site while it does not run: `grow`, `add-volume`, `remove-volume`, `resize-journal`.

use super::ConfigArgument;
use super::site::with_bars;
use crate::node::config::Config;
use crate::node::config::quantity::show_size;
use crate::node::stopped::{self, Longer, Resized};

/// What all have that make files and devices larger.
#[derive(clap::Args)]
struct Enlarge {
    #[command(flatten)]
    config: ConfigArgument,
    /// Only look whether there is room; the site may run meanwhile, as it was configured when it started
    #[arg(long)]
    check: bool,
    /// Erase what files and devices hold where something new is to be
    #[arg(long, conflicts_with = "check")]
    force: bool,
}

#[derive(clap::Args)]
pub struct Grow {
    #[command(flatten)]
    enlarge: Enlarge,
}

impl Grow {
    pub fn run(&self) -> anyhow::Result<()> {
        let Enlarge { config, check, force } = &self.enlarge;
        let config = config.load()?;
        if *check {
            show_room(&stopped::check_growth(&config)?);
            return Ok(());
        }
        with_bars(|show| stopped::grow(&config, *force, show, &mut |_| Ok(())))??;
        show_volumes(&config);
        say!("start the site once its peer, and its third if it has one, have grown as well");
        Ok(())
    }
}

#[derive(clap::Args)]
pub struct AddVolume {
    #[command(flatten)]
    enlarge: Enlarge,
}

impl AddVolume {
    pub fn run(&self) -> anyhow::Result<()> {
        let Enlarge { config, check, force } = &self.enlarge;
        let config = config.load()?;
        if *check {
            show_room(&stopped::check_addition(&config)?);
            return Ok(());
        }
        with_bars(|show| stopped::add(&config, *force, show, &mut |_| Ok(())))??;
        show_volumes(&config);
        say!("start the site once its peer, and its third if it has one, have the same volumes");
        Ok(())
    }
}

#[derive(clap::Args)]
pub struct RemoveVolume {
    /// The volumes that go, which the configuration has no longer
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    config: ConfigArgument,
    /// Only look whether they can go, and change nothing; the site must not run for that either
    #[arg(long)]
    check: bool,
}

impl RemoveVolume {
    pub fn run(&self) -> anyhow::Result<()> {
        let config = self.config.load()?;
        if self.check {
            stopped::check_removal(&config, &self.names)?;
            say!("{} can be removed from this site; nothing was changed", self.names.join(", "));
            return Ok(());
        }
        stopped::remove(&config, &self.names, &mut |_| Ok(()))?;
        show_volumes(&config);
        say!("files and devices of {} are left as they are", self.names.join(", "));
        say!("start the site once its peer, and its third if it has one, have the same volumes");
        Ok(())
    }
}

#[derive(clap::Args)]
pub struct ResizeJournal {
    #[command(flatten)]
    enlarge: Enlarge,
}

impl ResizeJournal {
    pub fn run(&self) -> anyhow::Result<()> {
        let Enlarge { config, check, force } = &self.enlarge;
        let config = config.load()?;
        if *check {
            show_room(stopped::check_resize(&config)?.as_slice());
            return Ok(());
        }
        let resized = with_bars(|show| stopped::resize(&config, *force, show, &mut |_| Ok(())))??;
        let Resized { from, to, held } = resized;
        say!("journal: {} until now, {} from here on", show_size(from), show_size(to));
        if held > 0 {
            say!("it keeps {} that are not in the volumes yet, or for another site", show_size(held));
        }
        say!("`lockstep run --config {}` starts the site", config.file.display());
        Ok(())
    }
}

fn show_volumes(config: &Config) {
    for volume in &config.volumes {
        say!("volume {}: {}", volume.name, volume.shown_size());
    }
}

fn show_room(longer: &[Longer]) {
    for Longer { path, from, to, device } in longer {
        match device {
            true => say!("{}: a device of {from} bytes, {to} are needed", path.display()),
            false => say!("{}: {from} bytes now, {to} then", path.display()),
        }
    }
    say!("there is room");
}
