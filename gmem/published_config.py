"""What a published file says of its network beside the tensors: its `config`, or the arguments it was trained with."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from gmem.errors import InputError
from gmem.settings import shown

PARTS = ("config", "args")
LEVELS = 4
"""Published configurations are sections of settings; what is nested deeper says nothing of the network."""
LARGEST = 1e9
READ: dict[str, tuple[Any, ...]] = {
    "prediction": ("velocity", "v", "data"),
    "path_type": ("linear",),
    "latent_multiplier": (1,),
    "latent_norm": (True,),
}
"""Setting -> the values with which the network means here what it meant where it was trained."""


def network_choices(path: str, content: Mapping[Any, Any]) -> dict[str, Any]:
    """The fields of a `NetworkConfig` that no shape tells, from a file's content.

    ValueError where the file says that the network was trained otherwise than it would be read.
    """
    own = _mapping(content.get("config"))
    choices: dict[str, Any] = {}
    for part in PARTS:
        for name, value in _settings(part, content.get(part), LEVELS):
            key = name.rpartition(".")[2]
            _require_read(path, name, key, value)
            if key == "prediction":
                choices["prediction"] = "data" if value == "data" else "velocity"
    for key, kind in (("projection_after", int), ("snippet_scale", int | float)):
        value = own.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, kind) or not abs(value) < LARGEST:
            raise InputError(f"{path} states config.{key}: {shown(value)}, which cannot be; correct its config")
        choices[key] = value
    return choices


def _require_read(path: str, name: str, key: str, value: Any) -> None:
    said = value.lower() if isinstance(value, str) else value
    if said not in READ[key]:
        raise InputError(
            f"{path} states {name}: {shown(value)}, and networks are read here with {key} {READ[key][0]} alone; "
            "give one that was trained so"
        )


def _settings(name: str, value: Any, levels: int) -> Iterator[tuple[str, Any]]:
    """The telling settings in a part of the file and its sections, with their names in full."""
    for key, inner in _mapping(value).items():
        if not isinstance(key, str):
            continue
        inside = f"{name}.{key}"
        if key in READ and inner is not None:
            yield inside, inner
        elif levels:
            yield from _settings(inside, inner, levels - 1)


def _mapping(value: Any) -> Mapping[Any, Any]:
    if isinstance(value, argparse.Namespace):
        return vars(value)
    return value if isinstance(value, Mapping) else {}
