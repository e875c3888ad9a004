"""Bytes of a training's checkpoints, as a plan tells them."""

from __future__ import annotations

import pytest

from flows.recipe.files import load
from flows.recipe.model import Recipe
from flows.stages.train.size import checkpoint_bytes


def emoji(**train: object) -> Recipe:
    return load("emoji", {"train": train})


def test_the_demos_checkpoints() -> None:
    """122,038,338 bytes each, as they lie in a store."""
    one = checkpoint_bytes(emoji(steps=6, checkpoint_every=10))
    assert one == pytest.approx(122_038_338, rel=0.05)
    assert checkpoint_bytes(emoji(steps=6, checkpoint_every=3)) == 2 * one
    assert checkpoint_bytes(emoji(steps=1000, checkpoint_every=3, keep=2)) == 3 * one, "two, and the best"
    assert checkpoint_bytes(emoji(steps=6, checkpoint_every=10, checkpoint_at=[2, 4, 8])) == 3 * one


@pytest.mark.parametrize("conditioning", ["label", "none"])
def test_other_networks(conditioning: str) -> None:
    assert checkpoint_bytes(load("emoji", {"network": {"conditioning": conditioning}})) > 0
