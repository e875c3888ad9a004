"""Autoencoders under the names of the latent-diffusion code (`encoder.down.0.block.1…`), turned into diffusers' names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

TRAINING_PARTS = ("loss.", "foundation_model.", "linear_proj.", "model_ema.", "discriminator.", "perceptual_loss.")
GROUPS = 32

# One regular expression a rule, applied in this order to what follows "encoder." or "decoder.".
RULES = (
    (r"mid\.block_1\.", "mid_block.resnets.0."),
    (r"mid\.block_2\.", "mid_block.resnets.1."),
    (r"mid\.attn_1\.", "mid_block.attentions.0."),
    (r"down\.(\d+)\.block\.(\d+)\.", r"down_blocks.\1.resnets.\2."),
    (r"down\.(\d+)\.attn\.(\d+)\.", r"down_blocks.\1.attentions.\2."),
    (r"down\.(\d+)\.downsample\.", r"down_blocks.\1.downsamplers.0."),
    (r"up\.(\d+)\.block\.(\d+)\.", r"up_blocks.\1.resnets.\2."),
    (r"up\.(\d+)\.attn\.(\d+)\.", r"up_blocks.\1.attentions.\2."),
    (r"up\.(\d+)\.upsample\.", r"up_blocks.\1.upsamplers.0."),
    (r"nin_shortcut", "conv_shortcut"),
    (r"norm_out", "conv_norm_out"),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
)


def without_training_parts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The autoencoder's tensors: without losses, averages and the foundation model that VA-VAE is aligned to."""
    return {name: value for name, value in tensors.items() if not name.startswith(TRAINING_PARTS)}


def autoencoder_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments for diffusers' `AutoencoderKL`, read off names and shapes; KeyError where a telling tensor is missing.

    The halves differ where only one has attention at a level, as in MAR's KL-16.
    """
    levels = _levels(tensors, "encoder.down")
    widths = tuple(tensors[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels))
    down = [f"encoder.down.{level}.attn.0.q.weight" in tensors for level in range(levels)]
    up = [f"decoder.up.{level}.attn.0.q.weight" in tensors for level in reversed(range(levels))]
    return {
        "in_channels": tensors["encoder.conv_in.weight"].shape[1],
        "out_channels": tensors["decoder.conv_out.weight"].shape[0],
        "block_out_channels": widths,
        "down_block_types": tuple("AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in down),
        "up_block_types": tuple("AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in up),
        "layers_per_block": sum(bool(re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", n)) for n in tensors),
        "latent_channels": tensors["decoder.conv_in.weight"].shape[1],
        "norm_num_groups": GROUPS,
        "scaling_factor": 1.0,
        "use_quant_conv": "quant_conv.weight" in tensors,
        "use_post_quant_conv": "post_quant_conv.weight" in tensors,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in tensors,
    }


def diffusers_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under diffusers' names, attention's 1x1 convolutions as the matrices they are."""
    levels = _levels(tensors, "decoder.up")
    return {_rename(name, levels): _matrix(name, value) for name, value in tensors.items()}


def _levels(tensors: Mapping[str, Tensor], half: str) -> int:
    """How many levels the encoder or decoder has, by its blocks' names."""
    found = (re.match(rf"{re.escape(half)}\.(\d{{1,2}})\.", name, re.ASCII) for name in tensors)
    return 1 + max((int(each[1]) for each in found if each), default=0)


def _rename(name: str, levels: int) -> str:
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name)
    # latent-diffusion numbers the decoder's levels from the finest, diffusers from the coarsest
    return re.sub(r"up_blocks\.(\d+)", lambda found: f"up_blocks.{levels - 1 - int(found[1])}", name)


def _matrix(name: str, value: Tensor) -> Tensor:
    flat = re.search(r"\.attn(_\d+)?\.(\d+\.)?(q|k|v|proj_out)\.weight$", name) and value.dim() == 4
    return value.flatten(1) if flat else value
