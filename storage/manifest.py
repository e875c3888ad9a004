"""The manifest: what an artifact is, of what it was made, and that it is finished."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from storage.documents import read_json, reason
from storage.errors import Damaged, shown

FORMAT = 1


class Versioned(BaseModel):
    """Something written as JSON that later versions of this project must be able to recognise."""

    model_config = ConfigDict(extra="forbid")

    format_version: int = FORMAT


class Input(BaseModel):
    """One thing an artifact was made of."""

    uri: str  # relative to the root for what lies in the same store, so that a store can be moved
    fingerprint: str = ""
    version: int | str | None = None  # of a table that changes: its Lance version or content revision


class Manifest(Versioned):
    """`manifest.json` of an artifact; it is written once, last, and makes the artifact usable."""

    kind: str
    name: str
    fingerprint: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[str, Input] = Field(default_factory=dict)
    counts: dict[str, int] = Field(default_factory=dict)
    times: dict[str, float] = Field(default_factory=dict)  # seconds, by phase
    code_version: str = ""
    mlflow_run: str = ""
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    lease: int = 0  # the number of the lease it was committed under
    details: dict[str, Any] = Field(default_factory=dict)


Document = TypeVar("Document", bound=Versioned)


def parse(model: type[Document], data: bytes, path: str, remedy: str) -> Document:
    """Reads a versioned document, or raises Damaged, which names the file and what to do about it."""
    content = read_json(data, path, object, remedy)
    version = content.get("format_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise Damaged(
            f"{path} has format version {shown(version)}, and this version of the project reads up to {FORMAT}: update it."
        )
    if isinstance(version, int) and version < FORMAT:
        raise Damaged(f"{path} is of format version {shown(version)}, which is read no more (now {FORMAT}): {remedy}")
    if version != FORMAT:
        raise Damaged(f"{path} has no known format version ({shown(version)}): {remedy}")
    try:
        return model.model_validate(content)
    except ValidationError as problem:
        raise Damaged(f"{path} is damaged ({reason(problem)}): {remedy}") from problem


def fingerprint(stage: str, version: int, parameters: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """A short name for what a stage makes: 12 hexadecimal digits.

    Args:
        stage: the stage's name.
        version: its hand-set VERSION, raised when its output changes.
        parameters: those that change the output; anything JSON can say.
        inputs: fingerprint of each input by its role.
    """
    said = {"stage": stage, "version": version, "parameters": parameters, "inputs": inputs}
    try:
        text = json.dumps(said, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as problem:
        raise ValueError(
            f"The parameters of {stage} cannot be fingerprinted ({problem}): give plain values."
        ) from problem
    return hashlib.sha256(text.encode()).hexdigest()[:12]
