"""The machine that the figures belong to, and how much of it others used meanwhile."""

import os
import platform
import shutil
import subprocess

from .processes import TICKS_PER_SECOND


def _first_line(argv):
    if shutil.which(argv[0]) is None:
        return None
    result = subprocess.run(argv, capture_output=True, text=True, timeout=10)
    lines = (result.stdout + result.stderr).splitlines()
    return lines[0].strip() if lines else None


def _read(path):
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return None


def _cpu_model():
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _memory_bytes():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _disk(directory):
    number = os.stat(directory).st_dev
    folder = os.path.realpath(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not os.path.isdir(os.path.join(folder, "queue")):
        folder = os.path.dirname(folder)
    mount = _first_line(["findmnt", "-no", "FSTYPE,OPTIONS", "-T", directory])
    return {
        "device": os.path.basename(folder),
        "bytes": int(_read(f"{folder}/size") or 0) * 512,
        "scheduler": _read(f"{folder}/queue/scheduler"),
        "write_cache": _read(f"{folder}/queue/write_cache"),
        "filesystem": mount,
    }


def describe(directory, lockstep):
    governor = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "cpu": _cpu_model(),
        "cpus": sorted(os.sched_getaffinity(0)),
        "governor": governor or "not visible (virtual machine)",
        "memory_bytes": _memory_bytes(),
        "kernel": platform.release(),
        "disk": _disk(directory),
        "versions": {
            "lockstep": _first_line([lockstep, "--version"]) if lockstep else None,
            "commit": _first_line(["git", "-C", os.path.dirname(__file__), "describe", "--always", "--dirty"]),
            "fio": _first_line(["fio", "--version"]),
            "qemu-storage-daemon": _first_line(["qemu-storage-daemon", "--version"]),
            "nbdkit": _first_line(["nbdkit", "--version"]),
        },
    }


def cpu_times():
    """Seconds of all CPUs together: (busy, stolen by the hypervisor)."""
    with open("/proc/stat") as file:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + irq + softirq) / TICKS_PER_SECOND, steal / TICKS_PER_SECOND
