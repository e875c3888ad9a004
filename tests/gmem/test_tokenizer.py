"""The tokenizer: shapes, identity, seeded draws, statistics, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from gmem.pretrain.tokenizer import TokenizerTraining, new_model
from gmem.tokenizer import (
    Tokenizer,
    destandardise,
    load_tokenizer,
    seeded_normal,
    standardise,
)

SMALL = TokenizerTraining(widths=(8, 16, 16), norm_groups=4, latent_channels=5)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tokenizer")
    new_model(SMALL, 32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(saved: Path) -> Tokenizer:
    return load_tokenizer(str(saved))


def pictures(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_shapes_factor_and_identity(tokenizer: Tokenizer, saved: Path) -> None:
    latents = tokenizer.encode(pictures(2))
    assert latents.shape == (2, 5, 8, 8) and latents.dtype == torch.float32
    assert tokenizer.decode(latents).shape == (2, 3, 32, 32)
    assert tokenizer.identity == load_tokenizer(str(saved)).identity
    assert {k: tokenizer.identity[k] for k in ("factor", "channels")} == {"factor": 4, "channels": 5}


def test_the_hash_follows_the_weights(tokenizer: Tokenizer) -> None:
    torch.manual_seed(1)
    other = Tokenizer(new_model(SMALL, 32), "other")
    assert len(other.identity["sha256"]) == 64
    assert other.identity["sha256"] != tokenizer.identity["sha256"]


def test_draws_are_seeded_by_id_and_not_by_batch(tokenizer: Tokenizer) -> None:
    x, ids = pictures(4), torch.tensor([5, 2**40 + 1, 0, 9])
    drawn = tokenizer.encode(x, ids)
    torch.testing.assert_close(drawn[1:2], tokenizer.encode(x[1:2], ids[1:2]), atol=1e-5, rtol=0)
    assert not torch.allclose(drawn, tokenizer.encode(x))
    noise = seeded_normal(torch.arange(200), (5, 8, 8))
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02


def test_standardise_is_undone(tokenizer: Tokenizer) -> None:
    latents = tokenizer.encode(pictures(4))
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    unit = standardise(latents, mean, std)
    torch.testing.assert_close(unit.mean((0, 2, 3)), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(unit.std((0, 2, 3)), torch.ones(5))
    torch.testing.assert_close(destandardise(unit, mean, std), latents)
    with pytest.raises(ValueError, match="5 channels"):
        standardise(latents, mean[:3], std[:3])


@pytest.mark.parametrize("layout", ["flat", "vae"])
def test_stable_diffusions_autoencoder(tmp_path: Path, layout: str) -> None:
    """Four levels, 4 channels, a scaling factor: latents are raw all the same, from a folder or a pipeline's part."""
    torch.manual_seed(0)
    blocks: dict[str, Any] = {
        "block_out_channels": (8, 16, 16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    model: Any = AutoencoderKL(latent_channels=4, norm_num_groups=4, scaling_factor=0.18215, sample_size=256, **blocks)
    model.save_pretrained(tmp_path if layout == "flat" else tmp_path / "vae")
    found = load_tokenizer(str(tmp_path))
    assert (found.factor, found.channels) == (8, 4)
    with torch.no_grad():
        posterior = model.eval().encode(pictures(2)).latent_dist
        torch.testing.assert_close(found.encode(pictures(2)), posterior.mean, atol=1e-5, rtol=1e-4)
        decoded = model.decode(posterior.mean).sample
    torch.testing.assert_close(found.decode(posterior.mean), decoded, atol=1e-5, rtol=1e-4)


def test_an_autoencoder_of_va_vaes_shape(tmp_path: Path) -> None:
    """Five levels with attention in the coarsest, 32 channels, shift and scale in the config: f16d32, raw latents."""
    torch.manual_seed(0)
    widths = (8, 8, 16, 16, 16)
    model: Any = AutoencoderKL(
        latent_channels=32,
        norm_num_groups=4,
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 4,
        scaling_factor=0.5,
        shift_factor=0.1,
        latents_mean=[0.3] * 32,
        latents_std=[2.0] * 32,
    )
    model.save_pretrained(tmp_path)
    found = load_tokenizer(str(tmp_path))
    assert (found.factor, found.channels) == (16, 32)
    with torch.no_grad():
        mean = model.eval().encode(pictures(1)).latent_dist.mean
    torch.testing.assert_close(found.encode(pictures(1)), mean, atol=1e-5, rtol=1e-4)
    assert found.decode(mean).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("shape", [(1, 3, 30, 32), (1, 4, 32, 32), (3, 32, 32)])
def test_other_shapes_are_refused(tokenizer: Tokenizer, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="divisible by 4"):
        tokenizer.encode(torch.zeros(shape))


def test_latents_of_another_tokenizer_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="5 channels"):
        tokenizer.decode(torch.zeros(1, 4, 8, 8))


def test_missing_and_broken_sources_give_one_sentence(tmp_path: Path) -> None:
    for source in ("shipped:nothing", str(tmp_path), str(tmp_path / "absent")):
        with pytest.raises(ValueError) as error:
            load_tokenizer(source)
        assert "\n" not in str(error.value)
    new_model(SMALL, 32).save_config(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(ValueError, match="could not be loaded"):
        load_tokenizer(str(tmp_path))
