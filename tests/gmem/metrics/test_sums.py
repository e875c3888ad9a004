from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
from safetensors.numpy import load, save

from gmem.metrics import FeatureSums, frechet_distance, inception_score, kernel_distance, read_sums, write_sums

RANDOM = np.random.default_rng(0)
STREAMS = {"pool": RANDOM.normal(size=(200, 24)).astype("f4"), "logits": RANDOM.normal(size=(200, 9)).astype("f4")}
REFERENCE = RANDOM.normal(0.2, size=(150, 24)).astype("f4")


def _sums(rows: np.ndarray, batch: int = 32) -> FeatureSums:
    sums = FeatureSums(moments=("pool",), kept=("pool", "logits"))
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        sums.update({name: features[part] for name, features in STREAMS.items()}, part)
    return sums


def test_numbers_are_the_same_on_one_and_on_eight_workers() -> None:
    one, eight = _sums(np.arange(200)), FeatureSums(moments=("pool",), kept=("pool", "logits"))
    for worker in RANDOM.permutation(8):
        eight.merge(_sums(np.arange(200)[worker::8], batch=7))
    reference = FeatureSums()
    reference.update({"pool": REFERENCE}, np.arange(150))
    values = [frechet_distance(sums.statistics["pool"], reference.statistics["pool"]) for sums in (one, eight)]
    assert values[1] == pytest.approx(values[0], rel=1e-9)
    kernels = [kernel_distance(sums.features("pool"), REFERENCE, subsets=5) for sums in (one, eight)]
    assert kernels[0] == kernels[1]
    assert inception_score(eight.features("logits")) == inception_score(one.features("logits"))
    np.testing.assert_array_equal(eight.features("pool"), STREAMS["pool"])


@pytest.mark.parametrize("rows", [np.arange(50)[::-1], np.arange(0)])
def test_they_travel_as_arrays_npz_and_safetensors(rows: np.ndarray) -> None:
    sums = _sums(rows)
    several = read_sums(write_sums({"first": sums, "timm:second": sums}))
    assert list(several) == ["first", "timm:second"]
    again = [
        FeatureSums.from_arrays(sums.arrays()),
        FeatureSums.from_arrays(load(save({k: np.ascontiguousarray(v) for k, v in sums.arrays().items()}))),
        *several.values(),
    ]
    for other in again:
        assert other.count == len(rows) and (other.moments, other.kept) == (sums.moments, sums.kept)
        if len(rows):
            np.testing.assert_array_equal(other.features("logits"), sums.features("logits"))
            np.testing.assert_array_equal(other.statistics["pool"].cov, sums.statistics["pool"].cov)
        other.merge(_sums(np.arange(100, 120)))  # and can be added to
        assert other.count == len(rows) + 20


def test_few_samples_travel_as_they_are() -> None:
    """And not as a scatter of dimension times dimension; those that are kept besides do not travel twice."""
    features = RANDOM.normal(size=(64, 512)).astype("f4")
    sums, total = FeatureSums(kept=("pool",)), FeatureSums(kept=("pool",))
    sums.update({"pool": features}, np.arange(64))
    sent = pickle.dumps(sums)
    assert len(sent) < 1.1 * features.nbytes
    total.merge(pickle.loads(sent))
    np.testing.assert_allclose(total.statistics["pool"].cov, np.cov(features.astype("f8"), rowvar=False), atol=1e-12)


def test_a_sample_counts_once() -> None:
    sums = _sums(np.arange(10))
    with pytest.raises(ValueError, match=r"count twice \(index \[3"):
        sums.merge(_sums(np.arange(3, 12)))
    with pytest.raises(ValueError, match="within a batch"):
        sums.update({name: features[:2] for name, features in STREAMS.items()}, np.array([50, 50]))
    assert sums.count == 10 and sums.statistics["pool"].count == 10


def test_bad_input_is_one_sentence() -> None:
    sums = _sums(np.arange(10))
    with pytest.raises(ValueError, match="lack logits"):
        sums.update({"pool": STREAMS["pool"][:2]}, np.array([20, 21]))
    with pytest.raises(ValueError, match="as many indices"):
        sums.update(STREAMS, np.arange(3))
    with pytest.raises(ValueError, match="5 dimensions"):
        sums.update({"pool": np.ones((2, 5), "f4"), "logits": STREAMS["logits"][:2]}, np.array([20, 21]))
    with pytest.raises(ValueError, match="different streams"):
        sums.merge(FeatureSums())
    with pytest.raises(ValueError, match="not kept"):
        sums.features("spatial")
    with pytest.raises(ValueError, match="Nothing would be gathered"):
        FeatureSums(moments=())
    assert sums.count == 10
    foreign = io.BytesIO()
    np.savez(foreign, mu=np.ones(3))
    for data in (foreign.getvalue(), b"hello", b"", pickle.dumps(sums)):
        with pytest.raises(ValueError, match="no feature sums"):
            read_sums(data)
    arrays = sums.arrays()
    del arrays["kept/pool"]
    with pytest.raises(ValueError, match="not written whole"):
        FeatureSums.from_arrays(arrays)
