from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gmem.metrics import (
    FeatureSums,
    Gaussian,
    Nearest,
    Protocol,
    diversity_result,
    frechet_distance,
    measure,
    memorisation,
    memorisation_results,
    read_adm,
    vendi_score,
    write_adm_statistics,
)
from gmem.metrics.inception import DETECTOR

STREAMS = ("pool", "spatial", "logits")
OF_FEATURES = {"mind", "precision", "recall", "density", "coverage", "vendi"}


def _sums(count: int, seed: int, shift: float = 0.0) -> FeatureSums:
    random = np.random.default_rng(seed)
    sums = FeatureSums(moments=("pool", "spatial"), kept=("pool", "logits"))
    sums.update({name: random.normal(shift, size=(count, 12)).astype("f4") for name in STREAMS}, np.arange(count))
    return sums


def _protocol(count: int, detector: str = DETECTOR) -> Protocol:
    return Protocol(detector, "h", "r", "ref", "rh", None, count, 0, "ode euler", 50, 50, "none", "uniform", "vae")


def test_every_metric_with_its_protocol() -> None:
    samples, reference = _sums(80, 0, shift=0.3), _sums(60, 1)
    found = measure(samples, reference, _protocol(80), subject="step 10", real=_sums(50, 2))
    results = {result.metric: result for result in found}
    assert set(results) == {"fid", "sfid", "fidr", "inception_score"} | OF_FEATURES | {"kid"}
    ratio = results["fidr"]
    assert ratio.details["count"] == 50 and ratio.value == ratio.details["distance"] / ratio.details["real_distance"]
    assert results["vendi"].details["reference"] == vendi_score(reference.features("pool"))
    assert results["fid"].value == frechet_distance(samples.statistics["pool"], reference.statistics["pool"])
    assert results["fid"].value != results["sfid"].value
    assert results["kid"].standard_error is not None
    assert {result.protocol.reference_count for result in results.values()} == {60}
    assert {result.subject for result in results.values()} == {"step 10"}


def test_another_detector_has_other_names() -> None:
    sums = FeatureSums(kept=("pool",))
    sums.update({"pool": np.random.default_rng(0).normal(size=(30, 8))}, np.arange(30))
    names = {result.metric for result in measure(sums, sums, _protocol(30, "dinov2-b"))}
    assert names == {f"{name}-dinov2-b" for name in {"fd", "kd"} | OF_FEATURES}


def test_an_adm_file_is_a_reference(tmp_path: Path) -> None:
    samples, reference = _sums(80, 0), _sums(60, 1)
    pool, spatial = (reference.statistics[name].gaussian() for name in ("pool", "spatial"))
    write_adm_statistics(tmp_path / "ref.npz", pool, spatial)
    results = {r.metric: r.value for r in measure(samples, read_adm(tmp_path / "ref.npz"), _protocol(80))}
    assert set(results) == {"fid", "sfid", "inception_score"}
    assert results["fid"] == pytest.approx(frechet_distance(samples.statistics["pool"], pool), rel=1e-12)


def test_a_file_and_the_features_of_its_pictures(tmp_path: Path) -> None:
    samples, reference = _sums(80, 0), _sums(60, 1)
    write_adm_statistics(tmp_path / "ref.npz", reference.statistics["pool"].gaussian())
    found = measure(samples, read_adm(tmp_path / "ref.npz"), _protocol(80), features=_sums(20, 2))
    counts = {r.metric: r.protocol.reference_count for r in found}
    assert counts["fid"] == counts["inception_score"] == 60
    assert {counts[name] for name in OF_FEATURES | {"kid"}} == {20}
    with pytest.raises(ValueError, match="12 and 5 dimensions cannot be compared"):
        write_adm_statistics(tmp_path / "other.npz", Gaussian(np.zeros(5), np.eye(5)))
        measure(samples, read_adm(tmp_path / "other.npz"), _protocol(80))


def test_the_figures_do_not_depend_on_batches_workers_or_who_ended_first() -> None:
    def spread(whole: FeatureSums, batch: int, workers: int) -> FeatureSums:
        """The same samples in batches, dealt out, and merged the last first."""
        parts = [FeatureSums(whole.moments, whole.kept) for _ in range(workers)]
        for number, start in enumerate(range(0, whole.count, batch)):
            rows = slice(start, start + batch)
            features = {name: rows_of[rows] for name, rows_of in streams[id(whole)].items()}
            parts[number % workers].update(features, np.arange(whole.count)[rows])
        total = FeatureSums(whole.moments, whole.kept)
        for part in parts[::-1]:
            total.merge(part)
        return total

    def values(batch: int, workers: int) -> dict[str, float]:
        samples, reference, real = (spread(each, batch, workers) for each in sums)
        return {r.metric: r.value for r in measure(samples, reference, _protocol(80), real=real)}

    sums = [_sums(80, 0, shift=0.3), _sums(60, 1), _sums(50, 2)]
    streams = {id(s): {n: s.features(n) for n in ("pool", "logits")} | {"spatial": s.features("logits")} for s in sums}
    alone = values(80, 1)
    assert len(alone) == 11
    for batch, workers in ((7, 1), (16, 3), (1, 5)):
        assert values(batch, workers) == pytest.approx(alone, rel=1e-9)


def test_no_ratio_to_the_references_own_pictures() -> None:
    samples, reference = _sums(80, 0), _sums(60, 1)
    for real in (None, reference, FeatureSums(moments=("pool", "spatial"), kept=("pool", "logits"))):
        assert "fidr" not in {r.metric for r in measure(samples, reference, _protocol(80), real=real)}


def test_the_number_of_kernel_subsets_counts() -> None:
    samples, reference = _sums(80, 0), _sums(60, 1)
    few, many = (
        next(r for r in measure(samples, reference, _protocol(80), kernel_subsets=n) if r.metric == "kid")
        for n in (2, 30)
    )
    assert (few.details["subsets"], many.details["subsets"]) == (2, 30) and few.value != many.value


def test_a_handful_of_samples_leaves_out_what_needs_more() -> None:
    def names(count: int) -> set[str]:
        return {r.metric for r in measure(_sums(count, 0), _sums(60, 1), _protocol(count))}

    assert names(3) == {"fid", "sfid", "mind", "vendi"}
    assert names(5) == {"fid", "sfid", "mind", "vendi", "kid"}
    assert names(9) == {"fid", "sfid", "kid"} | OF_FEATURES
    with pytest.raises(ValueError, match="at least 2 samples, not 1"):
        names(1)


def test_memorisation_becomes_results() -> None:
    random = np.random.default_rng(0)
    training, ids = random.normal(size=(50, 8)), np.arange(50)
    samples, held_out = (Nearest(queries) for queries in (training[:10], random.normal(size=(20, 8))))
    for search in (samples, held_out):
        search.update(training, ids)
    found = memorisation(samples, held_out, sources=ids[:10])
    results = {r.metric: r.value for r in memorisation_results(found, _protocol(10, "dino"), "step 10")}
    assert results == {
        "memorisation_ratio-dino": 0.0,
        "memorisation_closer-dino": 1.0,
        "memorisation_copied-dino": 1.0,
        "memorisation_from_source-dino": 1.0,
    }
    unknown = memorisation_results(memorisation(samples, held_out), _protocol(10))
    assert [r.metric for r in unknown] == ["memorisation_ratio", "memorisation_closer", "memorisation_copied"]
    assert unknown[2].details == {"held_out": 20, "quantile": 0.01, "distance": found.copy_distance}


def test_diversity_becomes_a_result() -> None:
    sums = FeatureSums(kept=("pool",))
    rows = np.array([[0.0, 0], [1, 0], [0, 3], [1, 3]])
    sums.update({"pool": rows[::-1].copy()}, np.arange(4)[::-1].copy())
    found = diversity_result(sums, 2, _protocol(4, "dino"), "step 10")
    assert (found.metric, found.subject) == ("diversity-dino", "step 10")
    assert found.value == pytest.approx(1 / ((3 + np.sqrt(10)) / 2))


def test_fewer_samples_than_asked_are_refused() -> None:
    with pytest.raises(ValueError, match="asks for 81 samples, and there are 80"):
        measure(_sums(80, 0), _sums(60, 1), _protocol(81))
    empty = FeatureSums()
    with pytest.raises(ValueError, match="no statistics of pooled features"):
        measure(_sums(80, 0), empty, _protocol(80))
