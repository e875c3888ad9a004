"""Samples by the published SDE Heun method: ours, and the plain form with a network call for each of drift and score."""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable
from itertools import pairwise

import torch
from measured import Measured, alternating
from torch import Tensor

from gmem.network import Network
from gmem.sampler import sample
from gmem.settings import NetworkConfig, SamplerConfig

CONFIG = NetworkConfig.of("T", patch=2, latent_channels=12, latent_size=8, snippet_dim=192)


def ours(network: Network, noise: Tensor, snippet: Tensor, points: int) -> Callable[[], float]:
    config, index = SamplerConfig(kind="sde", method="heun", steps=points), torch.arange(len(noise))

    @torch.inference_mode()
    def make() -> float:
        sample(network, noise, snippet, config, seed=0, indices=index)
        return len(noise)

    return make


def plain(network: Network, noise: Tensor, snippet: Tensor, points: int) -> Callable[[], float]:
    def drift(x: Tensor, t: float) -> Tensor:
        at = torch.full((len(x),), t)
        score = (t * network(x, at, snippet) - x) / (1 - t)
        return network(x, at, snippet) + (1 - t) * score

    @torch.inference_mode()
    def make() -> float:
        x = noise
        for t, end in pairwise(torch.linspace(0, 0.96, points).tolist()):
            x = x + (2 * (1 - t) * (end - t)) ** 0.5 * torch.randn_like(x)
            first = drift(x, t)
            x = x + (end - t) / 2 * (first + drift(x + (end - t) * first, end))
        return len(noise)

    return make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--points", type=int, default=20)
    asked = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    network = Network(CONFIG).eval()
    given = network, torch.randn(asked.samples, *CONFIG.latent_shape), torch.randn(asked.samples, 192), asked.points
    compiled = copy.deepcopy(network)
    compiled.compile_blocks()
    rates = alternating(asked.rounds, ours=ours(*given), compiled=ours(compiled, *given[1:]), plain=plain(*given))
    note = f"SDE Heun of {asked.points} points"
    others = {name: rates[name] for name in ("plain", "compiled")}
    Measured("sampling", rates["ours"], "pictures/s", others, note=note).tell()
    Measured("sampling, times the plain form", rates["ours"] / rates["plain"], "times").tell()


if __name__ == "__main__":
    main()
