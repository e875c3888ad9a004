"""Train a small AutoencoderKL (diffusers) on a collection of pictures, where no tokenizer exists for it.

The loss is the expected code length of a picture under a Gaussian whose deviation fits that picture,
log MSE + (2 / n) KL over n pixel values, with the KL weighted down: so every picture counts by its own PSNR, and the
KL only keeps the latents near a unit Gaussian and a little noise in them, which a generator's errors resemble.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gmem.errors import InputError
from gmem.muon import Muon
from gmem.pixels import from_bytes, to_bytes
from gmem.pretrain.augment import vary_pixels
from gmem.pretrain.loop import Average, Losses, Progress, Training, batch_rows, generator, train, write_provenance
from gmem.tensor_files import write_tensors
from gmem.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class TokenizerTraining(Training):
    """All parameters of a tokenizer's training. The number of widths fixes the factor: four of them, f8."""

    widths: tuple[int, ...] = (16, 32, 64, 128)
    layers: int = 1
    norm_groups: int = 8
    latent_channels: int = 12
    kl_weight: float = 0.1
    steps: int = 2400
    batch: int = 16
    muon_lr: float = 0.02
    decay_share: float = 0.3


def pretrain_tokenizer(
    images: Tensor,
    held_images: Tensor,
    training: TokenizerTraining,
    folder: Path | str,
    progress: Progress | None = None,
    *,
    origin: dict[str, Any] | None = None,
    report_every: int = 50,
    checkpoint_seconds: float = 120.0,
) -> dict[str, Any]:
    """Train on uint8 images [N, 3, H, W]; write the diffusers layout and `provenance.json` to `folder`.

    The run resumes from `folder/checkpoint.safetensors` and stops at `training.steps`. `origin` (data, command,
    licence) goes into the provenance as it is. Returns the figures, measured on `held_images` with the stored weights.
    Raises ValueError when the pictures' sides are not multiples of the factor, or there is none.
    """
    factor = 2 ** (len(training.widths) - 1)
    if not len(images) or not len(held_images) or images.shape[2] % factor or images.shape[3] % factor:
        raise InputError(
            f"pretraining takes pictures with sides divisible by {factor}, some of them held out; these are "
            f"{tuple(images.shape)} and {tuple(held_images.shape)}"
        )
    torch.manual_seed(training.seed)
    model = new_model(training, images.shape[-1]).to(memory_format=torch.channels_last)
    optimizers = _optimizers(model, training)

    def losses(step: int) -> Losses:
        rng = generator(training.seed, step, "picture")
        rows = batch_rows(len(images), training.batch, training.seed, step)
        batch = vary_pixels(from_bytes(images[rows]), rng).contiguous(memory_format=torch.channels_last)
        return {"loss": loss_of(model, batch, training.kl_weight, rng)}

    folder = Path(folder)
    clipped = optimizers[1].param_groups[0]["params"]  # Muon's updates have a fixed size
    average = train(
        model,
        optimizers,
        clipped,
        losses,
        training,
        folder,
        progress,
        report_every=report_every,
        checkpoint_seconds=checkpoint_seconds,
    )
    figures = export(model, average, images, held_images, folder)
    write_provenance(folder, origin, training, figures)
    return figures


def new_model(training: TokenizerTraining, size: int) -> Any:
    """An untrained AutoencoderKL: convolutions only, so that it takes any size that the factor divides."""
    from diffusers import AutoencoderKL

    levels = len(training.widths)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=training.widths,
        layers_per_block=training.layers,
        latent_channels=training.latent_channels,
        norm_num_groups=training.norm_groups,
        sample_size=size,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def loss_of(model: Any, images: Tensor, kl_weight: float, rng: torch.Generator) -> Tensor:
    """Mean over the batch of log MSE (of values in [0, 1]) + kl_weight * 2 / n * KL; images [B, 3, H, W]."""
    posterior = model.encode(images).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=rng)
    decoded = model.decode(posterior.mean + posterior.std * noise).sample
    error = ((decoded - images) / 2).square().mean((1, 2, 3))
    return (error + 1e-5).log().mean() + kl_weight * posterior.kl().mean() * 2 / images[0].numel()


def _optimizers(model: nn.Module, training: TokenizerTraining) -> list[torch.optim.Optimizer]:
    """Muon for the convolutions between the first and the last of either half, Adam for the rest."""
    inside = [p for n, p in model.named_parameters() if p.ndim == 4 and "conv_in" not in n and "conv_out" not in n]
    taken = {id(p) for p in inside}
    rest = [p for p in model.parameters() if id(p) not in taken]
    return [Muon(inside, training.muon_lr), torch.optim.Adam(rest, training.lr, betas=(0.9, 0.99))]


def export(model: Any, average: Average, images: Tensor, held_images: Tensor, folder: Path) -> dict[str, Any]:
    """Save the averaged weights as float16 and measure what was saved."""
    model.save_config(folder)
    weights = {name: value.half() for name, value in average.values.items()}
    write_tensors(folder / "diffusion_pytorch_model.safetensors", weights, {"format": "pt"})
    tokenizer = load_tokenizer(str(folder))
    figures = measure(tokenizer, held_images)
    return figures | {
        "train_psnr": measure(tokenizer, images[: len(held_images)])["held_out_psnr"],
        "training_pictures": len(images),
        "held_out_pictures": len(held_images),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def measure(tokenizer: Tokenizer, images: Tensor, batch: int = 64) -> dict[str, Any]:
    """Mean PSNR in dB of the bytes decoded from posterior means, and the latents' deviation a channel."""
    psnr, latents = [], []
    for part in images.split(batch):
        latent = tokenizer.encode(from_bytes(part))
        error = (to_bytes(tokenizer.decode(latent)).float() - part.float()) / 255
        mse = error.square().mean((1, 2, 3)).clamp_min(1e-10)
        psnr.append(-10 / math.log(10) * mse.log())
        latents.append(latent)
    deviation = torch.cat(latents).std((0, 2, 3))
    return {
        "held_out_psnr": torch.cat(psnr).mean().item(),
        "latent_deviation": [round(x, 4) for x in deviation.tolist()],
    }
