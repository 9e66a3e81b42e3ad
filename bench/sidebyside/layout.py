"""What all subjects share: the folder, the sizes, and who runs on which CPU."""

import os

from .load import fio

MIB = 1 << 20


class Bench:
    def __init__(self, directory, binary, size_mib, journal_mib, cache_mib, layout="free", idle=None):
        self.directory = directory
        self.lockstep = binary
        self.size_bytes = size_mib * MIB
        self.journal_bytes = journal_mib * MIB
        self.cache_bytes = cache_mib * MIB
        self.layout = layout
        # Lockstep's idle policy; without, chosen by whether a site shares its CPU.
        self.idle = idle
        # Lockstep's sites once they are formatted, by whether they have a peer.
        self.pairs = {}
        self.cpus = sorted(os.sched_getaffinity(0))
        everything = set(self.cpus)
        first, last = {self.cpus[0]}, {self.cpus[-1]}
        # Reactors are pinned in any layout.
        self.lockstep_primary, self.lockstep_secondary = first, last
        if layout == "apart":
            # The load's host would not run on the primary; with two CPUs it shares the secondary's.
            self.cpus_primary, self.cpus_secondary = first, last
            self.cpus_load = set(self.cpus[1:]) or first
        else:
            self.cpus_primary = self.cpus_secondary = self.cpus_load = everything

    def path(self, name):
        return os.path.join(self.directory, name)

    def fio(self, workload, target, seconds, seed):
        return fio(workload, target, seconds, self.size_bytes, self.cpus_load, seed)

    def placement(self):
        primary, secondary, load = (
            ",".join(map(str, sorted(cpus))) for cpus in (self.cpus_primary, self.cpus_secondary, self.cpus_load)
        )
        text = f'placement "{self.layout}": primary on CPU {primary}, secondary on {secondary}, load on {load}'
        if self.layout != "apart":
            text += (
                f"; Lockstep's sites pinned to {sorted(self.lockstep_primary)} and {sorted(self.lockstep_secondary)}"
            )
        return text
