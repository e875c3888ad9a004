"""How this project reaches MLflow: a server, or an SQLite file in the store; loaded when first used.

Importing MLflow and opening its SQLite store cost seconds, so nothing here imports it before it is needed, and
`warm_up` lets that happen beside other work.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from storage.addresses import without_userinfo
from storage.errors import Refused

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # else each migration of a fresh database is announced
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # repeated here instead, without blocking anybody for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)

SQLITE = "sqlite:///"
ARTIFACTS = "mlflow-artifacts"
"""The folder beside an SQLite file in which the files of runs are."""

# What repeating does not mend.
_FINAL = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST",
          "INVALID_STATE", "PERMISSION_DENIED", "UNAUTHENTICATED", "ENDPOINT_NOT_FOUND"}  # fmt: skip

_FINAL_ERRNOS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
"""Of files that cannot be kept where the server would have them, as where its folder is not on this machine."""

Value = TypeVar("Value")


class TrackingError(Refused):
    """MLflow cannot be used as things are."""


def client(uri: str) -> MlflowClient:
    """The client for this address, one in a process; a missing SQLite database is created first."""
    with _opening:
        return _client(uri)


_opening = threading.Lock()


@cache
def _client(uri: str) -> MlflowClient:
    if uri.startswith(SQLITE):
        create_database(uri)
        with suppress(sqlite3.Error):  # whatever is wrong with the file, MLflow says below
            relocate(Path(uri.removeprefix(SQLITE)))
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    try:
        # The registry is named too: else it is whatever some other use of MLflow in this process set last.
        return MlflowClient(uri, os.environ.get("MLFLOW_REGISTRY_URI") or uri)
    except MlflowException as problem:
        raise TrackingError(without_userinfo(f"MLflow at {uri} cannot be opened: {problem}")) from problem


def warm_up(uri: str) -> threading.Thread:
    """Begins to import MLflow and to open its store in the background; a problem is told by whoever needs it."""

    def work() -> None:
        try:
            client(uri)
        except problems() as problem:
            log.debug("MLflow could not be opened ahead of time: %s", problem)

    thread = threading.Thread(target=work, name="mlflow-warm-up", daemon=True)
    thread.start()
    return thread


def create_database(uri: str) -> None:
    """Creates MLflow's schema in a new SQLite file, whole or not at all, however many processes want it at once.

    It is built under another name without waiting for the disk at each of some hundred statements (five times as
    fast), then renamed. Write-ahead logging lets `mlflow ui` read while runs write.
    """
    path = Path(uri.removeprefix(SQLITE))
    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{path}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                _build(path)
    except OSError as problem:
        raise TrackingError(f"MLflow's database {path} cannot be created ({problem.strerror or problem}): "
                            "name a place that can be written, or a server, as tracking.uri.") from problem  # fmt: skip


PLACES = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
    "model_version_tags": ("value",),  # of earlier stores, whose checkpoints were named in full
}
"""Columns of MLflow's database in which files are named in full."""


def relocate(path: Path) -> None:
    """Names the files beside a database that was moved or copied with its store by where they are now.

    Otherwise what is logged next would be written where the store was before. Only places that `Tracking` chose are
    changed: `<folder of the database>/mlflow-artifacts/<experiment>`.
    """
    with closing(sqlite3.connect(path, timeout=60)) as connection, connection:
        named = connection.execute("SELECT name, artifact_location FROM experiments").fetchall()
        endings = [(place, f"/{ARTIFACTS}/{name}") for name, place in named]
        before = {place.removesuffix(ending) for place, ending in endings if place and place.endswith(ending)}
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for folder in before - {str(path.parent)}:
            values = (f"{path.parent}/", len(folder) + 2, len(folder) + 1, f"{folder}/")
            for table in PLACES.keys() & tables:  # a database of another version may lack some
                for column in PLACES[table]:
                    changed = f"UPDATE {table} SET {column} = ? || substr({column}, ?)"
                    connection.execute(f"{changed} WHERE substr({column}, 1, ?) = ?", values)


def _build(path: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)  # of one who was killed here: we have the lock

    def hurry(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA journal_mode=MEMORY")

    event.listen(Engine, "connect", hurry)
    try:
        SqlAlchemyStore(f"{SQLITE}{new}", str(path.parent)).engine.dispose()
    finally:
        event.remove(Engine, "connect", hurry)
    connection = sqlite3.connect(new)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    with open(new, "rb") as file:
        os.fsync(file.fileno())
    os.rename(new, path)


def problems() -> tuple[type[Exception], ...]:
    """What MLflow raises when it, its database, its server or its disk cannot do what was asked."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, OSError, ValueError


def is_final(problem: Exception) -> bool:
    """Whether trying again would be in vain."""
    if isinstance(problem, OSError) and problem.errno in _FINAL_ERRNOS:
        return True
    return getattr(problem, "error_code", None) in _FINAL or isinstance(problem, ValueError)


def patiently(call: Callable[[], Value], doing: str, seconds: float = 60.0) -> Value:
    """Calls until it succeeds; ConnectionError when MLflow has not answered for so long."""
    began, pause = time.monotonic(), 0.5
    while True:
        try:
            return call()
        except problems() as problem:
            if is_final(problem):
                raise
            if time.monotonic() - began + pause > seconds:
                reason = without_userinfo(str(problem))
                raise ConnectionError(f"MLflow did not answer while {doing} ({reason}): is its server up?") from problem
        time.sleep(pause)
        pause = min(2 * pause, 10.0)


def flatten(values: Any, prefix: str = "") -> dict[str, str]:
    """Nested parameters as MLflow takes them: `train.steps` -> "2000"; long values are cut, and say so.

    Addresses are shown to everybody who sees the run, and so without a password.
    """
    if isinstance(values, dict) and (values or not prefix):
        return {k: v for name, value in values.items() for k, v in flatten(value, f"{prefix}{name}.").items()}
    return {_key(prefix[:-1]): cut(without_userinfo(str(values)), 6000)}


def cut(text: str, limit: int) -> str:
    """At most `limit` characters, saying how many there were."""
    if len(text) <= limit:
        return text
    note = f"… ({len(text)} characters in all)"
    return text[: limit - len(note)] + note


def _key(name: str) -> str:
    """A name MLflow accepts."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)[:250]
