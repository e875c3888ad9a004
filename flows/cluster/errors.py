"""What can go wrong between a flow and its cluster, in words a user can act on."""

from __future__ import annotations

from storage.errors import StoreUnreachable


class ClusterError(RuntimeError):
    """A cluster that cannot be reached or a job that failed there, in one sentence."""


def explained(error: BaseException) -> Exception:
    """What went wrong in a worker, in its own words: a ValueError or an unreachable store stays one, whatever Ray wrapped
    it in."""
    cause = error
    while not isinstance(cause, StoreUnreachable) and isinstance(
        inner := getattr(cause, "cause", None) or cause.__cause__, BaseException
    ):
        cause = inner
    if isinstance(cause, ValueError):
        return (StoreUnreachable if isinstance(cause, StoreUnreachable) else ValueError)(str(cause))
    lines = str(cause).strip().splitlines() or [""]
    return ClusterError(f"a job failed: {type(cause).__name__}: {lines[-1]}")
