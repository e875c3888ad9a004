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
