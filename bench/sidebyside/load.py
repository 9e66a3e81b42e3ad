"""One measurement: a workload, driven by fio, and what came of it."""

import json
from dataclasses import dataclass

from .processes import Failure, run

RAMP_SECONDS = 1
PERCENTILES = (50, 99, 99.9, 99.99)


@dataclass(frozen=True)
class Workload:
    pattern: str
    block_bytes: int
    depth: int
    read_percent: int | None = None
    # Operations a second of an open loop. Of `lockstep load` alone: fio waits for all that are under way before it sleeps until the
    # next is due, so that what a stall holds up is begun after it, and counts from then.
    rate: int | None = None

    @property
    def name(self):
        if self.rate is not None:
            return f"{self.block_bytes >> 10} KiB {self.pattern}, {self.rate:,} a second"
        mix = f" {self.read_percent}/{100 - self.read_percent}" if self.read_percent is not None else ""
        return f"{self.block_bytes >> 10} KiB {self.pattern}{mix} QD{self.depth}"

    @property
    def reads(self):
        return self.pattern in ("randread", "read") or self.read_percent is not None

    @property
    def kind(self):
        return (self.pattern, self.block_bytes, self.read_percent)


def fio(workload, target, seconds, size_bytes, cpus, seed):
    """Drives `target` (fio's own options) and returns IOPS, bytes a second and latencies in microseconds."""
    assert workload.rate is None
    argv = [
        "fio",
        "--name=compare",
        *target,
        f"--rw={workload.pattern}",
        f"--bs={workload.block_bytes}",
        f"--iodepth={workload.depth}",
        f"--size={size_bytes}",
        "--time_based",
        f"--ramp_time={RAMP_SECONDS}",
        f"--runtime={seconds}",
        "--norandommap",
        f"--randseed={seed}",
        # From submission to completion: the engines split it differently.
        "--clat_percentiles=0",
        "--lat_percentiles=1",
        "--percentile_list=" + ":".join(map(str, PERCENTILES)),
        "--unified_rw_reporting=mixed",
        "--output-format=json",
    ]
    if workload.read_percent is not None:
        argv.append(f"--rwmixread={workload.read_percent}")
    output = run(argv, cpus, seconds + RAMP_SECONDS + 60)
    # fio may put notices before the JSON.
    job = json.loads(output[output.index("{") :])["jobs"][0]
    if job["error"]:
        raise Failure(f"fio reported error {job['error']} for {workload.name}")
    side = job["mixed"]
    latency = side["lat_ns"]
    shares = {float(key): value for key, value in latency["percentile"].items()}
    return {
        "iops": side["iops"],
        "bytes_per_second": side["bw_bytes"],
        "latency_us": {
            **{f"p{share:g}": shares[share] / 1e3 for share in PERCENTILES},
            "max": latency["max"] / 1e3,
        },
        "load_cpus_busy": (job["usr_cpu"] + job["sys_cpu"]) / 100,
    }
