"""Ray, embedded or far away: started ahead of time, joined, left."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.job_config import JobConfig

from flows.cluster.address import address_of, jobs_address
from flows.cluster.errors import ClusterError
from flows.cluster.limits import limits, object_store
from flows.cluster.resources import Resources
from flows.cluster.workers import actors
from flows.recipe.cluster import Cluster
from storage.addresses import without_userinfo

# Set before Ray's processes start: nothing is sent to the outside, our own virtual environment is used, and workers are
# no nicer than other programs, beside which they would otherwise stand still.
QUIET = {
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# For workers, near and far: they too send nothing to the outside, and keep libraries' warnings to themselves.
WORKER = {"PYTHONWARNINGS": "ignore", "DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
# For the processes of an embedded Ray. It has no dashboard, which Ray Train asks whether its controller lives, waiting 12 s
# for an answer at the end of each training: where nobody listens it is told at once. Workers that read pictures wait
# for the next stage, rather than to start, and import, anew. No file of the folder that we are started in is a library.
EMBEDDED = {
    "PYTHONSAFEPATH": "1",
    "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9",
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
}

SOCKET = "/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
LONGEST_SOCKET = 107
"""Bytes of a socket's path, by the system."""

PATIENCE = 20.0
"""Seconds to wait for an answer at a cluster's address."""

_starting = threading.Lock()


Reserve = Callable[[Cluster], Resources]
"""What the actors of a stage reserve."""


class InstalledCode(JobConfig):
    """Workers import what is installed, wherever the driver was started.

    Ray would put the driver's working folder first on their path, where somebody's own `flows/` or `storage.py` would be
    taken for ours; not so where a working folder of its own comes along with the job.
    """

    def _runtime_env_has_working_dir(self) -> bool:
        return True


def warm_up(cluster: Cluster, modules: tuple[str, ...] = (), reserve: Reserve | None = None) -> None:
    """Begins to start Ray in the background; `connected` then waits for it. It ends with the process.

    The hosts of an embedded one, which reserve what `reserve` says, import `modules` meanwhile.
    """
    if jobs_address(cluster):
        return

    def start() -> None:
        with suppress(ClusterError):  # `connected` tries again, and says what is wrong where somebody listens
            _join(cluster, modules, reserve)
        # Ray's processes ask the kernel to end them with the thread, not the process, that started them: so it stays.
        threading.Event().wait()

    threading.Thread(target=start, name="ray-start", daemon=True).start()


@contextmanager
def connected(cluster: Cluster) -> Iterator[None]:
    """Ray for as long as the context lasts; joins what is already running, or being started, in this process."""
    if not _join(cluster):
        yield
        return
    try:
        yield
    finally:
        actors.stop()
        ray.shutdown()


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM interrupts this thread as Ctrl-C does, also while it waits for Ray.

    Where Ray waits it hears of nothing but interrupts: what another handler raises there, such as Prefect's within a
    flow, is lost, and the work goes on until it is killed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _interrupt(_signal: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def _join(cluster: Cluster, modules: tuple[str, ...] = (), reserve: Reserve | None = None) -> bool:
    """Starts or joins Ray unless this process has done so; whether it was this call that did."""
    with _starting:
        if ray.is_initialized():
            return False
        _init(cluster)
        if reserve and not address_of(cluster):
            with suppress(Exception):  # only ahead of time: the first pool does what is not done
                for host in actors.start(reserve(cluster)):
                    host.prepare.remote(modules)
        return True


def _init(cluster: Cluster) -> None:
    os.environ.update(QUIET)
    address = address_of(cluster)
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "job_config": InstalledCode()}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            _require_listener(address, "cluster.address" if cluster.address else "RAY_ADDRESS")
            ray.init(address=address, runtime_env={"env_vars": WORKER}, **common)
        else:
            # Inherited, and not the job's own: those would keep Ray from starting workers ahead.
            with _environment(WORKER | EMBEDDED):
                _embed(cluster, common)
    except ClusterError:
        raise
    except Exception as error:  # a node that is slow to start is told as a bare Exception
        where = f"the Ray cluster at {without_userinfo(address)}" if address else "an embedded Ray"
        raise ClusterError(f"{where} could not be joined ({str(error).splitlines()[0]}); see 'gmem doctor'") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            # Ray puts its own there, which ends the process without a word.
            signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)


def _require_listener(address: str, named_by: str) -> None:
    """ClusterError where nobody listens at HOST:PORT: Ray itself would try for five minutes, line by line."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal():  # auto, or a name of Ray's own
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise ClusterError(
            f"no Ray cluster answers at {without_userinfo(address)[:80]}, which {named_by} names ({error}); start it, or "
            f"unset {named_by} to run on this machine"
        ) from error


def _short_folder() -> str | None:
    """Where Ray keeps its sockets, if they would be too deep where temporary files are; None: there."""
    usual = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(os.fsencode(usual + SOCKET)) <= LONGEST_SOCKET:
        return None
    folder = Path(f"/tmp/ray-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.is_symlink():
        raise ClusterError(
            f"{usual} is too long for Ray's sockets and {folder} is another's; set RAY_TMPDIR to a short path"
        )
    return str(folder)


def _embed(cluster: Cluster, common: dict[str, Any]) -> None:
    """Starts Ray on this machine, of which it takes what this process may use.

    Ray gives its node half a minute, which a busy machine may need just to load it: so twice.
    """
    here = limits()
    for last in (False, True):
        try:
            ray.init(
                address="local",
                num_cpus=cluster.cpus or here.whole_cpus,
                include_dashboard=False,
                object_store_memory=object_store(cluster, here),
                _temp_dir=_short_folder(),
                **common,
            )
        except Exception:
            if last:
                raise
            ray.shutdown()
        else:
            return


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets variables for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
