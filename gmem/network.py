"""The velocity network: a LightningDiT transformer whose condition is a snippet from the memory.

A latent becomes tokens, each with a fixed two-dimensional position; blocks of attention and SwiGLU refine them, every
block modulated by the sum of the embedded time and the embedded snippet; a last linear layer turns tokens into velocity.
Parameters carry the names of the published GMem checkpoints, so that state dicts go both ways.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Conditioning = Literal["memory", "none", "label"]
Prediction = Literal["velocity", "data"]
Initialisation = Literal["published", "zero"]

TIME_FEATURES = 256
DATA_FLOOR = 1e-3  # smallest noise level by which a data prediction is divided to give a velocity


class Size(NamedTuple):
    depth: int
    width: int
    heads: int


SIZES = {
    "T": Size(6, 192, 3),  # for the demo, about 4 M parameters
    "S": Size(12, 384, 6),
    "B": Size(12, 768, 12),
    "L": Size(24, 1024, 16),
    "XL": Size(28, 1152, 16),
    "1p0B": Size(24, 1536, 24),
    "1p6B": Size(28, 1792, 28),
}


@dataclass(frozen=True)
class NetworkConfig:
    """Everything that fixes the network's tensors; JSON by `dataclasses.asdict`, back by `NetworkConfig(**values)`.

    The defaults are those of ImageNet at 256 px with VA-VAE f16d32 latents and DINOv2-B snippets.
    """

    depth: int
    width: int
    heads: int
    patch: int = 1
    latent_channels: int = 32
    latent_size: int = 16
    snippet_dim: int = 768
    projection_dim: int = 0  # width of the patch tokens that the alignment head predicts; 0: no head
    projection_hidden: int = 2048
    projection_after: int = 4  # the head reads the tokens after this many blocks
    conditioning: Conditioning = "memory"
    classes: int = 0
    prediction: Prediction = "velocity"  # "data": the last layer gives the clean latent, turned into a velocity
    initialisation: Initialisation = "published"

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_choices()

    def _check_sizes(self) -> None:
        for name in ("depth", "width", "heads", "patch", "latent_channels", "latent_size", "snippet_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"network.{name} is {getattr(self, name)}; give a positive number")
        if self.width % (4 * self.heads):
            raise ValueError(
                f"network.width {self.width} does not give {self.heads} heads a size divisible by 4, which rotary "
                "positions need; change width or heads"
            )
        if self.latent_size % self.patch:
            raise ValueError(f"network.patch {self.patch} does not divide the latent's side {self.latent_size}; use 1")
        if self.projection_dim and not 1 <= self.projection_after <= self.depth:
            raise ValueError(f"network.projection_after {self.projection_after} is not one of the {self.depth} blocks")

    def _check_choices(self) -> None:
        for name, choices in (
            ("conditioning", Conditioning), ("prediction", Prediction), ("initialisation", Initialisation)
        ):  # fmt: skip
            if getattr(self, name) not in choices.__args__:
                raise ValueError(f"network.{name} is {getattr(self, name)!r}; use one of {', '.join(choices.__args__)}")
        if self.conditioning == "label" and self.classes < 1:
            raise ValueError("network.classes must be at least 1 when network.conditioning is 'label'")

    @classmethod
    def of(cls, size: str, **rest: Any) -> NetworkConfig:
        """The network of a named size (`SIZES`), with the other fields as given."""
        if size not in SIZES:
            raise ValueError(f"there is no network size {size!r}; use one of {', '.join(SIZES)}")
        return cls(**SIZES[size]._asdict(), **rest)

    @property
    def grid(self) -> int:
        """Tokens a side."""
        return self.latent_size // self.patch

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.latent_channels, self.latent_size, self.latent_size


def sincos_positions(width: int, grid: int) -> Tensor:
    """Fixed 2-D sine-cosine positions [1, grid², width]: first half of the width for the column, second for the row."""
    frequency = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * frequency
    line = torch.cat([angle.sin(), angle.cos()], dim=1)  # [grid, width / 2]
    column = line.expand(grid, grid, -1)
    row = line[:, None].expand(grid, grid, -1)
    return torch.cat([column, row], dim=-1).reshape(1, grid * grid, width).float()


def time_features(t: Tensor) -> Tensor:
    """Cosines and sines [B, 256] of t [B], frequencies falling geometrically from 1 to 1/10000."""
    half = TIME_FEATURES // 2
    frequency = torch.exp(-math.log(10000) / half * torch.arange(half, dtype=torch.float32, device=t.device))
    angle = t.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation, and the block's scale and shift in the same pass over the tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """norm(x) · weight · (1 + scale) + shift, for x [B, T, d], shift and scale [B, 1, d]."""
        return torch.addcmul(shift, F.rms_norm(x, x.shape[-1:], eps=1e-6), self.weight * (1 + scale))


class Rotary(nn.Module):
    """Two-dimensional rotary positions: half of a head's dimensions turn with the row, half with the column."""

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, head: int, grid: int) -> None:
        super().__init__()
        axis = head // 2
        frequency = 1.0 / 10000 ** (torch.arange(0, axis, 2).float() / axis)
        line = (torch.arange(grid).float()[:, None] * frequency).repeat_interleave(2, dim=1)  # [grid, head / 2]
        row = line[:, None].expand(grid, grid, axis)
        column = line.expand(grid, grid, axis)
        angle = torch.cat([row, column], dim=-1).reshape(grid * grid, head)
        self.register_buffer("freqs_cos", angle.cos())
        self.register_buffer("freqs_sin", angle.sin())

    def forward(self, x: Tensor) -> Tensor:
        """Turns each pair of neighbouring dimensions of x [..., T, head] by its token's angle."""
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = (f[:, ::2].to(x.dtype) for f in (self.freqs_cos, self.freqs_sin))
        return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [3, B, heads, T, head]
        q, k = rotary(qkv[:2])
        y = F.scaled_dot_product_attention(q, k, qkv[2])
        return self.proj(y.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = int(2 / 3 * 4 * width)
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class Modulation(nn.Sequential):
    """`count` vectors [B, 1, d] made of the condition [B, d]."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(width, count * width))
        self.count = count

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        return super().forward(condition)[:, None].chunk(self.count, dim=-1)


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = RMSNorm(width)
        self.mlp = SwiGLU(width)
        self.adaLN_modulation = Modulation(width, 6)

    def forward(self, x: Tensor, condition: Tensor, rotary: Rotary) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition)
        x = torch.addcmul(x, gate1, self.attn(self.norm1(x, shift1, scale1), rotary))
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
        self.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))

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


class Network(nn.Module):
    """v(x_t, t, snippet), the velocity of a latent at time t (0 is noise, 1 is data).

    `snippet` is unit-length and masked already (`gmem.memory`); None stands for the zero snippet, the input of the
    unconditional branch of guidance. `label` counts with conditioning "label" only; None or `classes` means no label.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        width, grid = config.width, config.grid
        self.pos_embed = nn.Parameter(sincos_positions(width, grid), requires_grad=False)
        self.x_embedder = PatchEmbedding(config.latent_channels, config.patch, width)
        self.t_embedder = TimeEmbedding(width)
        if config.conditioning == "memory":
            self.condition_projection = SnippetEmbedding(config.snippet_dim, width)
        if config.conditioning == "label":
            self.y_embedder = LabelEmbedding(config.classes, width)
        self.feat_rope = Rotary(width // config.heads, grid)
        self.blocks = nn.ModuleList([Block(width, config.heads) for _ in range(config.depth)])
        if config.projection_dim:
            self.projector = nn.ModuleList([_head(width, config.projection_hidden, config.projection_dim)])
        self.final_layer = FinalLayer(width, config.latent_channels * config.patch**2)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier everywhere, as the published code does; "zero" also silences modulation and output at the start.

        With "zero" every block begins as the identity and the velocity as 0.
        """
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight.flatten(1) if module.weight.dim() > 2 else module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for layer in (self.t_embedder.mlp[0], self.t_embedder.mlp[2]):
            nn.init.normal_(layer.weight, std=0.02)
        if self.config.initialisation == "zero":
            silent = [m[1] for m in self.modules() if isinstance(m, Modulation)]
            for layer in (*silent, self.final_layer.linear):
                nn.init.zeros_(layer.weight)

    def forward(self, x: Tensor, t: Tensor, snippet: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        """Velocity float32 [B, C, H, W] of x [B, C, H, W] at t [B], for snippet [B, D] or label [B]."""
        return self._run(x, t, snippet, label, project=False)[0]

    def forward_training(
        self, x: Tensor, t: Tensor, snippet: Tensor | None = None, label: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Velocity, and the head's prediction of the patch tokens [B, T, projection_dim] (None without a head)."""
        return self._run(x, t, snippet, label, project=self.config.projection_dim > 0)

    def _run(
        self, x: Tensor, t: Tensor, snippet: Tensor | None, label: Tensor | None, project: bool
    ) -> tuple[Tensor, Tensor | None]:
        condition = self._condition(t, snippet, label)
        tokens = self.x_embedder(self._patches(x)) + self.pos_embed
        projected = None
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens, condition, self.feat_rope)
            if project and number == self.config.projection_after:
                projected = self.projector[0](tokens)
        output = self._image(self.final_layer(tokens, condition)).float()
        if self.config.prediction == "data":
            output = (output - x) / (1 - t.float()).clamp_min(DATA_FLOOR)[:, None, None, None]
        return output, projected

    def _condition(self, t: Tensor, snippet: Tensor | None, label: Tensor | None) -> Tensor:
        """The vector [B, d] that modulates every block, in float32: time must not be rounded to 8 bits."""
        with torch.autocast(t.device.type, enabled=False):
            condition = self.t_embedder(t)
            if self.config.conditioning == "memory":
                snippet = t.new_zeros(len(t), self.config.snippet_dim) if snippet is None else snippet
                condition = condition + self.condition_projection(snippet.float())
            elif self.config.conditioning == "label":
                label = torch.full_like(t, self.config.classes, dtype=torch.long) if label is None else label.long()
                condition = condition + self.y_embedder(label)
        return condition

    def _patches(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, T, C·p·p]."""
        if x.shape[1:] != self.config.latent_shape:
            raise ValueError(f"the network takes latents of {self.config.latent_shape}, not {tuple(x.shape[1:])}")
        p = self.config.patch
        return x.unflatten(3, (-1, p)).unflatten(2, (-1, p)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def _image(self, patches: Tensor) -> Tensor:
        """[B, T, p·p·C] to [B, C, H, W]."""
        p, grid = self.config.patch, self.config.grid
        image = patches.unflatten(2, (p, p, -1)).unflatten(1, (grid, grid))  # [B, h, w, p, p, C]
        return image.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def _head(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, out)
    )


def parameter_count(module: nn.Module, trainable: bool = True) -> int:
    """Number of parameters; the fixed positions are left out unless `trainable` is False."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)
