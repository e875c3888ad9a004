"""Encoders by name: snippet, grid, preprocessing and identity with random weights; files, folders and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from gmem.encoder import Encoder, Preprocessing, build, has_class_token, input_size, load_encoder

TOWERS = [
    # name, side of the pictures, input, grid, width, tokens before the patches
    ("vit_small_patch14_dinov2", 256, 224, 16, 384, 1),
    ("vit_small_patch14_reg4_dinov2", 256, 224, 16, 384, 5),
    ("vit_small_patch16_dinov3", 256, 256, 16, 384, 5),
    ("vit_xsmall_patch16_clip_224", 256, 256, 16, 256, 1),
    ("vit_base_patch16_siglip_256", 256, 256, 16, 768, 0),
]


@pytest.mark.parametrize(("name", "side", "size", "grid", "dim", "prefix"), TOWERS)
def test_towers(name: str, side: int, size: int, grid: int, dim: int, prefix: int) -> None:
    model, preprocessing = build(name, side, pretrained=False)
    encoder = Encoder(model, name, preprocessing)
    assert (preprocessing.size, encoder.grid, encoder.dim, encoder.prefix) == (size, grid, dim, prefix)
    snippet, tokens = encoder(torch.rand(1, 3, side, side) * 2 - 1)
    assert snippet.shape == (1, dim) and tokens.shape == (1, grid * grid, dim)
    assert snippet.dtype == tokens.dtype == torch.float32
    assert has_class_token(model) == (prefix > 0)


def test_input_sizes_follow_the_grid_of_an_f16_latent() -> None:
    assert [input_size(side, 518, 14) for side in (256, 512, 64)] == [224, 448, 224]
    assert [input_size(side, 256, 16) for side in (256, 512)] == [256, 512]
    assert input_size(256, 224, 32) == 256
    assert input_size(256, 64, 8) == 64


def test_dinov2_preprocessing_is_the_published_one() -> None:
    x = torch.rand(2, 3, 256, 256) * 2 - 1
    _, preprocessing = build("vit_small_patch14_dinov2", 256, pretrained=False)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    published = ((x + 1) / 2 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    published = torch.nn.functional.interpolate(published, 224, mode="bicubic")
    torch.testing.assert_close(preprocessing(x), published)


def test_the_class_token_is_taken_after_the_norm_and_past_the_registers() -> None:
    model, preprocessing = build("vit_small_patch14_reg4_dinov2", 256, pretrained=False)
    encoder = Encoder(model, "x", preprocessing)
    x = torch.rand(1, 3, 256, 256) * 2 - 1
    hidden: Any = encoder.model.forward_features(preprocessing(x))
    torch.testing.assert_close(encoder(x).snippet, hidden[:, 0])
    torch.testing.assert_close(encoder(x).tokens, hidden[:, 5:])


def small(folder: Path, seed: int = 0) -> Path:
    """A folder in timm's hub layout with a tiny transformer for 32-pixel pictures."""
    torch.manual_seed(seed)
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **arguments)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    statistics = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "input_size": [3, 32, 32]}
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 0,
        "model_args": arguments,
        "pretrained_cfg": statistics | {"num_classes": 0},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_folder_keeps_its_weights_and_its_size(tmp_path: Path) -> None:
    encoder = load_encoder(str(small(tmp_path)), image_size=256)
    assert (encoder.dim, encoder.grid) == (24, 4)
    assert encoder.preprocessing == Preprocessing(32, (0.5,) * 3, (0.5,) * 3, "bilinear", True)
    assert encoder(torch.zeros(2, 3, 64, 64)).tokens.shape == (2, 16, 24)
    assert encoder.identity == load_encoder(str(tmp_path), image_size=256).identity
    small(tmp_path, seed=1)
    assert load_encoder(str(tmp_path)).identity["sha256"] != encoder.identity["sha256"]


def test_a_local_file_in_the_authors_own_layout(tmp_path: Path) -> None:
    """DINOv2's own file has a mask token and positions for 37 x 37 patches; pictures of 256 need 16 x 16."""
    torch.manual_seed(0)
    whole = timm.create_model("vit_small_patch14_dinov2", num_classes=0)
    state = whole.state_dict() | {"mask_token": torch.zeros(1, 384)}
    file = tmp_path / "dinov2.pth"
    torch.save(state, file)
    encoder = load_encoder(f"timm:vit_small_patch14_dinov2@{file}", image_size=256)
    assert encoder.grid == 16 and encoder.identity["name"] == "timm:vit_small_patch14_dinov2"
    torch.testing.assert_close(encoder.model.blocks[3].mlp.fc1.weight, state["blocks.3.mlp.fc1.weight"])


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("shipped:nothing", "no weights named 'nothing'"),
        ("/no/such/folder", "there is no encoder"),
        ("timm:vit_small_patch14_dinov2@/no/such/file.safetensors", "there is no file"),
        ("timm:no_such_network", "could not be loaded"),
        ("timm:resnet18", "no plain vision transformer"),
    ],
)
def test_wrong_sources_give_one_sentence(source: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        load_encoder(source)
    assert "\n" not in str(error.value)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file({"head.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="could not be loaded"):
        load_encoder(f"timm:vit_small_patch16_dinov3@{tmp_path / 'other.safetensors'}")


def test_other_shapes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
        load_encoder(str(small(tmp_path)))(torch.zeros(3, 32, 32))
