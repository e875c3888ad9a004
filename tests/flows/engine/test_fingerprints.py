"""What stores rest on: fingerprints and versions of everything that a recipe makes stay what they were."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from flows.engine.errors import StageError
from flows.engine.stage import Plan
from flows.recipe.files import load
from flows.stages.chain import STAGES
from flows.stages.evaluate.stage import SAMPLES
from flows.stages.sample.stage import GENERATED
from flows.stages.train.stage import TRAINING
from storage.store import Store
from storage.tables.bank import Bank

DATA = Path(__file__).parents[2] / "data"
PINNED: dict[str, dict[str, list[object]]] = json.loads((DATA / "fingerprints.json").read_text())
"""Recipe -> kind -> [version, fingerprint] as of release 0.1, reports since they have more metrics; a change here makes
users compute everything again."""
LEARNED = {"lr": 2e-3, "decay_after": None, "ema": 0.99, "mask": 0.1, "align": 0.5}
SAMPLED = {"kind": "ode", "diffusion_norm": 1.0}
SINCE: dict[str, dict[str, object]] = {"emoji": {"train": LEARNED | {"steps": 450, "batch": 64}, "sample": SAMPLED}}
"""What a shipped recipe had then, where it was improved since."""
SETTINGS = {
    "name": "before",
    "data": {"source": "pictures", "held_out": 0.3, "shard_size": 16},
    "train": {"steps": 4, "batch": 4, "warmup": 2, "log_every": 2, "held_out_every": 2, "checkpoint_every": 2}
    | {"sample_every": 0}
    | LEARNED,
    "network": {"size": "T"},
    "sample": {"steps": 2} | SAMPLED,
    "evaluate": {"samples": 4, "kernel_subsets": 2},
}
"""With these the store of tests/data was made, of 24 pictures of noise; tensors of checkpoints were left out of it."""


@pytest.mark.parametrize("name", PINNED)
def test_fingerprints_of_shipped_recipes(name: str, tmp_path: Path) -> None:
    plan = Plan(load(name, SINCE.get(name, {}) | {"store": str(tmp_path)}), source_fingerprint="pinned")
    made = {
        output.kind: [output.version, plan.fingerprint(output)]
        for stage in STAGES
        for output in stage.wanted(plan.recipe)
    }
    assert made == PINNED[name]


@pytest.mark.parametrize(
    ("sample", "again"),
    [
        ({"method": "dopri5"}, False),
        ({"method": "dopri5", "guidance": 2.0}, False),
        ({"method": "dopri5", "guidance": 2.0, "guidance_from": 0.2}, True),
        ({"method": "heun", "guidance": 2.0, "guidance_from": 0.2}, False),
    ],
)
def test_only_samples_of_dopri5_with_a_guidance_interval_are_made_again(sample: dict[str, object], again: bool) -> None:
    plan = Plan(load("emoji", {"sample": {"kind": "ode"} | sample}), source_fingerprint="pinned")
    assert ("dopri5" in plan.parameters(SAMPLES)["sample"]) == again


@pytest.mark.parametrize(
    ("about", "again"),
    [
        ({"bank": {"snippets": 0.1}, "evaluate": {"snippets": "mixed"}}, True),
        ({"bank": {"snippets": 0.1}}, False),
        ({"evaluate": {"snippets": "mixed"}}, False),
        ({"bank": {"rank": 8}, "selection": {"count": 9, "neighbours": 3}}, True),
        ({"bank": {"rank": 8}, "selection": {"count": 9, "noise": 0.3}}, False),
    ],
)
def test_only_mixtures_of_a_smaller_memory_are_made_again(about: dict[str, object], again: bool) -> None:
    plan = Plan(load("emoji", about), source_fingerprint="pinned")
    made = [plan.parameters(output) for output in (SAMPLES, GENERATED) if output.wanted(plan.recipe)]
    assert any("mixing" in parameters for parameters in made) == again


def test_another_average_is_another_sample_of_the_same_training() -> None:
    def plan(**sample: object) -> Plan:
        return Plan(
            load("emoji", {"train": {"ema": 0.99, "emas": [0.9]}, "sample": sample}), source_fingerprint="pinned"
        )

    first, named, other = plan(), plan(ema=0.99), plan(ema=0.9)
    assert first.fingerprint(SAMPLES) == named.fingerprint(SAMPLES) != other.fingerprint(SAMPLES)
    assert first.fingerprint(TRAINING) == other.fingerprint(TRAINING)
    with pytest.raises(
        StageError, match=r"sample\.ema is 0\.5, .* keeps those of decay 0\.99, 0\.9; add it to train\.emas"
    ):
        plan(ema=0.5).fingerprint(SAMPLES)


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that release 0.1 made elsewhere."""
    root = tmp_path_factory.mktemp("store")
    shutil.unpack_archive(DATA / "store-0.1.tar.xz", root)
    for manifest in root.glob("training/*/checkpoints/*/manifest.json"):
        for name, file in json.loads(manifest.read_text())["files"].items():
            if not (path := manifest.with_name(name)).exists():
                path.touch()
                os.truncate(path, file["bytes"])  # a hole: takes no room
    return root


def test_an_earlier_store_is_complete(before: Path) -> None:
    [images] = Store(str(before)).artifacts("images")
    manifest = images.manifest()
    assert manifest is not None
    recipe = load("emoji", SETTINGS | {"store": str(before)})
    plan = Plan(recipe, source_fingerprint=manifest.parameters["listing"])
    missing = {stage.name: [output.kind for output in lacking] for stage in STAGES if (lacking := plan.missing(stage))}
    assert missing == {"evaluate": ["report"]}  # which has more metrics since; the samples are there to make it of


def test_an_earlier_bank_is_read(before: Path) -> None:
    [artifact] = Store(str(before)).artifacts("bank")
    assert len(Bank(artifact.uri)) == 48
