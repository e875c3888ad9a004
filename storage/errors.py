"""What can go wrong with things that last, each told in one sentence that says what to do."""

from __future__ import annotations


class Refused(ValueError):
    """What a person must change, in one sentence that says what to do; never retried."""


class StoreError(Exception):
    """The store, or something in it, could not be used."""


class StoreUnreachable(StoreError):
    """The network, the server or the disk did not answer as it should: the same may succeed a while later."""


class StoreRefused(StoreError, Refused):
    """The store, or something in it, cannot be used as it is."""


class Damaged(StoreRefused):
    """Something is there and can be read, and is not what was written, or in a format that is not read here."""


class LeaseHeld(StoreRefused):
    """Somebody else is building this artifact."""


class LeaseLost(StoreRefused):
    """The lease has passed to another holder: nothing may be committed under it any more."""


def shown(value: object) -> str:
    """What was found, as messages quote it: at most 80 characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python writes no numbers of more than 4,300 digits
        text = f"a {type(value).__name__} of thousands of digits"
    return text if len(text) <= 80 else f"{text[:79]}…"
