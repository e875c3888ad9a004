"""Three kinds of what goes wrong: what a person must change, what may be over in a while, and defects, which are the rest."""

from __future__ import annotations

from gmem.errors import InputError
from storage.errors import Refused

REFUSALS: tuple[type[Refused], type[InputError]] = (Refused, InputError)
"""Never retried, and told in their own one sentence. `StoreUnreachable` and `ClusterError` may be over the next time."""
