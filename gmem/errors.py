"""How the library refuses what it is given. Any other exception is a defect of the library."""

from __future__ import annotations


class Refused(ValueError):
    """What a person must change, in one sentence that says what to do; the same call never succeeds later."""
