"""Two reports side by side; what was measured in different ways is not subtracted."""

from __future__ import annotations

import json
from dataclasses import dataclass

from flows.models.resolve import in_full
from gmem.metrics import Result, compare
from storage.errors import Refused, StoreRefused
from storage.files import open_files
from storage.store import Store


@dataclass(frozen=True)
class Pair:
    """One metric of one subject in both reports; `change` (b - a) only where both were measured in one way."""

    subject: str
    metric: str
    a: float
    b: float
    change: float | None
    differs: str


def read_report(uri: str, store: Store) -> list[Result]:
    """The results in a report's artifact, or in its `report.json`; Refused when there are none."""
    folder = in_full(uri, store).removesuffix("/report.json")
    path = f"{folder}/report.json"
    try:
        content = json.loads(open_files(path).read(path))
    except FileNotFoundError as error:
        raise StoreRefused(f"{folder} holds no report (no report.json); name the report of an evaluation") from error
    except (ValueError, RecursionError) as error:
        raise StoreRefused(f"{path} is damaged (no whole JSON document); evaluate again") from error
    if not isinstance(content, list) or not content:
        raise StoreRefused(f"{path} holds no results; name the report of an evaluation")
    try:
        return [Result.from_dict(each) for each in content]
    except TypeError as error:
        raise StoreRefused(f"{path} holds values of a wrong type ({error}); evaluate again") from error


def side_by_side(a: list[Result], b: list[Result], allow: list[str]) -> list[Pair]:
    """Every metric that both reports have of one kind of subject (such as samples of train), in the order of the first.

    `allow` names entries of the protocol that may differ. Refused where the reports have nothing in common.
    """
    others = {_place(result): result for result in b}
    pairs = [_pair(result, others[_place(result)], allow) for result in a if _place(result) in others]
    if not pairs:
        raise Refused("the two reports have no metric in common; evaluate both with one detector")
    return pairs


def _place(result: Result) -> tuple[str, str]:
    return result.subject.partition(",")[0], result.metric


def _pair(a: Result, b: Result, allow: list[str]) -> Pair:
    subject, metric = _place(a)
    differing = a.protocol.differences(b.protocol)
    said = "; ".join(f"{name}: {one} and {other}" for name, (one, other) in differing.items())
    if set(differing) <= set(allow):
        return Pair(subject, metric, a.value, b.value, compare(a, b, allow).change, said)
    return Pair(subject, metric, a.value, b.value, None, said)
