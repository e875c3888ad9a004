"""New snippets from those of the bank: what lies between pictures, or has something of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage.errors import Refused
from storage.ids import same_picture
from storage.tables.memory import Memory

if TYPE_CHECKING:
    from storage.tables.bank_reader import BankReader

Vectors = NDArray[np.float32]
STEPS = 64
"""Of the mean on the sphere; each one shrinks the error by more than half where there is a mean at all."""


def mix(snippets: Vectors, method: str, weights: Sequence[float] | None = None, seed: int = 0) -> Vectors:
    """One snippet [D] of several [P, D], which count as unit vectors; its length is the mean of theirs.

    Args:
        snippets: of the parents, at least two.
        method: linear (the chord between them), spherical (the arc), halves (the first coordinates of the first parent,
            the next of the second) or mask (each coordinate of a random parent).
        weights: the parents' shares, which need not sum to one; none: equal ones.
        seed: decides the coordinates of mask.

    Raises:
        Refused: one parent, an unknown method, weights that are no shares, or parents that cancel each other.
    """
    if method not in METHODS:
        raise Refused(f"the method {method[:80]!r} is unknown; use one of {', '.join(METHODS)}")
    if len(snippets) < 2:
        raise Refused(f"a mixture needs at least 2 parents, not {len(snippets)}; name more ids")
    lengths = np.linalg.norm(snippets, axis=1, keepdims=True)
    units = snippets / lengths
    mixed = METHODS[method](units, _shares(weights, len(units)), np.random.default_rng(seed))
    length = np.linalg.norm(mixed)
    if not length > 1e-6:
        raise Refused(
            "these snippets cancel each other and leave no direction; choose other weights or the method mask"
        )
    return (mixed * (lengths.mean() / length)).astype(np.float32)


class NearMixtures(NamedTuple):
    """What lies half way from rows to others near to them."""

    snippets: Vectors
    """[N, D]"""
    partners: NDArray[np.int64]
    """[N] ids of the others."""


def near_mixtures(
    bank: BankReader, ids: Sequence[int], neighbours: int, seed: int, where: str | None = None, first: int = 0
) -> NearMixtures:
    """Snippets half way from each row to one of its nearest others, drawn by seed and number.

    Args:
        bank: which is searched, and stays as it is.
        ids: N of them.
        neighbours: of how many nearest rows one is drawn; the row's own mirror image is none of them, and with a memory
            only those are that it keeps.
        seed: decides which.
        where: SQL condition on columns that the others fulfil.
        first: the number of the first of `ids`; the others follow.

    Raises:
        Refused: a row has no other one, or is not there.
    """
    mixed, partners = [], list[int]()
    for number, mine in enumerate(ids, first):
        others = _others(bank, mine, neighbours, where)
        if not len(others):
            raise Refused(f"row {mine} has no other one near to be mixed with; choose from more rows")
        partners.append(int(np.random.default_rng([seed, number]).choice(others)))
        mixed.append(bank.mixture([mine, partners[-1]]))
    return NearMixtures(np.stack(mixed), np.array(partners, np.int64))


def _others(bank: BankReader, mine: int, neighbours: int, where: str | None) -> NDArray[np.int64]:
    """Ids of the rows nearest to what stands for a row, of other pictures."""
    memory = bank.memory or Memory.whole()
    (standing,) = memory.standing(np.array([mine]))
    asked = neighbours + 2  # it comes along itself, and its mirror image
    while True:
        near = bank.search(standing, asked, where, columns=["id"])["id"].to_numpy()
        others: NDArray[np.int64] = near[memory.keeps(near) & ~same_picture(near, standing)]
        if len(others) >= neighbours or len(near) < asked:
            return others[:neighbours]
        asked *= 4


def _shares(weights: Sequence[float] | None, parents: int) -> Vectors:
    given = np.ones(parents) if weights is None else np.asarray(weights, np.float64)
    if len(given) != parents:
        raise Refused(f"{len(given)} weights do not fit {parents} parents; give one for each")
    if not np.isfinite(given).all() or (given < 0).any() or not given.sum() > 0:
        raise Refused("weights must be numbers from 0 up, not all of them 0")
    return (given / given.sum()).astype(np.float32)


def _linear(units: Vectors, shares: Vectors, draw: np.random.Generator) -> Vectors:
    return shares @ units


def _spherical(units: Vectors, shares: Vectors, draw: np.random.Generator) -> Vectors:
    """The point of the sphere with the least weighted sum of squared arcs; of two parents, their slerp."""
    heaviest = units[np.argmax(shares)]
    if (units @ heaviest < -1 + 1e-6).any():
        raise Refused("no shortest arc leads from a snippet to its opposite; use the method linear, halves or mask")
    mean = heaviest
    for _ in range(STEPS):
        cosine = np.clip(units @ mean, -1, 1)
        across = units - cosine[:, None] * mean
        sine = np.linalg.norm(across, axis=1)
        arcs = np.divide(np.arccos(cosine), sine, out=np.ones_like(sine), where=sine > 1e-7)
        step = (shares * arcs) @ across
        angle = np.linalg.norm(step)
        if angle < 1e-7:
            break
        mean = np.cos(angle) * mean + np.sin(angle) / angle * step
        mean /= np.linalg.norm(mean)
    return mean


def _halves(units: Vectors, shares: Vectors, draw: np.random.Generator) -> Vectors:
    ends = np.round(np.cumsum(shares) * units.shape[1])
    owner = np.searchsorted(ends, np.arange(units.shape[1]), side="right")
    return _picked(units, np.minimum(owner, len(units) - 1))


def _mask(units: Vectors, shares: Vectors, draw: np.random.Generator) -> Vectors:
    owner = np.searchsorted(np.cumsum(shares), draw.random(units.shape[1]), side="right")
    return _picked(units, np.minimum(owner, len(units) - 1))


def _picked(units: Vectors, owner: NDArray[np.intp]) -> Vectors:
    return units[owner, np.arange(units.shape[1])]


METHODS: dict[str, Callable[[Vectors, Vectors, np.random.Generator], Vectors]] = {
    "linear": _linear,
    "spherical": _spherical,
    "halves": _halves,
    "mask": _mask,
}
