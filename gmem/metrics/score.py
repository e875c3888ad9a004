"""The Inception Score."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gmem.errors import InputError
from gmem.metrics.statistics import as_features


@dataclass(frozen=True)
class InceptionScore:
    """Mean and deviation over the splits."""

    value: float
    deviation: float


def inception_score(logits: Tensor | NDArray, splits: int = 10) -> InceptionScore:
    """exp(E_x KL(p(y|x) || p(y))) of logits [N, C], averaged over `splits` runs of consecutive samples.

    As ADM's evaluator: the logits are those without the bias, and the samples are split in the order in which they
    came (10 splits of 5,000 for 50,000 samples). In float64 (Salimans et al., 2016).

    Raises ValueError on NaN or infinity, or fewer samples than splits.
    """
    values = torch.from_numpy(as_features(logits, "Logits")).double()
    if splits < 1 or len(values) < splits:
        raise InputError(f"{splits} splits need at least as many samples, and there are {len(values)}.")
    log_p = values.log_softmax(dim=1)
    edges = [i * len(values) // splits for i in range(splits + 1)]
    scores = [_score(log_p[start:stop]) for start, stop in pairwise(edges)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def _score(log_p: Tensor) -> float:
    log_marginal = log_p.logsumexp(dim=0) - np.log(len(log_p))
    return float((log_p.exp() * (log_p - log_marginal)).sum(dim=1).mean().exp())
