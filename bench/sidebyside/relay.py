"""The network between two sites that delays and loses datagrams: `udp_relay` (examples/), a process of its own."""

import os

from .processes import Failure

READY_PREFIX = "127."


def binary(lockstep):
    """Beside the release binary."""
    relay = os.path.join(os.path.dirname(lockstep), "examples", "udp_relay")
    if not os.access(relay, os.X_OK):
        raise Failure(f"{relay} is not there; `cargo build --release --example udp_relay` makes it")
    return relay


def start(subject, name, listener, one_way_us, lost_ppm):
    """One for as long as the subject runs, before `listener`; returns where that is found through it."""
    bench = subject.bench
    log = bench.path(f"{subject.name.replace(' ', '-')}-{name}.log")
    before = len(_addresses(log))
    argv = [bench.relay, listener, str(one_way_us), str(lost_ppm)]
    process = subject.spawn(name, argv, set(bench.cpus))
    process.wait_for("the relay's address", lambda: len(_addresses(log)) > before)
    return _addresses(log)[-1]


def _addresses(log):
    """What relays have printed when they were ready: each appends to the same log."""
    if not os.path.exists(log):
        return []
    with open(log) as file:
        return [line for line in file.read().split("\n")[:-1] if line.startswith(READY_PREFIX)]
