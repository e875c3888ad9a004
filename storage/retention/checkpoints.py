"""Which checkpoints of a training stay: the newest, the best, and those that something lasting refers to."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

from storage.checkpoints import Checkpoint, all_checkpoints, best_of, folders, is_sound, remove
from storage.errors import StoreError
from storage.files import open_files
from storage.store import KINDS, Artifact

log = logging.getLogger(__name__)

PINNED = "pinned"
"""Folder in a checkpoint's, with an empty file for each that needs it kept."""


def prune(where: Artifact | str, keep: int, pinned: Iterable[int] = ()) -> list[int]:
    """Removes all but the newest `keep`, the best, the `pinned` steps and what `pin` keeps; unfinished leftovers too.

    For the holder of the training's lease only: an unfinished folder is then nobody's work in progress. Damaged ones
    stay, for a person to look at, and do not count. Returns the steps removed; what cannot be removed just now waits
    for the next time.
    """
    removed: list[int] = []
    try:
        removable = _superseded(all_checkpoints(where), max(keep, 1)) - set(pinned)
        for step, uri in sorted(folders(where)):
            files = open_files(uri)
            superseded = step in removable and not files.names(f"{uri}/{PINNED}")
            if superseded or not files.exists(f"{uri}/manifest.json"):
                remove(uri)
                removed.append(step)
    except StoreError as problem:
        name = where.uri if isinstance(where, Artifact) else where
        log.warning("Older checkpoints of %s stay until the next is saved: %s", name, problem)
    return removed


def pin(checkpoint: Checkpoint, by: str) -> None:
    """Keeps it from being pruned: something that lasts refers to it. Weights on their own are pruned by nobody.

    Args:
        by: the folder of an artifact, for as long as that is in the store, or another word, for good.
    """
    if "/checkpoints/" in checkpoint.uri:
        open_files(checkpoint.uri).write(f"{checkpoint.uri}/{PINNED}/{by.replace('/', '.', 1)}", b"")


def pins(by: str, folders: Collection[str]) -> bool:
    """Whether the file of this name still keeps a checkpoint, in a store of these artifacts."""
    kind = by.partition(".")[0]
    return kind not in KINDS or by.replace(".", "/", 1) in folders


def _superseded(there: list[Checkpoint], keep: int) -> set[int]:
    """Steps of all but the newest `keep` that are sound, the best that is, and what was found damaged on the way."""
    if len(there) <= keep:
        return set()
    spared = set[int]()
    newest = 0
    rest = list(there)
    for each in reversed(there):
        if newest == keep:
            break
        spared.add(each.step)
        newest += is_sound(each)
    while chosen := best_of(rest):
        spared.add(chosen.step)
        if is_sound(chosen):
            break
        rest.remove(chosen)
    return {each.step for each in there} - spared
