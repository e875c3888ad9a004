"""Withdrawing from a bank, and what that leaves behind: models, samples and reports that knew the rows, pictures that are
still like them. For commands and flows alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flows.engine.errors import StageError
from flows.engine.progress import Progress
from flows.explore import generate, open_network
from flows.incoming import encode_picture
from flows.models.resolve import artifact_at
from flows.recipe.model import Recipe
from storage.errors import Refused
from storage.retention import bank_uses
from storage.retention.inventory import Entry, survey
from storage.store import Store
from storage.tables.bank import Bank
from storage.tables.bank_nearest import Nearest, true_nearest

if TYPE_CHECKING:
    from storage.tracking.run import Run
    from storage.tracking.tracking import Tracking

SHOWN, NEIGHBOURS = 64, 4
"""Withdrawn pictures whose nearest remaining ones are told, and how many of these."""
MEASURED = 8
"""Withdrawn pictures that generated ones are compared with."""
HOLDER = "gmem bank withdraw --purge"
Told = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What is to be withdrawn: rows by ids, by a condition, or by how near they are; none of these with `purge` alone."""

    reason: str
    ids: list[int] | None = None
    where: str | None = None
    near: str | None = None
    """A picture file, or the id of a row."""
    similarity: float = 0.95
    """The least cosine of snippets that counts as near."""
    purge: bool = False
    measure: bool = False
    network: str | None = None
    """To generate with, as for `generate`."""

    @property
    def ways(self) -> int:
        """How many of the three it gives."""
        return 3 - [self.ids, self.where, self.near].count(None)

    @property
    def purges_only(self) -> bool:
        return self.purge and self.ways == 0

    def require(self) -> None:
        """Refused unless it says what to withdraw, once, and how near."""
        if self.ways != 1 and not self.purges_only:
            raise Refused("say what to withdraw: either ids or a condition or what it is near to, one of them")
        if not 0 < self.similarity <= 1:
            raise Refused(f"a similarity of {self.similarity:g} is none; give a number above 0, at most 1")


def withdraw(recipe: Recipe, bank: Bank, asked: Asked, run: Run, tracking: Tracking, progress: Progress) -> Told:
    """Withdraws, reports and purges, in this order; the report goes to the run too.

    Raises:
        Refused: what is asked for is nothing, everything or two things at once; or a network to measure with is missing.
            Nothing is done then.
    """
    asked.require()
    told: Told = {"asked": [], "mirrored": [], "descended": []}
    if not asked.purges_only:
        if asked.measure:
            open_network(recipe, asked.network)
        bank.refresh()
        before = bank.version
        gone = bank.withdraw(asked.reason, *_selected(recipe, bank, asked))
        told = gone.to_dict()
        run.metrics({name: len(ids) for name, ids in told.items()})
        told |= consequences(recipe, bank, told, tracking)
        _add_likeness(recipe, bank, Bank(bank.artifact, before), asked, told, progress)
    if asked.purge:
        told["purged"] = _purged(recipe, bank, asked.reason)
        run.metrics({f"purged/{name}": told["purged"][name] for name in ("versions", "bytes", "undecided")})
    _log(run, told)
    return told | {"rows": len(bank), "version": bank.version}


def _selected(recipe: Recipe, bank: Bank, asked: Asked) -> tuple[list[int] | None, str | None]:
    """Ids, or a condition."""
    if asked.near is None:
        return asked.ids, asked.where
    if asked.near.isdecimal():
        snippet = bank.matrix([int(asked.near)])[0].astype(np.float32)
    else:
        snippet = encode_picture(Path(asked.near), recipe, bank)
    ids = bank.near(snippet, asked.similarity)
    if not len(ids):
        nearest = 1 - bank.search(snippet, 1, columns=["id"])["_distance"][0].as_py()
        raise StageError(
            f"no row is as near as {asked.similarity:g} to {asked.near}, the nearest is at {nearest:.3f}; nothing was withdrawn"
        )
    return ids.tolist(), None


# --- what knew the rows ----------------------------------------------------------------------------------------------


def consequences(recipe: Recipe, bank: Bank, gone: Told, tracking: Tracking) -> Told:
    """What in the recipe's store was made with rows that are gone, by what it is to them."""
    ids = np.array([*gone["asked"], *gone["mirrored"], *gone["descended"]])
    entries, folder = survey(Store(recipe.store)), _folder(recipe, bank)
    trained = _trained(bank, bank_uses.uses(entries, folder), ids)
    models = [model for model in tracking.models_of(folder) if _may_know(bank, model["bank_version"], ids)]
    samples = bank_uses.drawn_from(entries, folder, ids)
    return {
        "trained": trained,
        "models": models,
        "samples": [{"artifact": name, "samples": numbers} for name, numbers in samples.items()],
        "reports": bank_uses.rest_on(entries, samples.keys(), "report"),
        "banks": bank_uses.made_of(entries, folder, ids),
        "pictures": bank_uses.sources(entries, folder, ids),
    }


def _may_know(bank: Bank, version: str, ids: NDArray[np.int64]) -> bool:
    """What no version is named for, or one that is gone, may have held the rows."""
    return not version.isdecimal() or bool(bank_uses.held(bank, int(version), ids))


def _trained(bank: Bank, uses: list[bank_uses.Use], ids: NDArray[np.int64]) -> list[Told]:
    """Trainings and priors, with each version of the bank that held some of the rows."""
    found = []
    for use in uses:
        if use.kind not in ("training", "prior"):
            continue
        for version in use.versions:
            if count := bank_uses.held(bank, version, ids):
                found.append({"artifact": use.folder, "kind": use.kind, "version": version, "held": count})
    return found


def _folder(recipe: Recipe, bank: Bank) -> str:
    """Of the bank, as manifests of the recipe's store name it."""
    return Store(recipe.store).relative(bank.artifact)


# --- what is still like them -----------------------------------------------------------------------------------------


def _add_likeness(recipe: Recipe, bank: Bank, earlier: Bank, asked: Asked, told: Told, progress: Progress) -> None:
    """The nearest rows that remain to each picture that is gone, and how near what is generated from those comes."""
    ids = np.intersect1d(told["asked"], earlier.matching())[:SHOWN]
    snippets = earlier.matrix(ids.tolist()).astype(np.float32)
    (near,) = true_nearest(bank, snippets, NEIGHBOURS)
    generated = np.full(near.ids.shape, np.nan)
    if asked.measure:
        generated[:MEASURED] = _generated(recipe, bank, snippets[:MEASURED], near, asked.network, progress)
    keys = dict(zip(ids.tolist(), earlier.rows(ids.tolist(), ["key"])["key"].to_pylist(), strict=True))
    left = np.unique(near.ids).tolist()
    keys |= dict(zip(left, bank.rows(left, ["key"])["key"].to_pylist(), strict=True))
    told["neighbours"] = [
        {
            "withdrawn": mine,
            "key": keys[mine],
            "nearest": other,
            "nearest_key": keys[other],
            "similarity": float(near.similarity[row, place]),
            "generated": None if np.isnan(generated[row, place]) else float(generated[row, place]),
        }
        for row, mine in enumerate(ids.tolist())
        for place, other in enumerate(near.ids[row].tolist())
    ]


def _generated(
    recipe: Recipe,
    bank: Bank,
    snippets: NDArray[np.float32],
    near: Nearest,
    network: str | None,
    progress: Progress,
) -> NDArray[np.float32]:
    """Cosines [Q, K] of snippets [Q, D] with those of a picture generated from each of their nearest rows, by the bank's
    encoder."""
    import torch

    from gmem.encoder import load_encoder
    from gmem.pixels import channels_first, from_bytes

    rows = near.ids[: len(snippets)]
    images = generate(recipe, bank, rows.reshape(-1), network, progress).images
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = load_encoder(recipe.encoder.source, device, recipe.data.image_size)
    bank.require_encoder(encoder.identity)
    parts = from_bytes(channels_first(images)).split(recipe.encoder.batch)
    made = torch.cat([encoder(part).snippet.cpu() for part in parts]).numpy().reshape(*rows.shape, -1)
    made /= np.linalg.norm(made, axis=-1, keepdims=True)
    units = snippets / np.linalg.norm(snippets, axis=-1, keepdims=True)
    cosines: NDArray[np.float32] = np.einsum("qd,qkd->qk", units, made)
    return cosines


# --- purging ---------------------------------------------------------------------------------------------------------


def lost_by_purge(recipe: Recipe, bank: Bank) -> list[Told]:
    """What can no longer be continued or made again once no earlier version of the bank is there."""
    entries: dict[str, Entry] = survey(Store(recipe.store))
    return [
        {"artifact": use.folder, "kind": use.kind, "versions": list(use.versions)}
        for use in bank_uses.uses(entries, _folder(recipe, bank))
    ]


def _purged(recipe: Recipe, bank: Bank, reason: str) -> Told:
    """Under the lease of the bank's artifact: nobody may be building it meanwhile."""
    lost = lost_by_purge(recipe, bank)
    artifact = artifact_at(bank.artifact, Store(recipe.store))
    with artifact.lease(HOLDER, recipe.tracking.lease_wait):
        return bank.purge(reason).to_dict() | {"lost": lost}


def _log(run: Run, told: Told) -> None:
    """The report, as tables and as a file."""
    import json

    rests = [{"artifact": name, "what": what} for name, what in rests_on(told)]
    for name, rows in (("rests on withdrawn rows", rests), ("nearest that remain", told.get("neighbours", []))):
        run.table(name, rows)
    for what in ("similarity", "generated"):
        values = [row[what] for row in told.get("neighbours", []) if row[what] is not None]
        if values:
            run.metrics({f"nearest/{what}": max(values)})
    run.artifact("withdrawal.json", json.dumps(told, indent=1).encode())


def rests_on(told: Told) -> list[tuple[str, str]]:
    """Of a report, each thing that knew the rows, and in words how."""
    lines = []
    for each in told.get("trained", []):
        which = "which is gone by now" if each["held"] == bank_uses.GONE else f"which held {each['held']} of the rows"
        lines.append((each["artifact"], f"trained on version {each['version']} of the bank, {which}"))
    for model in told.get("models", []):
        said = f"registered, trained on version {model['bank_version']}: {model['checkpoint']}"
        lines.append((f"models:/{model['name']}/{model['version']}", said))
    for each in told.get("samples", []):
        some = ", ".join(map(str, each["samples"][:8])) + (", …" if each["samples"][8:] else "")
        lines.append((each["artifact"], f"{len(each['samples'])} samples drawn from them: {some}"))
    lines += [(name, "measures such samples") for name in told.get("reports", [])]
    lines += [
        (name, f"made of the bank, has {count} of the rows still; withdraw there too")
        for name, count in told.get("banks", {}).items()
    ]
    lines += [(name, "has the pictures, or what was made of them") for name in told.get("pictures", [])]
    return lines
