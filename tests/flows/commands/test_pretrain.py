"""``gmem pretrain``: a folder of pictures becomes weights that a recipe can name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from flows.commands import pretrain
from gmem.tokenizer import load_tokenizer


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(16):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{i:02d}.png")
    return folder


def test_a_tokenizer_of_ones_own_pictures(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "tokenizer"
    settings = [f"data.source={pictures}", "data.image_size=32", "data.held_out=0.4"]
    arguments = ["pretrain", "tokenizer", "emoji", "--out", str(out), "--json"]
    arguments += [part for pair in settings for part in ("--set", pair)]
    arguments += [part for pair in ("steps=2", "batch=4") for part in ("--with", pair)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["folder"] == str(out)
    tokenizer = load_tokenizer(str(out), "cpu")
    assert tokenizer.encode(torch.zeros(1, 3, 32, 32)).shape[0] == 1


def test_an_unknown_parameter_names_the_known_ones(pictures: Path, tmp_path: Path) -> None:
    arguments = ["pretrain", "tokenizer", "emoji", "--out", str(tmp_path / "out"), "--with", "stepz=2"]
    done = CliRunner().invoke(app, [*arguments, "--set", f"data.source={pictures}"])
    assert isinstance(done.exception, ValueError) and "unknown parameter stepz" in str(done.exception)


def test_figures_are_told_a_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain._tell({"psnr": 21.123456, "latent_deviation": [0.123456789] * 16, "steps": 2000}, tmp_path, json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "psnr: 21.12",
        "latent_deviation: " + ", ".join(["0.1235"] * 16),
        "steps: 2000",
        f"weights: {tmp_path}",
    ]
