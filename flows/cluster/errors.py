"""What can go wrong between a flow and its cluster, in words a user can act on."""

from __future__ import annotations

from flows.refusals import REFUSALS
from storage.errors import Refused, StoreUnreachable


class ClusterError(RuntimeError):
    """A cluster that cannot be reached or a job that failed there, in one sentence."""


def explained(error: BaseException) -> Exception:
    """What went wrong in a worker, in its own words: a refusal or an unreachable store stays one, whatever Ray wrapped
    it in."""
    cause = error
    while inner := _wrapped(cause):
        cause = inner
    if isinstance(cause, StoreUnreachable):
        return StoreUnreachable(str(cause))
    if isinstance(cause, REFUSALS):
        return Refused(str(cause))
    lines = str(cause).strip().splitlines() or [""]
    return ClusterError(f"a job failed: {type(cause).__name__}: {lines[-1]}")


def _wrapped(error: BaseException) -> BaseException | None:
    """What an error was raised for. Ray's wrapper is of its cause's class too, and its text the whole traceback."""
    if isinstance(inner := getattr(error, "cause", None), BaseException):
        return inner
    return None if isinstance(error, (*REFUSALS, StoreUnreachable)) else error.__cause__
