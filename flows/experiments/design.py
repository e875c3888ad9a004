"""An experiment: one recipe, several arms that each change some of it, and the trials that follow from them.

An experiment is a YAML file, shipped or a person's own:

    baseline: none
    arms:
      memory: {}
      none: {network.conditioning: none}
    steps: [100, 300, 900]
    seeds: [0, 1, 2]
    common: {evaluate.memorisation: false}

or, for a sweep, a grid in place of arms, every combination of which is one:

    grid: {sample.guidance: [1, 1.5, 2], sample.steps: [10, 20]}
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flows.recipe.files import merged, nested
from flows.recipe.problems import Places, places_of, problems, sentence
from flows.recipe.yaml_values import MAX_CHARACTERS, NotYaml, read_document
from gmem.settings import shown
from storage.errors import Refused

SHIPPED = Path(__file__).parent
MOST_TRIALS = 1000

Changes = dict[str, Any]
"""Keys of a recipe, dotted or nested, with the values an arm gives them."""


@dataclass(frozen=True)
class Trial:
    """One training of one arm, measured at some of its steps."""

    arm: str
    seed: int | None
    """Of the training; None where it is the recipe's."""
    changes: dict[str, Any]
    """Overrides of the recipe, nested."""

    @property
    def name(self) -> str:
        return self.arm if self.seed is None else f"{self.arm}, seed {self.seed}"

    def at(self, step: int | None) -> dict[str, Any]:
        """Overrides of the recipe that measure it at a step; None is the recipe's last."""
        return self.changes if step is None else merged(self.changes, {"train": {"steps": step}})


class Experiment(BaseModel):
    """What is compared with what; see the module."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str = Field("experiment", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    arms: dict[str, Changes] = {}
    """What each changes of the recipe, by its name."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Values of keys of the recipe; every combination is an arm."""
    baseline: str | None = None
    """The arm whose best distance the others are to reach; none: no speed-up is told."""
    common: Changes = {}
    """What all arms change of the recipe."""
    steps: list[Annotated[int, Field(ge=1)]] = []
    """Training steps at which each arm is measured; none: its last."""
    seeds: list[Annotated[int, Field(ge=0)]] = []
    """Of the trainings, each with every arm; none: the recipe's."""
    reach: list[Annotated[float, Field(gt=0)]] = []
    """Distances k of which it is told how many epochs each arm takes to reach them (EP-FD@k)."""

    @model_validator(mode="after")
    def _possible(self) -> Experiment:
        if bool(self.arms) == bool(self.grid):
            raise ValueError("an experiment has either arms or a grid; give one of the two")
        if self.baseline is not None and self.baseline not in self.changes():
            raise ValueError(
                f"baseline {shown(self.baseline)} is no arm; the arms are {', '.join(self.changes())[:80]}"
            )
        for what, values in (("steps", self.steps), ("seeds", self.seeds)):
            if len(set(values)) < len(values):
                raise ValueError(f"{what} {shown(values)} hold the same number twice; remove one")
        return self

    def changes(self) -> dict[str, Changes]:
        """What each arm changes, by its name; of a grid the name says the values."""
        if self.arms:
            return self.arms
        combinations = [dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())]
        return {", ".join(f"{k.rpartition('.')[2]} {v}" for k, v in each.items()): each for each in combinations}

    def averages(self) -> set[float]:
        """Decays of the averages that arms sample: one training that keeps them all serves every arm."""
        samples = (nested(changes).get("sample") for changes in (self.common, *self.changes().values()))
        decays = (each.get("ema") for each in samples if isinstance(each, dict))
        return {decay for decay in decays if isinstance(decay, float | int)}

    def trials(self) -> Iterator[Trial]:
        """Every arm with every seed; the seeds outermost, so that an interrupted experiment has whole comparisons."""
        seeds: list[int] | list[None] = self.seeds or [None]
        for seed in seeds:
            for arm, changes in self.changes().items():
                overrides = merged(nested(self.common), nested(changes))
                train: dict[str, Any] = {"checkpoint_at": sorted(self.steps)} if self.steps else {}
                train |= {} if seed is None else {"seed": seed}
                yield Trial(arm, seed, merged(overrides, {"train": train}) if train else overrides)


def names() -> list[str]:
    """The shipped experiments."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load(experiment: str | dict[str, Any]) -> Experiment:
    """A shipped experiment's name, a YAML file's path, or the experiment itself as a dictionary.

    Raises Refused with one sentence.
    """
    values, places = ({"name": "sweep"} | experiment, {}) if isinstance(experiment, dict) else _read(experiment)
    try:
        made = Experiment.model_validate(values)
        count = len(made.changes()) * max(len(made.seeds), 1)
    except ValidationError as error:
        whole = f"experiment {values.get('name')!s:.80}"
        raise Refused(sentence(problems(error, Experiment, places, whole))) from None
    if count > MOST_TRIALS:
        raise Refused(f"experiment {made.name} has {count:,} trials, more than {MOST_TRIALS:,}; give it fewer values")
    return made


def _read(experiment: str) -> tuple[dict[str, Any], Places]:
    """Its values, and where each key of them was given."""
    path = Path(experiment) if experiment.endswith((".yaml", ".yml")) else SHIPPED / f"{experiment}.yaml"
    try:
        with path.open(encoding="utf-8") as file:
            document = read_document(file.read(MAX_CHARACTERS + 1))
    except (OSError, ValueError) as error:
        if isinstance(error, NotYaml):
            raise Refused(f"experiment {shown(experiment)} is not valid YAML: {error}; correct it there") from None
        near = difflib.get_close_matches(experiment[:80], names(), 1)
        hint = f"did you mean {near[0]}?" if near else f"shipped are {', '.join(names())}, or name a .yaml file"
        raise Refused(f"experiment {shown(experiment)} cannot be read; {hint}") from None
    if not isinstance(document.values, dict):
        raise Refused(f"experiment {shown(experiment)} is not a mapping; it has arms or a grid, steps and seeds")
    return {"name": path.stem} | document.values, places_of(document.lines, str(path))
