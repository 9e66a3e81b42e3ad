"""Lockstep as a subject: a synchronous pair, a site alone, and its NBD front with nothing behind it."""

import json
import os
import socket
import threading

from .load import RAMP_SECONDS
from .processes import Failure, free_port, listens, run
from .subjects import Subject, nbd_target

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
WAIT_SECONDS_MAX = 60
WATCH_SECONDS = 0.5
# Of the places of a load that is not measured; those of rounds begin with 1.
RAMP_SEED = 0
# The backlog at a run's end, against the middle's: beyond, destage did not keep up.
BACKLOG_GROWTH_MAX = 1.1


def beside_binary(name):
    return os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), name)


def default_binary():
    return beside_binary("release/lockstep")


class Site:
    """A site's configuration and files."""

    def __init__(self, bench, subject, name, number, role, cpus):
        self.bench = bench
        self.name = name
        self.number = number
        self.role = role
        self.cpus = cpus
        self.directory = bench.path(f"{subject.replace(' ', '-')}-{name}")
        self.config = self.directory + ".toml"
        self.nbd = self.directory + ".nbd"
        self.link = f"127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
        self.peer = None
        # A third that pulls from this site: (site, its fingerprint, where this site listens for it, congestion).
        self.third = None
        # Of a third: (site, its fingerprint, where that is found).
        self.sources = []
        self.differential = "reference"
        self.warm_up = True
        # Long enough for a machine that is both sites and the hosts; not the default of 50 ms.
        self.latency_budget = "2s"
        self.on_peer_loss = "suspend"

    def keygen(self):
        os.makedirs(self.directory)
        argv = [self.bench.lockstep, "keygen", "--identity", f"{self.directory}/identity.pem", "--site", self.name]
        return run(argv).strip()

    def write(self, idle):
        """The configuration, under an idle policy; all else is the same for every subject. Every subject's files are written in full
        beforehand, since unwritten extents would make the filesystem's work a part of what is measured."""
        bench = self.bench
        text = f"""[site]
name = "{self.name}"
id = {self.number}
role = "{self.role}"
directory = "{self.directory}"
control = "{self.directory}.control"
[group]
name = "compared"
latency_budget = "{self.latency_budget}"
on_peer_loss = "{self.on_peer_loss}"
differential = "{self.differential}"
[[volume]]
name = "disk"
size = "{bench.size_bytes >> 20}MiB"
space = "written"
[journal]
size = "{bench.journal_bytes >> 20}MiB"
[differential]
size = "{bench.differential_bytes >> 20}MiB"
space = "written"
[cache]
size = "{bench.cache_bytes >> 20}MiB"
warm_up = {"true" if self.warm_up else "false"}
[nbd]
socket = "{self.nbd}"
[reactors]
cores = [{", ".join(map(str, sorted(self.cpus)))}]
idle = "{idle}"
"""
        if self.peer:
            site, fingerprint = self.peer
            text += f"""[peer]
name = "{site.name}"
id = {site.number}
address = "{site.link}"
fingerprint = "{fingerprint}"
[link]
listen = "{self.link}"
"""
        if self.third:
            site, fingerprint, listen, congestion = self.third
            text += f"""[third]
name = "{site.name}"
id = {site.number}
listen = "{listen}"
fingerprint = "{fingerprint}"
congestion = "{congestion}"
"""
        for site, fingerprint, address in self.sources:
            text += f"""[[source]]
name = "{site.name}"
id = {site.number}
address = "{address}"
fingerprint = "{fingerprint}"
"""
        with open(self.config, "w") as file:
            file.write(text)

    def format(self, again=False):
        self.write("adaptive")
        run([self.bench.lockstep, "format", *(["--force"] if again else []), "--config", self.config], seconds_max=600)

    def status(self):
        """The site's answer on its control socket, as `lockstep status --json` prints it; None while there is none."""
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(5)
            try:
                control.connect(self.directory + ".control")
                control.sendall(b'{"request":"status"}\n')
                with control.makefile() as lines:
                    return json.loads(lines.readline())["status"]
            except (OSError, ValueError, KeyError):
                return None

    def wait(self, goal):
        argv = [self.bench.lockstep, "wait", "--config", self.config, goal, "--timeout", f"{WAIT_SECONDS_MAX}s"]
        run(argv, seconds_max=WAIT_SECONDS_MAX + 10)


class Watch:
    """Keeps a site's status, twice a second, while a load runs."""

    def __init__(self, site):
        self.site = site
        self.seen = []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch)

    def _watch(self):
        while not self.over.wait(WATCH_SECONDS):
            status = self.site.status()
            # Before the load begins and after it has ended, the figures stand still.
            if status and _operations(status) > (_operations(self.seen[-1]) if self.seen else 0):
                self.seen.append(status)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


def _operations(status):
    return status["totals"]["writes"] + status["totals"]["reads"]


def own_load(bench, target, workload, seconds, seed, cpus):
    """Drives `target` (an NBD address, or a site's configuration) by `lockstep load`; returns what fio would, and stages."""
    argv = [
        *[bench.lockstep, "load", *target, "--format", "json"],
        *["--pattern", "random" if workload.pattern.startswith("rand") else "sequential"],
        *["--block", f"{workload.block_bytes}B", "--depth", str(workload.depth)],
        *["--read", "100" if workload.pattern in ("randread", "read") else "0"],
        *["--seconds", str(seconds), "--seed", str(seed)],
    ]
    if workload.rate is not None:
        argv += ["--rate", str(workload.rate)]
    output = run(argv, cpus, seconds + 120)
    result = json.loads(output[output.index("{") :])
    if result["errors"]:
        raise Failure(f"{workload.name}: {result['errors']} operations failed")
    return {
        "iops": result["iops"],
        "bytes_per_second": (result["read_bytes"] + result["written_bytes"]) / result["seconds"],
        "latency_us": result["latency_us"]["client_read" if result["reads"] else "client_write"],
        "stages": result["stages"],
    }


class Pair(Subject):
    """Two sites; the primary's NBD socket is driven."""

    name = "lockstep pair"
    sites_count = 2
    with_peer = True

    def prepare(self):
        bench = self.bench
        if not bench.lockstep or not os.access(bench.lockstep, os.X_OK):
            raise Failure(f"{bench.lockstep} is not there; `cargo build --release` makes it, --lockstep names another")
        self.checks = []
        # The load inside uses the files of the pair: they run one after the other.
        self.sites = bench.pairs.get(self.with_peer)
        if self.sites is None:
            self.sites = bench.pairs[self.with_peer] = self._format()
        self.left = self.sites[0]

    def _format(self):
        bench = self.bench
        # One reactor a site: on two CPUs, more would only displace the peer and the load.
        left = Site(bench, self.name, "left", 1, "primary", bench.lockstep_primary)
        sites = [left]
        if self.with_peer:
            right = Site(bench, self.name, "right", 2, "secondary", bench.lockstep_secondary)
            sites.append(right)
            fingerprints = [site.keygen() for site in sites]
            left.peer = (right, fingerprints[1])
            right.peer = (left, fingerprints[0])
        for site in sites:
            site.format()
            # Formatted volumes are sparse where the filesystem allows it; the others' files are written too.
            self._write_volume(site)
        return sites

    def _write_volume(self, site):
        path = os.path.join(site.directory, "disk.volume")
        size = os.path.getsize(path)
        run(["dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={size >> 20}", "conv=notrunc,fsync", "oflag=direct"], seconds_max=600)

    def spawn_site(self, site):
        # Reactors pin themselves within that; what a site runs beside them has no more CPUs than the others' processes.
        at = self.placement()
        cpus = at.primary if site.role == "primary" else at.secondary
        return self.spawn(site.name, [self.bench.lockstep, "run", "--config", site.config], cpus)

    def idle(self, site):
        # While it waits, an adaptive reactor offers its CPU to whoever else would run there.
        return self.bench.idle or "adaptive"

    def start(self):
        for site in reversed(self.sites):
            site.write(self.idle(site))
            process = self.spawn_site(site)
            process.wait_for(f"{site.name}'s NBD socket", lambda: listens(site.nbd))
        if self.with_peer:
            self.left.wait("--in-sync")
        for site in self.sites:
            site.wait("--warm")

    def target(self):
        return nbd_target(self.left.nbd, "disk")

    def measure(self, workload, seconds, seed):
        with Watch(self.left) as watch:
            sample = self.drive(workload, seconds, seed)
        if not watch.seen:
            raise Failure(f"{self.name}: the primary did not show its status during the load")
        middle, end = watch.seen[len(watch.seen) // 2], watch.seen[-1]
        for key in ("destaged_bytes", "journal_bytes", "journal_batches"):
            sample[key] = end["totals"][key]
        sample["backlog_middle_bytes"] = middle["local_pending"]["bytes"]
        sample["backlog_end_bytes"] = end["local_pending"]["bytes"]
        if self.with_peer and (end["solo"] or end["peer"]["state"] not in ("in_sync", "catching_up")):
            raise Failure(f"{self.name}: the sites fell out of lockstep: {end['peer']}")
        self.checks.append((workload.name, sample))
        return sample

    def drive(self, workload, seconds, seed):
        return self.bench.fio(workload, self.target(), seconds, seed, self.placement().load)

    def remarks(self):
        lines = []
        for workload in dict.fromkeys(name for name, _ in self.checks):
            samples = [sample for name, sample in self.checks if name == workload]
            destaged = sum(sample["destaged_bytes"] for sample in samples) / len(samples)
            journaled = sum(sample["journal_bytes"] for sample in samples) / len(samples)
            growth = max(s["backlog_end_bytes"] / max(s["backlog_middle_bytes"], 1) for s in samples)
            worst = max(s["backlog_end_bytes"] for s in samples)
            if not destaged:
                continue
            steady = "steady" if growth <= BACKLOG_GROWTH_MAX else "GROWING"
            lines.append(
                f"{workload}: {destaged / 2**20:,.0f} MiB destaged and {journaled / 2**20:,.0f} MiB journaled a run;"
                f" backlog at the end at most {growth:.2f} of mid-run ({worst / 2**20:,.0f} MiB): {steady}"
            )
        return lines


class Alone(Pair):
    """One site without a peer."""

    name = "lockstep alone"
    sites_count = 1
    with_peer = False


class InProcess(Pair):
    """The pair again, with the load inside the primary, below the NBD front."""

    name = "lockstep in process"

    def can(self, workload):
        # Its percentiles are by direction, which a mix would have to merge.
        return workload.read_percent is None

    def start(self):
        for site in self.sites:
            site.write(self.idle(site))
        right = self.sites[1]
        process = self.spawn_site(right)
        process.wait_for(f"{right.name}'s NBD socket", lambda: listens(right.nbd))
        right.wait("--warm")

    def ramp(self, workload):
        self.drive(workload, RAMP_SECONDS, RAMP_SEED)

    def drive(self, workload, seconds, seed):
        before = sum(os.times()[2:4])
        sample = own_load(self.bench, ["--config", self.left.config], workload, seconds, seed, self.placement().primary)
        # The primary ends with its load, and is none of `processes`.
        sample["inside_cpu_seconds"] = sum(os.times()[2:4]) - before
        return sample

    def remarks(self):
        lines = super().remarks()
        if self.checks:
            lines.append(
                f"the {RAMP_SECONDS} s before a measurement warms the secondary and the disk; the primary then starts again, with a warm cache and"
                " nothing to destage, where fio's go on. Target CPU is of both sites, with the load, and the primary's start and end"
            )
        return lines


class NbdMemory(Subject):
    """Lockstep's NBD front over memory: no target behind this front can be faster."""

    name = "lockstep nbd to memory"

    def prepare(self):
        self.socket = self.bench.path("front.sock")
        self.binary = os.path.join(os.path.dirname(self.bench.lockstep), "examples", "nbd_memory")
        if not os.access(self.binary, os.X_OK):
            raise Failure(f"{self.binary} is not there; `cargo build --release --example nbd_memory` makes it")

    def start(self):
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        argv = [self.binary, self.socket, str(self.bench.size_bytes >> 20), "adaptive"]
        process = self.spawn("front", argv, self.placement().primary)
        process.wait_for("the front's socket", lambda: listens(self.socket))

    def target(self):
        return nbd_target(self.socket, "disk")
