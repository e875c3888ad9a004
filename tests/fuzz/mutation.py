"""Valid inputs, changed at random: bits turned, bytes set, pieces cut out, doubled and exchanged.

A short run is part of the tests; `make fuzz` sets FUZZ, how many inputs each target is given. Every run is the same:
Hypothesis draws from a seed of the test's own name.
"""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("FUZZ", "0"))
SHORT = 40
LONGEST = timedelta(seconds=5)
"""That an input may take; asked for in a long run only, since other work on the machine counts too."""
MOST_MEMORY = 1 << 30
LONGEST_MESSAGE = 700

INTERESTING = (0, 1, 9, 32, 46, 47, 48, 55, 57, 76, 91, 123, 127, 128, 255)


def given_many(share: float = 1.0) -> Callable[[Any], Any]:
    """How many inputs a target is given, `share` being less for slow ones."""
    return settings(
        max_examples=max(5, round((EXAMPLES or SHORT) * share)),
        deadline=LONGEST if EXAMPLES else None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def mutated(draw: st.DrawFn, whole: list[bytes], most: int = 6) -> bytes:
    """One of the inputs, or parts of two, with up to `most` changes."""
    data = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(0, most))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        length = draw(st.sampled_from((1, 2, 4, 16, 512)))
        match draw(st.sampled_from(("bit", "set", "set", "cut", "end", "double", "exchange", "insert"))):
            case "bit" if data:
                data[place] ^= 1 << draw(st.integers(0, 7))
            case "set" if data:
                data[place] = draw(st.sampled_from(INTERESTING) | st.integers(0, 255))
            case "cut":
                del data[place : place + length]
            case "end":
                del data[place:]
            case "double":
                data[place:place] = data[place : place + length] * draw(st.sampled_from((1, 3, 50)))
            case "exchange":
                other = draw(st.sampled_from(whole))
                data[place:] = other[draw(st.integers(0, len(other))) :]
            case "insert":
                data[place:place] = draw(st.binary(max_size=8))
    return bytes(data)


LEAVES = (
    st.none() | st.booleans() | st.floats() | st.text(st.characters(), max_size=5) | st.sampled_from((10**30, "\ud800"))
)
VALUES = st.recursive(
    LEAVES | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5
)


@st.composite
def rewritten(draw: st.DrawFn, whole: list[bytes]) -> bytes:
    """One of the JSON documents, sound, with a few values exchanged for anything that JSON can say."""
    document = json.loads(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(1, 3))):
        place = document
        while True:
            keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
                place = place[key]
                continue
            place[key] = draw(VALUES)
            break
    return json.dumps(document).encode()


@contextmanager
def within_memory() -> Iterator[None]:
    """Fails where the process's peak of memory rises by more than a GiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    risen = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert risen < MOST_MEMORY, f"{risen >> 20} MiB"


def is_one_sentence(error: Exception) -> bool:
    return "\n" not in str(error) and 0 < len(str(error)) < LONGEST_MESSAGE
