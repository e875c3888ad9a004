"""From noise to latents: the flow's ODE, or an SDE with the same marginals; guided, shifted, seeded by sample.

The score follows from the velocity: s = (t·v − x) / σ with σ = 1−t. So for a diffusion coefficient w the SDE's drift
is v + w·s = v + (w/σ)·(t·v − x): one network call gives both, and w/σ stays finite where σ vanishes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gmem import dopri5, noise
from gmem.flow import shift
from gmem.precision import multiplying
from gmem.settings import SamplerConfig

VelocityNetwork = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]
"""Of x, t, snippet, label; a snippet of zeros and a label of -1 are none."""
Wiener = Callable[[int], Tensor]  # number of a step, from 0 -> standard normal [B, C, H, W]


ALL = slice(None)


class Sample(NamedTuple):
    """Standardised latents [B, C, H, W], and the most evaluations of a network that one of them took (guided: twice a
    point)."""

    latent: Tensor
    calls: int


def noise_for(seed: int, indices: Sequence[int] | Tensor, shape: Sequence[int]) -> Tensor:
    """Starting noise [B, *shape]: sample number `indices[i]` has its own, whatever the batch."""
    return noise.normals(seed, noise.SAMPLING, 0, map(int, indices), shape)


def wiener_for(seed: int, indices: Sequence[int] | Tensor, like_noise: Tensor) -> Wiener:
    """The SDE's noise, step by step, on the device of `like_noise` [B, C, H, W]; again each sample's own."""
    places = [int(index) for index in indices]
    return lambda step: noise.normals(seed, noise.SAMPLING, step + 1, places, like_noise.shape[1:]).to(like_noise)


@torch.no_grad()
def sample(
    network: VelocityNetwork,
    noise: Tensor,
    snippet: Tensor | None,
    config: SamplerConfig,
    *,
    seed: int = 0,
    indices: Sequence[int] | Tensor | None = None,
    label: Tensor | None = None,
    guide: VelocityNetwork | None = None,
    wiener: Wiener | None = None,
) -> Sample:
    """Standardised latents for snippets or labels, integrated from noise at t = 0 to data at t = 1.

    With a guidance scale s the velocity is other + s·(conditional − other), where other is the guide's velocity (Karras et
    al. 2024), and without a guide the network's own for the zero snippet.

    Args:
        network: velocity [B, C, H, W] of (x, t [B], snippet, label), such as a `gmem.network.Network`.
        noise: [B, C, H, W] standard normal; `noise_for` gives each sample its own.
        snippet: [B, D] of unit length; None: the zero snippet.
        seed: of the SDE's noise.
        indices: [B] numbers of the samples, each with its own noise (default 0, 1, …).
        label: [B] integers, for networks that are conditioned on them.
        guide: a smaller or earlier network of the same latents and snippets.
        wiener: the SDE's noise by step, instead of `seed` and `indices`.

    Raises ValueError when dopri5 does not arrive, or the velocity is not finite.

    >>> from gmem.network import Network
    >>> from gmem.settings import NetworkConfig
    >>> network = Network(NetworkConfig.of("T", latent_channels=12, latent_size=8, snippet_dim=192)).eval()
    >>> snippets = torch.nn.functional.normalize(torch.randn(2, 192), dim=1)
    >>> made = sample(network, noise_for(0, range(2), (12, 8, 8)), snippets, SamplerConfig("ode", "euler", steps=3))
    >>> made.latent.shape, made.calls
    (torch.Size([2, 12, 8, 8]), 2)
    """
    guided = _Guided(network, snippet, label, config, guide, len(noise))
    if config.kind == "ode":
        latent = _ode(guided, noise, config)
    else:
        places = range(len(noise)) if indices is None else indices
        latent = _sde(guided, noise, config, wiener or wiener_for(seed, places, noise))
    return Sample(latent, int(guided.calls.max()))


class _Guided:
    """The velocity to follow, at x [B, C, H, W]; counts the evaluations of a network for each sample."""

    def __init__(
        self,
        network: VelocityNetwork,
        snippet: Tensor | None,
        label: Tensor | None,
        config: SamplerConfig,
        guide: VelocityNetwork | None,
        count: int,
    ) -> None:
        self.network = network
        self.snippet = snippet
        self.label = label
        self.config = config
        self.guide = guide
        self.calls = torch.zeros(count, dtype=torch.int64)

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """At time t of all samples: guided where the interval holds it."""
        place = min(1.0, _rounded(t))  # the last point of a grid may round to more
        return self.at(self.guided(t), x, torch.full((len(x),), place, device=x.device))

    def guided(self, t: float) -> bool:
        """Whether samples are guided at time t."""
        place = min(1.0, _rounded(t))
        begun = place >= _rounded(self.config.guidance_from)
        ended = place > _rounded(self.config.guidance_until)
        return begun and not ended and self.config.guidance != 1

    def at(self, guided: bool, x: Tensor, t: Tensor, rows: Tensor | slice = ALL) -> Tensor:
        """At times t [B] of each sample's own: guided or not, whatever they are. `rows`: whose these are."""
        snippet = None if self.snippet is None else self.snippet[rows]
        label = None if self.label is None else self.label[rows]
        self.calls[rows.cpu() if isinstance(rows, Tensor) else rows] += 1 + guided
        if not guided:
            return self._call(self.network, x, t, snippet, label)
        if self.guide:
            velocity = self._call(self.network, x, t, snippet, label)
            other = self._call(self.guide, x, t, snippet, label)
        else:
            velocity, other = self._both(x, t, snippet, label)
        return torch.lerp(other, velocity, self.config.guidance)

    def _both(self, x: Tensor, t: Tensor, snippet: Tensor | None, label: Tensor | None) -> tuple[Tensor, ...]:
        """With and without the condition, in one batch."""
        snippets = None if snippet is None else torch.cat([snippet, torch.zeros_like(snippet)])
        labels = None if label is None else torch.cat([label, torch.full_like(label, -1)])
        return self._call(self.network, torch.cat([x, x]), torch.cat([t, t]), snippets, labels).chunk(2)

    def _call(
        self, network: VelocityNetwork, x: Tensor, t: Tensor, snippet: Tensor | None, label: Tensor | None
    ) -> Tensor:
        with multiplying(x.device.type, self.config.precision):
            return network(x, t, snippet, label)


def _rounded(time: float) -> float:
    """As the network sees it."""
    return torch.tensor(time, dtype=torch.float32).item()


def _intervals(config: SamplerConfig, end: float) -> Iterator[tuple[int, float, float]]:
    """Number, beginning and length of each interval from 0 to `end`."""
    even = torch.linspace(0, 1, config.steps, dtype=torch.float64)
    grid = shift(even, config.shift) * end
    begins = grid[:-1].tolist()
    lengths = grid.diff().tolist()
    return zip(range(config.steps - 1), begins, lengths, strict=True)


def _ode(velocity: _Guided, x: Tensor, config: SamplerConfig) -> Tensor:
    if config.method == "dopri5":
        # A step over a jump would be judged by where its stages happen to lie.
        for begin, end, guided in config.pieces():
            x = dopri5.integrate(functools.partial(velocity.at, guided), x, begin, end, config.rtol, config.atol)
        return x
    if config.method == "multistep":
        return _multistep(velocity, x, config)
    for _, t, dt in _intervals(config, 1.0):
        first = velocity(x, t)
        if config.method == "heun":
            first = (first + velocity(x + dt * first, t + dt)) / 2
        x = x + dt * first
    return x


def _multistep(velocity: _Guided, x: Tensor, config: SamplerConfig) -> Tensor:
    """DEIS of first order (Zhang and Chen 2022, arXiv 2204.13902: tAB1) for the foretold data, a network call a step.

    The flow is dx/dt = (D − x) / (1−t) with D = x + (1−t)·v, the data foretold at a point. D is taken for a straight
    line in time through the last two points, and the rest is integrated exactly, up to the data itself. The first step,
    and one at which guidance begins or ends, knows a single point: it is Euler's.
    """
    before, earlier = x, math.nan
    for _, t, dt in _intervals(config, 1.0):
        share = min(dt / (1 - t), 1.0)  # of the way to the data
        data = x + (1 - t) * velocity(x, t)
        ahead = 0.0  # how far along the line D is taken, as a weight of the last difference
        if earlier < t and velocity.guided(t) == velocity.guided(earlier):
            left = (1 - t) * (1 - share)
            bend = dt + left * math.log1p(-share) if left else dt
            ahead = bend / (t - earlier)
        x = torch.lerp(x, data, share) + ahead * (data - before)
        before, earlier = data, t
    return x


def _sde(velocity: _Guided, x: Tensor, config: SamplerConfig, wiener: Wiener) -> Tensor:
    """Euler–Maruyama, or Heun with the noise of a step added before its two drifts."""
    end = 1.0 if config.last == "none" else 1 - config.last_size
    for number, t, dt in _intervals(config, end):
        variance = 2 * (1 - t) * _pull(config, t, dt) * dt
        kick = math.sqrt(variance) * wiener(number)
        if config.method == "euler":
            x = x + dt * _drift(velocity, x, t, dt, config) + kick
        else:
            x = x + kick
            first = _drift(velocity, x, t, dt, config)
            second = _drift(velocity, x + dt * first, t + dt, dt, config)
            x = x + dt / 2 * (first + second)
    return _last_step(velocity, x, end, config)


def _last_step(velocity: _Guided, x: Tensor, t: float, config: SamplerConfig) -> Tensor:
    """From t to the data: the drift without noise, the posterior mean (Tweedie), or the plain flow."""
    if config.last == "none":
        return x
    if config.last == "mean":
        return x + config.last_size * _drift(velocity, x, t, config.last_size, config)
    v = velocity(x, t)
    if config.last == "tweedie":
        return (x + (1 - t) * (t * v - x)) / t
    return x + config.last_size * v


def _drift(velocity: _Guided, x: Tensor, t: float, dt: float, config: SamplerConfig) -> Tensor:
    v = velocity(x, t)
    return v + _pull(config, t, dt) * (t * v - x)


def _pull(config: SamplerConfig, t: float, dt: float) -> float:
    """w/σ for the diffusion coefficient w(t), with n = `diffusion_norm`:

    sigma, linear: n·σ; constant: n; SBDM: n·σ/t; decreasing: (n·cos(πt) + 1)²/4; increasing-decreasing: n·sin²(πt).

    Three of them ask for a pull that no step can follow: SBDM is infinite at t = 0, the others leave noise alive at
    σ = 0. They are held at w·dt ≤ σ²/2, half the noise there is, a bound that vanishes as steps become small.
    """
    n = config.diffusion_norm
    sigma = 1 - t
    gone = sigma <= 1e-6
    if config.diffusion in ("sigma", "linear"):
        return n
    if config.diffusion == "increasing-decreasing":
        return 0.0 if gone else n * math.sin(math.pi * t) ** 2 / sigma
    bound = sigma / (2 * dt)
    if config.diffusion == "SBDM":
        return min(n / t, bound) if t > 0 else bound
    if gone:
        return 0.0
    w = n
    if config.diffusion == "decreasing":
        w = (n * math.cos(math.pi * t) + 1) ** 2 / 4
    return min(w / sigma, bound)
