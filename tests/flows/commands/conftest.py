"""A recipe whose bank has six pictures of noise, and `gmem bank` asked about it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from flows.cli import app
from flows.engine.stage import Plan
from flows.recipe.files import load
from flows.recipe.model import Recipe
from flows.stages.bank.stage import BANK
from gmem.encoder import load_encoder
from storage.images.decoding import thumbnail
from storage.tables.bank_rows import make_rows, write_fragments
from storage.tables.bank_writer import BankWriter

CLASSES = ("flags", "food")
PICTURES = 6


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def encoder() -> Any:
    return load_encoder("shipped:emoji-encoder", image_size=64)


@pytest.fixture
def recipe(tmp_path: Path, encoder: Any, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Its bank has six pictures of noise and their mirror images; every third is held out."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    monkeypatch.chdir(tmp_path)
    recipe = load("emoji", {"store": str(tmp_path / "store")})
    artifact = Plan(recipe).artifact(BANK)
    images = np.stack([picture(n)[:, :: -1 if flipped else 1] for n in range(PICTURES) for flipped in (False, True)])
    snippets = encoder(torch.from_numpy(images.copy()).permute(0, 3, 1, 2) / 127.5 - 1).snippet.numpy()
    numbers = np.repeat(np.arange(PICTURES), 2)
    rows = make_rows(
        np.arange(2 * PICTURES),
        snippets,
        "dataset",
        keys=[f"{CLASSES[n % 2]}/{n}" for n in numbers],
        flipped=[False, True] * PICTURES,
        labels=[int(n) % 2 for n in numbers],
        classes=[CLASSES[n % 2] for n in numbers],
        captions=[f"noise number{n}" for n in numbers],
        splits=["held_out" if n % 3 == 0 else "train" for n in numbers],
        shard="s",
        thumbnails=[thumbnail(image) for image in images],
    )
    writer = BankWriter(artifact.uri, snippets.shape[1], encoder.identity)
    writer.commit([write_fragments(artifact.uri, "s", rows)])
    writer.finish_bank(np.arange(2 * PICTURES))
    with artifact.lease("test") as lease:
        artifact.commit(artifact.describe(lease))
    return recipe


def run(recipe: Recipe, *arguments: str) -> Any:
    command = arguments[:1] if arguments[0] == "sample" else arguments[:2]
    return CliRunner().invoke(app, [*command, "emoji", *arguments[len(command) :], "--store", recipe.store])


def answered(recipe: Recipe, *arguments: str) -> dict[str, Any]:
    result = run(recipe, *arguments, "--json")
    assert result.exit_code == 0, result.exception
    return json.loads(result.stdout.splitlines()[-1])


def refused(recipe: Recipe, *arguments: str) -> str:
    """The one sentence, which a table and JSON do without."""
    result = run(recipe, *arguments)
    assert isinstance(result.exception, ValueError), (result.exception, result.stdout)
    assert "\n" not in str(result.exception)
    return str(result.exception)
