"""One optimisation step, and everything that must survive between two of them. Knows nothing of clusters or files.

Randomness is a function of (seed, step, place in the global batch), so that neither the number of workers nor a restart
changes what is trained; resume needs only `state()`.
"""

from __future__ import annotations

import copy
import functools
import math
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gmem import flow, memory, routing
from gmem.batch import Batch, Draws
from gmem.errors import InputError
from gmem.network import Network
from gmem.optimiser import Optimiser
from gmem.parallel import Alone
from gmem.settings import AVERAGE, WHOLE_MATRICES, LearnerConfig
from gmem.states import below
from gmem.threads import one_thread

Value = TypeVar("Value")


class Learner:
    """A network in training, with its moving averages and its optimiser; `ema` is the first of them as a network.

    With several workers (`parallel`) gradients are averaged; losses are summed and divided by the global batch, so
    shares of unequal size count rightly. `summed` adds a small tensor up over the workers, which makes the losses that
    `step` tells those of the global batch. Where weights are sharded, `ema` and `state` are those of the last `gather`, and
    only there where training is `observed`. Patch tokens that come as coefficients on `components` are brought to full
    width here, on the device: they are many times smaller. `micro_batch` pictures go through the network at once (0: all),
    and `compile` fuses its blocks, after half a minute; both only round otherwise. With `recompute` the backward pass
    computes a block's inside again.
    """

    def __init__(
        self,
        network: Network,
        config: LearnerConfig,
        device: str | torch.device = "cpu",
        parallel: Alone | None = None,
        summed: Callable[[Tensor], Tensor] | None = None,
        observed: bool = True,
        components: memory.Components | None = None,
        micro_batch: int = 0,
        compile: bool = False,
        recompute: bool = False,
    ) -> None:
        self.config = config
        self.observed = observed
        self.micro_batch = micro_batch
        self.device = torch.device(device)
        self.components = components.to(self.device) if components else None
        self.parallel = parallel or Alone()
        self.summed = summed or _same
        self.steps = 0  # draws and data order follow this one
        self.lr = 0.0  # of the last step
        self.updates = torch.zeros((), device=self.device)  # steps that were not skipped: the device knows first
        self._gathered: dict[str, Tensor] = {}
        self._bf16 = _multiplies_bf16(config, self.device)
        self._shift = _time_shift(config, network)

        if config.route and not network.config.middle:
            raise InputError(
                f"train.route needs blocks between the alignment head and the last sixth, and of the network's "
                f"{network.config.depth} there is none; set train.route to 0 or take a deeper network"
            )

        if config.optimiser == "muon" and self.parallel.sharded:
            raise InputError(WHOLE_MATRICES)

        # A head that nothing trains would be a parameter without a gradient.
        self.aligned = network.config.projection_dim > 0 and config.align > 0
        if network.config.projection_dim and not self.aligned:
            network.projector.requires_grad_(False)

        # The average is a network of its own; where it only tells names and shapes it takes no room on the device.
        needed = observed or not self.parallel.sharded
        self.ema = copy.deepcopy(network).requires_grad_(False).eval()
        self.ema.to(self.device if needed else "cpu")

        # What is sharded goes to the device layer by layer, and never as a whole.
        self.network = network.train()
        if not self.parallel.sharded:
            network.to(self.device)
        if recompute:
            network.recompute_blocks()
        if compile:
            network.compile_blocks()
        self.model = self.parallel.wrap(_Trained(network, self.aligned), network.blocks, self._bf16)

        # Wrapping may have replaced the parameters: what is optimised and averaged are those there now.
        self.parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        # The first average is the network `ema` itself, where that is whole; further ones are tensors alone.
        self.averages: dict[str, dict[str, Tensor]] = {}
        for group in config.averages():
            if group == AVERAGE and not self.parallel.sharded:
                whole = self.ema.named_parameters()
                self.averages[group] = {name: p for name, p in whole if name in self.parameters}
            else:
                self.averages[group] = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.optimiser = Optimiser(self.parameters, config)
        self.gather()

    def step(
        self,
        batch: Batch,
        draws: Draws,
        global_batch: int,
        limit: Tensor | float = math.inf,
    ) -> dict[str, float]:
        """One update. The losses returned are the global batch's means (without `summed`: this worker's share of them).

        A step whose gradient is not finite, or whose velocity loss is above `limit`, changes nothing and says so:
        `skipped` is 1, and `grad_norm` what it was.
        """
        return told([self.launch(batch, draws, global_batch, limit)])[0] | {"lr": self.lr}

    def launch(
        self,
        batch: Batch,
        draws: Draws,
        global_batch: int,
        limit: Tensor | float = math.inf,
    ) -> dict[str, Tensor]:
        """As `step`, without waiting for the device, which alone decides whether the step is skipped; `told` waits."""
        # Gradients of this worker's share, piece by piece; workers exchange them with the last.
        self._set_learning_rate()
        self.optimiser.zero_grad()
        shares = torch.zeros(4, device=self.device)
        for part, part_draws, sync in self._micro_batches(batch, draws, global_batch):
            with sync:
                losses = self._losses(self.model, part, part_draws, mask=True)
                loss = losses.total.sum() * (self.parallel.ranks / global_batch)
                loss.backward()
            sums = torch.stack([values.detach().sum() for values in losses])
            shares += sums / global_batch

        # What all workers agree on.
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = self.parallel.whole(torch.nn.utils.get_total_norm(gradients))
        means = dict(zip(flow.Losses._fields, self.summed(shares).unbind(), strict=True))

        # Weights and their average move, unless the step is not to be trusted.
        trusted = norm.isfinite() & (means["velocity"] <= limit)
        self._update(norm, trusted)
        self.steps += 1
        return means | {"grad_norm": norm, "skipped": trusted.logical_not().float()}

    @torch.no_grad()
    def loss(self, batch: Batch, draws: Draws) -> dict[str, float]:
        """Mean losses of the averaged network on pictures that are not trained on, snippets whole as in sampling."""
        model = _Trained(self.ema, self.aligned)
        losses = self._losses(model, batch.on(self.device), draws.on(self.device), mask=False)
        means = torch.stack(losses.mean()).tolist()
        return dict(zip(flow.Losses._fields, means, strict=True))

    @torch.no_grad()
    def gather(self) -> None:
        """Makes `ema` and `state` those of this moment, where weights are sharded: all workers call it together."""
        if not self.parallel.sharded:
            return
        self._gathered = {}
        for name, tensor in self._shares().items():
            whole = self.parallel.whole(tensor)
            if self.observed:
                self._gathered[name] = whole.cpu()
        if self.observed:
            self.ema.load_state_dict(below(self._gathered, f"{AVERAGE}."))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON from which training goes on exactly. The tensors are live: save them before the next step."""
        tensors = self._gathered if self.parallel.sharded else self._shares()
        return tensors, {"steps": self.steps, "updates": int(self.updates)}

    def load_state(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Puts a `state()` back; ValueError when it is that of another network."""
        updates = int(progress["updates"])
        self._check_same_network(tensors, updates)
        with torch.no_grad():
            for name, mine in self._weights().items():
                mine.copy_(self.parallel.placed(tensors[name], mine))
        self.optimiser.load(below(tensors, "optimiser."), updates, self.parallel.placed)
        self.steps = int(progress["steps"])
        self.updates.fill_(updates)
        self.gather()

    def _check_same_network(self, tensors: dict[str, Tensor], updates: int) -> None:
        expected = self._weights()
        if updates:
            expected |= {f"optimiser.{name}": shape for name, shape in self.optimiser.shapes().items()}
        names = expected.keys() | tensors.keys()
        wrong = [name for name in names if _shape(expected.get(name)) != _shape(tensors.get(name))]
        if wrong:
            raise InputError(
                f"this checkpoint is of another network: {len(wrong)} tensors are missing, surplus or of another shape, "
                f"first {', '.join(sorted(wrong)[:3])}"
            )

    def restart(self, network: Network) -> None:
        """Back to step 0 with the weights of `network`."""
        tensors: dict[str, Tensor] = {}
        for name, value in network.state_dict().items():
            tensors[f"network.{name}"] = value
            for group in self.averages:
                tensors[f"{group}.{name}"] = value
        self.load_state(tensors, {"steps": 0, "updates": 0})

    def _weights(self) -> dict[str, Tensor]:
        """Of the network and of its averages, whole or this worker's shares; what is not trained is in all."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        for group, average in self.averages.items():
            weights = self.ema.state_dict() | average
            tensors |= {f"{group}.{name}": value for name, value in weights.items()}
        return tensors

    def _shares(self) -> dict[str, Tensor]:
        """Weights and what the optimiser remembers."""
        tensors = self._weights()
        if self.updates:
            tensors |= {f"optimiser.{name}": moment for name, moment in self.optimiser.moments().items()}
        return tensors

    def _set_learning_rate(self) -> None:
        """Rises linearly over the warm-up, then stays, or from some step on falls with the inverse root of the steps.

        A schedule without an end, so that more steps continue a training (as in Karras et al. 2024, arXiv 2312.02696).
        """
        warmth = min(1.0, (self.steps + 1) / max(1, self.config.warmup))
        self.lr = self.config.lr * warmth
        if self.config.decay_after:
            self.lr *= min(1.0, self.config.decay_after / (self.steps + 1)) ** 0.5
        self.optimiser.set_rate(self.lr)

    def _micro_batches(
        self, batch: Batch, draws: Draws, global_batch: int
    ) -> Iterator[tuple[Batch, Draws, AbstractContextManager]]:
        """The batch in pieces, with a context that keeps workers from exchanging gradients before the last.

        All workers have as many pieces, if need be empty ones: where weights are sharded they fetch them together.
        """
        even_share = -(-global_batch // self.parallel.ranks)
        largest = max(1, len(batch.latent), even_share)
        size = self.micro_batch or largest
        starts = range(0, largest, size)
        for start in starts:
            rows = slice(start, start + size)
            last = start == starts[-1]
            context = nullcontext() if last else self.parallel.waiting(self.model)
            yield batch.on(self.device, rows), draws.on(self.device, rows), context

    def _losses(self, model: nn.Module, batch: Batch, draws: Draws, mask: bool) -> flow.Losses:
        latent, snippet, tokens, label = batch
        epsilon, normal, mask_draws, drop_draws, route_draws = draws
        kept = None
        t = flow.times(normal, self.config.times, self._shift)
        snippet = memory.normalise(snippet)
        if mask:
            snippet = memory.mask(snippet, mask_draws, self.config.mask)
            snippet = memory.drop(snippet, drop_draws, self.config.drop)
            if label is not None:
                label = label.where(drop_draws >= self.config.drop, self.network.config.classes)
            if self.config.route:
                if not route_draws.shape[1]:
                    raise InputError("train.route asks for draws with a number for each token: give `draw` their count")
                kept = routing.kept(route_draws, self.config.route)
        if self.aligned and tokens is None:
            raise InputError("the network has an alignment head: give patch tokens, or set train.align to 0")
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            velocity, projected = model(flow.interpolate(latent, epsilon, t), t, snippet, label, kept)
        return flow.losses(
            velocity, flow.target(latent, epsilon), projected, self._full(tokens),
            weight=flow.data_weight(t) if self.network.config.prediction == "data" else None,
            cosine=self.config.cosine, align=self.config.align,
        )  # fmt: skip

    def _full(self, tokens: Tensor | None) -> Tensor | None:
        """Patch tokens [b, t, D'] on the network's grid. What is linear is done first to the few coefficients."""
        if tokens is None or not self.aligned:
            return None
        tokens = flow.match_tokens(tokens.float(), self.network.config.grid**2)
        return self.components.reconstruct(tokens) if self.components else tokens

    @torch.no_grad()
    def _update(self, norm: Tensor, trusted: Tensor) -> None:
        """Of a step that is not `trusted` nothing remains. Without a branch: the host need not know which it is."""
        local = self.parallel.local
        self.optimiser.step((norm / self.config.clip).clamp_min(1), trusted)
        self.updates += trusted
        ramp = self.config.ema_ramp
        followed = (ramp - 1) / (ramp + self.updates)
        weights = [local(tensor) for tensor in self.parameters.values()]
        for group, decay in self.config.averages().items():
            average = [local(tensor) for tensor in self.averages[group].values()]
            share = followed.clamp_min(1 - decay) * trusted
            torch._foreach_lerp_(average, weights, [share] * len(weights))


def told(steps: list[dict[str, Tensor]]) -> list[dict[str, float]]:
    """What steps gave, in one wait for the device."""
    values = torch.stack([torch.stack(list(step.values())) for step in steps]).tolist()
    return [dict(zip(step, numbers, strict=True)) for step, numbers in zip(steps, values, strict=True)]


class _Trained(nn.Module):
    """The training forward pass as a module's own, which is what `DistributedDataParallel` wraps."""

    def __init__(self, network: Network, aligned: bool) -> None:
        super().__init__()
        self.network = network
        self.aligned = aligned

    def forward(
        self, x: Tensor, t: Tensor, snippet: Tensor, label: Tensor | None, kept: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        return self.network.forward_training(x, t, snippet, label, kept, self.aligned)


@functools.cache
def fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices clearly faster than float32 ones.

    CPUs are measured, one thread for a few milliseconds: some accept bf16 and take twice as long over it.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    with one_thread():
        full = _product_seconds(torch.float32)
        half = _product_seconds(torch.bfloat16)
    return half * 1.3 < full


def _multiplies_bf16(config: LearnerConfig, device: torch.device) -> bool:
    if config.precision == "auto":
        return fast_bf16(device)
    return config.precision == "bf16"


def _time_shift(config: LearnerConfig, network: Network) -> float:
    if not config.shift_base:
        return 1.0
    dimensions = math.prod(network.config.latent_shape)
    return flow.dimension_shift(dimensions, config.shift_base)


def _product_seconds(dtype: torch.dtype) -> float:
    """The thread's own seconds for a matrix product, whatever else the machine is busy with."""
    a = torch.ones(512, 256, dtype=dtype)
    product = functools.partial(torch.mm, a, a.T)
    return min(timeit.repeat(product, number=1, repeat=10, timer=time.thread_time))


def _same(value: Value) -> Value:
    return value


def _shape(tensor: Tensor | None) -> torch.Size | None:
    return None if tensor is None else tensor.shape
