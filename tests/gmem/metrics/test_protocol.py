from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from gmem.metrics import Protocol, Result, compare, guidance_text

PROTOCOL = Protocol(
    detector="inception-v3-2015-12-05",
    detector_hash="6726825d",
    resize="bilinear",
    reference="ImageNet 256, train",
    reference_hash="abc",
    reference_count=None,
    count=50_000,
    seed=0,
    sampler="sde heun shift 1 diffusion linear norm 1 last mean 0.004",
    steps=50,
    calls=99,
    guidance="none",
    snippets="uniform over training rows",
    latents="VA-VAE f16d32, posterior mean",
)


def test_json_goes_there_and_back() -> None:
    result = Result("kid", 0.01, PROTOCOL, subject="training x, step 9", standard_error=0.001, details={"subset": 1000})
    assert Result.from_json(result.to_json()) == result


def test_equal_protocols_compare_and_different_ones_say_what_differs() -> None:
    a, b = Result("fid", 3.0, PROTOCOL), Result("fid", 2.5, PROTOCOL, subject="another training")
    assert compare(a, b).change == -0.5 and compare(a, b).differing == {}
    c = Result("fid", 2.0, replace(PROTOCOL, steps=100, calls=199))
    with pytest.raises(ValueError, match=r"steps: 50 and 100; calls: 99 and 199"):
        compare(a, c)
    assert compare(a, c, allow=("steps", "calls")).differing == {"steps": (50, 100), "calls": (99, 199)}
    with pytest.raises(ValueError, match="no step"):
        compare(a, c, allow=("step",))
    with pytest.raises(ValueError, match="fid and sfid"):
        compare(a, Result("sfid", 2.0, PROTOCOL))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"detector": ""}, "does not say its detector"),
        ({"count": 1}, "at least 2"),
        ({"seed": "3"}, "seed must be int"),
    ],
)
def test_a_protocol_is_whole(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(PROTOCOL, **change)


def test_foreign_json_is_refused() -> None:
    with pytest.raises(ValueError, match="no result"):
        Result.from_json("{")
    with pytest.raises(ValueError, match="no result"):
        Result.from_json("[1]")
    values = asdict(Result("fid", 1.0, PROTOCOL))
    del values["protocol"]["steps"]
    values["protocol"]["speed"] = 3
    with pytest.raises(ValueError, match="lacks steps and does not know speed"):
        Result.from_json(json.dumps(values))
    with pytest.raises(ValueError, match="came out as nan"):
        Result("fid", float("nan"), PROTOCOL)


def test_guidance_in_words() -> None:
    assert guidance_text(1.0) == "none"
    assert guidance_text(1.5, 0.1) == "1.5 for t in [0.1, 1] with zero snippet"
