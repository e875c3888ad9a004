"""Pretraining on a handful of pictures: it learns, resumes exactly, and what it writes loads. What is shipped keeps
its promises on the emoji that it never saw."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from gmem.encoder import load_encoder
from gmem.pixels import channels_first, from_bytes
from gmem.pretrain.augment import View, draw_view, erase_patches, vary_pixels
from gmem.pretrain.encoder import STRONG, EncoderTraining, measure, pretrain_encoder
from gmem.pretrain.loop import batch_rows, rate_factor
from gmem.pretrain.tokenizer import TokenizerTraining, pretrain_tokenizer
from gmem.pretrain.tokenizer import measure as measure_tokenizer
from gmem.tokenizer import load_tokenizer
from gmem.weights import ASSETS

TOKENIZER = TokenizerTraining(widths=(8, 16), norm_groups=4, latent_channels=4, steps=30, batch=8, warmup=5)
ENCODER = EncoderTraining.of("contrast", image_size=32, width=32, depth=2, heads=2, steps=20, batch=16, warmup=5)


def shapes(count: int) -> tuple[Tensor, Tensor]:
    """Coloured squares (label 0) and stripes (label 1) on white: uint8 [N, 3, 32, 32], labels [N]."""
    rng = np.random.default_rng(0)
    images, labels = np.full((count, 3, 32, 32), 255, np.uint8), np.arange(count) % 2
    for image, label in zip(images, labels, strict=True):
        row, column, side = rng.integers(0, 16), rng.integers(0, 16), rng.integers(8, 16)
        region = image[:, row : row + side, column : column + side]
        (region[:, ::4] if label else region)[:] = rng.integers(0, 200, (3, 1, 1))
    return torch.from_numpy(images), torch.from_numpy(labels)


def run_tokenizer(folder: Path, training: TokenizerTraining) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    images, _ = shapes(32)
    origin = {"command": "gmem pretrain tokenizer shapes"}
    figures = pretrain_tokenizer(images[8:], images[:8], training, folder, events.append, origin=origin, report_every=5)
    return figures, events


def run_encoder(folder: Path, training: EncoderTraining) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    images, labels = shapes(48)
    figures = pretrain_encoder(
        images[16:], labels[16:], images[:16], labels[:16], training, folder, events.append, report_every=5
    )
    return figures, events


def test_a_tokenizer_learns_and_loads(tmp_path: Path) -> None:
    figures, events = run_tokenizer(tmp_path, TOKENIZER)
    assert [event["step"] for event in events] == [5, 10, 15, 20, 25, 30]
    assert events[-1]["loss"] < events[0]["loss"] - 0.5
    tokenizer = load_tokenizer(str(tmp_path))
    assert (tokenizer.factor, tokenizer.channels) == (2, 4)
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    assert provenance["figures"] == figures and provenance["training"]["seed"] == 0
    assert provenance["command"] == "gmem pretrain tokenizer shapes"


def test_a_tokenizer_resumes_to_the_same_weights(tmp_path: Path) -> None:
    """A run cut in two and one in a piece end alike, bit for bit: weights, average, optimisers and draws resume."""
    training = replace(TOKENIZER, steps=8, decay_share=0.0)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_tokenizer(whole, training)
    run_tokenizer(cut, replace(training, steps=3))
    run_tokenizer(cut, training)
    for name in ("checkpoint.safetensors", "diffusion_pytorch_model.safetensors"):
        one, two = load_file(whole / name), load_file(cut / name)
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    with pytest.raises(ValueError, match="other parameters"):
        run_tokenizer(cut, replace(training, latent_channels=5))


@pytest.mark.parametrize("method", ["contrast", "barlow"])
def test_an_encoder_learns_and_loads(tmp_path: Path, method: str) -> None:
    own = {"image_size": 32, "width": 32, "depth": 2, "heads": 2, "embedding": 32}
    training = EncoderTraining.of(method, steps=20, batch=16, warmup=5, **own)
    figures, events = run_encoder(tmp_path, training)
    assert events[-1]["loss"] < events[0]["loss"]
    assert figures["training_pictures"] == 32 and 0 <= figures["held_out_accuracy"] <= 1
    features = load_encoder(str(tmp_path))(torch.zeros(2, 3, 32, 32))
    assert features.snippet.shape == (2, 32) and features.tokens.shape == (2, 16, 32)


def test_more_steps_continue_an_encoder(tmp_path: Path) -> None:
    run_encoder(tmp_path, ENCODER)
    _, events = run_encoder(tmp_path, replace(ENCODER, steps=25))
    assert [event["step"] for event in events] == [25]


def test_pictures_without_labels_still_train_and_only_count(tmp_path: Path) -> None:
    images, labels = shapes(32)
    none = torch.full_like(labels, -1)
    figures = pretrain_encoder(images, none, images[:4], none[:4], replace(ENCODER, steps=1), tmp_path)
    assert figures == {"training_pictures": 32, "held_out_pictures": 4}


def test_refusals(tmp_path: Path) -> None:
    images, labels = shapes(4)
    with pytest.raises(ValueError, match="fewer than a batch"):
        pretrain_encoder(images, labels, images, labels, ENCODER, tmp_path)
    with pytest.raises(ValueError, match="divisible by 2"):
        pretrain_tokenizer(images[..., :31], images, TOKENIZER, tmp_path)
    with pytest.raises(ValueError, match="'contrast' or 'barlow'"):
        EncoderTraining.of("guess")


def test_every_picture_comes_once_an_epoch() -> None:
    drawn = torch.cat([batch_rows(10, 4, seed=3, step=step) for step in range(5)])
    assert sorted(drawn[:10].tolist()) == sorted(drawn[10:].tolist()) == list(range(10))
    assert not torch.equal(drawn[:10], drawn[10:])


def test_only_the_fall_of_the_rate_depends_on_the_number_of_steps() -> None:
    rates = [rate_factor(step, 100, 10, 0.3) for step in range(100)]
    assert rates[0] == 0.1 and rates[10:70] == [1.0] * 60 and rates[99] == pytest.approx(1 / 30)
    assert rates[:70] == [rate_factor(step, 500, 10, 0.3) for step in range(70)]


def test_views_stay_pictures_and_follow_their_generator() -> None:
    images = from_bytes(shapes(8)[0])
    for view in (View(), STRONG):
        first, again, other = (draw_view(images, view, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, again) and not torch.equal(first, other)
        assert first.shape == images.shape and first.abs().max() <= 1
    for seed in range(4):
        assert vary_pixels(images, torch.Generator().manual_seed(seed)).shape == images.shape
    erased = erase_patches(images, 0.5, 8, torch.Generator().manual_seed(0))
    untouched = (erased == images).all(1).float().unfold(1, 8, 8).unfold(2, 8, 8).mean((-1, -2))
    assert 0.3 < (untouched == 1).float().mean() < 0.7


def test_a_hue_turned_a_whole_circle_is_the_hue_it_was() -> None:
    from gmem.pretrain.augment import _turn_hue

    images = from_bytes(shapes(2)[0])
    torch.testing.assert_close(_turn_hue(images, torch.ones(2)), images, atol=1e-5, rtol=0)
    third = _turn_hue(images, torch.full((2,), 1 / 3))
    torch.testing.assert_close(third, images.roll(1, 1), atol=1e-5, rtol=0)


# What is shipped, on the pictures that were held out from all three trainings.


class Emoji(NamedTuple):
    images: Tensor
    labels: Tensor
    held_images: Tensor
    held_labels: Tensor


@pytest.fixture(scope="module")
def emoji() -> Emoji:
    path = Path(__file__).parents[2] / "flows" / "assets" / "emoji.tar"
    pictures, facts = {}, {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, kind = member.name.rpartition(".")
            data = tar.extractfile(member).read()  # type: ignore[union-attr]
            if kind == "json":
                facts[key] = json.loads(data)
            else:
                pictures[key] = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    names = sorted({fact["label"] for fact in facts.values()})
    images = channels_first(np.stack([pictures[key] for key in facts])).contiguous()
    labels = torch.tensor([names.index(fact["label"]) for fact in facts.values()])
    held = torch.tensor([_held_out(fact["group"]) for fact in facts.values()])
    return Emoji(images[~held], labels[~held], images[held], labels[held])


def _held_out(group: str, share: float = 0.15) -> bool:
    """The split that ingest makes, written out: this is what the shipped weights were trained without."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64 < share


def stated(name: str) -> dict[str, Any]:
    return json.loads((ASSETS / name / "provenance.json").read_text())


def test_the_shipped_tokenizer_reaches_what_it_states(emoji: Emoji) -> None:
    figures = measure_tokenizer(load_tokenizer("shipped:emoji-tokenizer"), emoji.held_images)
    assert figures["held_out_psnr"] > 26
    assert figures["held_out_psnr"] == pytest.approx(stated("emoji-tokenizer")["figures"]["held_out_psnr"], abs=0.05)
    deviation = figures["latent_deviation"]
    assert min(deviation) > 0.3 and max(deviation) < 3 * min(deviation)


@pytest.mark.parametrize("name", ["emoji-encoder", "emoji-evaluator"])
def test_the_shipped_encoders_reach_what_they_state(emoji: Emoji, name: str) -> None:
    figures, said = measure(load_encoder(f"shipped:{name}"), *emoji), stated(name)["figures"]
    assert figures["held_out_accuracy"] == pytest.approx(said["held_out_accuracy"], abs=0.02)
    assert figures["held_out_accuracy"] > 2 * figures["chance_largest_category"]


def test_the_shipped_encoders_differ_in_method_and_seed() -> None:
    first, second = (stated(name)["training"] for name in ("emoji-encoder", "emoji-evaluator"))
    assert first["method"] != second["method"] and first["seed"] != second["seed"]


@pytest.mark.parametrize("name", ["emoji-tokenizer", "emoji-encoder", "emoji-evaluator"])
def test_shipped_weights_say_where_they_come_from(name: str) -> None:
    provenance = stated(name)
    assert provenance["command"].startswith("gmem pretrain ") and "Apache" in provenance["licence"]
    assert {"data", "training", "figures"} <= provenance.keys()


def test_what_is_shipped_stays_small() -> None:
    shipped = [*ASSETS.glob("*/*"), *(ASSETS.parents[1] / "flows" / "assets").glob("*")]
    network = sum(path.stat().st_size for path in (ASSETS / "emoji-network").iterdir())
    assert network < 16e6
    assert sum(path.stat().st_size for path in shipped if path.is_file()) - network < 20e6


def test_neighbours_are_told_beside_chance_and_what_is_possible() -> None:
    from gmem.pretrain.encoder import leave_one_out

    encoder = load_encoder("shipped:emoji-encoder")
    random = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
    low = torch.from_numpy(np.repeat(random, 2, 0)).permute(0, 3, 1, 2)
    images = torch.nn.functional.interpolate(low, 64)
    figures = leave_one_out(encoder, images, torch.tensor([0, 0, 1, 1, 2, 3]))
    assert figures["accuracy"] == pytest.approx(4 / 6) == figures["possible"]
    assert figures["chance"] == pytest.approx(4 / 30)
