"""What ingest refuses before any work; the rest is tried in tests/integration and tests/trials."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from flows.engine.context import Context
from flows.engine.errors import StageError
from flows.engine.stage import Plan
from flows.recipe.files import load
from flows.stages.ingest.driver import _on_the_cluster
from flows.stages.ingest.stage import IMAGES, STAGE
from storage.images import index
from storage.images.index import number_parts, read_index, shard_name, write_part


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


def test_tasks_number_the_pictures_of_many_shards(a_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "BLOCK", 2)
    for number in range(5):
        usable = {"path": "", "kept": True, "split": "train", "shard": shard_name(number)}
        write_part(str(tmp_path), number, [usable] * (number + 1) + [{"path": "", "kept": False, "reason": "broken"}])
    counts = number_parts(str(tmp_path), 5, {}, _on_the_cluster)
    assert (counts.kept, counts.refused, counts.shards) == (15, 5, 5)
    assert read_index(str(tmp_path))["sample"].drop_null().to_pylist() == list(range(15))
