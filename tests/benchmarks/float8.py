"""Linear layers whose three matrix products, forward and backward, are of float8: what a row of the GPU's table measures.

Each operand has one scale, that of its largest number, taken anew at every product. Values and weights are e4m3,
gradients e5m2, which reaches further and is coarser. Source: Micikevicius et al., "FP8 Formats for Deep Learning" (2022).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gmem.network import Network

VALUES, GRADIENTS = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16
"""Of which both sides of a matrix are, where it can be multiplied so."""


def in_float8(network: Network) -> int:
    """Lets what each block does with its tokens go by float8; how many layers those are. Parameters stay as they are."""
    parts = [part for block in network.blocks for part in (block.attn, block.mlp)]
    layers = [layer for part in parts for layer in part.modules() if type(layer) is nn.Linear and fits(layer)]
    for layer in layers:
        layer.__class__ = Float8Linear
    return len(layers)


def fits(layer: nn.Linear) -> bool:
    return layer.in_features % MULTIPLE == 0 == layer.out_features % MULTIPLE


class Float8Linear(nn.Linear):
    """[..., in] to [..., out]; in training the product of all sides before the last is a multiple of 16."""

    def forward(self, values: Tensor) -> Tensor:
        rows: Tensor = _Product.apply(values.flatten(0, -2), self.weight)
        if not torch.is_autocast_enabled(values.device.type):
            rows = rows.to(values.dtype)
        return (rows + self.bias.to(rows.dtype)).unflatten(0, values.shape[:-1])


class _Product(torch.autograd.Function):
    """[N, K] of values and [M, K] of a weight to [N, M]."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(values, weight)
        return product(values, VALUES, weight, VALUES)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        [gradient] = gradients
        values, weight = ctx.saved_tensors
        to_values = product(gradient, GRADIENTS, weight.T, VALUES)
        to_weight = product(gradient.T, GRADIENTS, values.T, VALUES)
        return to_values.to(values.dtype), to_weight.to(weight.dtype)


def product(a: Tensor, a_kind: torch.dtype, b: Tensor, b_kind: torch.dtype) -> Tensor:
    """a [N, K] times the transpose of b [M, K], bf16 [N, M]."""
    (first, one), (second, other) = scaled(a, a_kind), scaled(b, b_kind)
    return torch._scaled_mm(first, second.T, one, other, out_dtype=torch.bfloat16)


def scaled(values: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """As float8 that fills its range, row after row, and the scale [] by which it is to be multiplied."""
    scale = values.abs().amax().float().clamp_min(1e-12) / torch.finfo(kind).max
    return (values.float() / scale).to(kind).contiguous(), scale
