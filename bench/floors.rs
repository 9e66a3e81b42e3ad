//! The floor under every figure: random 4 KiB O_DIRECT writes through the reactor's ring, alternating with fio's io_uring
//! engine on the same file, where fio is installed.
//!
//! `cargo bench --bench floors -- [--directory DIR] [--seconds N] [--rounds N]`

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use hdrhistogram::Histogram;
use lockstep::base::{BlockSum, JOURNAL_IO_SLOTS, Memory, Nanos, PageId, SlotId, VOLUME_IO_SLOTS, VolumeId};
use lockstep::core::messages::{Executor, IoDone, IoOp, IoRequest, IoTarget};
use lockstep::core::outbox::Tables;
use lockstep::io::arena::Arena;
use lockstep::io::disk::{Disk, DiskEdges, DiskExecutor, FaultPlan, Space};
use lockstep::io::ring::{ArenaId, Features, FileId, Ring, RingConfig};
use lockstep::reactor::{
    Actor, Clock, Completion, IdlePolicy, Loads, Port, Reactor, Receiver, Sender, edge, mesh,
};

#[derive(Parser)]
struct Options {
    /// Where the test file goes; its filesystem is what is measured.
    #[arg(long, default_value = "target")]
    directory: PathBuf,
    /// Length of one measurement.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Measurements of each row; the median by rate is shown.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Size of the test file in MiB.
    #[arg(long, default_value_t = 1024)]
    mebibytes: u64,
    /// Given by `cargo bench`; means nothing here.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Blocks that the writers draw from: one page each would be more memory than a floor needs.
const PAGES: u32 = 1 + 256;

/// All but the pages being registered.
const PLAIN_BUFFERS: Features =
    Features { registered_buffers: false, registered_vectors: false, ..Features::ALL };

fn main() -> Result<()> {
    let options = Options::parse();
    let path = options.directory.join(format!("lockstep-floors-{}", std::process::id()));
    let result = measure(&options, &path);
    let _ = std::fs::remove_file(&path);
    result
}

fn measure(options: &Options, path: &Path) -> Result<()> {
    let bytes = options.mebibytes << 20;
    let disk = Disk::create(path, bytes, Space::ReservedTo(bytes), false)?;
    disk.pre_write(bytes, |_| ())?;
    drop(disk);
    let clock = Clock::new();
    println!("{}", ring(&clock, &mesh(1)?[0], Features::ALL)?.features());
    println!(
        "{:<38} {:>4} {:>9} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "", "QD", "IOPS", "p50 us", "p99", "p99.9", "p99.99", "CPU us"
    );

    for depth in [1, 8, 32, 128] {
        let mut rows = vec![
            Row::new("ring, spin", Case::Ring(IdlePolicy::Spin, Features::ALL)),
            Row::new("ring, adaptive", Case::Ring(IdlePolicy::default(), Features::ALL)),
            Row::new("ring, park", Case::Ring(IdlePolicy::Park, Features::ALL)),
            Row::new("ring, park, unregistered pages", Case::Ring(IdlePolicy::Park, PLAIN_BUFFERS)),
            Row::new("ring, park, no features", Case::Ring(IdlePolicy::Park, Features::NONE)),
            Row::new("executor, same core, park", Case::Executor(IdlePolicy::Park)),
            Row::new("fio io_uring, fixedbufs, registerfiles", Case::Fio),
        ];
        for _ in 0..options.rounds {
            for row in &mut rows {
                let measured = match row.case {
                    Case::Ring(idle, features) => {
                        Some(through_ring(options, path, &clock, idle, features, depth)?)
                    }
                    Case::Executor(idle) => Some(through_executor(options, path, &clock, idle, depth)?),
                    Case::Fio => fio(options, path, depth)?,
                };
                row.measured.extend(measured);
            }
        }
        rows.iter_mut().for_each(|row| row.print(depth));
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Case {
    Ring(IdlePolicy, Features),
    Executor(IdlePolicy),
    Fio,
}

/// IOPS, then latencies at 50, 99, 99.9 and 99.99 percent in microseconds, then microseconds of CPU an operation: the one
/// figure that a busy machine does not spoil (for a spinning reactor it only says that it spins).
type Figures = [f64; 6];

struct Row {
    name: &'static str,
    case: Case,
    measured: Vec<Figures>,
}

impl Row {
    fn new(name: &'static str, case: Case) -> Row {
        Row { name, case, measured: Vec::new() }
    }

    fn print(&mut self, depth: usize) {
        self.measured.sort_by(|one, other| one[0].total_cmp(&other[0]));
        match self.measured.get(self.measured.len() / 2) {
            Some([iops, p50, p99, p999, p9999, cpu]) => println!(
                "{:<38} {depth:>4} {iops:>9.0} {p50:>8.1} {p99:>8.1} {p999:>8.1} {p9999:>8.1} {cpu:>8.2}",
                self.name
            ),
            None => println!("{:<38} {depth:>4} not installed", self.name),
        }
    }
}

fn figures(histogram: &Histogram<u64>, span: Nanos, cpu: Nanos) -> Figures {
    let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
    let iops = histogram.len() as f64 / (span.0 as f64 / 1e9);
    [iops, at(0.5), at(0.99), at(0.999), at(0.9999), cpu.0 as f64 / 1e3 / histogram.len() as f64]
}

/// Time this thread has run so far; zero where the kernel does not say.
fn cpu_time() -> Nanos {
    let said = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Nanos(said.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0))
}

fn ring(clock: &Clock, port: &Port, allowed: Features) -> Result<Ring> {
    let config = RingConfig { allowed, ..RingConfig::new(vec![Arena::new(PAGES)?]) };
    Ok(Ring::new(config, clock.clone(), port.clone())?)
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// What both writers share: who is in flight since when, and when to end.
struct Load {
    depth: usize,
    blocks: u64,
    began: [Nanos; 512],
    idle: Vec<usize>,
    random: u64,
    started: Nanos,
    cpu_before: Nanos,
    ends: Nanos,
    histogram: Histogram<u64>,
    port: Port,
    result: Arc<std::sync::Mutex<Option<Figures>>>,
}

impl Load {
    fn new(options: &Options, clock: &Clock, port: &Port, depth: usize) -> Result<Load> {
        let started = clock.now();
        Ok(Load {
            depth,
            blocks: options.mebibytes << 8,
            began: [Nanos(0); 512],
            idle: (0..depth).collect(),
            random: 0x9e37_79b9_7f4a_7c15,
            started,
            cpu_before: cpu_time(),
            ends: started.plus(Nanos::from_millis(options.seconds * 1000)),
            histogram: Histogram::new_with_bounds(1, 60_000_000_000, 3)?,
            port: port.clone(),
            result: Arc::default(),
        })
    }

    /// The place, page and block of the next write, if one is due.
    fn next(&mut self, now: Nanos) -> Option<(usize, PageId, u64)> {
        if now >= self.ends {
            return None;
        }
        let place = self.idle.pop()?;
        self.began[place] = now;
        let random = random(&mut self.random);
        Some((place, PageId(1 + (random >> 40) as u32 % (PAGES - 1)), random % self.blocks))
    }

    fn ended(&mut self, now: Nanos, place: usize) {
        self.histogram.saturating_record(now.since(self.began[place]).0);
        self.idle.push(place);
        if now >= self.ends && self.idle.len() == self.depth {
            let cpu = cpu_time().since(self.cpu_before);
            let figures = figures(&self.histogram, now.since(self.started), cpu);
            *self.result.lock().expect("nobody panicked") = Some(figures);
            self.port.request_stop();
        }
    }
}

/// Submits to the ring itself.
struct Writer {
    load: Load,
    file: FileId,
}

impl Actor<Ring> for Writer {
    fn name(&self) -> &'static str {
        "writer"
    }

    fn turn(&mut self, now: Nanos, ring: &mut Ring) -> bool {
        let mut worked = false;
        while let Some((place, page, block)) = self.load.next(now) {
            ring.writev_pages(place as u64, self.file, ArenaId(0), block * 4096, [page].into_iter());
            worked = true;
        }
        worked
    }

    fn complete(&mut self, now: Nanos, _ring: &mut Ring, completion: Completion) {
        assert_eq!(completion.result, 4096);
        self.load.ended(now, completion.token as usize);
    }

    fn ready(&self) -> bool {
        false
    }

    fn deadline(&self) -> Option<Nanos> {
        None
    }

    fn stop(&mut self, _now: Nanos) {}

    fn stopped(&self) -> bool {
        true
    }
}

/// Asks the disk executor over rings, as a group does.
struct Asker {
    load: Load,
    requests: Sender<IoRequest>,
    done: Receiver<IoDone>,
    tables: Arc<Tables>,
}

impl Actor<Ring> for Asker {
    fn name(&self) -> &'static str {
        "asker"
    }

    fn turn(&mut self, now: Nanos, _ring: &mut Ring) -> bool {
        let mut worked = false;
        while let Some(done) = self.done.pop() {
            done.result.expect("the disk works");
            self.load.ended(now, done.slot.0 as usize);
            worked = true;
        }
        while let Some((place, page, block)) = self.load.next(now) {
            let slot = SlotId(place as u32);
            self.tables.volume_io.set(slot, 0, page, BlockSum::ZEROS);
            let target = IoTarget::Volume(VolumeId(0));
            self.requests.push(IoRequest { slot, target, op: IoOp::Write, block, count: 1 });
            worked = true;
        }
        worked
    }

    fn complete(&mut self, _now: Nanos, _ring: &mut Ring, _completion: Completion) {}

    fn ready(&self) -> bool {
        !self.done.is_empty()
    }

    fn deadline(&self) -> Option<Nanos> {
        None
    }

    fn stop(&mut self, _now: Nanos) {}

    fn stopped(&self) -> bool {
        true
    }
}

fn through_ring(
    options: &Options,
    path: &Path,
    clock: &Clock,
    idle: IdlePolicy,
    allowed: Features,
    depth: usize,
) -> Result<Figures> {
    let port = mesh(1)?.remove(0);
    let mut ring = ring(clock, &port, allowed)?;
    let file = ring.add_file(Disk::open(path)?.into_fd()).context("the ring has room for a file")?;
    let load = Load::new(options, clock, &port, depth)?;
    let result = load.result.clone();
    let mut reactor = Reactor::new(port, ring, idle, Arc::new(Loads::default()));
    reactor.add(Writer { load, file });
    reactor.run();
    result.lock().expect("nobody panicked").context("the writer ended without figures")
}

fn through_executor(
    options: &Options,
    path: &Path,
    clock: &Clock,
    idle: IdlePolicy,
    depth: usize,
) -> Result<Figures> {
    const _: () = assert!(VOLUME_IO_SLOTS <= 512 && JOURNAL_IO_SLOTS < VOLUME_IO_SLOTS);
    let port = mesh(1)?.remove(0);
    let arena = Arena::new(PAGES)?;
    let mut ring = Ring::new(RingConfig::new(vec![arena.clone()]), clock.clone(), port.clone())?;
    let tables = Arc::new(Tables::new(1));
    let (requests, asked) = edge(VOLUME_IO_SLOTS, &port, &port);
    let (answers, done) = edge(VOLUME_IO_SLOTS, &port, &port);
    let mut view = arena.view();
    (1..PAGES).for_each(|page| view.seal(PageId(page)));
    let disks = vec![(IoTarget::Volume(VolumeId(0)), Disk::open(path)?)];
    let edges = DiskEdges { requests: asked, done: answers };
    let memory = (ArenaId(0), view);
    let plan = FaultPlan::default();
    let executor =
        DiskExecutor::new(&mut ring, Executor::Volumes, edges, tables.clone(), memory, disks, plan)?;
    let load = Load::new(options, clock, &port, depth)?;
    let result = load.result.clone();
    let mut reactor = Reactor::new(port, ring, idle, Arc::new(Loads::default()));
    reactor.add(Asker { load, requests, done, tables });
    reactor.add(executor);
    reactor.run();
    result.lock().expect("nobody panicked").context("the asker ended without figures")
}

/// fio with the same pattern and features; none where it is not installed.
fn fio(options: &Options, path: &Path, depth: usize) -> Result<Option<Figures>> {
    let Ok(output) = Command::new("fio")
        .arg(format!("--filename={}", path.display()))
        .args(["--name=floor", "--ioengine=io_uring", "--direct=1", "--rw=randwrite", "--bs=4k"])
        .args(["--fixedbufs", "--registerfiles", "--norandommap", "--time_based", "--output-format=json"])
        .args([format!("--size={}m", options.mebibytes), format!("--runtime={}", options.seconds)])
        .args([format!("--iodepth={depth}"), "--percentile_list=50:99:99.9:99.99".into()])
        // From submission to completion, as the ring's are.
        .args(["--clat_percentiles=0", "--lat_percentiles=1"])
        .output()
    else {
        return Ok(None);
    };
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).context("fio's report")?;
    let job = &report["jobs"][0];
    let write = &job["write"];
    let at = |percentile: &str| write["lat_ns"]["percentile"][percentile].as_f64().map(|nanos| nanos / 1e3);
    let iops = write["iops"].as_f64();
    let busy =
        job["usr_cpu"].as_f64().zip(job["sys_cpu"].as_f64()).map(|(user, system)| (user + system) / 100.0);
    let cpu = busy.zip(iops).map(|(busy, iops)| busy * 1e6 / iops);
    let figures = [iops, at("50.000000"), at("99.000000"), at("99.900000"), at("99.990000"), cpu];
    let mut found = [0.0; 6];
    for (place, figure) in found.iter_mut().zip(figures) {
        *place = figure.context("fio's report lacks a figure")?;
    }
    Ok(Some(found))
}
