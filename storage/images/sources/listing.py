"""Where pictures come from: a folder tree, WebDataset tars, Parquet, or Lance; listed once, then read by many workers.

A listing is an Arrow table with a row for every input in a fixed order, the unusable ones with their reason, so that
any slice of it can be handed to a worker anywhere. How pictures lie in files is a layout's matter (`Source`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby

import pyarrow as pa

from storage.errors import Refused
from storage.images.sources.entries import SCHEMA, Entry, File, Layout, Listing, Place, Source
from storage.images.sources.files import files_of, fingerprint, may_pass, reach
from storage.images.sources.folder import Folder
from storage.images.sources.labels import Rule
from storage.images.sources.lance_tables import MARK, Lance
from storage.images.sources.parquet import Parquet
from storage.images.sources.tars import Tars

LAYOUTS: dict[Layout, Source] = {"folder": Folder(), "tars": Tars(), "parquet": Parquet(), "lance": Lance()}


def list_source(source: str, layout: Layout | None = None, rule: Rule | None = None) -> Listing:
    """Lists a folder of pictures, tars, Parquet files or Lance tables, one such file or table, or a pattern with braces or wildcards.

    The source lies on disk, at s3:// or wherever fsspec reaches. `layout` says how its pictures lie in files where that
    is in doubt, `rule` whose name their label is. Refused when nothing is there, or a person must say which is meant.
    """
    place = reach(source, rule)
    files = files_of(place)
    if not files:
        raise Refused(f"data.source {source[:80]!r} holds no pictures; name a folder, a .tar or a pattern of tars")
    found = LAYOUTS[layout or _layout(place, files)].list_entries(place, files)
    entries = _with_unique_keys(found.entries)
    columns = {name: [getattr(entry, name) for entry in entries] for name in SCHEMA.names}
    return Listing(source, pa.table(columns, schema=SCHEMA), fingerprint(files), found.notes)


def read_entries(entries: list[Entry], source: str) -> Iterator[bytes | OSError]:
    """Yields for each entry of a listing its bytes, or an `OSError` when it cannot be read."""
    place = reach(source)
    for layout, run in groupby(entries, key=_layout_of):
        for data in LAYOUTS[layout].read(place, list(run)):
            if isinstance(data, OSError) and may_pass(place.filesystem, data):
                raise data
            yield data


def _layout_of(entry: Entry) -> Layout:
    if entry.offset < 0:
        return "folder"
    if entry.file.startswith(MARK):
        return "lance"
    return "parquet" if entry.file.lower().endswith(".parquet") else "tars"


def _layout(place: Place, files: list[File]) -> Layout:
    """The one that the files' names suggest; where several do, the one whose files hold pictures."""
    suffixes = {file.suffix for file in files if file.name}
    candidates: list[Layout] = [name for name, layout in LAYOUTS.items() if suffixes & set(layout.suffixes)]
    if len(candidates) > 1:
        holding = [name for name in candidates if LAYOUTS[name].holds(place, files)]
        if len(holding) > 1:
            choices = " or ".join(f"data.layout={name}" for name in holding)
            raise Refused(f"data.source {place.source[:80]!r} holds pictures as {', '.join(holding)}: say {choices}")
        candidates = holding or candidates
    return candidates[0] if candidates else "folder"


def _with_unique_keys(entries: list[Entry]) -> list[Entry]:
    """The first of several usable entries with one key keeps it; the others get a hash of their path appended."""
    taken: set[str] = set()
    repeats: Counter[str] = Counter()
    result = []
    for entry in entries:
        if entry.reason is None and entry.key in taken:
            key = _another_key(entry, taken, repeats)
            group = key if entry.group == entry.key else entry.group
            entry = replace(entry, key=key, group=group)
        if entry.reason is None:
            taken.add(entry.key)
        result.append(entry)
    return result


def _another_key(entry: Entry, taken: set[str], repeats: Counter[str]) -> str:
    """A hash of the path, and of how often that came before where a tar holds members of one name."""
    while True:
        again = repeats[entry.path]
        repeats[entry.path] += 1
        seed = f"{entry.path}\0{again}" if again else entry.path
        key = f"{entry.key}-{hashlib.sha256(seed.encode()).hexdigest()[:8]}"
        if key not in taken:
            return key
