"""What a person gave and must change, told apart from what a caller in the code did wrong."""

from __future__ import annotations


class InputError(ValueError):
    """A file, a setting or data that cannot be used, in one sentence that says what to do.

    A plain ValueError means an argument that no caller should have given, such as features of another shape: a defect.
    """
