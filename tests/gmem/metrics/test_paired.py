"""Made pictures beside their true ones, with known answers."""

from __future__ import annotations

import numpy as np
import pytest

from gmem.metrics.paired import fidelity

FEATURES = np.random.default_rng(0).normal(size=(20, 5))
PICTURES = np.random.default_rng(1).integers(50, 200, (20, 4, 4, 3), np.uint8)


def test_the_true_pictures_themselves_are_perfect() -> None:
    found = fidelity(FEATURES, FEATURES, PICTURES, PICTURES)
    assert (found.paired, found.recognised, found.pixels) == (0, 1, 0) and found.frechet == pytest.approx(0, abs=1e-9)


def test_a_step_is_as_long_as_it_is() -> None:
    step = np.array([3.0, 4.0, 0, 0, 0]) / 100
    found = fidelity(FEATURES + step, FEATURES, PICTURES + 51, PICTURES)
    assert found.paired == pytest.approx(0.05) and found.frechet == pytest.approx(0.0025)
    assert found.recognised == 1 and found.pixels == pytest.approx(0.2)


def test_pictures_of_others_are_not_recognised_though_the_set_is_the_same() -> None:
    found = fidelity(np.roll(FEATURES, 1, 0), FEATURES, np.roll(PICTURES, 1, 0), PICTURES)
    assert found.recognised == 0 and found.frechet == pytest.approx(0, abs=1e-9) and found.paired > 1


def test_what_has_no_partner_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be paired with 20 true ones"):
        fidelity(FEATURES[1:], FEATURES, PICTURES[1:], PICTURES)
