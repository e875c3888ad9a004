from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gmem.metrics import FeatureSums, Protocol, frechet_distance, measure, read_adm, write_adm_statistics
from gmem.metrics.inception import DETECTOR

STREAMS = ("pool", "spatial", "logits")


def _sums(count: int, seed: int, shift: float = 0.0) -> FeatureSums:
    random = np.random.default_rng(seed)
    sums = FeatureSums(moments=("pool", "spatial"), kept=("pool", "logits"))
    sums.update({name: random.normal(shift, size=(count, 12)).astype("f4") for name in STREAMS}, np.arange(count))
    return sums


def _protocol(count: int, detector: str = DETECTOR) -> Protocol:
    return Protocol(detector, "h", "r", "ref", "rh", None, count, 0, "ode euler", 50, 50, "none", "uniform", "vae")


def test_every_metric_with_its_protocol() -> None:
    samples, reference = _sums(80, 0, shift=0.3), _sums(60, 1)
    results = {result.metric: result for result in measure(samples, reference, _protocol(80), subject="step 10")}
    assert set(results) == {"fid", "sfid", "kid", "precision", "recall", "inception_score"}
    assert results["fid"].value == frechet_distance(samples.statistics["pool"], reference.statistics["pool"])
    assert results["fid"].value != results["sfid"].value
    assert results["kid"].standard_error is not None
    assert {result.protocol.reference_count for result in results.values()} == {60}
    assert {result.subject for result in results.values()} == {"step 10"}


def test_another_detector_has_other_names() -> None:
    sums = FeatureSums(kept=("pool",))
    sums.update({"pool": np.random.default_rng(0).normal(size=(30, 8))}, np.arange(30))
    names = {result.metric for result in measure(sums, sums, _protocol(30, "dinov2-b"))}
    assert names == {"fd-dinov2-b", "kd-dinov2-b", "precision-dinov2-b", "recall-dinov2-b"}


def test_an_adm_file_is_a_reference(tmp_path: Path) -> None:
    samples, reference = _sums(80, 0), _sums(60, 1)
    pool, spatial = (reference.statistics[name].gaussian() for name in ("pool", "spatial"))
    write_adm_statistics(tmp_path / "ref.npz", pool, spatial)
    results = {r.metric: r.value for r in measure(samples, read_adm(tmp_path / "ref.npz"), _protocol(80))}
    assert set(results) == {"fid", "sfid", "inception_score"}
    assert results["fid"] == pytest.approx(frechet_distance(samples.statistics["pool"], pool), rel=1e-12)


def test_fewer_samples_than_asked_are_refused() -> None:
    with pytest.raises(ValueError, match="asks for 81 samples, and there are 80"):
        measure(_sums(80, 0), _sums(60, 1), _protocol(81))
    empty = FeatureSums()
    with pytest.raises(ValueError, match="no statistics of pooled features"):
        measure(_sums(80, 0), empty, _protocol(80))
