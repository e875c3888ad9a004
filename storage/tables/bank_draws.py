"""Which rows a sample of the bank consists of: a function of the rows to choose from, their number and a seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from storage.errors import Refused
from storage.tables.bank_info import counted

if TYPE_CHECKING:
    from storage.tables.bank_reader import BankReader

BALANCED_BY = ("class", "label", "origin", "split")


def sample(
    bank: BankReader, n: int, seed: int, where: str | None, balanced_by: str | None, mirrored: bool
) -> NDArray[np.int64]:
    """As `BankReader.sample`."""
    if balanced_by is not None and balanced_by not in BALANCED_BY:
        raise Refused(f"samples cannot be balanced by {balanced_by[:80]!r}; use class, label, origin or split")
    names = ["id", "flipped", *([balanced_by] if balanced_by else [])]
    found = bank.where(names, where).sort_by("id")
    if not mirrored:
        found = found.filter(pc.invert(found["flipped"].fill_null(False)))
    if balanced_by:
        found = found.filter(found[balanced_by].is_valid())
    if bank.memory:
        found = found.filter(pa.array(bank.memory.keeps(found["id"].to_numpy())))
    if not len(found):
        raise Refused(f"the bank in {bank.artifact} has no such rows ({where or balanced_by}); {_choices(bank)}")
    draw = np.random.default_rng(seed)
    if balanced_by:
        return draw_balanced(found["id"].to_numpy(), np.array(found[balanced_by].to_pylist()), n, draw)
    return draw_evenly(found["id"].to_numpy(), n, draw)


def draw_evenly(ids: NDArray[np.int64], n: int, draw: np.random.Generator) -> NDArray[np.int64]:
    """Ids [n] of `ids` in random order, none twice before all have come."""
    return np.concatenate([draw.permutation(ids) for _ in range(-(-n // len(ids)))])[:n]


def draw_balanced(ids: NDArray[np.int64], values: NDArray[Any], n: int, draw: np.random.Generator) -> NDArray[np.int64]:
    """Ids [n], of each value equally many: round by round one of each, in random order."""
    each = -(-n // len(np.unique(values)))
    columns = np.stack([draw_evenly(ids[values == value], each, draw) for value in np.unique(values)])
    return np.concatenate([draw.permutation(row) for row in columns.T])[:n]


def _choices(bank: BankReader) -> str:
    """What there is to choose from, for whoever chose what there is not."""
    values = {name: [v for v in counted(bank.read([name])[name]) if v != "None"] for name in ("split", "class")}
    listed = [f"{name} is one of {', '.join(each[:12])}" for name, each in values.items() if each]
    return f"its {'; '.join(listed)}" if listed else "its rows have neither split nor class"
