"""What the system, a disk or an S3 server says when it fails, as one sentence; and whether the same may pass later."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from storage.errors import StoreError, StoreRefused, StoreUnreachable

FAILING = ("botocore", "aiobotocore", "aiohttp", "safetensors")
"""Libraries whose own errors, while they read or write, are the disk's or the network's."""

_PASSING = {
    errno.EIO, errno.EREMOTEIO, errno.ESTALE, errno.EBUSY, errno.EAGAIN, errno.ETIMEDOUT, errno.EHOSTUNREACH,
    errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.ENOTCONN, errno.ENOBUFS,
}  # fmt: skip
"""What the system says of a disk or a server that is away; `ConnectionError` and `TimeoutError` say more of it."""


@contextmanager
def translate_errors(doing: str, path: str) -> Iterator[None]:
    """Turns what the system or the network says into one sentence; that a file to be read is absent passes as it is."""
    try:
        yield
    except StoreError:
        raise
    except Exception as problem:
        if isinstance(problem, FileNotFoundError) and doing != "written":
            raise
        if not isinstance(problem, OSError) and not type(problem).__module__.startswith(FAILING):
            raise
        reason = getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
        kind = StoreUnreachable if may_pass(problem) else StoreRefused
        raise kind(
            f"{path} cannot be {doing} ({reason}): check the store's address, its free space and your permissions."
        ) from problem


def may_pass(problem: Exception) -> bool:
    """Whether the same may succeed later: not where rights, room or the thing itself are missing."""
    if (status := answer(problem)[0]) is not None:
        return status >= 500 or status in (408, 409, 429)
    if isinstance(problem, OSError):
        return isinstance(problem, ConnectionError | TimeoutError) or problem.errno in _PASSING
    from botocore import exceptions as botocore  # a quarter of a second, which a folder does without

    lost = botocore.ConnectionError, botocore.HTTPClientError, botocore.IncompleteReadError
    return isinstance(problem, lost) or type(problem).__module__.startswith("aiohttp")


def answer(problem: Exception) -> tuple[int | None, str]:
    """Status and code of a server's answer; s3fs keeps it as the cause of an OSError."""
    for error in (problem, problem.__cause__):
        if isinstance(said := getattr(error, "response", None), dict):
            return said.get("ResponseMetadata", {}).get("HTTPStatusCode"), said.get("Error", {}).get("Code", "")
    return None, ""
