"""Stage bank: image shards through the encoder into the memory bank, and into patch tokens for the alignment loss.

A recipe may keep less than all of the bank, to condition with and to draw from: that is its memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flows.engine.context import Context
from flows.engine.errors import StageError
from flows.engine.stage import Output, Plan, Stage
from flows.recipe.model import Recipe
from flows.stages.ingest.stage import IMAGES
from gmem.weights import WeightsRef
from storage.checkpoints import latest
from storage.store import Artifact

if TYPE_CHECKING:
    from storage.tables.bank import Bank

VERSION = 1
SNIPPET_WIDTH = 768
"""Of the published encoder: an estimate does not load the weights to know theirs."""


def _parameters(plan: Plan) -> dict[str, Any]:
    return {"weights": WeightsRef.parse(plan.recipe.encoder.source).identity(), "mirror": plan.recipe.data.mirror}


def _row_bytes(recipe: Recipe) -> int:
    """Snippet, thumbnail and patch tokens, without an index."""
    tokens = recipe.grid**2 if recipe.train.align else 0
    return 2 * SNIPPET_WIDTH + 2000 + 2 * tokens * recipe.bank.patch_components


def pinned(context: Context, kind: str) -> dict[str, int]:
    """The bank's newest version for what makes an artifact of this kind, tagged so that it is never cleaned up; what is
    continued goes on with the one it began with, whatever was added since."""
    from storage.tables.bank import Bank

    bank = Bank(context.artifact("bank").uri)
    tag = f"{kind}-{context.fingerprints[kind]}"
    tagged = bank.table.tags.list().get(tag)
    if tagged:
        return {"bank": tagged["version"]}
    _require_kept(bank, context.artifact(kind))
    return {"bank": bank.tag(tag)}


def _require_kept(bank: Bank, artifact: Artifact) -> None:
    """StageError where work on an artifact began with a version of the bank that was purged."""
    from storage.tables.bank_purge import purged

    last, about = latest(artifact), purged(bank.dataset)
    began = last.manifest.bank.version if last and last.manifest.bank else None
    if isinstance(began, int) and began <= about.get("to", 0):
        raise StageError(
            f"{artifact.uri} was begun with version {began} of the bank, which was purged on {about['time'][:10]} "
            f"({about['reason']}), and cannot be continued; remove it to begin anew"
        )


BANK = Output("bank", VERSION, _parameters, inputs=lambda recipe: (IMAGES,))
PATCHES = Output(
    "patches",
    VERSION,
    lambda plan: _parameters(plan) | {"components": plan.recipe.bank.patch_components},
    inputs=lambda recipe: (IMAGES,),
    wanted=lambda recipe: recipe.train.align > 0,
)


MEMORY = Output(
    "memory",
    VERSION,
    lambda plan: plan.recipe.bank.identity("patch_components"),
    inputs=lambda recipe: (BANK,),
    wanted=lambda recipe: not recipe.bank.whole,
)
"""What is kept of the bank, as it is when that is chosen; a later version of it is looked at when this is opened."""


def bank_revision(plan: Plan) -> int:
    """Of the rows of the recipe's own bank: 1 until it is edited, and while it is not there."""
    artifact = plan.artifact(BANK)
    if not artifact.complete:
        return 1
    from storage.tables.bank_commits import content_revision
    from storage.tables.bank_rows import table_uri
    from storage.tables.fragments import open_table

    return content_revision(open_table(table_uri(artifact.uri)))


def edits(plan: Plan) -> dict[str, int]:
    """What a fingerprint takes of edits of the recipe's bank: nothing of a bank that is as it was made, or not there."""
    number = bank_revision(plan)
    return {"bank_revision": number} if number > 1 else {}


UNEDITED = {"bank_revision": 1}
"""What a fingerprint leaves out."""


def _about(plan: Plan) -> str:
    revision = bank_revision(plan)
    said = [f"edited since: revision 1 -> {revision}"] if revision > 1 else []
    memory = plan.artifact(MEMORY).manifest() if MEMORY.wanted(plan.recipe) else None
    if memory:
        rank = f" in {memory.counts['rank']} numbers each" if "rank" in memory.counts else ""
        said.append(f"{memory.counts['kept']:,} of {memory.counts['rows']:,} snippets kept{rank}")
    return ", ".join(said)


def _pins(context: Context) -> dict[str, int]:
    """The newest version of a bank that is there already, where what is kept of it is to be chosen."""
    if "memory" not in context.leases or "bank" in context.leases:
        return {}
    from storage.tables.bank import Bank

    return {"bank": Bank(context.artifact("bank").uri).version}


STAGE = Stage(
    name="bank",
    description="Image shards into the memory bank, and into patch tokens for the alignment loss.",
    unit="rows",
    outputs=(BANK, MEMORY, PATCHES),
    driver="flows.stages.bank.driver",
    rows=lambda recipe, pictures: pictures * recipe.views,
    row_bytes=_row_bytes,
    workers_import=("flows.stages.bank.driver", "timm"),
    pins=_pins,
    about=_about,
)
