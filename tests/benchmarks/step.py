"""A training step of the demo's network on this machine's cores: ours, and the same written plainly."""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from measured import Measured, alternating
from torch.utils.flop_counter import FlopCounterMode

from gmem import flow, memory
from gmem.batch import Batch, draw
from gmem.learner import Learner
from gmem.network import Network
from gmem.settings import LearnerConfig, NetworkConfig

BATCH = 32
CONFIG = NetworkConfig.of("T", patch=2, latent_channels=12, latent_size=8, snippet_dim=192)
LEARNER = LearnerConfig(lr=3e-3, warmup=30, ema=0.98, mask=0, align=0, precision="fp32")


def pictures(batch: int) -> Batch:
    random = torch.Generator().manual_seed(0)
    latent = torch.randn(batch, *CONFIG.latent_shape, generator=random)
    snippet = torch.randn(batch, CONFIG.snippet_dim, generator=random)
    return Batch(latent, snippet, None, None)


def ours(batch: int) -> Learner:
    torch.manual_seed(0)
    return Learner(Network(CONFIG), LEARNER)


def stepping(learner: Learner, data: Batch) -> Callable[[], float]:
    count = len(data.latent)

    def step() -> float:
        draws = draw(0, learner.steps, count, CONFIG.latent_shape, CONFIG.snippet_dim, slice(0, count), 0)
        learner.step(data, draws, count)
        return count

    return step


def plainly(data: Batch) -> Callable[[], float]:
    """As a paper's code does it: eager, torch's own random numbers, an average kept tensor by tensor."""
    torch.manual_seed(0)
    network = Network(CONFIG).train()
    average = copy.deepcopy(network)
    optimiser = torch.optim.AdamW(network.parameters(), LEARNER.lr, (0.9, 0.95), weight_decay=0.0)

    def step() -> float:
        latent, snippet, *_ = data
        t = torch.sigmoid(torch.randn(len(latent)))
        noise = torch.randn_like(latent)
        normalised = memory.normalise(snippet)
        velocity, _ = network.forward_training(flow.interpolate(latent, noise, t), t, normalised, None)
        loss = F.mse_loss(velocity, latent - noise)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            for kept, weight in zip(average.parameters(), network.parameters(), strict=True):
                kept.mul_(LEARNER.ema).add_(weight, alpha=1 - LEARNER.ema)
        return float(len(latent)) + 0 * loss.item()

    return step


def matrix_rate() -> Callable[[], float]:
    """Floating-point operations of one large fp32 product."""
    a = torch.randn(2048, 2048)

    def product() -> float:
        a @ a
        return 2.0 * 2048**3

    return product


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--batch", type=int, default=BATCH)
    asked = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    data = pictures(asked.batch)
    learner = ours(asked.batch)
    step = stepping(learner, data)
    with FlopCounterMode(display=False) as counter:
        step()
    work = counter.get_total_flops() / asked.batch
    rates = alternating(asked.rounds, ours=step, plain=plainly(data), product=matrix_rate())
    limit = rates["product"] / work
    note = f"{work / 1e9:.2f} GFLOP a picture, {torch.get_num_threads()} threads"
    Measured("training step", rates["ours"], "pictures/s", {"plain": rates["plain"]}, limit, note).tell()
    Measured("training step, share of one large product", rates["ours"] / limit, "").tell()


if __name__ == "__main__":
    main()
