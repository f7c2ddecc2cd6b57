"""How much of a cluster's machines a teacher may use: pure numbers, which need no cluster."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from jobs.supervisor import PARTS_IN_FLIGHT

__all__ = ["Machine", "Share", "ShareRule", "auto_teachers", "machine_for_cpu_teacher"]

GROUPS_PER_CPU = 2  # of a part: one is made, and as many wait
LABELLED = 2  # of a part: what its teacher labels has left the window, but not the object store
STORE_SHARE = 0.5  # of a machine's object store; what is left keeps Ray from spilling to its disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine of the cluster, as Ray counts it."""

    cpus: int
    gpus: int
    store_bytes: float  # of its object store
    is_head: bool = False


Machines = Mapping[str, Machine]
"""Those that are alive, by Ray's number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one teacher may use of its machine and of the cluster."""

    threads: int
    window: int  # groups of a part that are augmented at a time
    local: int  # of these, how many its own machine takes first; 0 leaves all to Ray


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareRule:
    """What shares depend on beside the machines."""

    group_bytes: int  # of an augmented group
    window_bytes: float  # of all groups that a teacher waits for
    parts: int = PARTS_IN_FLIGHT  # of a teacher

    def share(self, machines: Machines, home: str, here: int, teachers: int) -> Share:
        """Return the share of a teacher at ``home``, one of ``here`` there and ``teachers`` in all.

        A machine that is gone by now counts as one CPU.
        """
        own = machines.get(home, Machine(cpus=1, gpus=0, store_bytes=math.inf))
        own_cpus = own.cpus / here
        room = STORE_SHARE * own.store_bytes / here
        wanted = self._window(machines, own_cpus, teachers)
        window = max(1, min(wanted, self._fitting(room)))
        # A quarter more than its cores, so that none waits for the next task.
        local = math.ceil(1.25 * own_cpus / self.parts) if len(machines) > 1 else 0
        return Share(threads=max(1, int(own_cpus)), window=window, local=min(window, local))

    def _window(self, machines: Machines, own_cpus: float, teachers: int) -> int:
        """Return how many groups of a part keep all cores busy, or as many as are allowed."""
        all_cpus = sum(one.cpus for one in machines.values()) / teachers
        wanted = math.ceil(GROUPS_PER_CPU * max(own_cpus, all_cpus))
        return max(1, min(wanted, self._fitting(self.window_bytes)))

    def _fitting(self, room: float) -> int:
        return int(min(room, 1e18) / self.parts / self.group_bytes) - LABELLED

    def store_bytes(self, machines: Machines, home: str, here: int, teachers: int) -> float:
        """Return how large a machine's object store is to be, with ``here`` of all teachers.

        In a smaller one augmentation waits for room. One without a teacher holds what its cores
        have made until that is fetched.
        """
        own = machines[home]
        if not here:
            return GROUPS_PER_CPU * own.cpus * self.group_bytes
        groups = self.parts * (self._window(machines, own.cpus / here, teachers) + LABELLED)
        return groups * self.group_bytes * here / STORE_SHARE


def auto_teachers(machines: Machines, *, on_gpu: bool, per_gpu: int = 1) -> int:
    """Return how many teachers the machines are good for: some a GPU, or one a machine with CPUs.

    The head labels nothing on its CPUs unless it is alone.
    """
    if on_gpu:
        return per_gpu * sum(one.gpus for one in machines.values())
    return max(1, len(_for_cpu_teachers(machines)))


def machine_for_cpu_teacher(machines: Machines, there: Mapping[str, int]) -> str | None:
    """Return where the next teacher without a GPU has most CPUs, None if that is all the same.

    ``there`` counts the teachers of each machine.
    """
    found = _for_cpu_teachers(machines)
    if len(machines) < 2 or not found:
        return None
    return max(found, key=lambda name: (found[name].cpus / (1 + there.get(name, 0)), name))


def _for_cpu_teachers(machines: Machines) -> Machines:
    with_cpus = {name: one for name, one in machines.items() if one.cpus > 0}
    others = {name: one for name, one in with_cpus.items() if not one.is_head}
    return others or with_cpus
