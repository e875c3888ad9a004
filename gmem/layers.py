"""The parts of the network: positions, normalisation, attention, SwiGLU, modulation, embeddings.

Named as in the published checkpoints. Two of them come with their own gradient: it writes once what automatic
differentiation would write several times, which halves the memory traffic that a small network on a CPU is bound by. A
compiler fuses the plain expressions better than that, and does not know complex numbers: it is given those expressions.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gmem.size import TIME_FEATURES, feed_forward

EPSILON = 1e-6  # added to the mean square before its root


def sincos_positions(width: int, grid: int) -> Tensor:
    """Fixed 2-D sine-cosine positions [1, grid², width]: first half of the width for the column, second for the row."""
    count = width // 4
    exponent = torch.arange(count, dtype=torch.float64) / count
    frequency = 1.0 / 10000**exponent
    place = torch.arange(grid, dtype=torch.float64)[:, None]
    angle = place * frequency
    line = torch.cat([angle.sin(), angle.cos()], dim=1)  # [grid, width / 2]
    column = line.expand(grid, grid, -1)
    row = line[:, None].expand(grid, grid, -1)
    positions = torch.cat([column, row], dim=-1)
    return positions.reshape(1, grid * grid, width).float()


def time_features(t: Tensor) -> Tensor:
    """Cosines and sines [B, 256] of t [B], frequencies falling geometrically from 1 to 1/10000."""
    half = TIME_FEATURES // 2
    number = torch.arange(half, dtype=torch.float32, device=t.device)
    frequency = torch.exp(-math.log(10000) / half * number)
    angle = t.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class _ModulatedNorm(torch.autograd.Function):
    """y·m + shift with y = x / rms(x); its gradient needs y and 1/rms only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, multiplier: Tensor, shift: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        mean_square = norm.square_().div_(x.shape[-1])
        inverse = torch.rsqrt(mean_square.add_(EPSILON))
        y = x * inverse
        ctx.save_for_backward(y, inverse, multiplier)
        return torch.addcmul(shift, y, multiplier)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, inverse, multiplier = ctx.saved_tensors
        (gradient,) = gradients
        product = gradient * y
        column = multiplier.to(product.dtype).transpose(1, 2)
        along = torch.matmul(product, column).div_(y.shape[-1])  # mean of dy·y
        to_y = gradient * multiplier
        to_x = to_y.addcmul_(y, along, value=-1).mul_(inverse)
        to_multiplier = product.sum(1, keepdim=True)
        to_shift = gradient.sum(1, keepdim=True)
        return to_x, to_multiplier, to_shift


class _SwiGLU(torch.autograd.Function):
    """silu(gate) · value for [..., gate | value]; its gradient is written in place, and silu computed again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate).mul_(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        (gradient,) = gradients
        gate, value = x.chunk(2, dim=-1)
        result = torch.empty_like(x)
        to_gate, to_value = result.chunk(2, dim=-1)
        torch.mul(F.silu(gate), gradient, out=to_value)
        torch.ops.aten.silu_backward.grad_input(gradient * value, gate, grad_input=to_gate)
        return result


class RMSNorm(nn.Module):
    """Root-mean-square normalisation together with a block's scale and shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """x / rms(x) · weight · (1 + scale) + shift, for x [B, T, d], shift and scale [B, 1, d]; float32."""
        multiplier = self.weight * (1 + scale.float())
        shift = shift.float()
        if torch.compiler.is_compiling():
            mean_square = x.float().square().mean(-1, keepdim=True)
            inverse = torch.rsqrt(mean_square + EPSILON)
            return x * inverse * multiplier + shift
        return _ModulatedNorm.apply(x, multiplier, shift)


class Rotary(nn.Module):
    """Two-dimensional rotary positions: half of a head's dimensions turn with the row, half with the column."""

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, head: int, grid: int) -> None:
        super().__init__()
        axis = head // 2
        exponent = torch.arange(0, axis, 2).float() / axis
        frequency = 1.0 / 10000**exponent
        place = torch.arange(grid).float()[:, None]
        line = (place * frequency).repeat_interleave(2, dim=1)  # [grid, head / 2]
        row = line[:, None].expand(grid, grid, axis)
        column = line.expand(grid, grid, axis)
        angle = torch.cat([row, column], dim=-1).reshape(grid * grid, head)
        self.register_buffer("freqs_cos", angle.cos())
        self.register_buffer("freqs_sin", angle.sin())

    def turns(self) -> Tensor:
        """Cosine and sine [T, 1, head / 2, 2] of the turn of each pair of neighbouring dimensions."""
        cos = self.freqs_cos[:, None, ::2]
        sin = self.freqs_sin[:, None, ::2]
        return torch.stack([cos, sin], dim=-1)


def turn(x: Tensor, turns: Tensor) -> Tensor:
    """x [B, T, heads, head] turned pairwise: one complex product, float32."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():
        a, b = pairs.unbind(-1)
        cos, sin = turns.unbind(-1)
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1)
        return turned.flatten(-2)
    product = torch.view_as_complex(pairs) * torch.view_as_complex(turns)
    return torch.view_as_real(product).flatten(-2)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        all_heads = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        q, k, v = all_heads.unbind(2)  # each [B, T, heads, head]
        q = turn(q, turns).to(v.dtype)
        k = turn(k, turns).to(v.dtype)
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
        )
        return self.proj(y.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = feed_forward(width)
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        both = self.w12(x)
        if torch.compiler.is_compiling():
            gate, value = both.chunk(2, dim=-1)
            return self.w3(F.silu(gate) * value)
        return self.w3(_SwiGLU.apply(both))


class Modulation(nn.Sequential):
    """`count` vectors [B, 1, d] made of the condition [B, d]."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(width, count * width))
        self.count = count

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        together = super().forward(condition)[:, None]
        return together.chunk(self.count, dim=-1)


class Block(nn.Module):
    recompute = False
    """Whether the backward pass computes again what is within, instead of keeping it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = RMSNorm(width)
        self.mlp = SwiGLU(width)
        self.adaLN_modulation = Modulation(width, 6)

    def forward(self, x: Tensor, condition: Tensor, turns: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._refine, x, condition, turns, use_reentrant=False, preserve_rng_state=False)
        return self._refine(x, condition, turns)

    def _refine(self, x: Tensor, condition: Tensor, turns: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition)
        x = torch.addcmul(x, gate1, self.attn(self.norm1(x, shift1, scale1), turns))
        return torch.addcmul(x, gate2, self.mlp(self.norm2(x, shift2, scale2)))


class FinalLayer(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = RMSNorm(width)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = Modulation(width, 2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition)
        return self.linear(self.norm_final(x, shift, scale))


class PatchEmbedding(nn.Module):
    """Patches [B, T, C·p·p] to tokens [B, T, d]. A convolution in the published files, a matrix product here."""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, patches: Tensor) -> Tensor:
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class TimeEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(TIME_FEATURES, width),
            nn.SiLU(),
            nn.Linear(width, width),
        )

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(time_features(t))


class SnippetEmbedding(nn.Module):
    def __init__(self, snippet_dim: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(snippet_dim, width)

    def forward(self, snippet: Tensor) -> Tensor:
        return self.linear(snippet)


class LabelEmbedding(nn.Module):
    """One vector a class, and a last one for "no label"."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, label: Tensor) -> Tensor:
        return self.embedding_table(label)


def alignment_head(width: int, hidden: int, out: int) -> nn.Sequential:
    """Tokens [B, T, width] to a guess of the patch tokens [B, T, out]."""
    return nn.Sequential(
        nn.Linear(width, hidden),
        nn.SiLU(),
        nn.Linear(hidden, hidden),
        nn.SiLU(),
        nn.Linear(hidden, out),
    )
