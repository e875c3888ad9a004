"""What this process may use of its machine: by its affinity, and by the limits of the container that it runs in."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

from flows.recipe.cluster import Cluster

UNLIMITED = 1 << 60
"""Bytes; what version 1 of control groups says where there is no limit is more."""
SHARE = 0.3
"""Of the free memory, for an embedded Ray's object store: Ray's own."""
SMALL_SHARED = 1 << 30
"""Bytes of /dev/shm below which Ray keeps its objects in files instead; Docker gives 64 MiB."""
LEAST_STORE, IN_FILES = 100 << 20, 2 << 30
"""Bytes of an object store: the least, and the most that is kept in files unless a recipe says more."""


@dataclass(frozen=True)
class Limits:
    affinity: int
    """CPUs that the process may run on."""
    quota: float
    """Time of how many CPUs its container may take; infinite without one."""
    machine: int
    """Bytes of memory of the machine."""
    memory: int
    """Bytes of memory it may have in all."""
    free: int
    """Bytes of these that nobody uses."""
    shared: int
    """Bytes free in /dev/shm."""

    @property
    def cpus(self) -> float:
        return min(self.affinity, self.quota)

    @property
    def whole_cpus(self) -> int:
        """At least one."""
        return max(1, int(self.cpus))


def object_store(cluster: Cluster, here: Limits) -> int:
    """Bytes of an embedded Ray's object store: what the recipe says, or a share of what is free and fits /dev/shm."""
    if cluster.object_store_gib is not None:
        return int(cluster.object_store_gib * 2**30)
    room = here.shared * 0.95 if here.shared >= SMALL_SHARED else IN_FILES
    return max(LEAST_STORE, int(min(SHARE * here.free, room)))


def limits(root: Path = Path("/")) -> Limits:
    """Those of this process, as the files below `root` (`proc`, `sys`, `dev`) tell them."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    there = psutil.virtual_memory()
    memory, free = there.total, there.available
    for folder in _control_groups(root, "memory"):
        limit, used = _memory(folder)
        memory = min(memory, limit)
        free = min(free, max(0, limit - used))
    quota = min(map(_quota, _control_groups(root, "cpu")), default=math.inf)
    return Limits(affinity, quota, there.total, memory, free, _shared(root))


def bound_threads() -> None:
    """Lets libraries that count a machine's CPUs, such as torch, start as many threads as the container's quota allows.

    To be called before they are imported; they see the affinity themselves.
    """
    here = limits()
    if here.quota < here.affinity:
        os.environ.setdefault("OMP_NUM_THREADS", str(here.whole_cpus))


def _control_groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the groups that this process is in, of either version, and of those above them: each may limit it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        parts = PurePosixPath(path.lstrip("/")).parts
        yield mount  # all that a container sees of its own group, whatever the path says
        if ".." not in parts:
            yield from (mount.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1))


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _quota(group: Path) -> float:
    """CPUs; infinite where the group has no quota."""
    told = _words(group / "cpu.max") or _words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us")
    if len(told) == 2 and all(word.isdecimal() for word in told) and int(told[1]):
        return int(told[0]) / int(told[1])
    return math.inf


def _memory(group: Path) -> tuple[int, int]:
    """Bytes that the group may have, and that it uses without what is only cached."""
    limit = _number(group / "memory.max") or _number(group / "memory.limit_in_bytes")
    if not limit:
        return UNLIMITED, 0
    used = _number(group / "memory.current") or _number(group / "memory.usage_in_bytes")
    about = _words(group / "memory.stat")
    stated = dict(zip(about[::2], about[1::2], strict=False))
    cached = stated.get("total_inactive_file") or stated.get("inactive_file") or "0"
    return limit, max(0, used - int(cached))


def _number(path: Path) -> int:
    """0 where there is none."""
    words = _words(path)
    return int(words[0]) if words and words[0].isdecimal() else 0


def _shared(root: Path) -> int:
    try:
        about = os.statvfs(root / "dev/shm")
    except OSError:
        return 0
    return about.f_bavail * about.f_frsize
