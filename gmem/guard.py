"""Which steps of a training are trusted: loss spikes are skipped, and after several in a row it is time to go back."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

WINDOW = 100  # losses the median is taken of
FEWEST = 20  # with fewer than these nothing is called a spike


class Guard:
    """Judges each step by the losses before it. A pure function of them, so that a resumed training judges alike.

    A step is bad when its gradient is not finite or its velocity loss is above `limit`; the learner then changes
    nothing. All of it happens on the device, for which nobody waits before `failed` or `state` is asked for.
    """

    def __init__(self, spike: float, patience: int, device: str | torch.device = "cpu") -> None:
        """`spike`: how many times the running median a loss may be, 0: no limit; `patience`: how many steps may be bad in
        a row."""
        self.spike, self.patience, self.device = spike, patience, device
        self.clear()

    def clear(self) -> None:
        """As before the first step."""
        self.losses = torch.full((WINDOW,), math.nan, device=self.device)
        """The last ones of steps that counted, NaN before there were so many."""
        self.bad = torch.zeros((), device=self.device)
        """Bad steps in a row; beyond the patience, they are not forgotten."""

    @property
    def limit(self) -> Tensor:
        """The largest velocity loss that the next step may have."""
        few = self.losses.isfinite().sum() < FEWEST
        median = self.losses.nanquantile(0.5)
        return (self.spike * median).masked_fill(few | (self.spike == 0), math.inf)

    @property
    def failed(self) -> bool:
        """Whether more steps in a row were bad than is to be borne, and the training should go back."""
        return bool(self.bad > self.patience)

    def judge(self, loss: Tensor, skipped: Tensor) -> None:
        """Takes note of a step."""
        longer = torch.cat([self.losses[1:], loss[None]])
        self.losses = torch.where(skipped > 0, self.losses, longer)
        forgiven = (skipped == 0) & (self.bad <= self.patience)
        self.bad = (self.bad + 1).masked_fill(forgiven, 0)

    def state(self) -> dict[str, Any]:
        """JSON."""
        losses = [loss for loss in self.losses.tolist() if not math.isnan(loss)]
        return {"losses": losses, "bad": int(self.bad)}

    def load_state(self, state: dict[str, Any]) -> None:
        self.clear()
        losses = state["losses"][-WINDOW:]
        if losses:
            self.losses[-len(losses) :] = torch.tensor(losses, device=self.device)
        self.bad.fill_(state["bad"])
