"""Snippets that are nobody's: a small network that learns how the snippets of a bank are distributed.

The same straight path as for latents (`gmem.flow`), over vectors: a snippet of unit length, each coordinate standardised
over the bank, is what noise becomes as t goes from 0 to 1. Blocks of SwiGLU, modulated by the time and by a class label
where there is one, refine the vector. What is drawn is brought back to unit length, and conditions the network of latents
as any snippet does (Li et al. 2024, "Return of Unconditional Generation", section 3.2, learns such a generator as a
stage of its own).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmem import flow, memory, noise
from gmem.errors import InputError
from gmem.layers import FinalLayer, LabelEmbedding, Modulation, RMSNorm, SwiGLU, TimeEmbedding
from gmem.pretrain.loop import Average
from gmem.sampler import sample
from gmem.settings import PriorConfig, SamplerConfig
from gmem.states import below, load_optimiser_state, optimiser_state

WARMUP = 100
SAMPLER = SamplerConfig("ode", "heun", steps=20)
DRAWN_TOGETHER = 4096
FLAT = 1e-3
"""Coordinates that vary less than this share of the average one are taken to vary so much."""


@dataclass(frozen=True)
class PriorShape:
    """Everything that fixes the tensors of a prior."""

    dim: int
    """Of a snippet."""
    classes: int
    """Of labels; 0: it knows none."""
    width: int
    depth: int


class ResidualBlock(nn.Module):
    """x + gate · SwiGLU(norm(x)), modulated by the condition; each [B, 1, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.mlp = SwiGLU(width)
        self.modulation = Modulation(width, 3)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(condition)
        normed = self.norm(x, shift, scale)
        return torch.addcmul(x, gate, self.mlp(normed))


class Prior(nn.Module):
    """v(x_t, t, label), the velocity of a standardised snippet at time t (0 is noise, 1 is data).

    It begins as v = 0. `mean` and `deviation` [D] are those of unit-length snippets.

    >>> prior = Prior(PriorShape(dim=16, classes=3, width=32, depth=1))
    >>> prior(torch.randn(2, 16), torch.tensor([0.1, 0.9]), label=torch.tensor([0, -1])).shape
    torch.Size([2, 16])
    >>> draw(prior, 4, seed=0).norm(dim=1)
    tensor([1.0000, 1.0000, 1.0000, 1.0000])
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, shape: PriorShape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.width
        self.register_buffer("mean", torch.zeros(shape.dim))
        self.register_buffer("deviation", torch.ones(shape.dim))
        self.embed = nn.Linear(shape.dim, width)
        self.embed_time = TimeEmbedding(width)
        self.embed_label: LabelEmbedding | None = None
        if shape.classes:
            self.embed_label = LabelEmbedding(shape.classes, width)
        self.blocks = nn.ModuleList([ResidualBlock(width) for _ in range(shape.depth)])
        self.final = FinalLayer(width, shape.dim)
        for name, parameter in self.named_parameters():
            silent = "odulation" in name or name.startswith("final.linear")
            if silent:
                nn.init.zeros_(parameter)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        snippet: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """The velocity [B, D].

        Args:
            x: [B, D] standardised snippets with noise.
            t: [B] times from 0 (noise) to 1 (data).
            snippet: nothing; a place for what networks of latents take, so that one sampler serves both.
            label: [B] integers; None or negative: no label.
        """
        condition = self.embed_time(t)
        if self.embed_label is not None:
            unlabelled = torch.full((len(x),), self.shape.classes, device=x.device)
            if label is None:
                label = unlabelled
            else:
                label = torch.where(label < 0, unlabelled, label)
            condition = condition + self.embed_label(label)
        hidden = self.embed(x)[:, None]
        for block in self.blocks:
            hidden = block(hidden, condition)
        velocity: Tensor = self.final(hidden, condition)
        return velocity[:, 0]


def draw(
    prior: Prior,
    count: int,
    seed: int,
    label: int | None = None,
    guidance: float = 1.0,
    first: int = 0,
) -> Tensor:
    """Snippets float32 [count, D] of unit length; number i of a seed is the same whatever the count.

    Args:
        prior: trained, on any device.
        count: how many.
        seed: of the noise.
        label: of a class, which `prior` must know; None: of no class.
        guidance: how far beyond the class's own snippets, away from those of no class; 1: not.
        first: the number of the first.

    Raises ValueError for a label that is not known.
    """
    shape = prior.shape
    if label is not None and not 0 <= label < shape.classes:
        raise InputError(f"the prior knows {shape.classes} classes, and not number {label}; name one it has seen")
    device = prior.mean.device
    config = replace(SAMPLER, guidance=guidance)
    drawn = [torch.zeros(0, shape.dim)]
    end = first + count
    for start in range(first, end, DRAWN_TOGETHER):
        places = range(start, min(start + DRAWN_TOGETHER, end))
        normal = noise.normals(seed, noise.PRIOR_SAMPLING, 0, places, (shape.dim,))
        labels: Tensor | None = None
        if label is not None:
            labels = torch.full((len(places),), label, device=device)
        standardised = sample(prior, normal.to(device), None, config, label=labels).latent
        snippets = standardised * prior.deviation + prior.mean
        drawn.append(memory.normalise(snippets).cpu())
    return torch.cat(drawn)


class PriorLearner:
    """A prior in training, with its average and its optimiser. What a step draws is a function of (seed, step)."""

    def __init__(
        self,
        snippets: Tensor,
        labels: Tensor,
        config: PriorConfig,
        device: str | torch.device = "cpu",
    ) -> None:
        """Begins at step 0.

        Args:
            snippets: [N, D], of any length; kept as they are.
            labels: int64 [N]; negative: none.
            config: how it learns.
            device: where it learns.

        Raises ValueError for fewer than 2 snippets.
        """
        if len(snippets) < 2:
            raise InputError(f"a prior is learned of many snippets, and there are {len(snippets)}; add pictures")
        self.snippets = snippets
        self.labels = labels
        self.config = config
        self.device = torch.device(device)
        self.steps = 0

        # The network begins from the seed, and knows how the snippets lie.
        shape = PriorShape(
            dim=snippets.shape[1],
            classes=max(int(labels.max()) + 1, 0),
            width=config.width,
            depth=config.depth,
        )
        torch.manual_seed(config.seed)
        self.prior = Prior(shape).to(self.device)
        mean, deviation = _moments(snippets)
        self.prior.mean.copy_(mean)
        self.prior.deviation.copy_(deviation)

        self.average = Average(self.prior, config.ema)
        self.optimiser = torch.optim.AdamW(
            self.prior.parameters(),
            config.lr,
            betas=(0.9, 0.99),
            weight_decay=0.0,
        )

    def step(self) -> float:
        """One update; its loss, the mean squared error of the velocity, which is about 2 of a network that knows nothing."""
        # What this step sees: snippets of its own, some without their labels.
        config = self.config
        stream = noise.stream(config.seed, noise.PRIOR_TRAINING, self.steps, 0)
        rows = torch.from_numpy(stream.integers(len(self.snippets), size=config.batch))
        uniform = torch.from_numpy(stream.random(len(rows), dtype="float32"))
        labels = self.labels[rows].masked_fill(uniform < config.drop, -1)
        loss = self._loss(self.prior, self.snippets[rows], labels, stream)

        # What it changes; the rate rises over the first steps.
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.prior.parameters(), 1.0)
        warmth = min(1.0, (self.steps + 1) / WARMUP)
        self.optimiser.param_groups[0]["lr"] = config.lr * warmth
        self.optimiser.step()
        self.average.update(self.prior, self.steps)
        self.steps += 1
        return loss.item()

    def averaged(self) -> Prior:
        """A prior of the averaged weights, to draw from."""
        prior = Prior(self.prior.shape).to(self.device)
        prior.load_state_dict(self.prior.state_dict() | self.average.values)
        return prior.eval()

    @torch.no_grad()
    def held_out_loss(self, snippets: Tensor, labels: Tensor) -> float:
        """The averaged prior's loss on snippets [N, D] that it does not learn from, always with the same draws."""
        stream = noise.stream(self.config.seed, noise.PRIOR_TRAINING, 0, 1)
        return float(self._loss(self.averaged(), snippets, labels, stream))

    def _loss(self, prior: Prior, snippets: Tensor, labels: Tensor, stream: Any) -> Tensor:
        """The mean squared error [] of the velocity, for snippets [B, D] and labels [B]."""
        directions = memory.normalise(snippets.float().to(self.device))
        latent = (directions - prior.mean) / prior.deviation
        epsilon = torch.from_numpy(stream.standard_normal(latent.shape, dtype="float32"))
        epsilon = epsilon.to(self.device)
        normal = torch.from_numpy(stream.standard_normal(len(latent), dtype="float32"))
        t = flow.times(normal.to(self.device))
        noisy = flow.interpolate(latent, epsilon, t)
        velocity = prior(noisy, t, label=labels.to(self.device))
        return F.mse_loss(velocity, flow.target(latent, epsilon))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON from which training goes on exactly."""
        weights = self.prior.state_dict()
        averaged = weights | self.average.values
        tensors = {f"network.{name}": value for name, value in weights.items()}
        tensors |= {f"ema.{name}": value for name, value in averaged.items()}
        tensors |= optimiser_state(self.optimiser, "optimiser.")
        copies = {name: value.detach().clone() for name, value in tensors.items()}
        return copies, {"steps": self.steps}

    def load_state(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Puts a `state()` back."""
        self.prior.load_state_dict(below(tensors, "network."))
        averages = below(tensors, "ema.")
        for name, value in self.average.values.items():
            value.copy_(averages[name])
        load_optimiser_state(self.optimiser, tensors, "optimiser.")
        self.steps = int(progress["steps"])


def load_prior(
    shape: dict[str, Any],
    tensors: dict[str, Tensor],
    device: str | torch.device = "cpu",
) -> Prior:
    """A prior of averaged weights (`ema.<name>`), as `PriorLearner.state` gives them, and the fields of its shape."""
    prior = Prior(PriorShape(**shape))
    prior.load_state_dict(below(tensors, "ema."))
    return prior.to(device).eval()


def shape_of(learner: PriorLearner) -> dict[str, Any]:
    """The fields of a prior's shape, for JSON."""
    return asdict(learner.prior.shape)


def _moments(snippets: Tensor, block: int = 65_536) -> tuple[Tensor, Tensor]:
    """Mean and deviation [D] of the snippets' directions, in one pass over them as they are."""
    total = torch.zeros(snippets.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for part in snippets.split(block):
        rows = memory.normalise(part.float()).double()
        total += rows.sum(0)
        squares += rows.square().sum(0)
    mean = total / len(snippets)
    variance = squares / len(snippets) - mean.square()
    deviation = variance.clamp_min(0).sqrt()
    usual = float(deviation.mean())
    floor = FLAT * usual if usual > 0 else 1.0
    return mean.float(), deviation.clamp_min(floor).float()
