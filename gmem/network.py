"""The velocity network: a LightningDiT transformer whose condition is a snippet from the memory.

A latent becomes tokens, each with a fixed two-dimensional position; blocks of attention and SwiGLU refine them, every
block modulated by the sum of the embedded time and the embedded snippet; a last linear layer turns tokens into velocity.
Parameters carry the names of the published GMem checkpoints, so that state dicts go both ways.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from gmem import routing
from gmem.errors import InputError
from gmem.layers import (
    Block,
    FinalLayer,
    LabelEmbedding,
    PatchEmbedding,
    Rotary,
    SnippetEmbedding,
    TimeEmbedding,
    alignment_head,
    sincos_positions,
)
from gmem.settings import NetworkConfig

DATA_FLOOR = 1e-3  # smallest noise level by which a data prediction is divided to give a velocity


class Network(nn.Module):
    """v(x_t, t, snippet), the velocity of a latent at time t (0 is noise, 1 is data).

    `snippet` is unit-length and masked already (`gmem.memory`); None stands for the zero snippet, the input of the
    unconditional branch of guidance. `label` counts with conditioning "label" only; None, `classes` or a negative number
    means no label.

    >>> network = Network(NetworkConfig.of("T", latent_channels=12, latent_size=8, snippet_dim=192))
    >>> network(torch.randn(2, 12, 8, 8), torch.tensor([0.1, 0.9]), torch.randn(2, 192)).shape
    torch.Size([2, 12, 8, 8])
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
            head = alignment_head(width, config.projection_hidden, config.projection_dim)
            self.projector = nn.ModuleList([head])
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
        for module in self.t_embedder.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        if self.config.initialisation == "zero":
            nn.init.zeros_(self.final_layer.linear.weight)
            for name, parameter in self.named_parameters():
                if name.endswith("adaLN_modulation.1.weight"):
                    nn.init.zeros_(parameter)

    def forward(self, x: Tensor, t: Tensor, snippet: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        """The velocity, float32 [B, C, H, W].

        Args:
            x: [B, C, H, W] standardised latents with noise, C, H and W those of the config.
            t: [B] times from 0 (noise) to 1 (data).
            snippet: [B, D] of unit length; None: the zero snippet.
            label: [B] integers; None: no label.

        Raises ValueError for latents of another shape.
        """
        return self._run(x, t, snippet, label, project=False)[0]

    def forward_training(
        self,
        x: Tensor,
        t: Tensor,
        snippet: Tensor | None = None,
        label: Tensor | None = None,
        kept: Tensor | None = None,
        project: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Velocity, and the head's prediction of the patch tokens [B, T, projection_dim].

        Args:
            kept: [B, K] places of the tokens that go through the middle blocks (`NetworkConfig.middle`); None: all.
            project: whether the head predicts; without it, or without a head, the second is None.
        """
        return self._run(x, t, snippet, label, project and self.config.projection_dim > 0, kept)

    def compile_blocks(self) -> None:
        """Fuses each block's small operations, when it is first called; that takes half a minute."""
        for block in self.blocks:
            block.compile()

    def recompute_blocks(self) -> None:
        """From now on the backward pass computes again what is within each block, instead of keeping it."""
        for block in self.blocks:
            cast(Block, block).recompute = True

    def _run(
        self,
        x: Tensor,
        t: Tensor,
        snippet: Tensor | None,
        label: Tensor | None,
        project: bool,
        kept: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        condition = self._condition(t, snippet, label)
        tokens = self.x_embedder(self._patches(x)) + self.pos_embed
        turns = self.feat_rope.turns()
        projected = None
        for number, block in enumerate(self.blocks):
            if kept is not None and number in self.config.middle:
                tokens = routing.through(block, tokens, kept, condition, turns)
            else:
                tokens = block(tokens, condition, turns)
            if project and number + 1 == self.config.projection_after:
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
                condition = condition + self.condition_projection(self.config.snippet_scale * snippet.float())
            elif self.config.conditioning == "label":
                label = torch.full_like(t, self.config.classes, dtype=torch.long) if label is None else label.long()
                condition = condition + self.y_embedder(label.where(label >= 0, self.config.classes))
        return condition

    def _patches(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, T, C·p·p]."""
        if x.shape[1:] != self.config.latent_shape:
            raise InputError(f"the network takes latents of {self.config.latent_shape}, not {tuple(x.shape[1:])}")
        p = self.config.patch
        return x.unflatten(3, (-1, p)).unflatten(2, (-1, p)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def _image(self, patches: Tensor) -> Tensor:
        """[B, T, p·p·C] to [B, C, H, W]."""
        p, grid = self.config.patch, self.config.grid
        image = patches.unflatten(2, (p, p, -1)).unflatten(1, (grid, grid))  # [B, h, w, p, p, C]
        return image.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def parameter_count(module: nn.Module) -> int:
    """Number of parameters, the fixed positions included, as the published figures count them."""
    return sum(p.numel() for p in module.parameters())
