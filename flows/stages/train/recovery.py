"""How a training starts, goes on from a checkpoint, and goes back when its steps are no good."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flows.stages.train.agreement import Agreement, Resumed
from gmem.guard import Guard
from gmem.learner import Learner
from gmem.network import Network
from storage import checkpoints
from storage.checkpoints import Checkpoint
from storage.errors import Refused

SKIPS_ALLOWED, RETURNS_ALLOWED = 5, 3


class Recovery:
    """The same on every worker: all go back together, from and to the same step."""

    def __init__(self, learner: Learner, guard: Guard, agreement: Agreement, fresh: Callable[[], Network]) -> None:
        """`fresh` makes the network that a training without a checkpoint begins with."""
        self.learner, self.guard, self.agreement, self.fresh = learner, guard, agreement, fresh
        self.attempt = 0
        """Of drawing random numbers, one more each time the training goes back."""
        self.returned_to = self.failed_at = -1
        self.returns = 0

    def resume(self) -> float:
        """Goes on from the newest checkpoint, if there is one; how many seconds the steps up to it took."""
        found = self.agreement.newest()
        if found is None:
            return 0.0
        self._restore(found)
        return float(found[0].manifest.details.get("seconds", 0.0))

    def progress(self) -> dict[str, Any]:
        """What a resumed training needs besides weights."""
        return {"guard": self.guard.state(), "attempt": self.attempt}

    def go_back(self) -> None:
        """To the newest checkpoint, from which other random numbers are drawn; to the one before when that fails too.

        The pictures stay in their order. Where a kill makes all this happen again, it happens alike, since whatever it
        depends on is in the checkpoint. Refused when it did not help several times.
        """
        failed, found = self.learner.steps, self._newest_good()
        self.returns = 1 if found and found[0].step > self.failed_at else self.returns + 1
        if self.returns > RETURNS_ALLOWED:
            raise Refused(
                f"the training does not get beyond step {failed}: going back {RETURNS_ALLOWED} times did not help; "
                "lower train.lr or train.clip, and look at the table of events in MLflow"
            )

        # Back to where it was good, or to the start.
        if found and found[0].step == self.returned_to and self.agreement.several_checkpoints():
            self._drop(found[0])
            found = self.agreement.newest()
        if found:
            self._restore(found)
        else:
            self.learner.restart(self.fresh())
            self.guard.clear()

        # On from there, with other random numbers.
        self.attempt += 1
        self.guard.bad.zero_()
        self.failed_at = max(self.failed_at, failed)
        self.returned_to = self.learner.steps if found else -1
        if observer := self.agreement.observer:
            text = f"{SKIPS_ALLOWED + 1} bad steps in a row at step {failed}: back to step {self.learner.steps}"
            observer.event("returned", failed, f"{text}, with other random numbers (attempt {self.attempt + 1})")
            observer.begin()

    def _restore(self, found: Resumed) -> None:
        _, tensors, progress = found
        self.learner.load_state(tensors, progress["learner"])
        self.guard.load_state(progress["guard"])
        self.attempt = max(self.attempt, progress["attempt"])

    def _newest_good(self) -> Resumed | None:
        """The newest that was not taken between bad steps, when the training was asked to stop; those go."""
        while (found := self.agreement.newest()) and found[2]["guard"]["bad"]:
            self._drop(found[0])
        return found

    def _drop(self, checkpoint: Checkpoint) -> None:
        """A checkpoint that does not lead on: it was taken too late to be good."""
        self.agreement.wait()  # everybody has read it
        if observer := self.agreement.observer:
            checkpoints.remove(checkpoint.uri)
            observer.event("dropped", checkpoint.step, f"the checkpoint of step {checkpoint.step} does not lead on")
