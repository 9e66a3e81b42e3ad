//! `lockstep snapshot`: what a group was at a moment, on both sites.

mod diff;
mod digest;
mod reading;
mod repair;

pub(super) use reading::progress_bar;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};

use super::ConfigArgument;
use super::observe::bytes;
use crate::io::nbd_client::NbdUri;
use crate::node::config::Config;
use crate::node::control::{Client, SnapshotList, SnapshotShown};

#[derive(clap::Subcommand)]
pub enum SnapshotCommand {
    /// Take a snapshot, without pausing anybody; at the primary
    Create(Create),
    /// Show the snapshots there are, and what deleting each would give back
    List(List),
    /// Delete a snapshot; at the primary
    Delete(Named),
    /// Never delete a snapshot to make room; at the primary
    Protect(Named),
    /// Let a snapshot be deleted to make room again; at the primary
    Unprotect(Named),
    /// Make volumes what they were when a snapshot was taken; at the primary, while no host has them open
    Rollback(Rollback),
    /// Read a snapshot's volumes and print a digest of each, to compare the two sites
    Digest(digest::Digest),
    /// Fetch from the other site what has gone bad: a snapshot's blocks, or the tables of a site that does not start
    Repair(repair::Repair),
    /// Show which parts of the volumes were changed between two snapshots, or since one
    Diff(diff::Diff),
}

#[derive(clap::Args)]
pub struct Create {
    #[command(flatten)]
    config: ConfigArgument,
    /// Of this volume only; can be given again. All volumes of the group if not given, at one moment
    #[arg(long = "volume", value_name = "VOLUME")]
    volumes: Vec<String>,
    /// Never delete it to make room
    #[arg(long)]
    protect: bool,
    name: String,
}

#[derive(clap::Args)]
pub struct List {
    #[command(flatten)]
    config: ConfigArgument,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub struct Named {
    #[command(flatten)]
    config: ConfigArgument,
    name: String,
}

#[derive(clap::Args)]
pub struct Rollback {
    #[command(flatten)]
    config: ConfigArgument,
    /// Of this volume only; can be given again. All that the snapshot has if not given
    #[arg(long = "volume", value_name = "VOLUME")]
    volumes: Vec<String>,
    name: String,
}

impl SnapshotCommand {
    pub fn run(&self) -> anyhow::Result<()> {
        match self {
            SnapshotCommand::Create(create) => {
                client(&create.config)?.create_snapshot(&create.name, &create.volumes, create.protect)?;
            }
            SnapshotCommand::Delete(delete) => client(&delete.config)?.delete_snapshot(&delete.name)?,
            SnapshotCommand::Protect(named) => client(&named.config)?.protect_snapshot(&named.name, true)?,
            SnapshotCommand::Unprotect(named) => {
                client(&named.config)?.protect_snapshot(&named.name, false)?
            }
            SnapshotCommand::Rollback(Rollback { config, volumes, name }) => {
                let bar = reading::progress_bar()?;
                client(config)?.roll_back(name, volumes, &mut |done, total| {
                    bar.set_length(total);
                    bar.set_position(done);
                })?;
                bar.finish_and_clear();
            }
            SnapshotCommand::Digest(digest) => digest.run()?,
            SnapshotCommand::Diff(diff) => diff.run()?,
            SnapshotCommand::Repair(repair) => repair.run()?,
            SnapshotCommand::List(list) => {
                let found = client(&list.config)?.snapshots()?;
                if list.json {
                    let text = serde_json::to_string_pretty(&found).context("the snapshots as JSON")?;
                    say!("{text}");
                } else {
                    say_as_is!("{}", table(&found, SystemTime::now()));
                }
            }
        }
        Ok(())
    }
}

fn client(config: &ConfigArgument) -> anyhow::Result<Client> {
    Ok(Client::new(&config.load()?.site.control))
}

/// The snapshot of that name, if this site can show it.
fn find(config: &Config, name: &str) -> anyhow::Result<SnapshotShown> {
    let list = Client::new(&config.site.control).snapshots()?;
    match list.snapshots.into_iter().find(|snapshot| snapshot.name == name) {
        Some(snapshot) if snapshot.readable => Ok(snapshot),
        Some(_) => {
            bail!("snapshot {name} cannot be read at {} yet; its updates are not settled", config.site.name)
        }
        None => bail!("there is no snapshot {name}; `lockstep snapshot list` shows what there is"),
    }
}

/// Those of the snapshot's volumes that were asked for; all if none was.
fn volumes_of(snapshot: &SnapshotShown, asked: &[String]) -> anyhow::Result<Vec<String>> {
    if let Some(other) = asked.iter().find(|volume| !snapshot.volumes.contains(volume)) {
        bail!("snapshot {} has no volume {other}; it is of {}", snapshot.name, snapshot.volumes.join(", "));
    }
    let wanted = |volume: &&String| asked.is_empty() || asked.contains(volume);
    Ok(snapshot.volumes.iter().filter(wanted).cloned().collect())
}

/// The export of a volume, or of its snapshot.
fn uri_of(config: &Config, volume: &str, snapshot: Option<&str>) -> NbdUri {
    let export = match snapshot {
        Some(snapshot) => format!("{volume}@{snapshot}"),
        None => volume.to_owned(),
    };
    NbdUri::unix(&config.nbd.socket, &export)
}

fn table(list: &SnapshotList, now: SystemTime) -> String {
    let SnapshotList { snapshots, differential, .. } = list;
    let width = snapshots.iter().map(|snapshot| snapshot.name.chars().count()).max().unwrap_or(0).max(4);
    let mut text = match snapshots.is_empty() {
        true => "no snapshots\n".to_owned(),
        false => format!("{:width$}  {:>12}  {:>9}  {:>10}  volumes\n", "name", "number", "age", "held"),
    };
    for snapshot in snapshots {
        let marks = [(snapshot.protected, ", protected"), (!snapshot.readable, ", not readable here yet")];
        let marks = marks.iter().filter(|(holds, _)| *holds).map(|(_, mark)| *mark).collect::<String>();
        text += &format!(
            "{:width$}  {:>12}  {:>9}  {:>10}  {}{marks}\n",
            snapshot.name,
            snapshot.number,
            age(snapshot.taken_at_ns, now),
            bytes(snapshot.held_bytes as f64),
            snapshot.volumes.join(" ")
        );
    }
    if differential.total_bytes > 0 {
        let warning = if differential.filling { "; delete what nobody needs" } else { "" };
        text += &format!(
            "differential volume: {} of {} in use ({} %), {} free{warning}\n",
            bytes(differential.used_bytes as f64),
            bytes(differential.total_bytes as f64),
            differential.used_percent,
            bytes(differential.free_bytes as f64)
        );
    }
    text
}

/// How long ago that was, in the largest unit that leaves a number. Clocks of two sites may differ: the future is now.
fn age(taken_at_ns: u64, now: SystemTime) -> String {
    let taken = UNIX_EPOCH + Duration::from_nanos(taken_at_ns);
    let seconds = now.duration_since(taken).unwrap_or_default().as_secs();
    let units = [(86_400, "d"), (3_600, "h"), (60, "min")];
    match units.iter().find(|(unit, _)| seconds >= *unit) {
        Some((unit, name)) => format!("{} {name}", seconds / unit),
        None => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::control::DifferentialShown;

    #[test]
    fn a_list_shows_what_each_holds_and_the_room_that_is_left() {
        let snapshot = |name: &str, held_bytes| SnapshotShown {
            name: name.to_owned(),
            number: 7,
            taken_at_ns: 0,
            volumes: vec!["data".to_owned(), "log".to_owned()],
            protected: name == "kept",
            readable: true,
            held_bytes,
        };
        let mut list = SnapshotList {
            snapshots: vec![snapshot("kept", 3 << 20), snapshot("a", 0)],
            as_of: 9,
            differential: DifferentialShown {
                total_bytes: 8 << 20,
                used_bytes: 7 << 20,
                free_bytes: 1 << 20,
                used_percent: 87,
                filling: true,
            },
        };
        assert_eq!(
            table(&list, UNIX_EPOCH),
            "name        number        age        held  volumes\n\
             kept             7        0 s     3.0 MiB  data log, protected\n\
             a                7        0 s         0 B  data log\n\
             differential volume: 7.0 MiB of 8.0 MiB in use (87 %), 1.0 MiB free; delete what nobody needs\n"
        );
        list.snapshots.clear();
        list.differential.total_bytes = 0;
        assert_eq!(table(&list, UNIX_EPOCH), "no snapshots\n");
    }

    #[test]
    fn ages_are_told_in_the_largest_unit() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let before = |seconds: u64| age((1_000_000 - seconds) * 1_000_000_000, now);
        assert_eq!([before(0), before(59), before(60)], ["0 s", "59 s", "1 min"]);
        assert_eq!([before(7_200), before(172_800)], ["2 h", "2 d"]);
        assert_eq!(age(2_000_000 * 1_000_000_000, now), "0 s");
    }
}
