"""Snippets kept as a few coefficients: how a rank-reduced bank stores them, gives them back and compares them.

A snippet x of D numbers is kept as its nearest x̂ = mean + c · directions, with d directions in place of D. What stands in
the column `snippet` is z = [c, 1] / |x̂|, d + 1 numbers: then x̂ = (z · [directions; mean]) / z_last, and the cosine between
x̂ and any vector q of unit length is the product of z with [directions; mean] · q, so that a search needs no snippet in full.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.errors import Refused

BASIS = "basis"
"""Key of a table's metadata."""


@dataclass(frozen=True)
class Basis:
    """`directions` float32 [d, D], orthonormal, and `mean` float32 [D]."""

    directions: NDArray[np.float32]
    mean: NDArray[np.float32]

    @property
    def rank(self) -> int:
        return len(self.directions)

    @property
    def dim(self) -> int:
        return len(self.mean)

    @property
    def matrix(self) -> NDArray[np.float32]:
        """[d + 1, D]: the directions, and last the mean."""
        return np.concatenate([self.directions, self.mean[None]])

    def project(self, snippets: NDArray[np.floating]) -> NDArray[np.float32]:
        """What is stored [N, d + 1] of snippets [N, D]."""
        return self.of_codes((np.asarray(snippets, np.float32) - self.mean) @ self.directions.T)

    def of_codes(self, codes: NDArray[np.floating]) -> NDArray[np.float32]:
        """What is stored [N, d + 1] of coefficients c [N, d]. Refused where a snippet would be zero."""
        with_one = np.concatenate([np.asarray(codes, np.float32), np.ones((len(codes), 1), np.float32)], axis=1)
        lengths = np.linalg.norm(with_one @ self.matrix, axis=1, keepdims=True)
        if not (lengths > 0).all():
            raise Refused("a snippet lies where these directions show nothing of it; keep more of them")
        stored: NDArray[np.float32] = with_one / lengths
        return stored

    def full(self, stored: NDArray[np.floating]) -> NDArray[np.float32]:
        """Snippets x̂ [N, D] of what is stored [N, d + 1]."""
        rows = np.asarray(stored, np.float32)
        snippets: NDArray[np.float32] = (rows @ self.matrix) / rows[:, -1:]
        return snippets

    def query(self, vector: NDArray[np.floating]) -> NDArray[np.float32]:
        """What to multiply the stored rows with [d + 1], to have cosines with a vector [D]."""
        unit = np.asarray(vector, np.float32)
        projected: NDArray[np.float32] = self.matrix @ (unit / np.linalg.norm(unit))
        return projected

    def packed(self) -> str:
        """As text for metadata, which every version of the table repeats."""
        shape = np.array([self.rank, self.dim], np.int64).tobytes()
        return base64.b64encode(shape + np.ascontiguousarray(self.matrix, np.float32).tobytes()).decode()


def basis_of(schema: pa.Schema) -> Basis | None:
    """That of a rank-reduced table; None where snippets are stored as they are."""
    text = (schema.metadata or {}).get(BASIS.encode())
    if text is None:
        return None
    data = base64.b64decode(text)
    rank, dim = np.frombuffer(data[:16], np.int64).tolist()
    matrix = np.frombuffer(data[16:], np.float32).reshape(rank + 1, dim)
    return Basis(matrix[:-1], matrix[-1])
