"""What the doctor says of pictures: whether a recipe's tokenizer and encoder suit them, and what to do otherwise."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from flows.commands.doctor_pictures import Finding, examine_pictures
from flows.recipe.files import load
from storage.images.sources import list_source, read_entries
from storage.images.survey import drawn

KINDS = 6


@cache
def some_emoji() -> list[bytes]:
    listing = list_source(load("emoji").source)
    return [data for data in read_entries(drawn(listing, 8), listing.source) if isinstance(data, bytes)]


def emoji(number: int) -> Image.Image:
    """One of eight pictures that the shipped networks were made for."""
    return Image.open(io.BytesIO(some_emoji()[number])).convert("RGB")


def tinted(image: Image.Image, shade: int) -> Image.Image:
    """The same but for one pixel."""
    image.putpixel((0, 0), (shade, 0, 0))
    return image


def examined(folder: Path, **data: Any) -> dict[str, Finding]:
    recipe = load("emoji", {"data": {"source": str(folder)} | data})
    return {found[0]: found for found in examine_pictures(recipe, 100, "emoji --set data.source=x")}


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def test_pictures_that_suit_are_good_enough(tmp_path: Path) -> None:
    for kind in range(KINDS):
        for turn in range(2):
            save(tinted(emoji(kind), turn), tmp_path / f"class{kind}" / f"{turn}.png")
    found = examined(tmp_path)
    assert all(ok for _, ok, _ in found.values())
    assert found["pictures: files"][2] == "12 of 12 inputs looked at, 12 can be used"
    assert found["pictures: classes"][2].startswith("6 classes, from 2 (")
    assert found["tokenizer: reconstruction"][2].endswith("dB on 12 pictures: good enough")
    said = found["encoder: neighbours"][2]
    assert said == "the nearest of 12 pictures is of the same class for 100%; by chance 9%, at best 100%: good enough"


def test_others_are_told_with_the_command_that_helps(tmp_path: Path) -> None:
    """Noise cannot be given back, and where each picture's twin is of another class neighbours are of no use."""
    for kind in range(KINDS):
        noise = np.random.default_rng(kind).integers(0, 256, (64, 64, 3), np.uint8)
        for label in ("a", "b"):
            noise[0, 0] = len(label) + ord(label)
            save(Image.fromarray(noise), tmp_path / label / f"{kind}.png")
    found = examined(tmp_path)
    _, ok, said = found["tokenizer: reconstruction"]
    assert not ok and said.endswith(
        "less than 23: pretrain one, by 'gmem pretrain tokenizer emoji --set data.source=x --out tokenizer'"
    )
    _, ok, said = found["encoder: neighbours"]
    assert not ok and said.startswith("the nearest of 12 pictures is of the same class for 0%; by chance 45%")
    assert said.endswith("pretrain one, by 'gmem pretrain encoder emoji --set data.source=x --out encoder'")


def test_a_tokenizer_of_the_recipes_shape_is_asked_for() -> None:
    from flows.commands.doctor_pictures import _shape

    assert _shape(load("emoji")) == ""
    other = load("emoji", {"tokenizer": {"factor": 16, "channels": 32}})
    assert _shape(other) == " --with widths=[16,32,64,128,128] --with latent_channels=32"


def test_sizes_modes_profiles_copies_and_refusals_are_counted(tmp_path: Path) -> None:
    for number in range(4):
        save(emoji(0).resize((40, 50)), tmp_path / f"{number}.png")
    save(emoji(1).convert("RGBA"), tmp_path / "alpha.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    found = examined(tmp_path)
    assert found["pictures: files"][2].startswith("6 of 6 inputs looked at, 5 can be used; not a JPEG")
    assert found["pictures: classes"][2].startswith("no labels")
    assert not found["pictures: sizes"][1] and "shorter side 40 to 64 px" in found["pictures: sizes"][2]
    assert "4 of 5 are enlarged to data.image_size=64" in found["pictures: sizes"][2]
    assert found["pictures: modes"][2] == "RGB 4, RGBA 1"
    assert found["pictures: colours"][2] == "no profile, taken for sRGB 5"
    assert not found["pictures: copies"][1] and found["pictures: copies"][2].startswith("3 of 5 have the pixels")
    assert found["encoder: neighbours"][1:] == (True, "not judged: that takes labels of at least two classes")


@pytest.mark.parametrize(
    ("key", "what"), [("tokenizer", "tokenizer: reconstruction"), ("encoder", "encoder: neighbours")]
)
def test_weights_that_cannot_be_loaded_are_a_finding(key: str, what: str, tmp_path: Path) -> None:
    for number in range(8):
        save(emoji(number), tmp_path / "ab"[number % 2] / f"{number}.png")
    (tmp_path / "none").mkdir()
    recipe = load("emoji", {"data": {"source": str(tmp_path)}, key: {"source": str(tmp_path / "none")}})
    found = {each[0]: each for each in examine_pictures(recipe, 8, "emoji")}
    assert not found[what][1] and str(tmp_path / "none") in found[what][2]


def test_the_command_adds_them_to_its_table(tmp_path: Path) -> None:
    save(emoji(0), tmp_path / "in" / "a.png")
    arguments = ["doctor", "emoji", "--pictures", "3", "--set", f"data.source={tmp_path / 'in'}", "--json"]
    done = CliRunner().invoke(app, [*arguments, "--store", str(tmp_path / "runs")])
    found = {row["what"]: row for row in json.loads(done.stdout.splitlines()[-1])}
    assert found["pictures: files"]["found"] == "1 of 1 inputs looked at, 1 can be used"
    assert found["tokenizer: reconstruction"]["ok"]
