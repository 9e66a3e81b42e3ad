"""Hosts that write at a fixed rate for as long as something else happens, and when each of their writes was under way."""

import os
import signal
import subprocess
import time

from .processes import Failure, Process, run

# fio's clock is then the one of `time.monotonic()`.
CLOCK_MONOTONIC = 1
# More than a rate of some thousands leaves unanswered while a peer is being missed, so that nobody waits for a turn to write.
DEPTH = 512
STOP_SECONDS_MAX = 30


class Hosts:
    def __init__(self, bench, target, writes_a_second, seed, cpus):
        self.prefix = bench.path("hosts")
        self.writes_a_second = writes_a_second
        for name in os.listdir(bench.directory):
            if name.startswith("hosts_"):
                os.unlink(bench.path(name))
        argv = [
            *["fio", "--name=hosts", *target, "--rw=randwrite", "--bs=4k", f"--size={bench.size_bytes}", f"--randseed={seed}"],
            *["--time_based", "--runtime=86400", f"--iodepth={DEPTH}", "--norandommap"],
            *[f"--rate_iops={writes_a_second}", "--rate_process=poisson"],
            *[f"--write_lat_log={self.prefix}", "--log_alternate_epoch=1", f"--log_alternate_epoch_clock_id={CLOCK_MONOTONIC}"],
        ]
        self.process = Process(argv, cpus, bench.path("hosts.log"))

    def stop(self):
        """Ends them; returns when each write began and ended."""
        child = self.process.child
        if child.poll() is not None:
            raise Failure(f"the hosts ended by themselves:\n{self.process.tail()}")
        child.send_signal(signal.SIGINT)
        try:
            child.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            raise Failure(f"fio did not stop within {STOP_SECONDS_MAX} s:\n{self.process.tail()}") from None
        finally:
            self.process.stop()
        lives = []
        with open(f"{self.prefix}_lat.1.log") as file:
            for line in file:
                ended_ms, nanoseconds = line.split(",", 2)[:2]
                ended = int(ended_ms) / 1e3
                lives.append((ended - int(nanoseconds) / 1e9, ended))
        return Lives(lives)

    def kill(self):
        self.process.stop()


class Lives:
    """Writes, each with its beginning and its end."""

    def __init__(self, lives):
        self.lives = lives

    def under_way(self, since, until):
        """Milliseconds that the writes took which were under way at any time between the two, shortest first."""
        return sorted((ended - begun) * 1e3 for begun, ended in self.lives if begun < until and ended >= since)


def percentile(milliseconds, share):
    if not milliseconds:
        raise Failure("no write was under way where latencies are looked for")
    return milliseconds[min(len(milliseconds) - 1, int(len(milliseconds) * share / 100))]


def change(target, size_bytes, changed_bytes, block_bytes, seed, cpus):
    """Writes so many bytes of the volume at random places, none of them twice."""
    argv = [
        *["fio", "--name=change", *target, "--rw=randwrite", f"--bs={block_bytes}", "--iodepth=16"],
        *[f"--size={size_bytes}", f"--io_size={changed_bytes}", f"--randseed={seed}", "--refill_buffers=1"],
    ]
    begun = time.monotonic()
    run(argv, cpus, 600)
    return time.monotonic() - begun
