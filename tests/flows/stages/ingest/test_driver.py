"""What ingest refuses before any work; the rest is tried in tests/integration and tests/trials."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from flows.engine.context import Context
from flows.engine.errors import StageError
from flows.engine.stage import Plan
from flows.recipe.files import load
from flows.stages.ingest.stage import IMAGES, STAGE


class Silent:
    def total(self, rows: int, done: int = 0) -> None:
        raise AssertionError("nothing is begun")

    def advance(self, rows: int, **values: float) -> None: ...

    def note(self, text: str) -> None: ...


def test_pictures_that_came_since_they_were_listed_are_not_mixed_in(tmp_path: Path) -> None:
    """Shards that were written by then hold slices of another listing: some pictures would be lost, some doubled."""
    source = tmp_path / "pictures"
    source.mkdir()
    Image.new("RGB", (32, 32)).save(source / "b.png")
    plan = Plan(load("emoji", {"store": str(tmp_path / "runs"), "data": {"source": str(source)}})).settled()
    context = Context(
        recipe=plan.recipe,
        fingerprints=plan.fingerprints(STAGE),
        parameters={"images": plan.parameters(IMAGES)},
        leases={"images": 1},
        tracking_uri="",
        run_id="",
    )
    Image.new("RGB", (32, 32)).save(source / "a.png")
    with pytest.raises(StageError, match="not those that were listed"):
        STAGE.run(context, Silent())


def test_only_a_choice_that_is_made_makes_another_artifact(tmp_path: Path) -> None:
    def made(**data: str) -> str:
        recipe = load("emoji", {"store": str(tmp_path), "data": {"source": str(tmp_path), **data}})
        return Plan(recipe, source_fingerprint="pinned").fingerprint(IMAGES)

    assert len({made(), made(label="parent"), made(label="none"), made(layout="tars")}) == 4


def test_a_doubt_about_the_classes_is_said(tmp_path: Path) -> None:
    for name in ("train/n01/1.png", "val/n02/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / name)
    recipe = load("emoji", {"store": str(tmp_path / "runs"), "data": {"source": str(tmp_path)}})
    [note] = Plan(recipe).listing.notes
    assert "train, val" in note and "data.label=parent" in note
    chosen = load("emoji", {"store": str(tmp_path / "runs"), "data": {"source": str(tmp_path), "label": "parent"}})
    assert Plan(chosen).listing.classes() == ["n01", "n02"] and Plan(chosen).listing.notes == ()
