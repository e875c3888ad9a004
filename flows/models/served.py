"""A registered network as `mlflow.pyfunc` loads it: PNG pictures of ids of the bank, of snippets, or of classes.

    model = mlflow.pyfunc.load_model("models:/gmem-emoji@best")
    model.predict(pandas.DataFrame({"id": [42, 1000]}))["png"]      # or {"class": ["flags"]}, or {"snippet": [[…], …]}

No object is pickled: the model's folder holds weights, the recipe, and two lines of code that import this module.
A model that MLflow keeps in the store itself moves with it; else `load_model(…, model_config={"store": "/elsewhere"})`
names a store that was moved.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow.pyfunc
import numpy as np
import pandas as pd  # here, since MLflow looks for what predict takes, and warns where it finds nothing
import torch
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel
from mlflow.types.schema import Array, ColSpec, DataType, Schema
from PIL import Image

from flows.engine.errors import StageError
from flows.models.generation import load_generator
from flows.models.memory import open_memory
from flows.models.resolve import in_full, open_bank
from flows.recipe.model import Recipe
from gmem.memory import normalise
from gmem.pixels import channels_last
from storage.checkpoint_files import REMEDY
from storage.checkpoints import CheckpointManifest, open_checkpoint
from storage.errors import Refused, StoreError
from storage.manifest import parse
from storage.store import KINDS, Store
from storage.tables.bank_where import equals
from storage.tracking.access import ARTIFACTS

if TYPE_CHECKING:
    from torch import Tensor

    from storage.tables.bank import Bank

CODE = """import mlflow.models
from flows.models.served import Sampler
mlflow.models.set_model(Sampler())
"""
INPUTS = Schema(
    [
        ColSpec(DataType.long, "id", required=False),
        ColSpec(DataType.string, "class", required=False),
        ColSpec(Array(DataType.double), "snippet", required=False),
    ]
)
OUTPUTS = Schema([ColSpec(DataType.binary, "png")])


def save(network: Path, target: Path, recipe: Recipe) -> None:
    """Makes an MLflow model of a folder that holds a checkpoint's weights or names them.

    Args:
        network: the folder; it gets the recipe as well.
        target: the model's folder, which must not be there yet.
        recipe: how samples are drawn, and in which store the bank lies.
    """
    (network / "recipe.json").write_text(recipe.model_dump_json(indent=1))
    code = network.with_name("gmem_model.py")
    code.write_text(CODE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hints at type hints, in place of which there is the signature
        mlflow.pyfunc.save_model(
            target,
            python_model=str(code),
            artifacts={"network": str(network)},
            signature=ModelSignature(INPUTS, OUTPUTS),
            input_example=_example(network, recipe),
            pip_requirements=[f"gmem-pipeline=={version('gmem-pipeline')}"],
            model_config={"store": ""},
        )


def _example(network: Path, recipe: Recipe) -> pd.DataFrame | None:
    """Two rows of the bank that the network was trained on; None where that is not known or not there any more."""
    named = parse(CheckpointManifest, (network / "manifest.json").read_bytes(), str(network), REMEDY).bank
    try:
        bank = open_bank(named.uri, Store(recipe.store)) if named else None
    except (StoreError, Refused):
        return None
    return pd.DataFrame({"id": bank.sample(min(2, len(bank)), seed=0)}) if bank else None


class Sampler(PythonModel):
    """Draws one sample for each row, by the recipe's sampler; a row's number and `sample.seed` decide its noise."""

    def load_context(self, context: Any) -> None:
        """Loads network and tokenizer, on the GPU where there is one; the bank when a row first asks for it."""
        folder = Path(context.artifacts["network"])
        recipe = Recipe.model_validate_json((folder / "recipe.json").read_text())
        self.recipe = recipe.moved(_store_of(folder, recipe, context.model_config["store"]))
        elsewhere = folder / "checkpoint.txt"  # weights too large to be copied stay where they are
        named = in_full(elsewhere.read_text(), Store(self.recipe.store)) if elsewhere.exists() else str(folder)
        with _advised():
            self.checkpoint = open_checkpoint(named)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.generator = load_generator(self.checkpoint, self.recipe, self.device)
        self.bank: Bank | None = None

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """`png` [N] bytes for `model_input` [N rows], each of which has one of `id`, `class`, `snippet`."""
        found = [self._snippet(number, row) for number, row in enumerate(model_input.to_dict("records"))]
        snippets = normalise(torch.stack([snippet for snippet, _ in found])).to(self.device)
        labels = torch.tensor([label for _, label in found])
        sample = self.recipe.sample
        made = self.generator.batches(
            snippets, torch.arange(len(found)), sample, sample.seed, labels, size=sample.batch
        )
        pictures = [picture for images, _ in made for picture in channels_last(images)]
        return pd.DataFrame({"png": [_png(picture) for picture in pictures]})

    def _snippet(self, number: int, row: dict[str, Any]) -> tuple[Tensor, int]:
        """A row's snippet [D], and its label (-1: none)."""
        given = {name: value for name, value in row.items() if name in INPUTS.input_names() and _is_given(value)}
        if len(given) != 1:
            raise StageError(f"row {number} gives {', '.join(given) or 'nothing'}; give one of id, class, snippet")
        ((name, value),) = given.items()
        if name == "snippet":
            return torch.tensor(np.asarray(value, np.float32)), -1
        if name == "class":
            value = self._bank().sample(1, seed=self.recipe.sample.seed + number, where=equals("class", value))[0]
        label = self._bank().rows([int(value)], ["label"])["label"].to_pylist()[0]
        return self._bank().conditions([int(value)])[0].float(), -1 if label is None else label

    def _bank(self) -> Bank:
        if self.bank is None:
            if self.checkpoint.manifest.bank is None:
                raise StageError(f"{self.checkpoint.uri} names no bank; give snippets instead of ids and classes")
            store = Store(self.recipe.store)
            with _advised():
                self.bank = open_bank(self.checkpoint.manifest.bank.uri, store)
            if memory := self.checkpoint.manifest.details.get("memory"):
                self.bank.kept_by = partial(open_memory, store.at(memory))
        return self.bank


def _store_of(folder: Path, recipe: Recipe, named: str) -> str:
    """The store that a person names, or else that in whose MLflow the model lies, or else that in which it was made."""
    if named and named != recipe.store:
        return named
    root, inside, _ = str(folder).partition(f"/{ARTIFACTS}/")
    return root if inside and any(Path(root, kind).is_dir() for kind in KINDS) else recipe.store


@contextmanager
def _advised() -> Iterator[None]:
    """Says what to do where something is not in the store."""
    try:
        yield
    except (StoreError, Refused) as error:
        advice = "if the store was moved, load the model with model_config={'store': …}"
        raise StageError(f"{error}; {advice}") from error


def _is_given(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and np.isnan(value))


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "png")
    return buffer.getvalue()
