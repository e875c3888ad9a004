"""How good drawn snippets are: beside snippets that were held out, and against those that they were learned from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gmem.memory import normalise
from gmem.metrics.frechet import frechet_distance_of_features
from gmem.metrics.manifold import overlap
from gmem.metrics.memorisation import Nearest
from gmem.metrics.sliced import sliced_wasserstein

FEWEST = 6
"""Of drawn and of real snippets, below which neighbours and distributions mean nothing."""


@dataclass(frozen=True)
class SnippetQuality:
    """Drawn snippets against held-out ones, all of unit length.

    Distances of real snippets that were learned from stand beside, of as many: what is as good as real comes to those.
    """

    frechet: float
    frechet_of_real: float
    sliced: float
    sliced_of_real: float
    density: float
    coverage: float
    nearest: float
    """Median distance of a drawn snippet from the nearest that was learned from."""
    nearest_of_real: float
    """The same of the held-out ones: where the drawn are much nearer, they are copies."""


def snippet_quality(drawn: Tensor, learned: Tensor, held_out: Tensor, seed: int = 0) -> SnippetQuality | None:
    """Judges drawn snippets [N, D] by held-out ones [M, D], and by those that they were learned from [L, D].

    Every set is taken as large as the smallest, since small sets seem farther apart; only the nearest are searched among
    all that were learned from. None where one has fewer than 6.
    """
    count = min(len(drawn), len(learned), len(held_out))
    if count < FEWEST:
        return None
    random = np.random.default_rng(seed)
    some, real, reference = (_some(each, count, random) for each in (drawn, learned, held_out))
    around = overlap(some, reference)
    return SnippetQuality(
        frechet=frechet_distance_of_features(some, reference),
        frechet_of_real=frechet_distance_of_features(real, reference),
        sliced=sliced_wasserstein(some, reference),
        sliced_of_real=sliced_wasserstein(real, reference),
        density=around.density,
        coverage=around.coverage,
        nearest=_nearest(some, learned),
        nearest_of_real=_nearest(reference, learned),
    )


def _some(snippets: Tensor, count: int, random: np.random.Generator) -> Tensor:
    rows = np.sort(random.permutation(len(snippets))[:count])
    return normalise(snippets[torch.from_numpy(rows)].float())


def _nearest(queries: Tensor, learned: Tensor, block: int = 65_536) -> float:
    search = Nearest(queries)
    for start in range(0, len(learned), block):
        part = normalise(learned[start : start + block].float())
        search.update(part, np.arange(start, start + len(part)))
    return float(np.median(search.distance))
