//! One pinned thread a core.

use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::RunError;
use super::assembly::{Assembly, Build};
use crate::io::arena::Arena;
use crate::io::metadata::MetadataExecutor;
use crate::io::nbd::{CONNECTIONS_DEFAULT, NbdFront};
use crate::io::ring::{OPERATIONS_DEFAULT, Ring, RingConfig};
use crate::node::config::{Config, Idle};
use crate::reactor::{Clock, IdlePolicy, Loads, Port, Reactor};

/// How often a stop looks whether the threads have ended.
const JOIN_LOOKS_EVERY: Duration = Duration::from_millis(1);

pub struct Threads {
    threads: Vec<(usize, JoinHandle<()>)>,
    loads: Vec<(usize, Arc<Loads>)>,
    /// Not pinned, and none of the path to a reply.
    metadata: Option<JoinHandle<()>>,
}

/// What one thread is told.
struct Plan {
    cpu: usize,
    port: Port,
    loads: Arc<Loads>,
    idle: IdlePolicy,
    arena: Arc<Arena>,
    clock: Clock,
    builds: Vec<Build>,
}

impl Threads {
    /// Starts every core's thread and returns once all actors are built, or one could not be.
    pub fn start(config: &Config, assembly: &mut Assembly, clock: &Clock) -> Result<Threads, RunError> {
        check_cpus(&config.reactors.cores)?;
        let idle = match config.reactors.idle {
            Idle::Spin => IdlePolicy::Spin,
            Idle::Adaptive => IdlePolicy::Adaptive { spin: config.reactors.spin },
            Idle::Park => IdlePolicy::Park,
        };
        let mut threads = Threads { threads: Vec::new(), loads: Vec::new(), metadata: None };
        if let Some(executor) = assembly.metadata.take() {
            threads.metadata = Some(start_metadata(executor)?);
        }
        let mut started = Vec::new();
        for (cpu, builds) in std::mem::take(&mut assembly.builds) {
            let loads = Arc::new(Loads::default());
            let plan = Plan {
                cpu,
                port: assembly.ports[&cpu].clone(),
                loads: loads.clone(),
                idle,
                arena: assembly.arena.clone(),
                clock: clock.clone(),
                builds,
            };
            let (ready, is_ready) = mpsc::channel();
            let thread =
                std::thread::Builder::new().name(format!("cpu{cpu}")).spawn(move || work(plan, &ready));
            let thread = match thread {
                Ok(thread) => thread,
                Err(source) => {
                    assembly.main_port.request_stop();
                    threads.join(super::STOP_MAX);
                    return Err(RunError::Thread { cpu, source });
                }
            };
            threads.threads.push((cpu, thread));
            threads.loads.push((cpu, loads));
            started.push(is_ready);
        }
        let mut problem = None;
        for is_ready in started {
            // A thread that ends without a word has panicked, and that ends the process.
            if let Ok(Err(error)) = is_ready.recv() {
                problem.get_or_insert(error);
            }
        }
        match problem {
            None => Ok(threads),
            Some(error) => {
                assembly.main_port.request_stop();
                threads.join(super::STOP_MAX);
                Err(error)
            }
        }
    }

    pub fn loads(&self) -> Vec<(usize, Arc<Loads>)> {
        self.loads.clone()
    }

    /// Waits until all have ended, at most this long. Returns whether they have.
    pub fn join(self, at_most: Duration) -> bool {
        let begun = Instant::now();
        let reactors = || self.threads.iter().map(|(_, thread)| thread);
        while reactors().chain(&self.metadata).any(|thread| !thread.is_finished()) {
            if begun.elapsed() >= at_most {
                return false;
            }
            std::thread::sleep(JOIN_LOOKS_EVERY);
        }
        true
    }
}

fn check_cpus(cpus: &[usize]) -> Result<(), RunError> {
    let available: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
    match cpus.iter().find(|cpu| !available.contains(cpu)) {
        Some(&cpu) => Err(RunError::Cpu { cpu, available }),
        None => Ok(()),
    }
}

/// A broken invariant ends the whole process: nothing else may go on acknowledging as if it had not happened.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// How much the metadata's thread stands back where it shares a reactor's CPU: hosts wait for a reactor, and for a commit only when captures
/// fill up. A tenth of a busy CPU is left to it.
const METADATA_NICENESS: i32 = 10;

/// The thread of the metadata executor. It ends when the group does.
fn start_metadata(executor: MetadataExecutor) -> Result<JoinHandle<()>, RunError> {
    let thread = std::thread::Builder::new().name("metadata".to_owned()).spawn(move || {
        let _guard = AbortOnPanic;
        // Of this thread alone: that is what Linux takes the calling process for.
        if let Err(error) = rustix::process::setpriority_process(None, METADATA_NICENESS) {
            tracing::warn!("the metadata's thread keeps its priority, and may delay the reactors: {error}");
        }
        executor.run();
    });
    thread.map_err(RunError::MetadataThread)
}

fn work(plan: Plan, ready: &mpsc::Sender<Result<(), RunError>>) {
    let _guard = AbortOnPanic;
    if !core_affinity::set_for_current(core_affinity::CoreId { id: plan.cpu }) {
        tracing::warn!("the thread of CPU {} could not be pinned to it; latency will suffer", plan.cpu);
    }
    let cpu = plan.cpu;
    match build(plan) {
        Ok((reactor, line)) => {
            tracing::info!("CPU {cpu}: {line}");
            // Whoever started us may have given up waiting; then there is a request to stop.
            let _ = ready.send(Ok(()));
            drop(reactor.run());
        }
        Err(error) => {
            let _ = ready.send(Err(error));
        }
    }
}

/// The reactor with its actors, and the start-up line: what runs here, and with which features of io_uring.
fn build(plan: Plan) -> Result<(Reactor<Ring>, String), RunError> {
    let mut config = RingConfig::new(vec![plan.arena]);
    config.operations = OPERATIONS_DEFAULT + NbdFront::operations(CONNECTIONS_DEFAULT);
    config.files += NbdFront::files(CONNECTIONS_DEFAULT);
    let mut ring = Ring::new(config, plan.clock, plan.port.clone())?;
    let mut actors = Vec::new();
    for build in plan.builds {
        actors.push(build(&mut ring)?);
    }
    let names: Vec<&str> = actors.iter().map(|actor| actor.name()).collect();
    let idle = match plan.idle {
        IdlePolicy::Spin => "spin".to_owned(),
        IdlePolicy::Adaptive { spin } => format!("adaptive, spinning {} µs", spin.0 / 1000),
        IdlePolicy::Park => "park".to_owned(),
    };
    let line = format!("{}; idle {idle}; {}", names.join(", "), ring.features());
    let mut reactor = Reactor::new(plan.port, ring, plan.idle, plan.loads);
    for actor in actors {
        reactor.add_boxed(actor);
    }
    Ok((reactor, line))
}
