//! Two sites as real processes on loopback, in a folder of their own, gone when the test ends. Only one set of sites
//! runs at a time: they poll, and tests that share their cores would measure each other's patience.

use std::fs::{self, File};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lockstep::io::nbd_client::{ClientError, ClientOptions, NbdClient, NbdUri};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Longest any test waits for what must come; a loaded machine takes a fraction.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Lines of a site's log that a failed test shows.
const LOG_LINES_SHOWN: usize = 60;

pub const MIB: u64 = 1 << 20;

static MACHINE: Mutex<()> = Mutex::new(());

/// What differs from test to test.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names and sizes in MiB.
    pub volumes: Vec<(&'static str, u64)>,
    /// What each may be extended to.
    pub room_mib: Option<u64>,
    pub journal_mib: u64,
    pub differential_mib: u64,
    pub cache_mib: u64,
    /// Lines of `[group]`, on both sites.
    pub group: String,
    /// Lines of `[reactors]`, on both sites; `CPU` stands for the site's own.
    pub reactors: String,
    /// Without, a site alone: the left one.
    pub pair: bool,
    /// A third site beside the pair, that pulls from the left one first.
    pub third: bool,
    /// What the disks of both sites do wrong, as `lockstep run --faults` takes it.
    pub faults: &'static str,
    /// What the sites are formatted with, and run until they are given another.
    pub binary: PathBuf,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            volumes: vec![("data", 64)],
            room_mib: None,
            journal_mib: 64,
            differential_mib: 4,
            cache_mib: 64,
            // Other tests and builds may hold the CPUs longer than a peer may be silent in production.
            group: "latency_budget = \"5s\"\nheartbeat_interval = \"50ms\"".to_owned(),
            reactors: "cores = [CPU]\nidle = \"park\"".to_owned(),
            pair: true,
            third: false,
            faults: "",
            binary: env!("CARGO_BIN_EXE_lockstep").into(),
        }
    }
}

/// A site's files and, while it runs, its process.
#[derive(Debug)]
pub struct Site {
    pub name: &'static str,
    pub config: PathBuf,
    pub directory: PathBuf,
    pub nbd: PathBuf,
    /// What it runs from its next start on.
    pub binary: PathBuf,
    log: PathBuf,
    faults: Option<PathBuf>,
    child: Option<Child>,
}

/// Who dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    Primary,
    Secondary,
    Both,
}

/// The left site is the primary.
#[derive(Debug)]
pub struct Sites {
    pub left: Site,
    pub right: Site,
    third: Option<Site>,
    pub folder: TempDir,
    _sockets: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Sites {
    /// Formatted and started, and in sync.
    pub fn start(options: &Options) -> Sites {
        let mut sites = Sites::format(options);
        sites.start_both();
        if let Some(third) = &mut sites.third {
            third.start();
            third.wait("--in-sync");
        }
        sites
    }

    /// All three of them, if there are.
    pub fn three(&mut self) -> [&mut Site; 3] {
        [&mut self.left, &mut self.right, self.third.as_mut().expect("a third site")]
    }

    pub fn format(options: &Options) -> Sites {
        Sites::format_behind(options, |right| right)
    }

    /// Lets the sites write the roles that they change to into a file, a line for each.
    pub fn note_roles(&self) -> PathBuf {
        let told = self.path("told");
        for site in [&self.left, &self.right].into_iter().chain(&self.third) {
            let text = std::fs::read_to_string(&site.config).expect("a configuration");
            let script = format!("echo $LOCKSTEP_SITE $LOCKSTEP_ROLE >> {}", told.display());
            let hook = format!("[site]\non_role_change = [\"/bin/sh\", \"-c\", \"{script}\"]");
            std::fs::write(&site.config, text.replace("[site]", &hook)).expect("a configuration");
        }
        told
    }

    /// `relay` gets the right site's address and gives the one that the left site is to dial.
    pub fn format_behind(options: &Options, relay: impl FnOnce(SocketAddr) -> SocketAddr) -> Sites {
        let alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
        // On the build's filesystem, for O_DIRECT; the sockets' paths have to be short.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for the sites");
        let sockets = tempfile::tempdir().expect("a folder for the sockets");
        let (left_address, right_address) = free_addresses();
        let dialled = relay(right_address);
        let site = |name| Site::new(name, folder.path(), sockets.path(), &options.binary);
        let (mut left, mut right) = (site("left"), site("right"));
        let mut peers = [None, None];
        if options.pair {
            peers = [
                Some(("right", 2, dialled, left_address, right.keygen())),
                Some(("left", 1, left_address, right_address, left.keygen())),
            ];
        }
        let cpus = core_affinity::get_core_ids().expect("the CPUs of this process");
        let cpus = [cpus.first().expect("a CPU").id, cpus.last().expect("a CPU").id];
        let roles = ["primary", "secondary"];
        let mut third = options.third.then(|| site("far"));
        let far_fingerprint = third.as_ref().map(Site::keygen);
        let mut sources = String::new();
        for (index, (site, peer)) in [&mut left, &mut right].into_iter().zip(peers).enumerate() {
            if index == 1 && !options.pair {
                continue;
            }
            let mut text = format!(
                "[site]\nname = \"{name}\"\nid = {id}\nrole = \"{role}\"\ndirectory = \"{directory}\"\n\
                 control = \"{control}\"\n[group]\nname = \"tested\"\n{group}\n",
                name = site.name,
                id = index + 1,
                role = roles[index],
                directory = site.directory.display(),
                control = site.nbd.with_extension("control").display(),
                group = options.group,
            );
            for (volume, mib) in &options.volumes {
                text += &format!("[[volume]]\nname = \"{volume}\"\nsize = \"{mib}MiB\"\n");
                if let Some(room) = options.room_mib {
                    text += &format!("room = \"{room}MiB\"\n");
                }
            }
            text += &format!(
                "[journal]\nsize = \"{}MiB\"\n[differential]\nsize = \"{}MiB\"\n[cache]\nsize = \"{}MiB\"\n\
                 [nbd]\nsocket = \"{}\"\n[reactors]\n{}\n",
                options.journal_mib,
                options.differential_mib,
                options.cache_mib,
                site.nbd.display(),
                options.reactors.replace("CPU", &cpus[index].to_string()),
            );
            if let Some((peer, id, address, listen, fingerprint)) = peer {
                text += &format!(
                    "[peer]\nname = \"{peer}\"\nid = {id}\naddress = \"{address}\"\nfingerprint = \"{fingerprint}\"\n\
                     [link]\nlisten = \"{listen}\"\n",
                );
            }
            if let Some(fingerprint) = &far_fingerprint {
                let (listen, _) = free_addresses();
                text += &format!(
                    "[third]\nname = \"far\"\nid = 3\nlisten = \"{listen}\"\nfingerprint = \"{fingerprint}\"\n"
                );
                sources += &format!(
                    "[[source]]\nname = \"{}\"\nid = {}\naddress = \"{listen}\"\nfingerprint = \"{}\"\n",
                    site.name,
                    index + 1,
                    site.fingerprint()
                );
            }
            fs::write(&site.config, text).expect("a configuration");
            succeeds(site.lockstep(&["format"]));
            site.set_faults(options.faults);
        }
        if let Some(third) = &mut third {
            // As the right one, but for who it is and whom it knows.
            let text = fs::read_to_string(&right.config).expect("a configuration");
            let text = text
                .replace("right", "far")
                .replace("\nid = 2\nrole = \"secondary\"", "\nid = 3\nrole = \"third\"");
            let text = &text[..text.find("[peer]").expect("a pair")];
            fs::write(&third.config, format!("{text}{sources}")).expect("a configuration");
            succeeds(third.lockstep(&["format"]));
        }
        Sites { left, right, third, folder, _sockets: sockets, _alone: alone }
    }

    /// Writes configurations in which these of the three have these roles, of one pair and its third. What the disks hold is not touched.
    pub fn assign(&self, primary: &str, secondary: &str, third: &str) {
        let all = [&self.left, &self.right, self.third.as_ref().expect("a third site")];
        let of = |name: &str| *all.iter().find(|site| site.name == name).expect("one of the three");
        let id =
            |site: &Site| 1 + all.iter().position(|other| other.name == site.name).expect("one of the three");
        let [primary, secondary, third] = [primary, secondary, third].map(of);
        let (here, there) = free_addresses();
        let (first_listens, second_listens) = free_addresses();
        let known = |key: &str, site: &Site| {
            format!(
                "[{key}]\nname = \"{}\"\nid = {}\nfingerprint = \"{}\"\n",
                site.name,
                id(site),
                site.fingerprint()
            )
        };
        let pair = |peer: &Site, ours: SocketAddr, theirs: SocketAddr, listens: SocketAddr| {
            let peer = known("peer", peer);
            let third = known("third", third);
            format!(
                "{peer}address = \"{theirs}\"\n[link]\nlisten = \"{ours}\"\n{third}listen = \"{listens}\"\n"
            )
        };
        let source = |site: &Site, listens| format!("{}address = \"{listens}\"\n", known("[source]", site));
        primary.rewrite("primary", &pair(secondary, here, there, first_listens));
        secondary.rewrite("secondary", &pair(primary, there, here, second_listens));
        third.rewrite("third", &(source(primary, first_listens) + &source(secondary, second_listens)));
    }

    /// kill -9. A secondary that dies alone is started again at once: the hosts wait for it.
    pub fn strike(&mut self, victim: Victim) {
        if victim != Victim::Secondary {
            self.left.kill();
        }
        if victim != Victim::Primary {
            self.right.kill();
        }
        if victim == Victim::Secondary {
            self.right.start();
        }
    }

    /// Starts what is not running, the secondary first, and waits until they are in sync.
    pub fn start_both(&mut self) {
        self.right.start();
        self.left.start();
        self.wait("--in-sync");
    }

    /// `lockstep wait` at the left site.
    pub fn wait(&self, what: &str) {
        self.left.wait(what);
    }

    /// A path in the test's own folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Sites {
    fn drop(&mut self) {
        for site in [&mut self.left, &mut self.right].into_iter().chain(&mut self.third) {
            if site.child.is_some() {
                site.kill();
            }
            if std::thread::panicking() {
                eprintln!("--- {}'s log ends with:\n{}", site.name, site.log_end());
            }
        }
    }
}

impl Site {
    fn new(name: &'static str, folder: &Path, sockets: &Path, binary: &Path) -> Site {
        Site {
            name,
            config: folder.join(format!("{name}.toml")),
            directory: folder.join(name),
            nbd: sockets.join(format!("{name}.nbd")),
            binary: binary.to_owned(),
            log: folder.join(format!("{name}.log")),
            faults: None,
            child: None,
        }
    }

    /// Gives it another role, and other sites to know.
    fn rewrite(&self, role: &str, others: &str) {
        let text = fs::read_to_string(&self.config).expect("a configuration");
        let ends = ["[peer]", "[[source]]"].iter().filter_map(|begins| text.find(begins)).min();
        let text = &text[..ends.expect("other sites")];
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let at = lines.iter().position(|line| line.starts_with("role = ")).expect("a role");
        lines[at] = format!("role = \"{role}\"");
        fs::write(&self.config, lines.join("\n") + "\n" + others).expect("a configuration");
    }

    fn keygen(&self) -> String {
        fs::create_dir_all(&self.directory).expect("the site's folder");
        let identity = self.directory.join("identity.pem");
        succeeds(lockstep(&["keygen", "--identity", path(&identity), "--site", self.name])).trim().to_owned()
    }

    /// Of the identity that it has.
    pub fn fingerprint(&self) -> String {
        let identity = self.directory.join("identity.pem");
        succeeds(lockstep(&["keygen", "--identity", path(&identity), "--show"])).trim().to_owned()
    }

    /// Starts it if it is not running, without waiting for anything but its sockets' existence.
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// The same with more arguments to `lockstep run`.
    pub fn start_with(&mut self, arguments: &[&str]) {
        if self.child.is_none() {
            self.spawn(arguments);
            self.until("it answers its control socket", |site| site.try_status().is_some());
        }
    }

    /// Starts it, though it may end at once. Returns whether it runs.
    pub fn try_start(&mut self) -> bool {
        self.spawn(&[]);
        let deadline = Instant::now() + PATIENCE;
        while self.try_status().is_none() {
            let child = self.child.as_mut().expect("it was spawned");
            if child.try_wait().expect("the child's state").is_some() {
                self.child = None;
                return false;
            }
            assert!(Instant::now() < deadline, "{} neither answers nor ends", self.name);
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }

    /// What its disks do wrong from its next start on, as `lockstep run --faults` takes it.
    pub fn set_faults(&mut self, plan: &str) {
        let file = self.config.with_extension("faults");
        fs::write(&file, plan).expect("a plan of faults");
        self.faults = (!plan.is_empty()).then_some(file);
    }

    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    fn spawn(&mut self, arguments: &[&str]) {
        let log = File::options().create(true).append(true).open(&self.log).expect("a log");
        let child = Command::new(&self.binary)
            .args(["run", "--config", path(&self.config)])
            .args(self.faults.iter().flat_map(|file| ["--faults", path(file)]))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("lockstep starts");
        self.child = Some(child);
    }

    pub fn process_id(&self) -> u32 {
        self.child.as_ref().expect("the site runs").id()
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("the site runs");
        kill_process(Pid::from_child(child), signal).expect("a signal to a child");
    }

    /// kill -9.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("the site runs");
        child.kill().expect("a signal to a child");
        child.wait().expect("the child's end");
    }

    /// SIGSTOP: alive, and silent.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// SIGTERM, and the exit.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.exited()
    }

    /// Waits for its exit.
    pub fn exited(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the site runs");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().expect("the child's state") {
                return status;
            }
            if Instant::now() > deadline {
                child.kill().expect("a signal to a child");
                child.wait().expect("the child's end");
                panic!("{} did not end within {PATIENCE:?}", self.name);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A command of the site's own binary.
    pub fn lockstep(&self, command: &[&str]) -> Output {
        let mut run = Command::new(&self.binary);
        run.args(command).args(["--config", path(&self.config)]).output().expect("lockstep runs")
    }

    pub fn status(&self) -> Value {
        let output = self.lockstep(&["status", "--json"]);
        serde_json::from_str(&succeeds(output)).expect("JSON")
    }

    /// `lockstep wait`.
    pub fn wait(&self, what: &str) {
        let seconds = format!("{}s", PATIENCE.as_secs());
        succeeds(self.lockstep(&["wait", what, "--timeout", &seconds]));
    }

    pub fn try_status(&self) -> Option<Value> {
        let output = self.lockstep(&["status", "--json"]);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).expect("JSON"))
    }

    /// Polls until `reached`; the process must live meanwhile.
    pub fn until(&mut self, what: &str, reached: impl Fn(&Site) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !reached(self) {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait().expect("the child's state")
            {
                self.child = None;
                panic!("{} ended with {status} before {what}", self.name);
            }
            assert!(Instant::now() < deadline, "{}: not within {PATIENCE:?}: {what}", self.name);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until it shows all that its primary has, at which hosts rest. It shows what it knows to be settled; and of a peer that is lost,
    /// as on a busy machine it may be at any moment, `wait --settled` at a primary which goes on alone says nothing.
    pub fn until_it_shows(&mut self, primary: &Site) {
        self.until("it shows what its primary has", |site| {
            let settled = site.try_status().map(|status| status["watermarks"]["settled"].clone());
            settled.is_some_and(|settled| settled == primary.status()["watermarks"]["last"])
        });
    }

    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn log_end(&self) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
    }

    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.nbd.display())
    }

    pub fn connect(&self, export: &str) -> NbdClient {
        self.try_connect(export).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    pub fn try_connect(&self, export: &str) -> Result<NbdClient, ClientError> {
        let uri: NbdUri = self.uri(export).parse().expect("a URI");
        NbdClient::connect(&uri, ClientOptions::default())
    }

    /// Connects as soon as the site serves the export.
    pub fn connect_when_served(&mut self, export: &str) -> NbdClient {
        self.until("it serves its export", |site| site.try_connect(export).is_ok());
        self.connect(export)
    }
}

/// Between two turns of hosts at a primary whose peer is being copied to: longer each time. With journals as small as the tests' hosts that
/// never rested would write on for longer than the journal keeps while a busy machine installs the copy, and again during the next one.
pub fn rest(turns: u64) {
    std::thread::sleep(Duration::from_millis(50 + 10 * turns));
}

pub fn lockstep(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lockstep")).args(arguments).output().expect("lockstep runs")
}

/// Runs a tool that the tests need.
pub fn tool(name: &str, arguments: &[&str]) -> Output {
    Command::new(name)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{name} does not run ({error}); tests/run installs it"))
}

#[track_caller]
pub fn succeeds(output: Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}:\n{text}\n{errors}", output.status);
    text
}

#[track_caller]
pub fn fails(output: Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "succeeded:\n{text}");
    text.into_owned()
}

pub fn path(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Two UDP addresses that nobody has now.
fn free_addresses() -> (SocketAddr, SocketAddr) {
    let sockets: [UdpSocket; 2] =
        std::array::from_fn(|_| UdpSocket::bind("127.0.0.1:0").expect("a free UDP port"));
    let [left, right] = sockets.map(|socket| socket.local_addr().expect("its address"));
    (left, right)
}
