"""Networks and banks that are named by URI: a checkpoint, an import, an export, or the artifact that holds one."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any

from flows.recipe.model import Recipe, Sample
from gmem.weights import WeightsRef
from storage.checkpoints import EMA, Checkpoint, all_checkpoints, latest, open_checkpoint
from storage.errors import Refused, StoreRefused
from storage.store import KINDS, Artifact, Store

if TYPE_CHECKING:
    from storage.tables.bank import Bank

FINGERPRINT = re.compile("[0-9a-f]{12}")


def in_full(uri: str, store: Store) -> str:
    """The URI itself, that of an artifact named relative to the store, such as `weights/gmem-0123456789ab`, or the folder
    of what is shipped.

    `weights/gmem` will do where the store has one of that name; Refused names them where it has several.
    """
    if uri.startswith("shipped:"):
        return str(WeightsRef.parse(uri).folder())
    kind, _, rest = uri.rstrip("/").partition("/")
    if kind not in KINDS or not rest:
        return uri.rstrip("/")
    name, slash, below = rest.partition("/")
    return f"{store.root}/{kind}/{_with_fingerprint(kind, name, store)}{slash}{below}"


def _with_fingerprint(kind: str, name: str, store: Store) -> str:
    """The folder of the artifact of this name; the name itself where it is a folder's, or nobody's."""
    there = [artifact for artifact in store.artifacts(kind) if artifact.name == name and artifact.complete]
    folders = [artifact.uri.rpartition("/")[2] for artifact in there]
    if len(folders) > 1:
        raise Refused(f"the store has {len(folders)} of {kind}/{name}: name one of {', '.join(folders)}")
    return folders[0] if folders else name


def open_network(uri: str, store: Store) -> Checkpoint:
    """The checkpoint at this URI, the newest of an artifact, or that of a registered model in MLflow (`models:/NAME@best`).

    StoreError says when there is none.
    """
    if uri.startswith("models:/"):
        from storage.tracking.tracking import Tracking

        uri = Tracking.open(None, store, "").registered(uri)
    uri = in_full(uri, store)
    found = latest(uri) or open_checkpoint(uri)
    if found.manifest.details.get("makes") == "snippets":
        raise StoreRefused(f"{uri} holds a prior, which makes snippets and no pictures; name a training")
    return found


def open_bank(uri: str, store: Store, version: int | str | datetime | None = None) -> Bank:
    """The finished bank of the artifact at this URI or of this fingerprint, at a version, tag or time; Refused says
    when there is none."""
    from storage.tables.bank import Bank  # LanceDB, of which those who only plan have no need

    artifact = _bank_at(uri, store)
    if not artifact.complete:
        raise StoreRefused(f"{artifact.uri} holds no finished bank; name the artifact that 'gmem import bank' made")
    return Bank(artifact.uri, version)


def _bank_at(uri: str, store: Store) -> Artifact:
    if FINGERPRINT.fullmatch(uri):
        for artifact in store.artifacts("bank"):
            if artifact.fingerprint == uri:
                return artifact
        raise StoreRefused(f"{store.root} has no bank of fingerprint {uri}; 'gmem store usage' lists those it has")
    return artifact_at(uri, store)


def artifact_at(uri: str, store: Store) -> Artifact:
    """The artifact at a URI, in this store or in another."""
    uri = in_full(uri, store)
    root, _, _ = uri.rpartition("/")[0].rpartition("/")
    return Store(root or store.root).at(uri)


def average_of(checkpoint: Checkpoint, recipe: Recipe) -> str:
    """The group of tensors of the average that `sample.ema` names; Refused where the checkpoint has no such.

    A checkpoint that does not say of which decay its average is has that of the recipe.
    """
    decay, kept = recipe.sample.ema, checkpoint.averages or {EMA: recipe.train.ema}
    if decay is None:
        return EMA
    for group, each in kept.items():
        if each == decay:
            return group
    there = ", ".join(str(each) for each in kept.values())
    raise Refused(
        f"{checkpoint.uri} has averages of decay {there}, and none of {decay}; set sample.ema to one of these, or train "
        f"with train.emas=[{decay}]"
    )


def network_identity(uri: str, store: Store, recipe: Recipe | None = None) -> str:
    """The hash of the averaged weights: what a fingerprint takes of a network from elsewhere. With a recipe, of those
    that it samples."""
    found = open_network(uri, store)
    return found.weights(average_of(found, recipe) if recipe else EMA).sha256[:16]


def bank_identity(uri: str, store: Store) -> dict[str, Any]:
    """The artifact's fingerprint, and the revision of its rows."""
    bank = open_bank(uri, store)
    return {"fingerprint": _bank_at(uri, store).fingerprint, "revision": bank.content_revision}


def open_guide(sample: Sample, checkpoint: Checkpoint, store: Store) -> Checkpoint | None:
    """The network that guides `checkpoint`, where there is guidance and the recipe names one."""
    if sample.guide is None or sample.guidance == 1:
        return None
    if sample.earlier is None:
        return open_network(sample.guide, store)
    training = checkpoint.uri.rpartition("/checkpoints/")[0]
    there = {each.step: each for each in all_checkpoints(training)} if training else {}
    if sample.earlier not in there:
        steps = ", ".join(str(step) for step in there if step < checkpoint.step) or "none"
        raise Refused(
            f"sample.guide {sample.guide} is no checkpoint of {training or checkpoint.uri} (earlier ones there: {steps}); "
            "name one of those, or train again with train.checkpoint_every a divisor of that step"
        )
    return there[sample.earlier]


def guide_identity(sample: Sample, store: Store) -> str | None:
    """What a fingerprint takes of the guide; an earlier step goes by its name, the training being known."""
    named_by_uri = sample.guide and sample.guidance != 1 and sample.earlier is None
    return network_identity(sample.guide, store) if named_by_uri and sample.guide else sample.guide
