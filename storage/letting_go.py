"""What others see this process hold, such as leases: let go of also where its main thread cannot any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_held: dict[object, Callable[[], object]] = {}


@contextmanager
def let_go_by(release: Callable[[], object]) -> Iterator[None]:
    """`let_go`, called by another thread before the block ends, calls `release`."""
    key = object()
    _held[key] = release
    try:
        yield
    finally:
        _held.pop(key, None)


def let_go() -> None:
    """Lets go of all that is held, the last first; what fails is left to expire. Only for a process that ends with it."""
    while _held:
        _, release = _held.popitem()
        with suppress(Exception):
            release()
