"""``gmem doctor``: is everything here that a recipe needs?"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import socket
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlparse

import typer

from flows.cluster.address import address_of
from flows.cluster.limits import Limits, limits, object_store
from flows.commands.options import Json, RecipeName, Set, StoreUri, print_json, resolved
from flows.console import new_table, show
from storage.errors import Refused, StoreError

if TYPE_CHECKING:
    from flows.recipe.cluster import Cluster
    from flows.recipe.model import Recipe
    from flows.recipe.section import Named

PACKAGES = (
    "torch",
    "ray",
    "prefect",
    "mlflow",
    "lancedb",
    "pylance",
    "webdataset",
    "timm",
    "diffusers",
    "pyarrow",
    "fastapi",
)
NEEDED_GIB = 4
RAY_REFUSES = 10**10
"""Bytes of an object store that Ray keeps in no files, which would be too slow."""

Finding = tuple[str, bool, str]
"""What was looked at, whether it will do, what was found."""


def doctor(
    recipe: RecipeName = "emoji",
    pictures: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="also looks at so many pictures: do they suit the recipe's tokenizer and encoder?"
        ),
    ] = 0,
    set: Set = None,
    store: StoreUri = None,
    json: Json = False,
) -> None:
    """Checks versions, memory, disk, GPU, and that what the recipe names can be reached. Exit code 1 if something cannot."""
    chosen = resolved(recipe, set, store)
    found = examine(chosen)
    if pictures and all(ok for what, ok, _ in found if what == "data.source"):
        from flows.commands.doctor_pictures import examine_pictures

        arguments = shlex.join([recipe, *(word for pair in set or [] for word in ("--set", pair))])
        found += examine_pictures(chosen, pictures, arguments)
    if json:
        print_json([{"what": what, "ok": ok, "found": text} for what, ok, text in found])
    else:
        table = new_table("", "what", "found", names="what")
        for what, ok, text in found:
            table.add_row("ok" if ok else "no", what, text)
        show(table)
    if not all(ok for _, ok, _ in found):
        raise typer.Exit(1)


def examine(recipe: Recipe) -> list[Finding]:
    here = limits()
    supported = platform.python_version_tuple()[:2] in (("3", "11"), ("3", "12"))
    return [
        ("Python", supported, platform.python_version()),
        *(_package(name) for name in PACKAGES),
        _cpus(here),
        _memory(here),
        *([] if address_of(recipe.cluster) else [_object_store(recipe.cluster, here)]),
        _gpu(),
        _disk(recipe),
        _store(recipe),
        *examine_named(recipe),
        *(_server(name, url) for name, url in _servers(recipe)),
    ]


def _package(name: str) -> Finding:
    try:
        return name, True, version(name)
    except PackageNotFoundError:
        return name, False, "not installed; run 'make setup'"


def _cpus(here: Limits) -> Finding:
    there = os.cpu_count() or 1
    if here.cpus >= there:
        return "CPUs", True, str(there)
    bound = "the container's quota" if here.quota < here.affinity else "this process's affinity"
    return "CPUs", True, f"{here.cpus:.3g} of {there}, by {bound}"


def _memory(here: Limits) -> Finding:
    of = "" if here.memory >= here.machine else ", which the container may have"
    return "memory", here.free >= NEEDED_GIB * 2**30, f"{_gib(here.free)} free of {_gib(here.memory)}{of}"


def _object_store(cluster: Cluster, here: Limits) -> Finding:
    """Where an embedded Ray keeps what its workers hand each other."""
    wanted = object_store(cluster, here)
    if wanted <= here.shared:
        return "object store", True, f"{_gib(wanted)} of {_gib(here.shared)} free in /dev/shm"
    remedy = "give the container more, such as --shm-size=2g"
    told = f"{_gib(wanted)} in files, which is slower: /dev/shm has {_gib(here.shared)}; {remedy}"
    return "object store", wanted < RAY_REFUSES, told


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _gpu() -> Finding:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return "GPU", True, ", ".join(names) or "none; everything runs on the CPU"


def _disk(recipe: Recipe) -> Finding:
    if "://" in recipe.store:
        return "disk", True, "the store is an object store"
    place = Path(recipe.store).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 2**30
    return "disk", free >= 2, f"{free:.1f} GiB free at {place}"


def _store(recipe: Recipe) -> Finding:
    from storage.store import Store

    try:
        Store(recipe.store).require_writable()
    except (StoreError, OSError) as error:
        return "store", False, str(error)
    return "store", True, f"{recipe.store} can be written"


# --- what the recipe names -------------------------------------------------------------------------------------------


def _pictures(_named: str, recipe: Recipe) -> str:
    from storage.images.sources import list_source

    listing = list_source(recipe.source, recipe.data.layout, recipe.data.label)
    listing.require_usable()
    return f"{recipe.source} ({listing.usable:,} pictures)"


def _weights(named: str, _recipe: Recipe) -> str:
    from gmem.weights import WeightsRef

    weights = WeightsRef.parse(named)
    if weights.kind == "folder" and not weights.folder().exists():
        raise Refused(f"there is no folder {named}; name an existing one, shipped:NAME or a hub id")
    if weights.kind == "onnx":
        from gmem.onnx import OnnxNetwork

        return f"{named} ({OnnxNetwork(named).preprocessing})"
    found = weights.identity()
    return f"{named} ({'fetched from the hub when first used' if found == named else found})"


def _network(named: str, recipe: Recipe) -> str:
    from flows.models.resolve import open_network
    from storage.store import Store

    return open_network(named, Store(recipe.store)).uri


def _guide(named: str, recipe: Recipe) -> str:
    return _network(named, recipe) if recipe.sample.earlier is None else f"{named} of the same training"


def _bank(named: str, recipe: Recipe) -> str:
    from flows.models.resolve import open_bank
    from storage.store import Store

    return open_bank(named, Store(recipe.store)).artifact


def _file(named: str, _recipe: Recipe) -> str:
    if named.startswith(("http://", "https://")):
        _, there, told = _server("", named)
        if not there:
            raise Refused(told)
    elif not Path(named).is_file():
        raise Refused(f"there is no file {named}; name an existing one")
    return named


LOOKS: dict[Named, Callable[[str, Recipe], str]] = {
    "pictures": _pictures,
    "weights": _weights,
    "network": _network,
    "guide": _guide,
    "bank": _bank,
    "file": _file,
}
"""How what a field names is looked at: gives what is there, or raises what is wrong."""


def examine_named(recipe: Recipe) -> list[Finding]:
    """What is behind each field of the recipe that names something."""
    found = []
    for section_name, section in recipe.sections():
        for field, names in section.names().items():
            key, sources = f"{section_name}.{field}", section.named(field)
            if names.needed and not sources:
                found.append((key, False, f"not set; set {key}"))
            found += [_looked(key, LOOKS[names.kind], source, recipe) for source in sources]
    return found


def _looked(key: str, look: Callable[[str, Recipe], str], named: str, recipe: Recipe) -> Finding:
    try:
        return key, True, look(named, recipe)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what was to be found out
        return key, False, str(error) or type(error).__name__


# --- servers ---------------------------------------------------------------------------------------------------------


def _servers(recipe: Recipe) -> list[tuple[str, str]]:
    named = {
        "Ray": recipe.cluster.address or os.environ.get("RAY_ADDRESS"),
        "Prefect": os.environ.get("PREFECT_API_URL"),
        "MLflow": recipe.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI"),
        "S3": os.environ.get("AWS_ENDPOINT_URL") if recipe.store.startswith("s3://") else None,
    }
    return [(name, url) for name, url in named.items() if url]


def _server(name: str, url: str) -> Finding:
    """Whether something listens there; credentials in the address are not shown."""
    parts = urlparse(url if "://" in url else f"ray://{url}")
    if not parts.hostname:
        return name, True, parts.scheme
    port = parts.port or {"https": 443, "http": 80, "ray": 10001}.get(parts.scheme, 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=3).close()
    except OSError as error:
        return (
            name,
            False,
            f"{parts.hostname}:{port} does not answer ({error.strerror or error}); start it or correct the address",
        )
    return name, True, f"{parts.hostname}:{port} answers"
