//! Two sites in a folder, and perhaps a third: formatted here, run by processes of their own.

use std::fs::File;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use rustix::process::{Pid, Signal};
use signal_hook::iterator::Signals;
use tempfile::TempDir;

use super::READY_MAX;
use crate::cli::site::format_site;
use crate::io::disk::{Disk, DiskError, Space};
use crate::io::nbd_client::NbdUri;
use crate::io::quic::identity::Identity;
use crate::node::config::Config;
use crate::node::control::{Client, Status};
use crate::node::format::Existing;

pub const NAMES: [&str; 3] = ["left", "right", "far"];
const ROLES: [&str; 3] = ["primary", "secondary", "third"];

/// The place of the third site.
pub const THIRD: usize = 2;

/// The volume that the load writes to, and the one of the client that keeps a log.
pub const DATA: &str = "data";
pub const LOG: &str = "log";
pub const LOG_BYTES: u64 = 16 << 20;
pub const VOLUMES: [&str; 2] = [DATA, LOG];

/// What differs from one scenario to another.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub data_bytes: u64,
    /// As of `volume.space`: what nobody writes to need not be written.
    pub data_space: &'static str,
    pub differential_bytes: u64,
    pub journal_bytes: u64,
    /// `suspend` or `solo`.
    pub on_peer_loss: &'static str,
    /// Whether a third site pulls from the pair.
    pub third: bool,
}

impl Setup {
    pub const STEADY: Setup = Setup {
        data_bytes: 256 << 20,
        data_space: "written",
        differential_bytes: 16 << 20,
        journal_bytes: 256 << 20,
        on_peer_loss: "suspend",
        third: false,
    };
}

/// A site drains and checkpoints within ten seconds.
const STOP_MAX: Duration = Duration::from_secs(12);

/// Lines of a site's log that are shown when something went wrong.
const LOG_TAIL_LINES: usize = 15;

pub struct Pair {
    folder: Option<TempDir>,
    keep: bool,
    path: PathBuf,
    pub setup: Setup,
    configs: Vec<Config>,
    children: Vec<Child>,
}

impl Pair {
    /// Makes keys, configurations and files, in a new folder of `directory` or of the first place that has direct I/O.
    pub fn make(directory: Option<&Path>, keep: bool, setup: Setup) -> anyhow::Result<Pair> {
        let folder = make_folder(directory)?;
        let path = folder.path().to_owned();
        if !keep {
            remove_on_signals(&path)?;
        }
        let cpus = core_affinity::get_core_ids().context("this process's CPUs cannot be found")?;
        let cpu = |site: usize| cpus.get(site % cpus.len().max(1)).map_or(0, |core| core.id);
        let names = &NAMES[..if setup.third { 3 } else { 2 }];
        let ports = free_ports()?;
        let mut fingerprints = Vec::new();
        for name in names {
            let identity = Identity::generate(name)?;
            identity.save(&path.join(format!("{name}.pem")))?;
            fingerprints.push(identity.fingerprint().to_string());
        }
        let mut configs = Vec::new();
        for (site, name) in names.iter().enumerate() {
            let text = configuration(site, cpu(site), ports, &fingerprints, setup);
            let file = path.join(format!("{name}.toml"));
            std::fs::write(&file, text).with_context(|| format!("{} cannot be written", file.display()))?;
            let config = Config::load(&file)?;
            format_site(&config, Existing::default())?;
            configs.push(config);
        }
        Ok(Pair { folder: Some(folder), keep, path, setup, configs, children: Vec::new() })
    }

    /// Starts all processes. A third stays with the site that it meets first, and that is to be the one which is lost.
    pub fn start(&mut self) -> anyhow::Result<()> {
        self.children.push(self.spawn(0)?);
        if self.setup.third {
            self.children.push(self.spawn(THIRD)?);
            self.await_pull()?;
        }
        let second = self.spawn(1)?;
        self.children.insert(1, second);
        Ok(())
    }

    fn await_pull(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        let pulls = |status: Status| status.sources.first().is_some_and(|source| source.state == "pulling");
        while !self.client(THIRD).status().is_ok_and(pulls) {
            if begun.elapsed() > READY_MAX {
                return Err(self.explain(anyhow!("the third site has not met the first one")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn spawn(&self, site: usize) -> anyhow::Result<Child> {
        let program = std::env::current_exe().context("the path of this program")?;
        let config = &self.configs[site];
        let log = self.log_of(&config.site.name);
        let log = File::options().create(true).append(true).open(log).context("a site's log")?;
        Command::new(&program)
            .args(["run", "--with-parent", "--config"])
            .arg(&config.file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("{} cannot be started", program.display()))
    }

    /// SIGKILL.
    pub fn kill(&mut self, site: usize) -> anyhow::Result<()> {
        let child = &mut self.children[site];
        child
            .kill()
            .and_then(|()| child.wait())
            .with_context(|| format!("{} cannot be killed", NAMES[site]))?;
        Ok(())
    }

    /// A site's process stands still, as if its path were held up; or goes on.
    pub fn hold_up(&self, site: usize, held: bool) -> anyhow::Result<()> {
        let signal = if held { Signal::STOP } else { Signal::CONT };
        rustix::process::kill_process(Pid::from_child(&self.children[site]), signal)
            .with_context(|| format!("{} cannot be held up", NAMES[site]))
    }

    /// Stops one site as an operator would.
    pub fn stop_one(&mut self, site: usize) -> anyhow::Result<()> {
        self.client(site).stop()?;
        self.await_end(site, Instant::now())
    }

    /// Starts a site that was killed or stopped.
    pub fn start_again(&mut self, site: usize) -> anyhow::Result<()> {
        self.children[site] = self.spawn(site)?;
        Ok(())
    }

    fn log_of(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.log"))
    }

    pub fn client(&self, site: usize) -> Client {
        Client::new(&self.configs[site].site.control)
    }

    pub fn uri(&self, site: usize, volume: &str) -> NbdUri {
        NbdUri::unix(&self.configs[site].nbd.socket, volume)
    }

    pub fn describe(&self) -> String {
        let place = |config: &Config| format!("{} on CPU {}", config.site.name, config.reactors.group);
        let places: Vec<String> = self.configs.iter().map(place).collect();
        format!("{}, in {}", places.join(", "), self.path.display())
    }

    /// Adds the ends of the sites' logs to an error.
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let mut text = error.to_string();
        for name in &NAMES[..self.configs.len()] {
            let log = std::fs::read_to_string(self.log_of(name)).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
            text.push_str(&format!("\n--- log of {name}:\n{}", tail.join("\n")));
        }
        anyhow!(text)
    }

    /// Stops all sites as an operator would; each has to end well.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        for site in 0..self.configs.len() {
            self.client(site).stop()?;
        }
        let begun = Instant::now();
        for site in 0..self.configs.len() {
            self.await_end(site, begun)?;
        }
        self.children.clear();
        Ok(())
    }

    /// A site that was told to stop has to, and well.
    fn await_end(&mut self, site: usize, told_at: Instant) -> anyhow::Result<()> {
        let name = NAMES[site];
        let status = loop {
            match self.children[site].try_wait().context("a site's process")? {
                Some(status) => break status,
                None if told_at.elapsed() > STOP_MAX => {
                    bail!("{name} has not stopped in {} s", STOP_MAX.as_secs())
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        if !status.success() {
            return Err(self.explain(anyhow!("{name} ended with {status}")));
        }
        Ok(())
    }

    /// Removes the folder, or says where it stays.
    pub fn finish(mut self) -> Option<PathBuf> {
        let folder = self.folder.take()?;
        self.keep.then(|| folder.keep())
    }
}

/// Whatever went wrong, no process stays behind.
impl Drop for Pair {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        if self.keep
            && let Some(folder) = self.folder.take()
        {
            eprintln!("the sites are in {}", folder.keep().display());
        }
    }
}

/// Removes the folder when the demo is interrupted; the sites stop by themselves when it is gone.
fn remove_on_signals(folder: &Path) -> anyhow::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).context("the signal handlers")?;
    let folder = folder.to_owned();
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            let _ = std::fs::remove_dir_all(&folder);
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

/// Memory takes direct I/O since Linux 6.6, and is no disk.
fn is_memory(place: &Path) -> bool {
    rustix::fs::statfs(place).is_ok_and(|found| found.f_type == libc::TMPFS_MAGIC)
}

/// A folder whose filesystem has direct I/O: where asked, else where temporary files go, else here; on a disk rather than in memory.
fn make_folder(directory: Option<&Path>) -> anyhow::Result<TempDir> {
    let places = match directory {
        Some(directory) => vec![directory.to_owned()],
        None => {
            let mut places =
                vec![std::env::temp_dir(), std::env::current_dir().context("the current folder")?];
            places.sort_by_key(|place| is_memory(place));
            places
        }
    };
    let mut refused = None;
    for place in places {
        let folder = tempfile::Builder::new().prefix("lockstep-demo-").tempdir_in(&place);
        let folder = folder.with_context(|| format!("a folder cannot be made in {}", place.display()))?;
        match Disk::create(&folder.path().join("probe"), 4096, Space::Sparse, false) {
            Ok(_) => {
                let _ = std::fs::remove_file(folder.path().join("probe"));
                return Ok(folder);
            }
            Err(error @ DiskError::NoDirectIo { .. }) => refused = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    let refused = refused.context("there is at least one place")?;
    Err(anyhow!("{refused}; name another one with --directory"))
}

/// UDP ports that were free a moment ago: each site's for the pair, and each one's for the third.
fn free_ports() -> anyhow::Result<[u16; 4]> {
    let socket = || UdpSocket::bind("127.0.0.1:0").context("a UDP socket on loopback");
    let sockets = [socket()?, socket()?, socket()?, socket()?];
    let mut ports = [0; 4];
    for (port, socket) in ports.iter_mut().zip(&sockets) {
        *port = socket.local_addr()?.port();
    }
    Ok(ports)
}

/// One machine does the work of two sites and of the hosts, so the peer and the hosts may be late by more than on machines of
/// their own.
fn configuration(site: usize, cpu: usize, ports: [u16; 4], fingerprints: &[String], setup: Setup) -> String {
    let (name, role, id) = (NAMES[site], ROLES[site], site + 1);
    let others = if site == THIRD { sources(ports, fingerprints) } else { pair(site, ports, fingerprints) };
    let (data_mib, log_mib) = (setup.data_bytes >> 20, LOG_BYTES >> 20);
    let (differential_mib, journal_mib) = (setup.differential_bytes >> 20, setup.journal_bytes >> 20);
    let Setup { on_peer_loss, data_space, .. } = setup;
    format!(
        "[site]\nname = \"{name}\"\nid = {id}\nrole = \"{role}\"\ndirectory = \"{name}\"\n\n\
         [group]\nname = \"demo\"\nlatency_budget = \"2s\"\nheartbeat_interval = \"100ms\"\nresync_p99_budget = \"20ms\"\n\
         on_differential_full = \"error\"\non_peer_loss = \"{on_peer_loss}\"\n\n\
         [[volume]]\nname = \"{DATA}\"\nsize = \"{data_mib}MiB\"\nspace = \"{data_space}\"\n\n\
         [[volume]]\nname = \"{LOG}\"\nsize = \"{log_mib}MiB\"\nspace = \"written\"\n\n\
         [journal]\nsize = \"{journal_mib}MiB\"\n\n[differential]\nsize = \"{differential_mib}MiB\"\n\n[cache]\nsize = \"256MiB\"\n\n\
         {others}[reactors]\ncores = [{cpu}]\n"
    )
}

/// The peer of one of the pair, and the third if there is one.
fn pair(site: usize, ports: [u16; 4], fingerprints: &[String]) -> String {
    let (peer, name) = (1 - site, NAMES[site]);
    let mut text = format!(
        "[peer]\nname = \"{}\"\nid = {}\naddress = \"127.0.0.1:{}\"\nfingerprint = \"{}\"\n\n\
         [link]\nlisten = \"127.0.0.1:{}\"\nidentity = \"../{name}.pem\"\nmtu = 9000\n\n",
        NAMES[peer],
        peer + 1,
        ports[peer],
        fingerprints[peer],
        ports[site]
    );
    if let Some(fingerprint) = fingerprints.get(THIRD) {
        text += &format!(
            "[third]\nname = \"{}\"\nid = {}\nlisten = \"127.0.0.1:{}\"\nfingerprint = \"{fingerprint}\"\nmtu = 9000\n\n",
            NAMES[THIRD],
            THIRD + 1,
            ports[2 + site]
        );
    }
    text
}

/// What the third pulls from.
fn sources(ports: [u16; 4], fingerprints: &[String]) -> String {
    let mut text = format!("[link]\nidentity = \"../{}.pem\"\nmtu = 9000\n\n", NAMES[THIRD]);
    for site in 0..THIRD {
        text += &format!(
            "[[source]]\nname = \"{}\"\nid = {}\naddress = \"127.0.0.1:{}\"\nfingerprint = \"{}\"\n\n",
            NAMES[site],
            site + 1,
            ports[2 + site],
            fingerprints[site]
        );
    }
    text
}
