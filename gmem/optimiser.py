"""What moves a network's weights in training, and what it remembers of each by the weight's name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from gmem.muon import MOMENTUM, Muon, as_adam
from gmem.settings import LearnerConfig

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW remembers of a parameter, besides the number of updates."""
INERTIA = 0.95
"""Share of Muon's momentum that a step leaves, as published."""
MATRICES = re.compile(r"blocks\.\d+\.(attn|mlp)\..*")
"""Names of weights whose matrices Muon takes. Not the modulation's: its gradient has at most the rank of the batch."""

Parameters = dict[str, nn.Parameter]


class Optimiser:
    """AdamW; or Muon for the matrices of attention and SwiGLU, and AdamW for the rest, at one learning rate."""

    def __init__(self, parameters: Parameters, config: LearnerConfig) -> None:
        self.parameters = parameters
        self.matrices: Parameters = {}
        if config.optimiser == "muon":
            self.matrices = {name: p for name, p in parameters.items() if _is_matrix(name, p)}
        rest = [p for name, p in parameters.items() if name not in self.matrices]
        self.adam = torch.optim.AdamW(
            rest,
            config.lr,
            (config.beta1, config.beta2),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.each: list[torch.optim.Optimizer] = [self.adam]
        if self.matrices:
            self.muon = Muon(self.matrices.values(), config.lr, INERTIA, config.weight_decay, as_adam)
            self.each.append(self.muon)

    def set_rate(self, lr: float) -> None:
        for optimiser in self.each:
            optimiser.param_groups[0]["lr"] = lr

    def zero_grad(self) -> None:
        for optimiser in self.each:
            optimiser.zero_grad()

    def step(self, divisor: Tensor, trusted: Tensor) -> None:
        """Moves by the gradients divided by `divisor`, unless they are not `trusted`; both are single numbers.

        AdamW, fused, takes both on the device, as automatic loss scaling gives them to it. Muon waits for them.
        """
        self.adam.grad_scale = divisor  # type: ignore[attr-defined]
        self.adam.found_inf = trusted.logical_not().float()  # type: ignore[attr-defined]
        self.adam.step()
        if self.matrices and trusted:
            for parameter in self.matrices.values():
                if parameter.grad is not None:
                    parameter.grad.div_(divisor)
            self.muon.step()

    def moments(self) -> dict[str, Tensor]:
        """`<parameter>.<moment>`: what is remembered, after the first update."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            memory = self._of(name).state[parameter]
            for moment in self._names(name):
                tensors[f"{name}.{moment}"] = memory[moment]
        return tensors

    def shapes(self) -> dict[str, Tensor]:
        """By the names of `moments`, tensors of their shapes."""
        return {f"{name}.{moment}": p for name, p in self.parameters.items() for moment in self._names(name)}

    def load(self, moments: dict[str, Tensor], updates: int, placed: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Puts `moments` back that were there after so many updates; with none everything is forgotten.

        `placed` cuts a whole tensor as a parameter is cut.
        """
        for optimiser in self.each:
            optimiser.state.clear()
        if not updates:
            return
        for name, parameter in self.parameters.items():
            memory = {}
            for moment in self._names(name):
                saved = moments[f"{name}.{moment}"]
                memory[moment] = placed(saved.clone(), parameter)
            if name not in self.matrices:
                memory["step"] = torch.tensor(float(updates), device=parameter.device)
            self._of(name).state[parameter] = memory

    def _of(self, name: str) -> torch.optim.Optimizer:
        return self.muon if name in self.matrices else self.adam

    def _names(self, name: str) -> Iterable[str]:
        return (MOMENTUM,) if name in self.matrices else MOMENTS


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and bool(MATRICES.fullmatch(name))
