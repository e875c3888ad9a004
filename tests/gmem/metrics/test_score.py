from __future__ import annotations

import numpy as np
import pytest
import torch

from gmem.metrics import inception_score


def test_the_formula_split_by_split_in_order() -> None:
    logits = np.random.default_rng(0).normal(scale=3, size=(103, 12)).astype("f4")
    exponentials = np.exp(logits.astype("f8"))
    p = exponentials / exponentials.sum(axis=1, keepdims=True)
    scores = []
    for i in range(10):
        part = p[i * 103 // 10 : (i + 1) * 103 // 10]
        scores.append(np.exp((part * np.log(part / part.mean(axis=0))).sum(axis=1).mean()))
    found = inception_score(logits)
    assert found.value == pytest.approx(np.mean(scores), rel=1e-12)
    assert found.deviation == pytest.approx(np.std(scores), rel=1e-9)


def test_torch_fidelity_gives_the_same_unshuffled() -> None:
    isc = pytest.importorskip("torch_fidelity.metric_isc")
    logits = torch.randn(200, 50, generator=torch.Generator().manual_seed(0)) * 4
    expected = isc.isc_features_to_metric(logits, splits=10, shuffle=False)
    assert inception_score(logits).value == pytest.approx(expected[isc.KEY_METRIC_ISC_MEAN], rel=1e-6)


def test_certain_and_balanced_reaches_the_number_of_classes() -> None:
    logits = torch.eye(10).repeat(10, 1) * 1e4
    assert inception_score(logits, splits=10).value == pytest.approx(10)
    assert inception_score(torch.zeros(20, 10)).value == pytest.approx(1)


def test_bad_input_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="10 splits need at least as many samples"):
        inception_score(torch.zeros(9, 3))
    with pytest.raises(ValueError, match="NaN"):
        inception_score(torch.full((20, 3), torch.nan))
