"""What is measured and which ratios are wanted: the plain run, `--full`, and `--quick`."""

from .load import Workload

KIB = 1 << 10

PAIR = "lockstep pair"
ALONE = "lockstep alone"
IN_PROCESS = "lockstep in process"
MIRROR = "qemu mirror"
QEMU = "qemu-storage-daemon"
NBDKIT = "nbdkit file"
RAW = "raw io_uring"

# A site holds its volume in its cache, and has read it before a load begins; the others are given no such memory.
OF_READS = "Lockstep reads from its warm cache, nbdkit file from the page cache, QEMU and raw io_uring from the disk by O_DIRECT"


def random_write(depth):
    return Workload("randwrite", 4 * KIB, depth)


PLAIN = [random_write(1), random_write(32), random_write(128)]
FULL = [
    *[random_write(depth) for depth in (1, 8, 32, 128)],
    *[Workload("randread", 4 * KIB, depth) for depth in (1, 8, 32, 128)],
    *[Workload("randrw", 4 * KIB, depth, 70) for depth in (1, 8, 32, 128)],
    *[Workload("write", 128 * KIB, depth) for depth in (1, 8, 32)],
    *[Workload("read", 128 * KIB, depth) for depth in (1, 8, 32)],
]

# In the plain run, depth 128 is only asked of the load inside the process.
PLAIN_DEPTHS = {IN_PROCESS: (1, 32, 128)}
PLAIN_DEPTHS_OTHERS = (1, 32)


def applies(subject, workload, full):
    return full or workload.depth in PLAIN_DEPTHS.get(subject, PLAIN_DEPTHS_OTHERS)


def in_round(subjects, round_number):
    """Each round begins with another one, so that nobody is always the first, or the last."""
    first = (round_number - 1) % len(subjects)
    return subjects[first:] + subjects[:first]


def remarks(workloads):
    """What is to be known of a workload's figures, by its name."""
    return {workload.name: OF_READS for workload in workloads if workload.reads}


def compared(over, under, workload):
    if not workload.reads:
        return f"{over} / {under}"
    return f"{over} (warm cache) / {under} ({'page cache' if under == NBDKIT else 'O_DIRECT'})"


def wanted(workloads):
    one, many, most = (random_write(depth).name for depth in (1, 32, 128))
    rows = [
        (f"{PAIR} / {MIRROR}", PAIR, one, MIRROR, one, "IOPS", "at least", 2.5),
        (f"{PAIR} / {MIRROR}", PAIR, many, MIRROR, many, "IOPS", "at least", 3.0),
        (f"{PAIR} / {MIRROR}", PAIR, one, MIRROR, one, "p99.9", "at most", 0.5),
        (f"{PAIR} / {MIRROR}", PAIR, many, MIRROR, many, "p99.9", "at most", 0.5),
        (f"{ALONE} / {QEMU}", ALONE, one, QEMU, one, "IOPS", "at least", 1.5),
        (f"{ALONE} / {QEMU}", ALONE, many, QEMU, many, "IOPS", "at least", 2.5),
        (f"{ALONE} / {NBDKIT}", ALONE, one, NBDKIT, one, "IOPS", "at least", None),
        (f"{ALONE} / {NBDKIT}", ALONE, many, NBDKIT, many, "IOPS", "at least", None),
        (f"{IN_PROCESS} / {RAW}", IN_PROCESS, one, RAW, one, "IOPS", "at least", 0.8),
        (f"{IN_PROCESS} / {RAW}", IN_PROCESS, many, RAW, many, "IOPS", "at least", 0.75),
        (f"{IN_PROCESS} at QD128 / {RAW} at QD32", IN_PROCESS, most, RAW, many, "IOPS", "at least", 1.0),
        (f"{IN_PROCESS} / {RAW}", IN_PROCESS, one, RAW, one, "p99.9", "at most", 2.0),
    ]
    known = {(row[1], row[2], row[5]) for row in rows}
    for workload in workloads:
        for over, under in ((PAIR, MIRROR), (ALONE, QEMU), (ALONE, NBDKIT), (IN_PROCESS, RAW)):
            for measure in ("IOPS", "p99.9"):
                if (over, workload.name, measure) not in known:
                    direction = "at least" if measure == "IOPS" else "at most"
                    what = compared(over, under, workload)
                    rows.append((what, over, workload.name, under, workload.name, measure, direction, None))
    return rows
