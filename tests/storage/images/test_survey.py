"""Some pictures of a source, looked at as they are."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Self

import numpy as np
import pytest
from PIL import Image, ImageCms

from storage.images import survey as surveyed
from storage.images.isolation import Crashed
from storage.images.sources import list_source
from storage.images.survey import drawn, look, survey


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(20):
        path = tmp_path / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (20 + number, 24), (number, 0, 0)).save(path)
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    return tmp_path


def test_a_sample_is_the_same_each_time_and_of_usable_entries_alone(folder: Path) -> None:
    listing = list_source(str(folder))
    first = [entry.path for entry in drawn(listing, 7)]
    assert len(set(first)) == 7 and first == sorted(first) and first == [entry.path for entry in drawn(listing, 7)]
    assert len(drawn(listing, 100)) == 20


def test_what_a_picture_is_and_what_training_would_see_of_it(folder: Path) -> None:
    looks = list(survey(list_source(str(folder)), 3, 16))
    assert [(each.label in ("a", "b"), each.format, each.mode, each.height) for each in looks] == [
        (True, "PNG", "RGB", 24)
    ] * 3
    assert all(each.image is not None and each.image.shape == (16, 16, 3) for each in looks)
    assert len({each.content for each in looks}) == 3


def test_modes_and_profiles_are_the_files_own() -> None:
    buffer = io.BytesIO()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("L", (9, 9), 7).save(buffer, "PNG", icc_profile=profile)
    seen = look("a", buffer.getvalue(), 8, 1000)
    assert (seen.mode, seen.profile, seen.reason) == ("L", "sRGB built-in", "")
    assert look(None, b"text", 8, 1000).reason.startswith("not a JPEG")
    assert look(None, buffer.getvalue(), 8, 80).reason == "too large: 9x9 is more than 80 pixels"
    Image.fromarray(np.zeros((2000, 1, 3), np.uint8)).save(buffer := io.BytesIO(), "PNG")
    assert look(None, buffer.getvalue(), 64, 10_000).reason.startswith("too narrow")


def test_one_that_takes_the_decoder_down_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fragile:
        def __init__(self, function: object) -> None:
            pass

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __call__(self, *_: object) -> None:
            raise Crashed("ended with SIGSEGV")

    monkeypatch.setattr(surveyed, "Isolated", Fragile)
    assert [each.reason for each in survey(list_source(str(folder)), 1, 16)] == ["the decoder ended with SIGSEGV"]
