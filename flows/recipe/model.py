"""The recipe: every parameter of every stage, typed, in one place.

Recipes are YAML files (flows/recipe/files.py), and every field may be overridden for a run (flows/recipe/form.py).

Each field either changes what a stage produces, and is then part of the artifact's fingerprint, or is merely
`operational` (how many actors, how often to log) and may change without anything being computed again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from flows.recipe import STORE
from flows.recipe.cluster import Cluster, Tracking
from flows.recipe.section import Names, Section, operational
from gmem import settings

ASSETS = Path(__file__).parents[1] / "assets"
"""Sources that come with the package."""


class Data(Section):
    LATER = ("background",)

    source: Annotated[str, Names("pictures", needed=True)] = Field(
        "",
        description="a folder of pictures; WebDataset tars or Parquet (folder, file or pattern); a Lance table; or asset:NAME",
    )
    layout: Literal["folder", "tars", "parquet", "lance"] | None = Field(
        None, description="how the pictures lie in files, where a folder holds several kinds; none: seen from the files"
    )
    label: Literal["folder", "parent", "none"] | None = Field(
        None,
        description="whose name the class is: of the first folder below the source, of the folder a picture lies in, or "
        "nobody's; none given: what labels beside the pictures say, else the first folder",
    )
    image_size: int = Field(
        256, ge=16, le=4096, description="side of the square the pictures are cropped to, in pixels"
    )
    mirror: bool = Field(True, description="also train on every picture's mirror image")
    held_out: float = Field(0.05, ge=0, lt=1, description="share of the pictures kept out of training, for evaluation")
    shard_size: int = Field(1024, ge=1, description="pictures in a shard: the unit of work and of what a kill can cost")
    max_pixels: int = Field(200_000_000, ge=1, description="larger pictures are refused before they are decoded")
    background: str = Field(
        "#ffffff", description="colour behind transparent pixels: a name such as black, or #RRGGBB", max_length=32
    )

    @field_validator("background")
    @classmethod
    def _colour(cls, background: str) -> str:
        from PIL import ImageColor

        try:
            return "#{:02x}{:02x}{:02x}".format(*ImageColor.getrgb(background)[:3])
        except ValueError:
            raise ValueError(
                f"data.background {settings.shown(background)} is no colour; give a name such as black, or #RRGGBB"
            ) from None

    @field_validator("source")
    @classmethod
    def _shipped(cls, source: str) -> str:
        shipped = sorted(path.stem for path in ASSETS.glob("*.tar"))
        if source.startswith("asset:") and source.removeprefix("asset:") not in shipped:
            raise ValueError(
                f"data.source {source[:80]} is not shipped; shipped are {', '.join(shipped)}, as asset:NAME"
            )
        return source


class Tokenizer(Section):
    source: Annotated[str, Names("weights", needed=True)] = Field(
        "", description="shipped:NAME, a local folder, or a hub id of a diffusers AutoencoderKL"
    )
    factor: int = Field(16, ge=1, description="pixels per latent cell, along each side")
    channels: int = Field(32, ge=1, description="channels of the latent")
    draw: bool = Field(False, description="store a draw from the posterior (seeded by the id) instead of its mean")
    batch: int = operational(32, "pictures encoded at once", ge=1)


class Encoder(Section):
    source: Annotated[str, Names("weights", needed=True)] = Field(
        "", description="shipped:NAME, timm:MODEL, timm:MODEL@FILE, or a local folder"
    )
    batch: int = operational(64, "pictures encoded at once", ge=1)


class Bank(Section, settings.MemoryConfig):
    LATER = ("snippets", "choice", "seed", "rank")

    patch_components: int = Field(64, ge=1, description="principal components kept of each patch token")


class Network(Section, settings.NetworkChoices):
    size: settings.SizeName = Field("B", description="depth and width of the network")


class Train(Section, settings.LearnerConfig):
    LATER = ("emas", "route", "optimiser", "decay_after")

    steps: int = operational(200_000, "optimisation steps in all; more steps continue an earlier training", ge=1)
    batch: int = Field(1024, ge=1, description="global batch size, over all workers")
    start_from: Annotated[str | None, Names("network")] = Field(
        None, description="URI of a network to start from, with a fresh optimiser"
    )
    micro_batch: int = operational(0, "pictures a worker takes through the network at once; 0: its whole share", ge=0)
    compile: bool = operational(
        False, "whether the network's blocks are compiled: faster on GPUs, after half a minute of compiling"
    )
    recompute: bool = operational(
        False, "whether blocks are computed again in the backward pass: less memory, up to a third more time"
    )
    sharded: bool = operational(
        False, "whether each worker holds a share of weights and optimiser (FSDP2), for networks too large for one GPU"
    )
    spike: float = operational(
        10, "steps whose loss is more than so many times its running median are skipped; 0: none", ge=0
    )
    look_every: int = operational(
        1, "steps between looks at losses and at wishes to stop, for which a GPU is waited for", ge=1
    )
    log_every: int = operational(50, "steps between logged metrics", ge=1)
    sample_every: int = operational(0, "steps between grids of fixed snippets; 0: only at the end", ge=0)
    held_out_every: int = operational(
        1000, "steps between evaluations of the held-out loss, beside those at checkpoints", ge=1
    )
    distance_every: int = operational(0, "steps between small Fréchet distances on fixed seeds; 0: none", ge=0)
    checkpoint_every: int = operational(5000, "steps between checkpoints", ge=1)
    checkpoint_minutes: float = operational(30, "minutes between checkpoints", gt=0)
    checkpoint_at: list[Annotated[int, Field(ge=1)]] = operational(
        [], "further steps with a checkpoint; these are kept, to be evaluated by lower train.steps"
    )
    keep: int = operational(3, "newest checkpoints kept, beside the best", ge=1)
    memory_gib: float = operational(8, "training data up to this size is held in memory by each worker", ge=0)

    def check(self) -> None:
        super().check()
        if self.sharded and self.optimiser == "muon":
            raise ValueError(settings.WHOLE_MATRICES)

    @field_validator("emas")
    @classmethod
    def _further(cls, emas: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        """In one order, each once: another way of writing them does not make another training."""
        return tuple(sorted(set(emas) - {info.data.get("ema")}))


class Prior(Section, settings.PriorConfig):
    steps: int = operational(
        0, "optimisation steps in all; 0: no prior is learned, and pictures come from the bank's own snippets", ge=0
    )
    log_every: int = operational(50, "steps between logged losses", ge=1)


class Sample(Section, settings.SamplerConfig):
    LATER = ("diffusion_norm", "rtol", "atol", "ema")

    ema: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="decay of the average that is sampled, of train.ema and train.emas; none: that of train.ema",
    )
    guide: Annotated[str | None, Names("guide")] = Field(
        None,
        description="guiding network: URI of a smaller or earlier one, or earlier:STEP of the same training; none: the zero snippet",
    )
    seed: int = Field(0, ge=0, description="of the noise, and of the snippets that are drawn")
    batch: int = operational(64, "pictures sampled at once", ge=1)
    compile: bool = operational(False, "whether stages compile the network's blocks, which takes half a minute first")

    @property
    def earlier(self) -> int | None:
        """The guide's step, where it is an earlier checkpoint of the same training."""
        kind, _, step = (self.guide or "").partition("earlier:")
        return int(step) if not kind and step.isdecimal() else None


class Evaluate(Section):
    LATER = ("snippets", "copy_detector")

    network: Annotated[str | None, Names("network")] = Field(
        None, description="URI of a checkpoint or imported network; none: the recipe's training"
    )
    bank: Annotated[str | None, Names("bank")] = Field(
        None, description="URI of a bank whose snippets are sampled; none: the recipe's"
    )
    snippets: Literal["bank", "prior", "mixed"] = Field(
        "bank",
        description="what is sampled from: rows of the bank, what the recipe's prior draws, or each row mixed half and half "
        "with one of its nearest",
    )
    encoder: Annotated[str, Names("weights")] = Field(
        "", description="encoder of the Fréchet distance; neither conditions nor aligns the network"
    )
    further_encoders: Annotated[list[str], Names("weights")] = Field(
        [], description="more encoders to measure with, such as timm:vit_base_patch14_dinov2.lvd142m"
    )
    samples: int = Field(
        50_000, ge=2, description="samples, and reference pictures, per distance (fewer if there are fewer)"
    )
    checkpoint: Literal["last", "best"] = Field(
        "last", description="the newest checkpoint, or that of the least held-out loss"
    )
    kernel_subsets: int = Field(50, ge=1, description="subsets of the kernel distance")
    inception: Annotated[str | None, Names("file")] = Field(
        None, description="weights of the FID Inception network (file or URL); none: no FID"
    )
    reference: Annotated[str | None, Names("file")] = Field(
        None,
        description="ADM .npz that FID, sFID, KID, precision and recall compare with, as published ones do; none: as many "
        "pictures of the recipe as there are samples, which gives other values",
    )
    memorisation: bool = Field(True, description="search the nearest training picture of every sample")
    copy_detector: Annotated[str, Names("weights")] = Field(
        "",
        description="a network made to know copies, such as onnx:sscd.onnx, in whose features they are also searched; "
        "onnx:FILE?size=320 gives it pictures of another size (gmem/onnx.py has all settings)",
    )
    batch: int = operational(64, "pictures encoded at once", ge=1)


class Selection(Section):
    """Of which snippets stage `sample` makes pictures. By which network, and of which bank, is what `evaluate` says."""

    count: int = Field(0, ge=0, description="pictures that stage sample makes; 0: none")
    ids: list[Annotated[int, Field(ge=0)]] = Field([], description="of these rows of the bank alone, over and over")
    where: str | None = Field(
        None, description="of random rows that fulfil this SQL condition, such as class = 'flags'; none: of any"
    )
    split: Literal["train", "held_out"] | None = Field(
        None, description="of random rows of this split; none: train, unless there is a condition"
    )
    balanced_by: Literal["class", "label", "origin", "split"] | None = Field(
        None, description="equally many of each value of this column"
    )
    noise: float = Field(0.0, ge=0, description="how far each snippet, of length 1, is moved at random")
    neighbours: int = Field(
        0, ge=0, description="mix each half and half with one of its so many nearest others; 0: not"
    )
    prior: bool = Field(False, description="of snippets that are nobody's, drawn from the recipe's prior")
    of_class: str | None = Field(None, description="of this class alone, where the prior draws")
    shard_size: int = Field(1000, ge=1, description="pictures in a shard: the unit of work and of what a kill can cost")

    @model_validator(mode="after")
    def _one_source(self) -> Selection:
        drawn_of_bank = [self.ids, self.where, self.split, self.balanced_by, self.noise, self.neighbours]
        if self.ids and any([self.where, self.split, self.balanced_by]):
            raise ValueError("selection.ids names the rows; leave where, split and balanced_by away")
        if self.prior and any(drawn_of_bank):
            raise ValueError(
                "selection.prior draws snippets that are in no bank; leave all but count and of_class away"
            )
        if self.of_class is not None and not self.prior:
            raise ValueError(
                "selection.of_class goes with prior; of the bank's own rows, where \"class = '…'\" chooses"
            )
        return self


class Recipe(Section):
    name: str = Field(
        "recipe", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names artifacts and the MLflow experiment"
    )
    description: str = operational("", "one line for people")
    store: str = operational(STORE, "where everything is kept: a directory or s3://bucket/prefix")
    data: Data = Data()
    tokenizer: Tokenizer = Tokenizer()
    encoder: Encoder = Encoder()
    bank: Bank = Bank()
    prior: Prior = Prior()
    network: Network = Network()
    train: Train = Train()
    sample: Sample = Sample()
    selection: Selection = Selection()
    evaluate: Evaluate = Evaluate()
    cluster: Cluster = Cluster()
    tracking: Tracking = Tracking()

    @property
    def views(self) -> int:
        """Rows that a picture becomes: itself, and its mirror image."""
        return 2 if self.data.mirror else 1

    @property
    def picture_bytes(self) -> int:
        """About what a picture takes in a shard: 1.5 bytes a pixel."""
        return int(1.5 * self.data.image_size**2)

    @property
    def grid(self) -> int:
        """Latent cells along a side."""
        return self.data.image_size // self.tokenizer.factor

    @property
    def source(self) -> str:
        """Where the pictures are, with ``asset:NAME`` resolved to the shipped file."""
        kind, _, name = self.data.source.partition(":")
        return str(ASSETS / f"{name}.tar") if kind == "asset" else self.data.source

    def sections(self) -> list[tuple[str, Section]]:
        return [(name, each) for name in type(self).model_fields if isinstance(each := getattr(self, name), Section)]

    def located(self, store: str) -> Recipe:
        """The same recipe for workers in other folders: the store's root in full, and relative paths made absolute."""
        return self.model_copy(update={"store": store} | {name: each.in_full() for name, each in self.sections()})

    def moved(self, store: str) -> Recipe:
        """The same recipe of a store that lies elsewhere now, and so does what it names in there."""
        return Recipe.model_validate(_moved(self.model_dump(), self.store, store) | {"store": store})

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        size, factor, patch = self.data.image_size, self.tokenizer.factor, self.network.patch
        if size % factor:
            raise ValueError(
                f"data.image_size {size} is not divisible by tokenizer.factor {factor}; choose a multiple such as {max(1, round(size / factor)) * factor}"
            )
        if (size // factor) % patch:
            raise ValueError(
                f"network.patch {patch} does not divide the latent grid of {size // factor} cells; use network.patch 1 or another data.image_size"
            )
        if self.cluster.train_workers_min and self.cluster.train_workers_min > (self.cluster.train_workers or 2**31):
            raise ValueError("cluster.train_workers_min is above cluster.train_workers; exchange them")
        if self.evaluate.reference and not self.evaluate.inception:
            raise ValueError(
                "evaluate.reference holds features of the FID Inception network; name its weights by evaluate.inception"
            )
        by_prior = self.evaluate.snippets == "prior" or (self.selection.prior and self.selection.count)
        if by_prior and not self.prior.steps:
            raise ValueError("what the prior draws is to be sampled, and prior.steps is 0; set it, such as to 800")
        if by_prior and self.evaluate.bank:
            raise ValueError("the prior is that of the recipe's own bank; leave evaluate.bank away")
        if (self.sample.guide or "").startswith("earlier:") and self.sample.earlier is None:
            raise ValueError(f"sample.guide {(self.sample.guide or '')[:80]} names no step; write it as earlier:20000")
        return self


def _moved(value: Any, before: str, now: str) -> Any:
    """With those texts in it changed that are paths below a folder."""
    if isinstance(value, dict):
        return {key: _moved(each, before, now) for key, each in value.items()}
    if isinstance(value, list):
        return [_moved(each, before, now) for each in value]
    inside = isinstance(value, str) and value.startswith(f"{before}/")
    return now + value.removeprefix(before) if inside else value
