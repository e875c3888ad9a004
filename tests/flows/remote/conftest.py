"""The demo's recipe on an empty store."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.engine.stage import Plan
from flows.recipe.files import load


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(load("emoji", {"store": str(tmp_path / "store")}))
