//! From the file as written to a checked configuration. Every rule that needs no disk is here.

/// The other sites.
mod sites;

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;

use super::problems::{Problem, Problems, line_of};
use super::quantity::{parse_duration, parse_size, show_duration, show_size};
use super::*;

type Span = Option<Range<usize>>;

pub(super) fn config(text: &str, file: &Path) -> Result<Config, Vec<Problem>> {
    let raw: raw::File = toml::from_str(text).map_err(|error| vec![syntax(text, &error)])?;
    let mut reader = Reader { problems: Problems::new(text), paths: HashMap::new() };
    let config = reader.config(raw, file);
    if !reader.problems.is_empty() {
        return Err(reader.problems.finish());
    }
    Ok(config.expect("a configuration without problems has every value"))
}

/// What the TOML reader itself refuses: syntax, unknown keys, values of the wrong type.
fn syntax(text: &str, error: &toml::de::Error) -> Problem {
    let line = error.span().map(|span| line_of(text, span.start));
    let key =
        error.span().and_then(|span| text.lines().nth(line_of(text, span.start) - 1)).unwrap_or_default();
    let key = key.split('=').next().unwrap_or_default().trim().trim_matches(['[', ']']);
    Problem { line, key: key.to_owned(), message: error.message().trim().replace('\n', "; ") }
}

/// A section of the file: where it is, and its keys. A section that is absent has all keys absent.
struct Section<T> {
    at: Span,
    keys: T,
}

fn section<T: Default>(written: Option<Spanned<T>>) -> Section<T> {
    let at = written.as_ref().map(Spanned::span);
    Section { at, keys: written.map(Spanned::into_inner).unwrap_or_default() }
}

struct Reader<'a> {
    problems: Problems<'a>,
    /// Which key already names a path.
    paths: HashMap<PathBuf, String>,
}

impl Reader<'_> {
    fn config(&mut self, raw: raw::File, file: &Path) -> Option<Config> {
        let home = file.parent().unwrap_or(Path::new(""));
        let (site, directory) = self.site(section(raw.site), home);
        let group = self.group(section(raw.group), raw.peer.is_some());
        let volumes = self.volumes(raw.volume, &directory);
        let journal = self.journal(section(raw.journal), &directory);
        let differential = self.differential(section(raw.differential), &directory);
        let staging = section(raw.staging);
        let staging = self.path("staging.path", staging.keys.path, &directory, "staging");
        let metadata = section(raw.metadata);
        let metadata = self.path("metadata.path", metadata.keys.path, &directory, "metadata.redb");
        let schedules = self.schedules(raw.schedule, volumes.as_deref());
        let cache_at = raw.cache.as_ref().map(Spanned::span);
        let (cache_bytes, warm_up) = self.cache(section(raw.cache));
        let others = self.others(raw.peer, raw.link, raw.third, raw.source, site.as_ref(), &directory);
        let nbd = self.nbd(section(raw.nbd), &directory);
        let reactors = self.reactors(section(raw.reactors));
        let log = self.log(section(raw.log));
        let config = Config {
            file: file.to_owned(),
            site: site?,
            group: group?,
            volumes: volumes?,
            journal: journal?,
            differential: differential?,
            staging,
            metadata,
            schedules: schedules?,
            cache_bytes: cache_bytes?,
            warm_up,
            replication: others.as_ref()?.replication.clone(),
            third: others.as_ref()?.third.clone(),
            sources: others?.sources,
            nbd: nbd?,
            reactors: reactors?,
            log: log?,
        };
        self.memory(&config, cache_at);
        Some(config)
    }

    /// The cache has room for the index of everything else.
    fn memory(&mut self, config: &Config, at: Span) {
        if config.pages(limits::FRONTS).is_some() {
            return;
        }
        let mib = 1u64 << 20;
        let need = config.memory_bytes(config.pages_min(), limits::FRONTS).next_multiple_of(mib);
        let message = format!(
            "\"{}\" is too small for the index of these volumes and this journal; write at least \"{}\"",
            show_size(config.cache_bytes),
            show_size(need)
        );
        self.problems.add("cache.size", at, message);
    }

    /// The site, and the folder where the relative paths of all sections start.
    fn site(&mut self, Section { at, keys }: Section<raw::Site>, home: &Path) -> (Option<Site>, PathBuf) {
        let name = self.name("site.name", keys.name, &at, "a name for this site, like \"left\"");
        let id = self.id("site.id", keys.id, &at);
        let roles = [("primary", Role::Primary), ("secondary", Role::Secondary), ("third", Role::Third)];
        let role = self
            .required("site.role", keys.role, &at, "\"primary\", \"secondary\" or \"third\"")
            .and_then(|written| self.choice("site.role", &written, &roles));
        let directory =
            self.required("site.directory", keys.directory, &at, "the folder of the site's files");
        let directory = directory.map_or_else(|| home.to_owned(), |written| home.join(written.into_inner()));
        let control = self.socket_path("site.control", keys.control, &directory, "control.sock");
        let hook_at = keys.on_role_change.as_ref().map(Spanned::span);
        let on_role_change = keys.on_role_change.map_or_else(Vec::new, Spanned::into_inner);
        if on_role_change.first().is_some_and(String::is_empty) {
            let message = "it names no program; write a list of a program and its arguments, or []";
            self.problems.add("site.on_role_change", hook_at, message);
        }
        let year = 365 * 24 * 3600 * 1_000_000_000;
        let scrub_every =
            self.duration("site.scrub_every", keys.scrub_every, limits::SCRUB_EVERY_NS, 0..=year);
        let site = name.zip(id).zip(role).zip(control).zip(scrub_every).map(
            |((((name, id), role), control), scrub_every)| Site {
                name,
                id,
                role,
                directory: directory.clone(),
                control,
                on_role_change,
                scrub_every,
            },
        );
        (site, directory)
    }

    fn group(&mut self, Section { at, keys }: Section<raw::Group>, has_peer: bool) -> Option<Group> {
        let name = self.name("group.name", keys.name, &at, "the group's name, the same on both sites");
        let levels = [
            ("received", AckLevel::Received),
            ("journaled", AckLevel::Journaled),
            ("durable", AckLevel::Durable),
            ("applied", AckLevel::Applied),
        ];
        let ack =
            keys.ack.map_or(Some(AckLevel::Journaled), |written| self.choice("group.ack", &written, &levels));
        let policies = [("suspend", OnPeerLoss::Suspend), ("solo", OnPeerLoss::Solo)];
        let on_peer_loss = keys.on_peer_loss.map_or(Some(OnPeerLoss::Suspend), |written| {
            self.choice("group.on_peer_loss", &written, &policies)
        });
        let policies =
            [("delete-oldest", OnDifferentialFull::DeleteOldest), ("error", OnDifferentialFull::Error)];
        let on_differential_full =
            keys.on_differential_full.map_or(Some(OnDifferentialFull::DeleteOldest), |written| {
                self.choice("group.on_differential_full", &written, &policies)
            });
        let modes = [("reference", DifferentialBy::Reference), ("value", DifferentialBy::Value)];
        let differential = keys.differential.map_or(Some(DifferentialBy::Reference), |written| {
            self.choice("group.differential", &written, &modes)
        });
        let second = 1_000_000_000;
        let deadline_at = keys.host_deadline.as_ref().map(Spanned::span);
        let budget_at = keys.latency_budget.as_ref().map(Spanned::span);
        let host_deadline = self.duration(
            "group.host_deadline",
            keys.host_deadline,
            limits::HOST_DEADLINE_NS,
            second / 10..=3600 * second,
        );
        let heartbeat_interval = self.duration(
            "group.heartbeat_interval",
            keys.heartbeat_interval,
            limits::HEARTBEAT_INTERVAL_NS,
            1_000_000..=10 * second,
        );
        let latency_budget = self.duration(
            "group.latency_budget",
            keys.latency_budget,
            limits::LATENCY_BUDGET_NS,
            limits::LATENCY_BUDGET_MIN_NS..=60 * second,
        );
        if let (Some(OnPeerLoss::Solo), Some(deadline), Some(budget)) =
            (on_peer_loss, host_deadline, latency_budget)
            && has_peer
            && deadline <= budget
        {
            let message = format!(
                "\"{}\" is not more than group.latency_budget, \"{}\": hosts would get errors before this site goes on alone; write more, or a \
                 smaller budget",
                show_duration(deadline.0),
                show_duration(budget.0)
            );
            self.problems.add("group.host_deadline", deadline_at.or(budget_at), message);
        }
        let resync_p99_budget = self.duration(
            "group.resync_p99_budget",
            keys.resync_p99_budget,
            limits::RESYNC_P99_BUDGET_NS,
            100_000..=60 * second,
        );
        let flush_interval = self.duration(
            "group.flush_interval",
            keys.flush_interval,
            limits::FLUSH_INTERVAL_NS,
            100_000..=second,
        );
        let flush_bytes = self.size(
            "group.flush_bytes",
            keys.flush_bytes,
            Some(limits::FLUSH_BYTES),
            &None,
            4096..=1 << 30,
        );
        let destage_depth = self.number(
            "group.destage_depth",
            keys.destage_depth,
            limits::DESTAGE_DEPTH,
            1..=(VOLUME_IO_SLOTS as i64 / 2),
        );
        Some(Group {
            name: name?,
            ack: ack?,
            on_peer_loss: on_peer_loss?,
            on_differential_full: on_differential_full?,
            differential: differential?,
            host_deadline: host_deadline?,
            latency_budget: latency_budget?,
            heartbeat_interval: heartbeat_interval?,
            resync_p99_budget: resync_p99_budget?,
            flush_interval: flush_interval?,
            flush_bytes: flush_bytes?,
            destage_depth: destage_depth? as usize,
        })
    }

    fn volumes(&mut self, written: Vec<Spanned<raw::Volume>>, directory: &Path) -> Option<Vec<Volume>> {
        if written.is_empty() {
            self.problems.add("volume", None, "is missing; add a [[volume]] section with name and size");
        }
        if written.len() > VOLUMES_MAX {
            let message = format!("there are {} volumes, a group has at most {VOLUMES_MAX}", written.len());
            self.problems.add("volume", Some(written[VOLUMES_MAX].span()), message);
            return None;
        }
        let mut names = HashSet::new();
        let mut volumes = Vec::new();
        let mut whole = true;
        for entry in written {
            let at = Some(entry.span());
            let keys = entry.into_inner();
            let named_at = keys.name.as_ref().map(Spanned::span);
            let name = self.name("volume.name", keys.name, &at, "a name for the volume, like \"data\"");
            let range = BLOCK_BYTES as u64..=limits::VOLUME_BYTES_MAX;
            let size_bytes = self.size("volume.size", keys.size, None, &at, range.clone());
            let room_at = keys.room.as_ref().map(Spanned::span);
            let room_bytes = match keys.room {
                Some(room) => self.size("volume.room", Some(room), None, &at, range),
                None => size_bytes,
            };
            let space = self.space("volume.space", keys.space);
            let (Some(name), Some(size_bytes), Some(room_bytes), Some(space)) =
                (name, size_bytes, room_bytes, space)
            else {
                whole = false;
                continue;
            };
            if room_bytes < size_bytes {
                let message = format!(
                    "\"{}\" is less than the volume's size; write what it may come to, or leave it out",
                    show_size(room_bytes)
                );
                self.problems.add("volume.room", room_at, message);
                whole = false;
                continue;
            }
            if !names.insert(name.clone()) {
                let message = format!("\"{name}\" is already the name of another volume; give each its own");
                self.problems.add("volume.name", named_at, message);
            }
            let path = self.path("volume.path", keys.path, directory, &format!("{name}.volume"));
            let checksums =
                self.path("volume.checksums", keys.checksums, directory, &format!("{name}.checksums"));
            volumes.push(Volume { name, size_bytes, room_bytes, space, path, checksums });
        }
        whole.then_some(volumes)
    }

    fn space(&mut self, key: &'static str, written: raw::Text) -> Option<FileSpace> {
        let spaces = [
            ("sparse", FileSpace::Sparse),
            ("reserved", FileSpace::Reserved),
            ("written", FileSpace::Written),
        ];
        written.map_or(Some(FileSpace::Reserved), |written| self.choice(key, &written, &spaces))
    }

    fn journal(&mut self, Section { at, keys }: Section<raw::Journal>, directory: &Path) -> Option<Journal> {
        let path = self.path("journal.path", keys.path, directory, "journal");
        let bytes = self.size(
            "journal.size",
            keys.size,
            None,
            &at,
            limits::JOURNAL_BYTES_MIN..=limits::JOURNAL_BYTES_MAX,
        );
        let volatile = keys.volatile.is_none_or(Spanned::into_inner);
        Some(Journal { path, bytes: bytes?, volatile })
    }

    fn differential(
        &mut self,
        Section { at, keys }: Section<raw::Differential>,
        directory: &Path,
    ) -> Option<Differential> {
        let path = self.path("differential.path", keys.path, directory, "differential");
        let range = limits::DIFFERENTIAL_BYTES_MIN..=limits::VOLUME_BYTES_MAX;
        let bytes = self.size("differential.size", keys.size, None, &at, range);
        let space = self.space("differential.space", keys.space);
        Some(Differential { path, bytes: bytes?, space: space? })
    }

    fn schedules(
        &mut self,
        written: Vec<Spanned<raw::Schedule>>,
        volumes: Option<&[Volume]>,
    ) -> Option<Vec<Schedule>> {
        let mut names = HashSet::new();
        let mut schedules: Vec<Schedule> = Vec::new();
        let mut whole = true;
        for entry in written {
            let at = Some(entry.span());
            let keys = entry.into_inner();
            let named_at = keys.name.as_ref().map(Spanned::span);
            let name =
                self.name("schedule.name", keys.name, &at, "a name for its snapshots, like \"hourly\"");
            if let Some(name) = name.as_ref().filter(|name| name.len() > limits::SCHEDULE_NAME_BYTES_MAX) {
                let most = limits::SCHEDULE_NAME_BYTES_MAX;
                let message =
                    format!("\"{name}\" is too long, since a time follows it; write at most {most} bytes");
                self.problems.add("schedule.name", named_at.clone(), message);
            }
            if name.as_ref().is_some_and(|name| !names.insert(name.clone())) {
                let message = "is already the name of another schedule; give each its own";
                self.problems.add("schedule.name", named_at, message);
            }
            let every = self.required("schedule.every", keys.every, &at, "an interval, like \"1h\"");
            let range = limits::SCHEDULE_EVERY_NS_MIN..=limits::SCHEDULE_EVERY_NS_MAX;
            let every = every.and_then(|every| self.duration("schedule.every", Some(every), 0, range));
            let keep = self.required("schedule.keep", keys.keep, &at, "how many are kept, like 24");
            let range = 1..=SNAPSHOTS_MAX as i64;
            let keep = keep.and_then(|keep| self.number("schedule.keep", Some(keep), 0, range));
            let known = |name: &str| volumes.is_none_or(|all| all.iter().any(|volume| volume.name == name));
            for unknown in keys.volumes.iter().filter(|volume| !known(volume.get_ref())) {
                let message =
                    format!("{:?} is no volume of this group; write the name of one", unknown.get_ref());
                self.problems.add("schedule.volumes", Some(unknown.span()), message);
            }
            let (Some(name), Some(every), Some(keep)) = (name, every, keep) else {
                whole = false;
                continue;
            };
            let volumes = keys.volumes.into_iter().map(Spanned::into_inner).collect();
            schedules.push(Schedule { name, every, keep: keep as usize, volumes });
            // Each has one more for a moment, until the oldest is deleted.
            let kept: usize = schedules.iter().map(|schedule| schedule.keep + 1).sum();
            if kept > SNAPSHOTS_MAX {
                let message = format!(
                    "the schedules keep {kept} snapshots, a group keeps at most {SNAPSHOTS_MAX}; keep fewer"
                );
                self.problems.add("schedule.keep", at, message);
                whole = false;
            }
        }
        whole.then_some(schedules)
    }

    fn cache(&mut self, Section { at, keys }: Section<raw::Cache>) -> (Option<u64>, bool) {
        let warm_up = keys.warm_up.is_none_or(Spanned::into_inner);
        let range = limits::CACHE_BYTES_MIN..=limits::CACHE_BYTES_MAX;
        (self.size("cache.size", keys.size, Some(limits::CACHE_BYTES), &at, range), warm_up)
    }

    fn nbd(&mut self, Section { at: _, keys }: Section<raw::Nbd>, directory: &Path) -> Option<Nbd> {
        let socket = self.socket_path("nbd.socket", keys.socket, directory, "nbd.sock");
        let allowed = keys.allow_unauthenticated_tcp.is_some_and(Spanned::into_inner);
        let tcp = match keys.tcp {
            None => None,
            Some(written) => {
                let at = Some(written.span());
                let address = self.address("nbd.tcp", Some(written), &at, "")?;
                if !address.ip().is_loopback() && !allowed {
                    let message = format!(
                        "{address} is open to the network, and NBD asks nobody who they are; use a loopback address, or \
                         say nbd.allow_unauthenticated_tcp = true"
                    );
                    self.problems.add("nbd.tcp", at, message);
                }
                Some(address)
            }
        };
        Some(Nbd { socket: socket?, tcp, allow_unauthenticated_tcp: allowed })
    }

    fn reactors(&mut self, Section { at, keys }: Section<raw::Reactors>) -> Option<Reactors> {
        let cores_at = keys.cores.as_ref().map(Spanned::span).or(at);
        let cores = keys.cores.map_or_else(|| vec![0], Spanned::into_inner);
        let mut sorted = cores.clone();
        sorted.sort_unstable();
        sorted.dedup();
        let fits = !cores.is_empty() && cores.len() <= limits::CORES_MAX && sorted.len() == cores.len();
        if !fits || cores.iter().any(|core| !(0..=limits::CPU_MAX).contains(core)) {
            let message = format!(
                "{cores:?} is not a list of one to {} different CPU numbers; `lscpu -e` lists this machine's",
                limits::CORES_MAX
            );
            self.problems.add("reactors.cores", cores_at, message);
            return None;
        }
        let cores: Vec<usize> = cores.into_iter().map(|core| core as usize).collect();
        // The link leaves first (its crypto is the largest share), then capture, then the front.
        let mut place = |key: &str, written: raw::Number, from: usize| {
            let Some(written) = written else {
                return Some(cores[if cores.len() > from { from } else { 0 }]);
            };
            let found = cores.iter().copied().find(|core| *core as i64 == *written.get_ref());
            if found.is_none() {
                let message = format!("{} is not one of reactors.cores {cores:?}", written.get_ref());
                self.problems.add(format!("reactors.{key}"), Some(written.span()), message);
            }
            found
        };
        let group = place("group", keys.group, 0);
        let link = place("link", keys.link, 1);
        let capture = place("capture", keys.capture, 2);
        let front = place("front", keys.front, 3);
        let policies = [("spin", Idle::Spin), ("adaptive", Idle::Adaptive), ("park", Idle::Park)];
        let idle = keys
            .idle
            .map_or(Some(Idle::Adaptive), |written| self.choice("reactors.idle", &written, &policies));
        let spin = self.duration("reactors.spin", keys.spin, limits::SPIN_NS, 1_000..=1_000_000_000);
        Some(Reactors {
            group: group?,
            link: link?,
            capture: capture?,
            front: front?,
            cores,
            idle: idle?,
            spin: spin?,
        })
    }

    fn log(&mut self, Section { at: _, keys }: Section<raw::Log>) -> Option<Log> {
        let level = keys.level.map_or_else(
            || Some("info".to_owned()),
            |written| {
                if let Err(error) = tracing_subscriber::EnvFilter::builder().parse(written.get_ref()) {
                    let message =
                        format!("{error}; write error, warn, info, debug, trace, or module=level pairs");
                    self.problems.add("log.level", Some(written.span()), message);
                    return None;
                }
                Some(written.into_inner())
            },
        );
        let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
        let format = keys
            .format
            .map_or(Some(LogFormat::Text), |written| self.choice("log.format", &written, &formats));
        Some(Log { level: level?, format: format? })
    }

    // Values.

    fn required<T>(&mut self, key: &str, written: Option<T>, at: &Span, remedy: &str) -> Option<T> {
        if written.is_none() {
            self.problems.add(key, at.clone(), format!("is missing; write {remedy}"));
        }
        written
    }

    fn name(&mut self, key: &str, written: raw::Text, at: &Span, remedy: &str) -> Option<String> {
        let written = self.required(key, written, at, remedy)?;
        let name = written.get_ref();
        let fits = (1..=NAME_BYTES_MAX).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
            && !name.starts_with('.');
        if !fits {
            let message = format!(
                "{name:?} is not a name; use 1 to {NAME_BYTES_MAX} letters, digits, '.', '_' or '-', not starting with '.'"
            );
            self.problems.add(key, Some(written.span()), message);
            return None;
        }
        Some(written.into_inner())
    }

    fn id(&mut self, key: &str, written: raw::Number, at: &Span) -> Option<SiteId> {
        let remedy = "a number from 1 to 65535 that no other site of the group has";
        let written = self.required(key, written, at, remedy)?;
        match u16::try_from(*written.get_ref()) {
            Ok(id) if id > 0 => Some(SiteId(id)),
            _ => {
                let message = format!("{} cannot be an id; write {remedy}", written.get_ref());
                self.problems.add(key, Some(written.span()), message);
                None
            }
        }
    }

    fn choice<T: Copy>(&mut self, key: &str, written: &Spanned<String>, choices: &[(&str, T)]) -> Option<T> {
        let found = choices.iter().find(|(name, _)| name == written.get_ref());
        if found.is_none() {
            let names: Vec<String> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
            let message = format!("{:?} is not known; write {}", written.get_ref(), names.join(" or "));
            self.problems.add(key, Some(written.span()), message);
        }
        found.map(|(_, value)| *value)
    }

    fn number(
        &mut self,
        key: &str,
        written: raw::Number,
        default: i64,
        range: std::ops::RangeInclusive<i64>,
    ) -> Option<i64> {
        let Some(written) = written else { return Some(default) };
        if !range.contains(written.get_ref()) {
            let message =
                format!("{} is out of range; write {} to {}", written.get_ref(), range.start(), range.end());
            self.problems.add(key, Some(written.span()), message);
            return None;
        }
        Some(written.into_inner())
    }

    fn duration(
        &mut self,
        key: &str,
        written: raw::Text,
        default: u64,
        range: std::ops::RangeInclusive<u64>,
    ) -> Option<Nanos> {
        let Some(written) = written else { return Some(Nanos(default)) };
        let message = match parse_duration(written.get_ref()) {
            Ok(nanos) if range.contains(&nanos) => return Some(Nanos(nanos)),
            Ok(_) => format!(
                "\"{}\" is out of range; write \"{}\" to \"{}\"",
                written.get_ref(),
                show_duration(*range.start()),
                show_duration(*range.end())
            ),
            Err(message) => message,
        };
        self.problems.add(key, Some(written.span()), message);
        None
    }

    /// A size in whole blocks; without a default it must be there.
    fn size(
        &mut self,
        key: &str,
        written: raw::Text,
        default: Option<u64>,
        at: &Span,
        range: std::ops::RangeInclusive<u64>,
    ) -> Option<u64> {
        if let (None, Some(default)) = (&written, default) {
            return Some(default);
        }
        let written = self.required(key, written, at, "a size, like \"1GiB\"")?;
        let message = match parse_size(written.get_ref()) {
            Ok(bytes) if !range.contains(&bytes) => format!(
                "\"{}\" is out of range; write \"{}\" to \"{}\"",
                written.get_ref(),
                show_size(*range.start()),
                show_size(*range.end())
            ),
            Ok(bytes) if !bytes.is_multiple_of(BLOCK_BYTES as u64) => {
                format!(
                    "\"{}\" is not a whole number of 4 KiB blocks; write a multiple of 4KiB",
                    written.get_ref()
                )
            }
            Ok(bytes) => return Some(bytes),
            Err(message) => message,
        };
        self.problems.add(key, Some(written.span()), message);
        None
    }

    /// A file of the site's own; no two keys may name the same.
    fn path(&mut self, key: &str, written: raw::Text, directory: &Path, default: &str) -> PathBuf {
        let at = written.as_ref().map(Spanned::span);
        let path = directory.join(written.map_or_else(|| default.to_owned(), Spanned::into_inner));
        if let Some(other) = self.paths.insert(path.clone(), key.to_owned()) {
            let message = format!("{} is already the file of {other}; give each its own", path.display());
            self.problems.add(key, at, message);
        }
        path
    }

    fn socket_path(
        &mut self,
        key: &str,
        written: raw::Text,
        directory: &Path,
        default: &str,
    ) -> Option<PathBuf> {
        let at = written.as_ref().map(Spanned::span);
        let path = self.path(key, written, directory, default);
        let length = path.as_os_str().len();
        if length > limits::SOCKET_PATH_BYTES_MAX {
            let message = format!(
                "{} is {length} bytes long, a Unix socket's path has at most {}; write a shorter one, like \"/run/lockstep/x.sock\"",
                path.display(),
                limits::SOCKET_PATH_BYTES_MAX
            );
            self.problems.add(key, at, message);
            return None;
        }
        Some(path)
    }

    fn address(&mut self, key: &str, written: raw::Text, at: &Span, remedy: &str) -> Option<SocketAddr> {
        let written = self.required(key, written, at, remedy)?;
        match written.get_ref().parse() {
            Ok(address) => Some(address),
            Err(_) => {
                let message = format!(
                    "{:?} is not an IP address with a port; write one like \"10.0.0.1:7400\" or \"[fd00::1]:7400\"",
                    written.get_ref()
                );
                self.problems.add(key, Some(written.span()), message);
                None
            }
        }
    }
}
