"""Snippets that are nobody's: a small network that learns how the snippets of a bank are distributed.

The same straight path as for latents (`gmem.flow`), over vectors: a snippet of unit length, each coordinate standardised
over the bank, is what noise becomes as t goes from 0 to 1. Blocks of SwiGLU, modulated by the time and by a class label
where there is one, refine the vector. What is drawn is brought back to unit length, and conditions the network of latents
as any snippet does (Li et al. 2024, "Return of Unconditional Generation", section 3.2, learns such a generator as a
stage of its own).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
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
        self.norm, self.mlp, self.modulation = RMSNorm(width), SwiGLU(width), Modulation(width, 3)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(condition)
        return torch.addcmul(x, gate, self.mlp(self.norm(x, shift, scale)))


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
        self.register_buffer("mean", torch.zeros(shape.dim))
        self.register_buffer("deviation", torch.ones(shape.dim))
        self.embed = nn.Linear(shape.dim, shape.width)
        self.embed_time = TimeEmbedding(shape.width)
        self.embed_label = LabelEmbedding(shape.classes, shape.width) if shape.classes else None
        self.blocks = nn.ModuleList([ResidualBlock(shape.width) for _ in range(shape.depth)])
        self.final = FinalLayer(shape.width, shape.dim)
        for name, parameter in self.named_parameters():
            if "odulation" in name or name.startswith("final.linear"):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, t: Tensor, snippet: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        """The velocity [B, D].

        Args:
            x: [B, D] standardised snippets with noise.
            t: [B] times from 0 (noise) to 1 (data).
            snippet: nothing; a place for what networks of latents take, so that one sampler serves both.
            label: [B] integers; None or negative: no label.
        """
        condition = self.embed_time(t)
        if self.embed_label is not None:
            none = torch.full((len(x),), self.shape.classes, device=x.device)
            label = none if label is None else torch.where(label < 0, none, label)
            condition = condition + self.embed_label(label)
        hidden = self.embed(x)[:, None]
        for block in self.blocks:
            hidden = block(hidden, condition)
        velocity: Tensor = self.final(hidden, condition)
        return velocity[:, 0]


def draw(prior: Prior, count: int, seed: int, label: int | None = None, guidance: float = 1.0) -> Tensor:
    """Snippets float32 [count, D] of unit length; number i of a seed is the same whatever the count.

    Args:
        prior: trained, on any device.
        count: how many.
        seed: of the noise.
        label: of a class, which `prior` must know; None: of no class.
        guidance: how far beyond the class's own snippets, away from those of no class; 1: not.

    Raises ValueError for a label that is not known.
    """
    if label is not None and not 0 <= label < prior.shape.classes:
        raise InputError(f"the prior knows {prior.shape.classes} classes, and not number {label}; name one it has seen")
    device, made = prior.mean.device, []
    config = SamplerConfig("ode", "heun", steps=SAMPLER.steps, guidance=guidance) if guidance != 1 else SAMPLER
    for start in range(0, count, DRAWN_TOGETHER):
        places = range(start, min(start + DRAWN_TOGETHER, count))
        begin = noise.normals(seed, noise.PRIOR_SAMPLING, 0, places, (prior.shape.dim,)).to(device)
        labels = None if label is None else torch.full((len(places),), label, device=device)
        vectors = sample(prior, begin, None, config, label=labels).latent * prior.deviation + prior.mean
        made.append(memory.normalise(vectors).cpu())
    return torch.cat(made) if made else torch.zeros(0, prior.shape.dim)


class PriorLearner:
    """A prior in training, with its average and its optimiser. What a step draws is a function of (seed, step)."""

    def __init__(
        self, snippets: Tensor, labels: Tensor, config: PriorConfig, device: str | torch.device = "cpu"
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
        self.snippets, self.labels, self.config, self.device = snippets, labels, config, torch.device(device)
        shape = PriorShape(snippets.shape[1], max(int(labels.max()) + 1, 0), config.width, config.depth)
        torch.manual_seed(config.seed)
        self.prior = Prior(shape).to(self.device)
        self.prior.mean.copy_((moments := _moments(snippets))[0])
        self.prior.deviation.copy_(moments[1])
        self.average = Average(self.prior, config.ema)
        self.optimiser = torch.optim.AdamW(self.prior.parameters(), config.lr, (0.9, 0.99), weight_decay=0.0)
        self.steps = 0

    def step(self) -> float:
        """One update; its loss, the mean squared error of the velocity, which is about 2 of a network that knows nothing."""
        stream = noise.stream(self.config.seed, noise.PRIOR_TRAINING, self.steps, 0)
        rows = torch.from_numpy(stream.integers(len(self.snippets), size=self.config.batch))
        labels = self.labels[rows]
        dropped = torch.from_numpy(stream.random(len(rows), dtype="float32")) < self.config.drop
        loss = self._loss(self.prior, self.snippets[rows], labels.masked_fill(dropped, -1), stream)

        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.prior.parameters(), 1.0)
        self.optimiser.param_groups[0]["lr"] = self.config.lr * min(1.0, (self.steps + 1) / WARMUP)
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
        latent = (memory.normalise(snippets.float().to(self.device)) - prior.mean) / prior.deviation
        epsilon = torch.from_numpy(stream.standard_normal(latent.shape, dtype="float32")).to(self.device)
        normal = torch.from_numpy(stream.standard_normal(len(latent), dtype="float32")).to(self.device)
        t = flow.times(normal)
        velocity = prior(flow.interpolate(latent, epsilon, t), t, label=labels.to(self.device))
        return F.mse_loss(velocity, flow.target(latent, epsilon))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON from which training goes on exactly."""
        weights = self.prior.state_dict()
        tensors = {f"network.{name}": value for name, value in weights.items()}
        tensors |= {f"ema.{name}": value for name, value in (weights | self.average.values).items()}
        for number, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{name}": torch.as_tensor(value) for name, value in state.items()}
        return {name: value.detach().clone() for name, value in tensors.items()}, {"steps": self.steps}

    def load_state(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Puts a `state()` back."""
        self.prior.load_state_dict(_below(tensors, "network."))
        averages = _below(tensors, "ema.")
        for name, value in self.average.values.items():
            value.copy_(averages[name])
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in _below(tensors, "optimiser.").items():
            number, key = name.split(".", 1)
            states.setdefault(int(number), {})[key] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": states, "param_groups": groups})
        self.steps = int(progress["steps"])


def load_prior(shape: dict[str, Any], tensors: dict[str, Tensor], device: str | torch.device = "cpu") -> Prior:
    """A prior of averaged weights (`ema.<name>`), as `PriorLearner.state` gives them, and the fields of its shape."""
    prior = Prior(PriorShape(**shape))
    prior.load_state_dict(_below(tensors, "ema."))
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
    deviation = (squares / len(snippets) - mean.square()).clamp_min(0).sqrt()
    usual = float(deviation.mean())
    return mean.float(), deviation.clamp_min(FLAT * usual if usual > 0 else 1.0).float()


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
