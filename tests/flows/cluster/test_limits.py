"""What a container, or an affinity, leaves of a machine is what is used of it."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from flows.cluster import limits as module
from flows.cluster.limits import Limits, bound_threads, limits, object_store
from flows.commands import doctor
from flows.recipe.cluster import Cluster

GIB = 1 << 30
HERE = Limits(affinity=8, quota=math.inf, machine=64 * GIB, memory=64 * GIB, free=40 * GIB, shared=32 * GIB)


def container(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    """A root whose /proc and /sys tell of these control groups."""
    for name, text in {"proc/self/cgroup": cgroup, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_machine_without_limits(tmp_path: Path) -> None:
    here = limits(tmp_path)
    assert (here.cpus, here.quota) == (len(os.sched_getaffinity(0)), math.inf)
    assert here.memory == here.machine == psutil.virtual_memory().total
    assert here.shared == 0, "without /dev/shm there is no room in it"


def test_version_2_of_control_groups(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/cpu.max": "50000 100000\n",
        "sys/fs/cgroup/memory.max": f"{GIB}\n",
        "sys/fs/cgroup/memory.current": f"{GIB // 2}\n",
        "sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {GIB // 4}\nactive_file 3\n",
    }
    here = limits(container(tmp_path, "0::/\n", files))
    assert (here.quota, here.cpus, here.whole_cpus) == (0.5, 0.5, 1)
    assert (here.memory, here.free) == (GIB, GIB - GIB // 4)


def test_a_limit_of_a_group_above_counts_too(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/user.slice/cpu.max": "75000 50000\n",
        "sys/fs/cgroup/user.slice/memory.max": "max\n",
        "sys/fs/cgroup/user.slice/run/cpu.max": "max 100000\n",
        "sys/fs/cgroup/user.slice/run/memory.max": f"{GIB // 2}\n",
    }
    here = limits(container(tmp_path, "0::/user.slice/run\n", files))
    assert (here.quota, here.memory) == (1.5, GIB // 2)


@pytest.mark.parametrize("path", ["/docker/0123", "/../.."], ids=["another place", "outside"])
def test_version_1_of_control_groups_as_a_container_sees_them(tmp_path: Path, path: str) -> None:
    files = {
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GIB}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB * 2}\n",
        "sys/fs/cgroup/memory/memory.stat": "cache 5\n",
    }
    here = limits(container(tmp_path, f"4:memory:{path}\n3:cpu,cpuacct:{path}\n", files))
    assert (here.quota, here.memory, here.free) == (1.0, GIB, 0)


@pytest.mark.parametrize("text", ["", "max", "-1", "0 0", "x y"])
def test_what_is_no_limit(tmp_path: Path, text: str) -> None:
    files = {f"sys/fs/cgroup/{name}": text for name in ("cpu.max", "memory.max", "memory.current", "memory.stat")}
    here = limits(container(tmp_path, "0::/\n", files))
    assert (here.quota, here.memory) == (math.inf, here.machine)


def test_ray_keeps_its_objects_where_there_is_room() -> None:
    assert object_store(Cluster(), HERE) == int(0.3 * 40 * GIB)
    assert object_store(Cluster(), replace(HERE, shared=2 * GIB)) == int(0.95 * 2 * GIB)
    assert object_store(Cluster(), replace(HERE, shared=64 << 20)) == module.IN_FILES
    assert object_store(Cluster(), replace(HERE, free=0)) == module.LEAST_STORE
    assert object_store(Cluster(object_store_gib=0.5), replace(HERE, shared=0)) == GIB // 2


def test_the_doctor_says_what_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert doctor._cpus(HERE) == ("CPUs", True, "8")
    assert doctor._cpus(replace(HERE, affinity=1)) == ("CPUs", True, "1 of 8, by this process's affinity")
    assert doctor._cpus(replace(HERE, quota=1.5)) == ("CPUs", True, "1.5 of 8, by the container's quota")
    assert doctor._memory(HERE) == ("memory", True, "40.0 GiB free of 64.0 GiB")
    small = replace(HERE, memory=2 * GIB, free=GIB)
    assert doctor._memory(small) == ("memory", False, "1.0 GiB free of 2.0 GiB, which the container may have")
    assert doctor._object_store(Cluster(object_store_gib=1), HERE)[1:] == (True, "1.0 GiB of 32.0 GiB free in /dev/shm")
    docker = replace(HERE, shared=64 << 20)
    _, will_do, told = doctor._object_store(Cluster(), docker)
    assert (
        will_do and told.startswith("2.0 GiB in files, which is slower: /dev/shm has 0.1 GiB") and "--shm-size" in told
    )
    assert not doctor._object_store(Cluster(object_store_gib=20), docker)[1]


def test_threads_are_bounded_by_a_quota_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(module, "limits", lambda: HERE)
    bound_threads()
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # so that it is as before after this test
    monkeypatch.setattr(module, "limits", lambda: replace(HERE, quota=2.5))
    bound_threads()
    assert os.environ["OMP_NUM_THREADS"] == "3"
    del os.environ["OMP_NUM_THREADS"]
    bound_threads()
    assert os.environ["OMP_NUM_THREADS"] == "2"


ON_ONE_CPU = """
import os
import ray
from flows.cluster.connection import connected
from flows.cluster.resources import one_actor_per_device, one_worker_per_gpu, resources
from flows.recipe.cluster import Cluster
from flows.commands.doctor import _cpus
from flows.cluster.limits import limits

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(_cpus(limits())[2])
with connected(Cluster(object_store_gib=0.1)):
    print(ray.cluster_resources()["CPU"])
    print(resources(Cluster(), "latents", one_actor_per_device).threads)
    print(resources(Cluster(), "train", one_worker_per_gpu).threads)
"""


@pytest.mark.timeout(120)
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="this machine has one CPU")
def test_an_embedded_ray_has_the_cpus_that_the_process_has() -> None:
    done = subprocess.run([sys.executable, "-c", ON_ONE_CPU], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"1 of {os.cpu_count()}, by this process's affinity", "1.0", "1", "1"]
