"""What in a store nobody needs any more, and its removal.

Without being asked for more: artifacts and checkpoints that were begun and not finished, files that were being
written when their writer died, fragments no version refers to. On request also what has been superseded: all but the
newest of each kind and name, or what is older than so many days; never what a kept result depends on, the newest and
the best checkpoint, tagged or named versions of a bank, nor what cannot be made again (weights, imported or grown
banks). Whatever is removed, is removed under its artifact's lease, and nothing behind a link that leaves the store.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta

from storage import lease as leases
from storage.checkpoints import best
from storage.errors import LeaseHeld, StoreError, StoreRefused
from storage.retention.inventory import Entry, survey
from storage.retention.policy import Asked, pinned_steps, superseded
from storage.store import KINDS, Artifact, Store
from storage.tables import maintenance as tables
from storage.tables.fragments import open_table

HOLDER = "gmem store clean"
TABLES = ("bank", "latents", "patches")

_PART = re.compile(r"\.[0-9a-f]{8}\.part$")
_STEP = re.compile(r"checkpoints/(step-\d{8,})/")


@dataclass(frozen=True)
class Removal:
    """Something to remove from an artifact, or removed: paths inside it, or the whole of it."""

    folder: str
    what: str
    why: str
    bytes: int
    paths: tuple[str, ...] = ()
    table: str = ""
    versions: tuple[int, ...] = ()
    """Versions of this table."""
    whole: bool = False


@dataclass
class Cleaning:
    removals: list[Removal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was left alone, and why."""

    @property
    def bytes(self) -> int:
        return sum(each.bytes for each in self.removals)


def clean(store: Store, keep: int | None = None, days: float | None = None, remove: bool = False) -> Cleaning:
    """Says what would be removed, or removes it.

    Args:
        keep: also remove superseded artifacts and checkpoints, all but so many of each kind and name.
        days: also remove superseded artifacts and checkpoints (all but the newest) and versions of banks that are
            older than so many days. With both, only what both allow.
    """
    asked, done = Asked(keep, days), Cleaning()
    entries = survey(store)
    building = _building(entries, done)
    doomed: set[str] = set()
    if asked.at_all and building:
        done.notes.append("nothing superseded is removed while something is being built, since it may be read just now")
        asked = Asked()
    elif asked.at_all:
        doomed = superseded(entries, asked)
    order = sorted(entries, key=lambda folder: -KINDS.index(entries[folder].artifact.kind))  # users before the used
    for folder in order:
        if folder not in building:
            _clean(_Task(entries[folder], entries, asked, folder in doomed), done, remove)
    return done


def _living(entries: dict[str, Entry]) -> list[Entry]:
    """What somebody is building who gives signs of life."""
    held = [entry for entry in entries.values() if entry.holder]
    with ThreadPoolExecutor(max(len(held), 1)) as pool:  # each may be watched for a while
        alive = list(pool.map(lambda e: leases.alive(e.artifact.store.files, e.artifact.uri), held))
    return [entry for entry, living in zip(held, alive, strict=True) if living]


def _building(entries: dict[str, Entry], done: Cleaning) -> set[str]:
    found = _living(entries)
    done.notes += [f"{e.folder} is being built by {e.holder.holder}: left alone" for e in found if e.holder]
    done.notes += [f"{e.folder} lies behind a link: left alone" for e in entries.values() if e.state == "elsewhere"]
    done.notes += [
        f"{e.folder} has a damaged manifest: left alone; remove its manifest.json and run again, or remove its folder"
        for e in entries.values()
        if e.state == "damaged"
    ]
    return {entry.folder for entry in found}


@dataclass(frozen=True)
class _Task:
    entry: Entry
    entries: dict[str, Entry]
    asked: Asked
    doomed: bool


def _clean(task: _Task, done: Cleaning, remove: bool) -> None:
    """One artifact; what to remove is looked up again once its lease is held, and nobody can finish or change it."""
    artifact = task.entry.artifact
    try:
        found = _removals(task, done)
        if not remove or not found:
            done.removals += found
            return
        with artifact.lease(HOLDER, wait=0):
            if (now := _judged_again(task, done)) is None:
                return
            for removal in _removals(now, done):
                done.removals.append(_executed(artifact, removal))
    except LeaseHeld as problem:
        done.notes.append(str(problem))


def _judged_again(task: _Task, done: Cleaning) -> _Task | None:
    """The same by what is there now: a run that began meanwhile keeps what it reads, and what it made keeps that too."""
    artifact = task.entry.artifact
    if not task.asked.at_all:
        now = Entry.of(artifact)
        return _Task(now, task.entries, task.asked, doomed=False) if now else None
    entries = survey(artifact.store)
    if artifact.folder not in entries:
        return None
    if living := _living({folder: each for folder, each in entries.items() if folder != artifact.folder}):
        done.notes.append(f"{artifact.folder} stays, since {living[0].folder} is being built by now")
        return _Task(entries[artifact.folder], entries, Asked(), doomed=False)
    doomed = task.doomed and artifact.folder in superseded(entries, task.asked)
    return _Task(entries[artifact.folder], entries, task.asked, doomed)


def _removals(task: _Task, done: Cleaning) -> list[Removal]:
    entry = task.entry
    if entry.state in ("damaged", "elsewhere"):
        return []
    if task.doomed:
        return [
            Removal(entry.folder, "all of it", "superseded, and nothing kept depends on it", entry.bytes, whole=True)
        ]
    if entry.created is None:
        why = "never finished, and nobody is building it"
        return [Removal(entry.folder, "all of it", why, entry.bytes, whole=True)] if entry.files else []
    found = _leftovers(entry) + _checkpoints(task)
    if entry.state == "complete" and entry.artifact.kind in TABLES:
        try:
            found += _tables(task)
        except (StoreError, FileNotFoundError) as problem:
            done.notes.append(str(problem))
    return found


def _leftovers(entry: Entry) -> list[Removal]:
    """Temporary names of files whose writer died."""
    parts = {path: size for path, size in entry.files.items() if _PART.search(path)}
    if not parts:
        return []
    what = f"{len(parts)} half-written files"
    return [Removal(entry.folder, what, "their writer is gone", sum(parts.values()), tuple(parts))]


def _checkpoints(task: _Task) -> list[Removal]:
    """Unfinished ones; on request those that are neither new, nor the best, nor what something was made with."""
    entry, sizes = task.entry, dict[str, int]()
    for path, size in entry.files.items():
        if (match := _STEP.match(path)) and not _PART.search(path):
            sizes[match[1]] = sizes.get(match[1], 0) + size
    reasons = {
        name: "never finished" for name in sizes if f"checkpoints/{name}/manifest.json" not in entry.files
    } | dict.fromkeys(_superseded_steps(task), "superseded")
    return [
        Removal(entry.folder, f"checkpoint {name}", why, sizes[name], (f"checkpoints/{name}",))
        for name, why in sorted(reasons.items())
    ]


def _superseded_steps(task: _Task) -> list[str]:
    there = task.entry.checkpoints
    if not task.asked.at_all or not there:
        return []
    spared = {c.step for c in there[-task.asked.newest :]} | pinned_steps(task.entry, task.entries)
    if chosen := best(task.entry.artifact):
        spared.add(chosen.step)
    return [
        c.uri.rsplit("/", 1)[-1] for c in there if c.step not in spared and task.asked.old_enough(c.manifest.created)
    ]


def _tables(task: _Task) -> list[Removal]:
    entry, artifact, found = task.entry, task.entry.artifact, list[Removal]()
    for table in sorted({path.split("/")[0] for path in entry.files if path.split("/")[0].endswith(".lance")}):
        dataset = open_table(artifact.path(table))
        finished = artifact.store.filesystem.modified(artifact.path("manifest.json"))
        if files := tables.unreferenced(dataset, finished if artifact.kind == "bank" else None):
            what, why = f"{len(files)} files of {table}", "no version refers to them"
            paths = tuple(f"{table}/{path}" for path in files)
            found.append(Removal(entry.folder, what, why, sum(files.values()), paths))
        if task.asked.days is not None and artifact.kind == "bank":
            named = {each.version for e in task.entries.values() for each in e.inputs if each.uri == entry.folder}
            own = entry.manifest.details.get("version") if entry.manifest else None
            old = tables.old_versions(dataset, timedelta(days=task.asked.days), {*named, own})
            if old.numbers:
                what, why = f"{len(old.numbers)} versions of {table}", "old, without a tag, and named by nothing"
                found.append(Removal(entry.folder, what, why, old.bytes, table=table, versions=tuple(old.numbers)))
    return found


def _executed(artifact: Artifact, removal: Removal) -> Removal:
    """Removes it; the removal with the bytes that were freed."""
    freed = removal.bytes
    if removal.whole:
        artifact.remove()
    elif removal.versions:
        freed = tables.drop_versions(artifact.uri, artifact.path(removal.table), list(removal.versions))
    else:
        for path in removal.paths:
            _remove(artifact, path)
    return Removal(removal.folder, removal.what, removal.why, freed)


def _remove(artifact: Artifact, path: str) -> None:
    """A file, or a folder with its manifest first, so that what is half removed is never taken for whole."""
    files, uri = artifact.store.files, artifact.path(path)
    if not files.inside(artifact.store.root, uri):
        raise StoreRefused(f"{uri} lies behind a link that leads out of the store: remove the link.")
    files.remove(f"{uri}/manifest.json")
    files.remove(uri)
