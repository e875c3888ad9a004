"""Names of weights: the grammar, paths with any character, and identities that follow content."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import torch

from flows.recipe.files import load
from flows.stages.evaluate.stage import named_encoders
from gmem.encoder import load_encoder
from gmem.tokenizer import load_tokenizer
from gmem.weights import ASSETS, WeightsRef, content_sha256, file_sha256, identity

ODD = ("a@b", "a#b", "a:b", "a b", "timm:x@y", "shipped:#1", "a?b%20c")


@pytest.mark.parametrize(
    ("text", "kind", "network", "label"),
    [
        ("shipped:emoji-encoder", "shipped", "shipped:emoji-encoder", "emoji-encoder"),
        ("timm:vit_base.openai", "timm", "timm:vit_base.openai", "vit_base.openai"),
        ("timm:vit_base@/a@b/#1 c.pth", "timm", "timm:vit_base", "vit_base"),
        ("timm:hf-hub:timm/vit_base", "timm", "timm:hf-hub:timm/vit_base", "vit_base"),
        ("/absent/my@weights/", "folder", "/absent/my@weights/", "my-weights"),
        ("./absent", "folder", "./absent", "absent"),
        ("stabilityai/sd-vae-ft-mse", "hub", "stabilityai/sd-vae-ft-mse", "sd-vae-ft-mse"),
        ("", "hub", "", ""),
    ],
)
def test_the_grammar(text: str, kind: str, network: str, label: str) -> None:
    ref = WeightsRef.parse(text)
    assert (ref.kind, ref.network, ref.label, str(ref)) == (kind, network, label, text)


@pytest.mark.parametrize("name", ODD)
def test_a_folder_may_hold_any_character(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for kind in ("encoder", "tokenizer"):
        shutil.copytree(ASSETS / f"emoji-{kind}", tmp_path / name / kind)
    monkeypatch.chdir(tmp_path)
    sections = {
        "tokenizer": {"source": f"./{name}/tokenizer"},
        "encoder": {"source": f"timm:vit@./{name}/encoder/model.safetensors"},
        "evaluate": {"further_encoders": [f"./{name}/encoder"]},
    }
    recipe = load("emoji", sections).located("/store")
    assert recipe.tokenizer.source == str(tmp_path / name / "tokenizer")
    assert recipe.encoder.source == f"timm:vit@{tmp_path / name / 'encoder' / 'model.safetensors'}"
    folder = recipe.evaluate.further_encoders[0]
    assert named_encoders(recipe.evaluate)["encoder"] == folder == str(tmp_path / name / "encoder")
    assert WeightsRef.parse(folder).identity() == WeightsRef.parse("shipped:emoji-encoder").identity()
    assert load_tokenizer(recipe.tokenizer.source).channels == 12
    encoder, shipped = load_encoder(folder, image_size=64), load_encoder("shipped:emoji-encoder", image_size=64)
    assert encoder.identity == shipped.identity | {"name": folder}
    whole = f"timm:vit_tiny_patch16_224@{tmp_path / name / 'whole.pth'}"
    torch.save(load_encoder_weights(), WeightsRef.parse(whole).file)
    assert load_encoder(whole, image_size=224).identity["name"] == "timm:vit_tiny_patch16_224"


def load_encoder_weights() -> dict[str, torch.Tensor]:
    import timm

    return timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()


def test_an_identity_follows_content_and_not_the_bookkeeping(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"first")
    first = identity(str(tmp_path))
    (tmp_path / "provenance.json").write_text("told later")
    assert identity(str(tmp_path)) == first == content_sha256(tmp_path)[:16]
    (tmp_path / "model.safetensors").write_bytes(b"second")
    assert identity(str(tmp_path)) != first
    assert file_sha256(tmp_path / "model.safetensors") == hashlib.sha256(b"second").hexdigest()


def test_what_is_elsewhere_goes_by_its_name() -> None:
    for text in ("timm:vit_base", "stabilityai/vae", "./absent", "https://user@host/weights.pth#1", ""):
        assert identity(text) == text
        assert WeightsRef.parse(text).identity() == text


def test_what_should_be_here_and_is_not_is_said() -> None:
    with pytest.raises(ValueError, match=r"absent\.pth' are not there"):
        WeightsRef.parse("timm:vit@absent.pth").identity()
    with pytest.raises(ValueError, match="there are: emoji-encoder"):
        WeightsRef.parse("shipped:absent").identity()
