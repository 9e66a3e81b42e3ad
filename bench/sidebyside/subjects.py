"""The systems side by side, other than Lockstep: each starts on files that are there, and offers fio a target.

A subject is started afresh for every measurement, so that an idle one costs the others nothing; its files stay.
"""

import json
import os
import socket
import time

from .processes import Failure, Process, free_port, listens, run

FILL_BLOCK_BYTES = 1 << 20


def fill(path, size_bytes):
    """Writes every block with bytes that no layer can shorten, so that no measurement allocates or converts extents."""
    run(
        [
            "fio",
            "--name=fill",
            f"--filename={path}",
            "--ioengine=io_uring",
            "--direct=1",
            "--rw=write",
            f"--bs={FILL_BLOCK_BYTES}",
            "--iodepth=4",
            f"--size={size_bytes}",
            "--refill_buffers=1",
            "--end_fsync=1",
            "--output-format=terse",
        ],
        seconds_max=600,
    )


def copy(source, target):
    """A second file with the same blocks, all of them written."""
    run(["dd", f"if={source}", f"of={target}", "bs=1M", "iflag=direct", "oflag=direct", "conv=fsync"], seconds_max=600)


class Subject:
    """`name` for tables; `processes`, one a site, run between `start` and `stop`."""

    name = ""
    sites_count = 1

    def __init__(self, bench):
        self.bench = bench
        self.processes = []

    def placement(self):
        return self.bench.placement_of(self.sites_count)

    def prepare(self):
        """Makes its files, once a run."""

    def start(self):
        """Starts its processes."""

    def ramp(self, workload):
        """Before a measurement, a second of its load that is not measured: fio has one by itself."""

    def target(self):
        """fio's options for it."""
        raise NotImplementedError

    def measure(self, workload, seconds, seed):
        return self.bench.fio(workload, self.target(), seconds, seed, self.placement().load)

    def check(self):
        """After a measurement, before `stop`: that it did what it is compared for."""
        for process in self.processes:
            process.check()

    def can(self, workload):
        """Whether the workload makes sense for it."""
        return True

    def remarks(self):
        """Lines for the end of the report."""
        return []

    def stop(self):
        for process in reversed(self.processes):
            process.stop()
        self.processes.clear()

    def cpu_seconds(self):
        return sum(process.cpu_seconds() for process in self.processes)

    def spawn(self, name, argv, cpus):
        log = self.bench.path(f"{self.name.replace(' ', '-')}-{name}.log")
        process = Process(argv, cpus, log)
        self.processes.append(process)
        return process


def nbd_uri(socket_path, export):
    return f"nbd+unix:///{export}?socket={socket_path}"


def nbd_target(socket_path, export):
    return ["--ioengine=nbd", f"--uri={nbd_uri(socket_path, export)}"]


def one_file(bench):
    """The file of everyone who needs just one: they run one after the other."""
    path = bench.path("one.data")
    if not os.path.exists(path):
        fill(path, bench.size_bytes)
    return path


class Raw(Subject):
    """The floor under everything: io_uring and O_DIRECT on a file whose every block is written."""

    name = "raw io_uring"

    def prepare(self):
        self.file = one_file(self.bench)

    def target(self):
        return [f"--filename={self.file}", "--ioengine=io_uring", "--direct=1"]


def _file_nodes(path):
    # The raw format node on top is what an operator gets by default.
    return [
        "--blockdev",
        json.dumps(
            {
                "driver": "file",
                "node-name": "file",
                "filename": path,
                "aio": "io_uring",
                "cache": {"direct": True, "no-flush": False},
            }
        ),
        "--blockdev",
        json.dumps({"driver": "raw", "node-name": "disk", "file": "file", "cache": {"direct": True}}),
    ]


class Qemu(Subject):
    """One qemu-storage-daemon, exporting a file."""

    name = "qemu-storage-daemon"

    def prepare(self):
        self.file = one_file(self.bench)
        self.socket = self.bench.path("qemu.sock")

    def start(self):
        _remove(self.socket)
        process = self.spawn(
            "server",
            [
                "qemu-storage-daemon",
                *_file_nodes(self.file),
                *["--nbd-server", f"addr.type=unix,addr.path={self.socket}"],
                *["--export", "type=nbd,id=export,node-name=disk,name=disk,writable=on"],
            ],
            self.placement().primary,
        )
        process.wait_for("the NBD socket", lambda: listens(self.socket))

    def target(self):
        return nbd_target(self.socket, "disk")


class QemuMirror(Subject):
    """Two of them, the first with a mirror job that answers a write when both hold it."""

    name = "qemu mirror"
    sites_count = 2

    def prepare(self):
        self.files = [self.bench.path("mirror-left.data"), self.bench.path("mirror-right.data")]
        fill(self.files[0], self.bench.size_bytes)
        copy(*self.files)
        self.socket = self.bench.path("mirror.sock")
        self.control = self.bench.path("mirror.qmp")
        self.monitor = None
        self.rounds = 0

    def start(self):
        _remove(self.socket)
        _remove(self.control)
        _remove(self.control + ".right")
        port = free_port()
        right = self.spawn(
            "right",
            [
                "qemu-storage-daemon",
                *_file_nodes(self.files[1]),
                *["--nbd-server", f"addr.type=inet,addr.host=127.0.0.1,addr.port={port}"],
                *["--export", "type=nbd,id=export,node-name=disk,name=disk,writable=on"],
                *["--chardev", f"socket,id=control,path={self.control}.right,server=on,wait=off"],
                *["--monitor", "chardev=control"],
            ],
            self.placement().secondary,
        )
        right.wait_for("the second's NBD port", lambda: _accepts(port))
        self.before_export(right, self.control + ".right")
        remote = {
            "driver": "nbd",
            "node-name": "remote",
            "server": {"type": "inet", "host": "127.0.0.1", "port": str(port)},
            "export": "disk",
        }
        left = self.spawn(
            "left",
            [
                "qemu-storage-daemon",
                *_file_nodes(self.files[0]),
                *["--blockdev", json.dumps(remote)],
                *["--nbd-server", f"addr.type=unix,addr.path={self.socket}"],
                *["--export", "type=nbd,id=export,node-name=disk,name=disk,writable=on"],
                *["--chardev", f"socket,id=control,path={self.control},server=on,wait=off"],
                *["--monitor", "chardev=control"],
            ],
            self.placement().primary,
        )
        left.wait_for("the first's monitor", lambda: os.path.exists(self.control))
        self.monitor = Monitor(self.control)
        device = self.before_mirror()
        self.monitor.ask(
            "blockdev-mirror",
            {
                "job-id": "mirror",
                "device": device,
                "target": "remote",
                "sync": "none",
                "copy-mode": "write-blocking",
            },
        )
        left.wait_for("the mirror job", lambda: self._job()["status"] == "ready")

    def before_export(self, right, control):
        """When the second runs and nobody has connected to it yet; it listens for commands there."""

    def before_mirror(self):
        """When the first runs; returns the node that is mirrored."""
        return "disk"

    def _job(self):
        jobs = self.monitor.ask("query-block-jobs")
        if not jobs:
            raise Failure("the mirror job of qemu-storage-daemon is gone")
        return jobs[0]

    def target(self):
        return nbd_target(self.socket, "disk")

    def check(self):
        super().check()
        job = self._job()
        if job["status"] != "ready" or not job.get("actively-synced", True):
            raise Failure(f"the mirror job of qemu-storage-daemon is not in sync: {job}")

    def stop(self):
        # None of a start that did not come that far.
        monitor, self.monitor = self.monitor, None
        try:
            if monitor:
                monitor.close()
        finally:
            super().stop()
        if not monitor:
            return
        # Once, and outside the measurement: a mirror that does not copy would win every race.
        self.rounds += 1
        if self.rounds == 1:
            run(["cmp", *self.files], seconds_max=120)


class NbdkitFile(Subject):
    """nbdkit's file plugin: an exporter that goes through the page cache, so a floor without durability."""

    name = "nbdkit file"
    plugin = "file"

    def prepare(self):
        self.file = one_file(self.bench)
        self.socket = self.bench.path("nbdkit.sock")

    def start(self):
        _remove(self.socket)
        process = self.spawn(
            "server",
            ["nbdkit", "--foreground", "--unix", self.socket, self.plugin, *self.parameters()],
            self.placement().primary,
        )
        process.wait_for("nbdkit's socket", lambda: listens(self.socket))

    def parameters(self):
        return [f"file={self.file}"]

    def target(self):
        return nbd_target(self.socket, "")


class NbdkitMemory(NbdkitFile):
    """NBD with nothing behind it: what fio's client and the socket cost."""

    name = "nbdkit memory"
    plugin = "memory"

    def prepare(self):
        self.socket = self.bench.path("memory.sock")

    def parameters(self):
        return [str(self.bench.size_bytes)]


class Monitor:
    """QEMU's control socket: one command, one answer; events are skipped."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        self.socket.connect(path)
        self.stream = self.socket.makefile("rw")
        json.loads(self.stream.readline())
        self.ask("qmp_capabilities")

    def ask(self, command, arguments=None):
        self.stream.write(json.dumps({"execute": command, "arguments": arguments or {}}) + "\n")
        self.stream.flush()
        while True:
            answer = json.loads(self.stream.readline() or '{"error": "closed"}')
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise Failure(f"qemu-storage-daemon refused {command}: {answer['error']}")

    def close(self):
        self.stream.close()
        self.socket.close()


def _remove(path):
    if os.path.lexists(path):
        os.unlink(path)


def _accepts(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        time.sleep(0.02)
        return False
    return True
