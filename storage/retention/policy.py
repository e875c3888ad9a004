"""Which artifacts have been superseded: newer ones of their kind and name are there, and nothing kept rests on them."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from storage.errors import Refused, StoreError
from storage.retention.checkpoints import PINNED, pins
from storage.retention.inventory import Entry
from storage.tables.bank import Bank

_PIN = re.compile(rf"checkpoints/step-(\d{{8,}})/{PINNED}/(.+)")


@dataclass(frozen=True)
class Asked:
    """Which superseded things may go: all but the newest `keep` (1 unless told), those older than `days`, or both."""

    keep: int | None = None
    days: float | None = None

    def __post_init__(self) -> None:
        if self.keep is not None and self.keep < 1:
            raise Refused(f"keep {self.keep} would leave nothing: keep at least 1 of each kind and name")
        if self.days is not None and self.days < 0:
            raise Refused(f"{self.days} days is no age: give 0 or more")

    @property
    def at_all(self) -> bool:
        return self.keep is not None or self.days is not None

    @property
    def newest(self) -> int:
        """How many are kept in any case: what has no successor is not superseded."""
        return self.keep or 1

    def old_enough(self, created: datetime) -> bool:
        return self.days is None or datetime.now(UTC) - created >= timedelta(days=self.days)

    def allows(self, place: int, created: datetime) -> bool:
        """Whether the one in this place (0 is the newest of its kind and name) may go."""
        return place >= self.newest and self.old_enough(created)


def superseded(entries: dict[str, Entry], asked: Asked) -> set[str]:
    """Folders of what may go: all that is finished, without what is to be kept and everything that rests upon."""
    groups = defaultdict[tuple[str, str], list[Entry]](list)
    for entry in entries.values():
        groups[entry.artifact.kind, entry.artifact.name].append(entry)
    kept = {folder for folder, entry in entries.items() if entry.created is None}  # damaged ones, and others' business
    for group in groups.values():
        finished = [(entry, created) for entry in group if (created := entry.created)]
        finished.sort(key=lambda pair: pair[1], reverse=True)
        for place, (entry, created) in enumerate(finished):
            if not asked.allows(place, created) or _irreplaceable(entry):
                kept.add(entry.folder)
    return set(entries) - with_inputs(kept, entries)


def with_inputs(folders: set[str], entries: dict[str, Entry]) -> set[str]:
    """These, what they were made of, what that was made of, and so on."""
    found, to_visit = set[str](), list(folders)
    while to_visit:
        folder = to_visit.pop()
        if folder not in found:
            found.add(folder)
            to_visit += [name for name in entries[folder].names if name in entries]
    return found


def pinned_steps(training: Entry, entries: dict[str, Entry]) -> set[int]:
    """Steps of a training that something else in the store was made with, or that are pinned for good."""
    pinned = {step for step, by in _pins(training) if pins(by, entries)}
    for entry in entries.values():
        if training.folder not in entry.names:
            continue
        manifests = [entry.manifest, *(checkpoint.manifest for checkpoint in entry.checkpoints)]
        text = "\n".join(manifest.model_dump_json() for manifest in manifests if manifest)
        named = rf"{re.escape(training.folder)}/checkpoints/step-(\d{{1,18}})|\bearlier:(\d{{1,18}})"  # the latter as a guide
        pinned |= {int(found[1] or found[2]) for found in re.finditer(named, text)}
        if entry.manifest and isinstance(step := entry.manifest.parameters.get("step"), int):
            pinned.add(step)
    return pinned


def _pins(training: Entry) -> list[tuple[int, str]]:
    """Step, and by what it is pinned."""
    found = [match for path in training.files if (match := _PIN.fullmatch(path))]
    return [(int(match[1]), match[2]) for match in found]


def _irreplaceable(entry: Entry) -> bool:
    """What no run would make again: weights, which recipes name in ways we do not see; imported and grown banks. What was
    generated of one selection is not superseded by that of another.

    A training that a registered model lies in goes neither.
    """
    if entry.artifact.kind == "training":
        return any(pins(by, ()) for _, by in _pins(entry))
    if entry.artifact.kind != "bank":
        return entry.artifact.kind in ("weights", "generated")
    if entry.manifest is None or not entry.manifest.inputs:
        return True
    try:
        bank = Bank(entry.artifact.uri)
        return bank.content_revision > 1
    except (StoreError, ValueError):
        return True
