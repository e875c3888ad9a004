"""What a recipe keeps of its bank to condition with: the snippets of some of the training pictures, or each in few numbers.

`<artifact>/memory.safetensors` says whose snippet stands for each training picture, and along which directions snippets
are kept. The snippets themselves stay in the bank, which alone is edited: what is withdrawn there is here no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import Damaged
from storage.files import open_files
from storage.ids import FIRST_FOREIGN_ID, id_of, is_flipped, sample_of
from storage.tables.bank_basis import Basis

FILE = "memory.safetensors"
REMEDY = "remove its folder and run stage bank again."


@dataclass(frozen=True)
class Memory:
    """`pictures` int64 [N], rising, are the training pictures' sample numbers, and `kept` int64 [N] those whose snippets
    stand for them, which of these are they themselves; a picture's mirror image goes with it. Rows of no such picture
    stand for themselves."""

    pictures: NDArray[np.int64]
    kept: NDArray[np.int64]
    basis: Basis | None = None
    """Directions along which snippets are kept; None: whole."""

    @classmethod
    def whole(cls) -> Memory:
        """Every snippet as it is."""
        nobody = np.zeros(0, np.int64)
        return cls(nobody, nobody)

    def standing(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ids [B] of the rows whose snippets stand for those of `ids` [B], in the same orientation."""
        if not len(self.pictures):
            return ids
        samples = sample_of(ids)
        place = np.searchsorted(self.pictures, samples).clip(max=len(self.pictures) - 1)
        trained = (self.pictures[place] == samples) & (ids < FIRST_FOREIGN_ID)
        return np.where(trained, id_of(self.kept[place], is_flipped(ids)), ids)

    def keeps(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the row of each id [B] stands for itself."""
        return self.standing(ids) == ids

    def stored(self, snippets: NDArray[np.floating]) -> NDArray[np.float16]:
        """What is held in memory, [B, d + 1] or as they are, of snippets [B, D]."""
        return (self.basis.project(snippets) if self.basis else snippets).astype(np.float16)

    def full(self, stored: NDArray[np.float16]) -> NDArray[np.float16]:
        """Snippets [B, D] of what is held."""
        return self.basis.full(stored).astype(np.float16) if self.basis else stored

    def seen(self, snippets: NDArray[np.floating]) -> NDArray[np.float16]:
        """Snippets [B, D] as far as they are kept."""
        return self.full(self.stored(snippets))

    def write(self, artifact: str) -> None:
        """Into an artifact's folder, at once or not at all."""
        from safetensors.numpy import save

        tensors: dict[str, NDArray[Any]] = {"pictures": self.pictures, "kept": self.kept}
        if self.basis:
            tensors |= {"directions": self.basis.directions, "mean": self.basis.mean}
        whole = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
        open_files(artifact).write(f"{artifact}/{FILE}", save(whole))


def read_memory(artifact: str) -> Memory:
    """The memory in an artifact's folder; Damaged where it is not whole."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = f"{artifact}/{FILE}"
    try:
        tensors = load(open_files(artifact).read(path))
        basis = Basis(tensors["directions"], tensors["mean"]) if "directions" in tensors else None
        return Memory(tensors["pictures"], tensors["kept"], basis)
    except FileNotFoundError as error:
        raise Damaged(f"{path} is missing: {REMEDY}") from error
    except (SafetensorError, KeyError) as error:
        raise Damaged(f"{path} is damaged: {REMEDY}") from error
