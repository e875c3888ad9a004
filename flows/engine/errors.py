"""What the engine refuses."""

from __future__ import annotations

from storage.errors import Refused


class StageError(Refused):
    """Why a stage cannot run, in one sentence a user can act on."""
