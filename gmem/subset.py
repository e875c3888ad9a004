"""A few snippets that stand for many: drawn at random, evenly by class, one a cluster, or as far apart as they can be.

Snippets count as points of the unit sphere, near when their cosine is large. They may be in half precision and on a GPU, and
are looked at in blocks: beside them there is memory for a few numbers a row and for the chosen ones in float32. The same
snippets, number and seed give the same choice on the same kind of device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gmem.errors import InputError
from gmem.memory import normalise

BLOCK = 1 << 24
"""Numbers in memory at a time, of snippets or of cosines."""
SEED_ROUNDS = 64
"""In so many draws, at most, the first centres of clusters are found."""
CLUSTER_ROUNDS, CLUSTER_ROWS, ROWS_A_CLUSTER = 10, 16_384, 16
"""How often centres are moved, each time by so many random snippets, and at least by so many a cluster."""
SEEDS_ROWS = 4
"""Of so many random snippets a cluster, or of as many as move centres, the first ones are found."""
CANDIDATES = 256
"""Farthest snippets among which the next ones are looked for without a pass over all."""


def choose(
    snippets: Tensor,
    count: int,
    method: str,
    seed: int = 0,
    classes: Tensor | None = None,
) -> Tensor:
    """Rising numbers [K] of the rows that are kept.

    Args:
        snippets: [N, D], of any length but zero.
        count: K, at most N.
        method: random; balanced, equally many of each class as far as it has them; medoids, of each of K clusters the
            snippet nearest to its centre; farthest, each the one farthest from those before.
        seed: of what is random in it. Of random and balanced, fewer are a part of more.
        classes: [N] integers, for balanced.

    Raises:
        InputError: no such number of rows, no such method, or balanced without classes.

    >>> choose(torch.tensor([[9.0, 1.0], [1.0, 9.0], [9.0, 2.0], [9.0, 0.0]]), 2, "medoids")
    tensor([0, 1])
    """
    rows = len(snippets)
    if not 1 <= count <= rows:
        raise InputError(f"{count} of {rows} snippets cannot be kept; give a number from 1 to {rows}")
    if method == "random":
        chosen = _shuffled(rows, seed)[:count]
    elif method == "balanced":
        chosen = _balanced(classes, count, seed)
    elif method == "medoids":
        chosen = _medoids(snippets, count, seed)
    elif method == "farthest":
        chosen = _farthest(snippets, count, seed)
    else:
        raise InputError(f"snippets cannot be chosen by {method[:80]!r}; use random, balanced, medoids or farthest")
    return chosen.sort().values.cpu()


def nearest(snippets: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Of each snippet [N, D]: which of the chosen rows [K] is nearest, as its place in `chosen` [N], and the cosine [N].

    A chosen row is nearest to itself, also where there is another like it.
    """
    rows = chosen.to(snippets.device)
    cosine, place = _closest(snippets, snippets[rows])
    cosine, place = cosine.cpu(), place.cpu()
    place[chosen] = torch.arange(len(chosen))
    return place, cosine


def _shuffled(rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(rows, generator=generator)


def _balanced(classes: Tensor | None, count: int, seed: int) -> Tensor:
    """Round by round one of each class that has one left, in random order."""
    if classes is None:
        raise InputError("a balanced choice needs the classes of the snippets; give them, or choose at random")
    rounds = list[int]()
    seen = dict[int, int]()
    order = _shuffled(len(classes), seed)
    for label in classes[order].tolist():
        turn = seen.get(label, 0)
        rounds.append(turn)
        seen[label] = turn + 1
    first = torch.tensor(rounds).argsort(stable=True)
    return order[first[:count]]


# --- clusters --------------------------------------------------------------------------------------------------------


def _medoids(snippets: Tensor, count: int, seed: int) -> Tensor:
    """Spherical k-means by batches (Sculley 2010; here what was seen before counts half), then the nearest snippets."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(snippets), generator=generator)
    some = snippets[order[: max(CLUSTER_ROWS, SEEDS_ROWS * count)].to(snippets.device)]
    total = normalise(some[_first_centres(some, count, generator)])
    batch = max(CLUSTER_ROWS, ROWS_A_CLUSTER * count)
    for _ in range(CLUSTER_ROUNDS):
        centres = normalise(total)
        total = total / 2
        order = torch.randperm(len(snippets), generator=generator)
        for rows in order[:batch].split(CLUSTER_ROWS):
            some = snippets[rows.to(snippets.device)]
            _, place = _closest(some, centres)
            total.index_add_(0, place, normalise(some))
    return _nearest_to(normalise(total), snippets)


def _first_centres(snippets: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Rows [K], each drawn with a chance that is its squared distance from the nearest one before (k-means++, Arthur and
    Vassilvitskii 2007), several at a time where there are many."""
    at_once = math.ceil(count / SEED_ROUNDS)
    first = torch.randint(len(snippets), (1,), generator=generator)
    chosen = _Chosen(snippets, first)
    while len(chosen.rows) < count:
        # The least of exponential waiting times: so many different rows, by their chances.
        uniform = torch.rand(len(snippets), generator=generator, dtype=torch.float64)
        chances = (1 - chosen.cosine).clamp_min(1e-9)
        waiting = -uniform.log().to(chances.device) / chances
        waiting[chosen.rows] = torch.inf
        lacking = count - len(chosen.rows)
        new = waiting.topk(min(at_once, lacking), largest=False)
        chosen.add(new.indices)
    return chosen.rows


def _nearest_to(centres: Tensor, snippets: Tensor) -> Tensor:
    """Rows [K], of each centre's own snippets the nearest; for a centre without any, a row that is far from all."""
    cosine, place = _closest(snippets, centres)
    best = torch.full_like(centres[:, 0], -torch.inf)
    best = best.scatter_reduce(0, place, cosine, "amax")
    leading = cosine == best[place]
    rows = leading.nonzero().flatten()

    # Of several that are equally near one stays.
    found = torch.full_like(place[: len(centres)], -1)
    found[place[rows]] = rows
    found = found[found >= 0]
    cosine[found] = torch.inf
    lacking = len(centres) - len(found)
    others = cosine.topk(lacking, largest=False)
    return torch.cat([found, others.indices])


# --- far apart -------------------------------------------------------------------------------------------------------


def _farthest(snippets: Tensor, count: int, seed: int) -> Tensor:
    """Rows [K] from a random one on, each the farthest from those before: no snippet then lies farther from them than twice
    what the best choice could do (Gonzalez 1985).

    Distances to the chosen ones only shrink. So among the farthest candidates the next ones can be told without another
    pass over all snippets, for as long as one of them is at least as far as every row that is no candidate was.
    """
    order = _shuffled(len(snippets), seed)
    chosen = _Chosen(snippets, order[:1])
    candidates = min(CANDIDATES, len(snippets))
    while len(chosen.rows) < count:
        far = chosen.cosine.topk(candidates, largest=False)
        turns = _in_turn(snippets[far.indices], far.values)
        lacking = count - len(chosen.rows)
        new = turns[:lacking]
        chosen.add(far.indices[new])
    return chosen.rows


def _in_turn(candidates: Tensor, cosine: Tensor) -> list[int]:
    """Which of the candidates [M, D] are chosen one after another, from their largest cosines [M] with those before."""
    unit = normalise(candidates)
    between = (unit @ unit.T).cpu()
    cosine = cosine.cpu()
    free = cosine.isfinite()
    limit = cosine[free].max()
    chosen = list[int]()
    while cosine.min() <= limit:
        place = int(cosine.argmin())
        chosen.append(place)
        cosine = cosine.maximum(between[place])
        cosine[place] = torch.inf
    return chosen


# --- in blocks -------------------------------------------------------------------------------------------------------


class _Chosen:
    """Rows chosen so far, and the largest cosine [N] of each snippet with one of theirs, which of theirs is infinite."""

    def __init__(self, snippets: Tensor, first: Tensor) -> None:
        self.snippets = snippets
        self.rows = first.to(snippets.device)
        self.cosine, _ = _closest(snippets, snippets[self.rows])
        self.cosine[self.rows] = torch.inf

    def add(self, new: Tensor) -> None:
        closer, _ = _closest(self.snippets, self.snippets[new])
        self.cosine = self.cosine.maximum(closer)
        self.cosine[new] = torch.inf
        self.rows = torch.cat([self.rows, new])


def _closest(snippets: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """The largest cosine [N] of each snippet [N, D] with any of the points [K, D], and the number [N] of that point."""
    cosines = list[Tensor]()
    places = list[Tensor]()
    directions = normalise(points).T
    size = BLOCK // max(directions.shape)
    for some in snippets.split(max(1, size)):
        cosine, place = torch.max(normalise(some) @ directions, dim=1)
        cosines.append(cosine)
        places.append(place)
    return torch.cat(cosines), torch.cat(places)
