"""What a training's workers tell their driver, and the request to stop that goes the other way."""

from __future__ import annotations

from typing import Any

import ray

Event = tuple[str, Any, dict[str, Any]]


@ray.remote(num_cpus=0)
class Channel:
    """Outlives the workers, so that those who take over know what was said to those before them."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.stop = False
        self.rests = False
        self.failure: str | None = None

    def tell(self, event: str, value: Any, values: dict[str, Any] | None = None) -> bool:
        """Adds an event; answers whether the training should stop."""
        self.events.append((event, value, values or {}))
        return self.stop

    def take(self) -> tuple[list[Event], str | None]:
        """The events since the last time, and why no worker can go on, if that is so."""
        events, self.events = self.events, []
        return events, self.failure

    def ask_to_stop(self) -> None:
        self.stop, self.rests = True, False

    def rest(self) -> None:
        """The first worker has written all that it will."""
        self.rests = True

    def at_rest(self) -> bool:
        return self.rests

    def fail(self, reason: str) -> None:
        """What is wrong with the recipe or the store is wrong in every attempt: further ones need not try."""
        self.failure = self.failure or reason

    def failed(self) -> str | None:
        return self.failure
