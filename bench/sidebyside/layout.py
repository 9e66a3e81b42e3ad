"""What all subjects share: the folder, the sizes, and who runs on which CPU."""

import os
from typing import NamedTuple

from .load import fio

MIB = 1 << 20


class Placement(NamedTuple):
    """CPUs that the processes of a subject, and the load, may run on."""

    primary: set
    secondary: set
    load: set


class Bench:
    def __init__(self, directory, binary, size_mib, journal_mib, cache_mib, layout="free", idle=None):
        self.directory = directory
        self.lockstep = binary
        self.size_bytes = size_mib * MIB
        self.journal_bytes = journal_mib * MIB
        self.cache_bytes = cache_mib * MIB
        self.differential_bytes = 16 * MIB
        self.layout = layout
        # Lockstep's idle policy, if not `adaptive`.
        self.idle = idle
        # Lockstep's sites once they are formatted, by whether they have a peer.
        self.pairs = {}
        self.cpus = sorted(os.sched_getaffinity(0))
        everything = set(self.cpus)
        first, last = {self.cpus[0]}, {self.cpus[-1]}
        # Reactors are pinned in any layout.
        self.lockstep_primary, self.lockstep_secondary = first, last
        # The load's host would not run on the primary.
        apart = Placement(first, last, set(self.cpus[1:]) or first)
        # Where two sites leave no CPU to the load, the kernel may place everything that does not pin itself.
        crowded = layout == "free" and len(everything) <= 2
        self._placements = {1: apart, 2: Placement(everything, everything, everything) if crowded else apart}

    def path(self, name):
        return os.path.join(self.directory, name)

    def placement_of(self, sites):
        """Where a subject of one or two processes runs, and the load beside it."""
        return self._placements[sites]

    def fio(self, workload, target, seconds, seed, cpus):
        return fio(workload, target, seconds, self.size_bytes, cpus, seed)

    def placement(self):
        def named(cpus):
            return ",".join(map(str, sorted(cpus)))

        one, two = self._placements[1], self._placements[2]
        lines = [
            f"one site on CPU {named(one.primary)}, load on {named(one.load)}",
            f"two sites on CPU {named(two.primary)} and {named(two.secondary)}, load on {named(two.load)}",
            f"within that Lockstep's reactors pinned to {named(self.lockstep_primary)} and {named(self.lockstep_secondary)}",
        ]
        return f'placement "{self.layout}", whoever it is: {"; ".join(lines)}'
