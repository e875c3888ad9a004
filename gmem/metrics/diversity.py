"""How much the noise decides of a sample, beside its snippet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmem.errors import InputError
from gmem.metrics.distances import squared_distances
from gmem.metrics.statistics import as_features


@dataclass(frozen=True)
class SnippetDiversity:
    """`value` = within / between, 0 where all samples are alike.

    within, between: mean distance of two samples of one snippet, and of two of different snippets. Towards 0 a snippet
    is a picture by another name; at 1 it decides nothing.
    """

    value: float
    within: float
    between: float


def snippet_diversity(features: Tensor | NDArray, snippets: NDArray[np.integer]) -> SnippetDiversity:
    """Of samples' features [N, D] and which snippet each was made from [N], over all pairs, in float64.

    Raises ValueError on NaN or infinity, other lengths, or where no two samples are of one snippet or of different ones.
    """
    rows, groups = torch.from_numpy(as_features(features)).double(), torch.as_tensor(snippets)
    if groups.shape != (len(rows),):
        raise ValueError(f"{len(rows)} samples need as many snippets, and there are {tuple(groups.shape)}.")
    centred = rows - rows.mean(dim=0)
    distances = squared_distances(centred, centred).sqrt()
    same = groups[:, None] == groups
    pairs = ~torch.eye(len(rows), dtype=torch.bool)
    if not bool((same & pairs).any()) or bool(same.all()):
        raise InputError("Diversity needs two samples of one snippet, and another snippet: sample more.")
    within, between = (float(distances[chosen].mean()) for chosen in (same & pairs, ~same))
    return SnippetDiversity(within / between if between else 0.0, within, between)
