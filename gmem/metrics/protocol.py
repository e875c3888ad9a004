"""How a number was measured, carried with the number."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from gmem.errors import InputError


@dataclass(frozen=True)
class Protocol:
    """Everything two results must share to be comparable.

    detector: network that made the features, with the hash of its weights; resize: how pictures reach its size;
    reference: the pictures compared with, with the hash of their statistics, and how many they were (None if the file
    does not say); count: number of samples; seed: of the sampler's noise; sampler: kind and method with all their
    settings; steps and calls: integration steps, and the most network calls that a sample took; guidance: "none", or
    scale, interval and guide; snippets: how snippets or labels were drawn; latents: tokenizer that decodes them, and
    what they are.
    """

    detector: str
    detector_hash: str
    resize: str
    reference: str
    reference_hash: str
    reference_count: int | None
    count: int
    seed: int
    sampler: str
    steps: int
    calls: int
    guidance: str
    snippets: str
    latents: str

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, str) and not value:
                raise InputError(f"The protocol does not say its {entry.name}: every result must carry it.")
            wants_number = "int" in str(entry.type)
            number = isinstance(value, int) and not isinstance(value, bool)
            optional = "None" in str(entry.type) and value is None
            if not (number or optional if wants_number else isinstance(value, str)):
                raise InputError(f"The protocol's {entry.name} must be {entry.type}, not {value!r}.")
        if self.count < 2:
            raise InputError(f"A measurement needs at least 2 samples, not {self.count}.")

    def differences(self, other: Protocol) -> dict[str, tuple[Any, Any]]:
        """The entries that differ, with both values."""
        mine, theirs = asdict(self), asdict(other)
        return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Protocol:
        """The inverse of `asdict`. Raises ValueError on missing or unknown entries."""
        _expect(set(values), {entry.name for entry in fields(cls)}, "protocol")
        return cls(**values)


def guidance_text(scale: float, start: float = 0.0, end: float = 1.0, guide: str = "zero snippet") -> str:
    """The `guidance` entry of a protocol: a scale, the interval of times t in which it holds, and the guiding branch."""
    return "none" if scale == 1.0 else f"{scale:g} for t in [{start:g}, {end:g}] with {guide}"


@dataclass(frozen=True)
class Result:
    """One number with its protocol. `subject` says what was measured (a training and its step), and is not compared."""

    metric: str
    value: float
    protocol: Protocol
    subject: str = ""
    standard_error: float | None = None
    details: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise InputError(f"{self.metric} came out as {self.value}: look at the features it was computed from.")

    def to_json(self) -> str:
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Result:
        """The inverse of `to_json`. Raises ValueError on anything else."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"This is no result: {error.msg} at character {error.pos}.") from error
        except (ValueError, RecursionError) as error:
            raise InputError("This is no result: JSON nested too deep, or with numbers too long.") from error
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Any) -> Result:
        """The inverse of `asdict`. Raises ValueError on anything else."""
        protocol = values.get("protocol") if isinstance(values, dict) else None
        if not isinstance(protocol, dict):
            raise InputError("This is no result: it must be a JSON object with a protocol.")
        _expect(set(values), {entry.name for entry in fields(cls)}, "result")
        try:
            return cls(**{**values, "protocol": Protocol.from_dict(protocol)})
        except (TypeError, OverflowError) as error:
            raise InputError("This is no result: its value is no number.") from error


@dataclass(frozen=True)
class Comparison:
    """Two values of one metric; `change` is b - a, `differing` what of the protocol was allowed to differ."""

    metric: str
    a: float
    b: float
    change: float
    differing: dict[str, tuple[Any, Any]]


def compare(a: Result, b: Result, allow: Collection[str] = ()) -> Comparison:
    """Compares two results of one metric measured by one protocol, up to the entries named in `allow`.

    Raises ValueError that says what differs otherwise.
    """
    if a.metric != b.metric:
        raise InputError(f"{a.metric} and {b.metric} are different metrics and cannot be compared.")
    unknown = set(allow) - {entry.name for entry in fields(Protocol)}
    if unknown:
        raise InputError(f"A protocol has no {', '.join(sorted(unknown))}.")
    differing = a.protocol.differences(b.protocol)
    refused = {name: pair for name, pair in differing.items() if name not in allow}
    if refused:
        what = "; ".join(f"{name}: {one!r} and {other!r}" for name, (one, other) in refused.items())
        raise InputError(f"The two values of {a.metric} were measured differently ({what}): measure both in one way.")
    return Comparison(a.metric, a.value, b.value, b.value - a.value, differing)


def _expect(given: set[str], wanted: set[str], what: str) -> None:
    if given != wanted:
        parts = [f"lacks {', '.join(sorted(wanted - given))}"] if wanted - given else []
        parts += (
            [f"does not know {', '.join(str(name)[:25] for name in sorted(given - wanted)[:3])}"]
            if given - wanted
            else []
        )
        raise InputError(f"This is no {what} of this version: it {' and '.join(parts)}.")
