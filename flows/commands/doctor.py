"""``gmem doctor``: is everything here that a recipe needs?"""

from __future__ import annotations

import os
import platform
import shutil
import socket
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlparse

import typer
from rich.table import Table

from flows.commands.options import Json, RecipeName, Set, StoreUri, print_json, resolved
from flows.progress import console
from flows.recipe import Recipe

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

Finding = tuple[str, bool, str]
"""What was looked at, whether it will do, what was found."""


def doctor(recipe: RecipeName = "emoji", set: Set = None, store: StoreUri = None, json: Json = False) -> None:
    """Checks versions, memory, disk, GPU, and that what the recipe names can be reached. Exit code 1 if something cannot."""
    found = examine(resolved(recipe, set, store))
    if json:
        print_json([{"what": what, "ok": ok, "found": text} for what, ok, text in found])
    else:
        table = Table("", "what", "found")
        for what, ok, text in found:
            table.add_row("[green]ok[/]" if ok else "[red]no[/]", what, text)
        console.print(table)
    if not all(ok for _, ok, _ in found):
        raise typer.Exit(1)


def examine(recipe: Recipe) -> list[Finding]:
    checks: list[Callable[[], Finding]] = [
        lambda: (
            "Python",
            platform.python_version_tuple()[:2] in (("3", "11"), ("3", "12")),
            platform.python_version(),
        ),
        *(lambda name=name: _package(name) for name in PACKAGES),
        _memory,
        _gpu,
        lambda: _disk(recipe),
        lambda: _store(recipe),
        lambda: _source(recipe),
        *(lambda key=key, source=source: _weights(key, source) for key, source in _named_weights(recipe)),
        *(lambda name=name, url=url: _server(name, url) for name, url in _servers(recipe)),
    ]
    return [check() for check in checks]


def _package(name: str) -> Finding:
    try:
        return name, True, version(name)
    except PackageNotFoundError:
        return name, False, "not installed; run 'make setup'"


def _memory() -> Finding:
    import psutil

    free = psutil.virtual_memory().available / 2**30
    return (
        "memory",
        free >= NEEDED_GIB,
        f"{free:.1f} GiB free of {psutil.virtual_memory().total / 2**30:.1f}; {os.cpu_count()} CPUs",
    )


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
    except (ValueError, OSError) as error:
        return "store", False, str(error)
    return "store", True, f"{recipe.store} can be written"


def _source(recipe: Recipe) -> Finding:
    source = recipe.source
    if not source:
        return "data.source", False, "not set; name a folder or WebDataset shards"
    there = "://" in source or any(c in source for c in "{*") or Path(source).exists()
    return "data.source", there, source if there else f"{source} does not exist; set data.source"


def _named_weights(recipe: Recipe) -> list[tuple[str, str]]:
    named = {
        "tokenizer.source": recipe.tokenizer.source,
        "encoder.source": recipe.encoder.source,
        "evaluate.encoder": recipe.evaluate.encoder,
    }
    return list(named.items()) + (
        [("evaluate.inception", recipe.evaluate.inception)] if recipe.evaluate.inception else []
    )


def _weights(key: str, source: str) -> Finding:
    from flows.weights import identity

    if not source:
        return key, False, "not set; name weights in the recipe"
    try:
        found = identity(source)
    except (ValueError, OSError) as error:
        return key, False, str(error)
    return key, True, f"{source} ({'fetched from the hub when first used' if found == source else found})"


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
