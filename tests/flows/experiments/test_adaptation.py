"""New pictures without training, on real weights: added once, generated from, and measured against themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from flows.engine.build import build
from flows.engine.progress import Terminal
from flows.engine.stage import Plan
from flows.explore import open_bank
from flows.recipe.files import load
from flows.stages.bank.stage import STAGE as BANK
from flows.stages.ingest.stage import STAGE as INGEST
from storage.tracking.tracking import Tracking

pytestmark = pytest.mark.usefixtures("a_ray")


def draw(folder: Path, count: int, seed: int) -> Path:
    """Pictures of coloured squares, each of its own colour and place."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.full((64, 64, 3), 255, np.uint8)
        x, y = random.integers(0, 32, 2)
        pixels[y : y + 32, x : x + 32] = random.integers(0, 256, 3)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with shards and a bank of 40 pictures, half of them held out, and 12 others beside it."""
    root = tmp_path_factory.mktemp("adaptation")
    draw(root / "new", 12, seed=1)
    plan = Plan(load("emoji", settings(root, draw(root / "own", 40, seed=0))))
    tracking = Tracking.open(f"sqlite:///{root}/mlflow.db", plan.store, "emoji")
    for stage in (INGEST, BANK):
        build(stage, plan, tracking, None, Terminal(stage.name))
    return root


def settings(root: Path, source: Path) -> dict[str, Any]:
    return {
        "store": str(root / "store"),
        "data": {"source": str(source), "held_out": 0.5},
        "sample": {"steps": 2},
        "cluster": {"cpus": 3, "object_store_gib": 0.1},
    }


def adapt(root: Path, *arguments: str) -> Any:
    pairs = [
        f"data.source={root / 'own'}",
        "data.held_out=0.5",
        "sample.steps=2",
        f"tracking.uri=sqlite:///{root}/mlflow.db",
    ]
    given = [part for pair in pairs for part in ("--set", pair)]
    return CliRunner().invoke(app, ["adapt", "emoji", *arguments, *given, "--store", str(root / "store")])


def test_new_pictures_are_measured_beside_held_out_ones(folder: Path) -> None:
    network = ("--network", "shipped:emoji-network", "--out", str(folder / "a.png"))
    done = adapt(folder, str(folder / "new"), "--name", "squares", *network, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    for part in ("added", "held_out"):
        kinds = found[part]
        assert kinds["count"] >= 8 and kinds["tokenizer"]["paired"] < kinds["generated"]["paired"]
        assert kinds["tokenizer"]["pixels"] < 0.1 and 0 <= kinds["generated"]["recognised"] <= 1
    assert found["added"]["count"] == 12 and found["step"] == 2480
    with Image.open(folder / "a.png") as figure:
        assert figure.height > 3 * 64

    again = adapt(folder, str(folder / "new"), "--name", "squares", *network)
    assert again.exit_code == 0 and "above the floor, added pictures lie" in again.stdout
    recipe = load("emoji", settings(folder, folder / "own"))
    assert open_bank(recipe).info().by_origin["external"] == 12, "they were added once"

    pairs = ["--set", f"data.source={folder / 'own'}", "--set", f"tracking.uri=sqlite:///{folder}/mlflow.db"]
    page = ["--out", str(folder / "R.md"), "--figures", str(folder / "plots"), "--store", str(folder / "store")]
    written = CliRunner().invoke(app, ["results", "emoji", *pairs, *page])
    assert written.exit_code == 0 and "## adaptation squares" in (folder / "R.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["new", "--name", "a/b"], "batch name 'a/b' cannot be used"),
        (["nowhere", "--name", "squares"], "nowhere"),
        (
            ["new", "--name", "squares", "--set", "evaluate.encoder=''", "--set", "evaluate.inception=x"],
            "no encoder to measure with",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(folder: Path, arguments: list[str], words: str) -> None:
    done = adapt(folder, str(folder / arguments[0]), *arguments[1:], "--network", "shipped:emoji-network")
    assert isinstance(done.exception, ValueError) and words in str(done.exception)
