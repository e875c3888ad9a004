"""What may be chosen of network, training and sampling: each setting declared once, with its type, bounds and meaning.

Plain frozen dataclasses that import neither torch nor anything of a recipe's: a recipe's sections inherit them, a notebook
makes them directly, JSON is `dataclasses.asdict`. Bounds hold in both: they stand in the types.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from typing_extensions import Doc

from gmem.errors import InputError

SizeName = Literal["T", "S", "B", "L", "XL", "1p0B", "1p6B"]
Conditioning = Literal["memory", "none", "label"]
Prediction = Literal["velocity", "data"]
Initialisation = Literal["published", "zero"]

TimeSampling = Literal["logit-normal", "uniform"]
OptimiserName = Literal["adamw", "muon"]
Autocast = Literal["auto", "bf16", "fp32"]

Kind = Literal["ode", "sde"]
Method = Literal["euler", "heun", "dopri5", "multistep"]
Diffusion = Literal["constant", "SBDM", "sigma", "linear", "decreasing", "increasing-decreasing"]
Last = Literal["none", "mean", "euler", "tweedie"]
Precision = Literal["fp32", "tf32", "bf16"]

Choice = Literal["random", "balanced", "medoids", "farthest"]


def shown(value: object) -> str:
    """What was given, as messages quote it: at most 80 characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python writes no numbers of more than 4,300 digits
        text = f"a {type(value).__name__} of thousands of digits"
    return text if len(text) <= 80 else f"{text[:79]}…"


class Settings:
    """Checked where they are made: ValueError in one sentence, which names the setting as a recipe does."""

    SECTION: ClassVar[str]

    def __post_init__(self) -> None:
        types = _types(type(self))  # type: ignore[arg-type]  # mypy takes the class's __hash__ for its objects'
        for field in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = getattr(self, field.name)
            if wrong := _wrong(value, types[field.name]):
                raise InputError(f"{self.SECTION}.{field.name} is {shown(value)}; {wrong}")
        self.check()

    def check(self) -> None:
        """What no setting tells by itself; a recipe calls it too."""


@functools.cache
def _types(settings: type) -> dict[str, Any]:
    return get_type_hints(settings, include_extras=True)


def _wrong(value: Any, kind: Any) -> str:
    """What is wrong with a value of a type such as Annotated[int, Ge(2)] or a Literal; empty when nothing is."""
    if get_origin(kind) is Literal and value not in get_args(kind):
        return f"use one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is not Annotated or value is None:
        return ""
    plain, *bounds = get_args(kind)
    return _wrong(value, plain) or " and ".join(filter(None, (_beyond(value, bound) for bound in bounds)))


def _beyond(value: Any, bound: Any) -> str:
    match bound:
        case Ge(ge=limit) if not value >= limit:
            return f"give at least {limit}"
        case Gt(gt=limit) if not value > limit:
            return f"give more than {limit}"
        case Le(le=limit) if not value <= limit:
            return f"give at most {limit}"
        case Lt(lt=limit) if not value < limit:
            return f"give less than {limit}"
    return ""


# --- network ---------------------------------------------------------------------------------------------------------


class Size(NamedTuple):
    depth: int
    width: int
    heads: int


SIZES: dict[SizeName, Size] = {
    "T": Size(6, 256, 4),  # for the demo: 7.6 M parameters with its small head
    "S": Size(12, 384, 6),
    "B": Size(12, 768, 12),
    "L": Size(24, 1024, 16),
    "XL": Size(28, 1152, 16),
    "1p0B": Size(24, 1536, 24),
    "1p6B": Size(28, 1792, 28),
}


@dataclass(frozen=True, kw_only=True)
class NetworkChoices(Settings):
    """What may be chosen of a network of any size, whatever its latents and snippets."""

    SECTION: ClassVar[str] = "network"

    patch: Annotated[int, Ge(1), Le(2), Doc("latent cells per token, along each side")] = 1
    conditioning: Annotated[Conditioning, Doc("what the network is told about the picture")] = "memory"
    prediction: Annotated[Prediction, Doc("what the last layer gives; data is turned into a velocity")] = "velocity"
    initialisation: Annotated[Initialisation, Doc("zero starts modulation and output at zero")] = "published"
    snippet_scale: Annotated[
        float,
        Gt(0),
        Doc("length of snippets as the network sees them; the root of their dimension speeds up short trainings"),
    ] = 1.0
    projection_hidden: Annotated[int, Ge(1), Doc("width of the alignment head")] = 2048


@dataclass(frozen=True)
class NetworkConfig(NetworkChoices):
    """Everything that fixes the network's tensors; JSON by `dataclasses.asdict`, back by `NetworkConfig(**values)`.

    The defaults are those of ImageNet at 256 px with VA-VAE f16d32 latents and DINOv2-B snippets.
    """

    depth: Annotated[int, Ge(1), Doc("blocks")]
    width: Annotated[int, Ge(1), Doc("numbers in a token")]
    heads: Annotated[int, Ge(1), Doc("attention heads")]
    latent_channels: Annotated[int, Ge(1)] = 32
    latent_size: Annotated[int, Ge(1), Doc("cells along a side of the latent")] = 16
    snippet_dim: Annotated[int, Ge(1)] = 768
    projection_dim: Annotated[int, Ge(0), Doc("width of the patch tokens that the head predicts; 0: no head")] = 0
    projection_after: Annotated[int, Ge(1), Doc("the head reads the tokens after this many blocks")] = 4
    classes: Annotated[int, Ge(0), Doc("of labels; only for conditioning label")] = 0

    def check(self) -> None:
        if self.width % (4 * self.heads):
            raise InputError(
                f"network.width {self.width} does not give {self.heads} heads a size divisible by 4, which rotary "
                "positions need; change width or heads"
            )
        if self.latent_size % self.patch:
            raise InputError(f"network.patch {self.patch} does not divide the latent's side {self.latent_size}; use 1")
        if self.projection_dim and self.projection_after > self.depth:
            raise InputError(f"network.projection_after {self.projection_after} is not one of the {self.depth} blocks")
        if self.conditioning == "label" and self.classes < 1:
            raise InputError("network.classes must be at least 1 when network.conditioning is 'label'")

    @classmethod
    def of(cls, size: SizeName, **rest: Any) -> NetworkConfig:
        """The network of a named size (`SIZES`), with the other fields as given."""
        if size not in SIZES:
            raise InputError(f"there is no network size {shown(size)}; use one of {', '.join(SIZES)}")
        return cls(**SIZES[size]._asdict(), **rest)

    @property
    def grid(self) -> int:
        """Tokens a side."""
        return self.latent_size // self.patch

    @property
    def middle(self) -> range:
        """Blocks, from 0, that tokens may go around: behind the alignment head, which wants all of them, or the second
        block, and before the last sixth."""
        first = self.projection_after if self.projection_dim else 2
        last = self.depth - max(1, self.depth // 6)
        return range(first, last)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.latent_channels, self.latent_size, self.latent_size


# --- training --------------------------------------------------------------------------------------------------------


AVERAGE = "ema"
"""The group of tensors of the average whose decay is `train.ema`."""


def average_group(decay: float) -> str:
    """The group of tensors of a further average: named by the decimals of its decay.

    >>> average_group(0.9995)
    'ema_9995'
    """
    decimals = f"{decay:.12f}".partition(".")[2]
    return f"{AVERAGE}_{decimals.rstrip('0') or 0}"


WHOLE_MATRICES = "train.optimiser muon needs whole matrices, which train.sharded cuts; use adamw, or do not shard"


@dataclass(frozen=True)
class LearnerConfig(Settings):
    """How the network is trained; the defaults are the published ones."""

    SECTION: ClassVar[str] = "train"

    optimiser: Annotated[
        OptimiserName,
        Doc("muon moves the matrices of attention and SwiGLU by orthogonal updates, and AdamW the rest"),
    ] = "adamw"
    lr: Annotated[float, Gt(0), Doc("learning rate after warm-up")] = 2e-4
    beta1: Annotated[float, Ge(0), Lt(1), Doc("decay of AdamW's mean of gradients")] = 0.9
    beta2: Annotated[float, Ge(0), Lt(1), Doc("decay of AdamW's mean of squared gradients")] = 0.95
    weight_decay: Annotated[float, Ge(0), Doc("decoupled weight decay of AdamW")] = 0.0
    clip: Annotated[float, Gt(0), Doc("largest gradient norm")] = 1.0
    warmup: Annotated[int, Ge(0), Doc("steps of linear warm-up")] = 0
    decay_after: Annotated[
        int | None,
        Ge(1),
        Doc("steps after which the learning rate falls with the inverse root of the steps; none: it stays"),
    ] = None
    ema: Annotated[float, Ge(0), Lt(1), Doc("decay of the averaged weights, reached by a ramp")] = 0.9999
    emas: Annotated[
        tuple[float, ...],
        Doc("decays of further averages, kept beside that one; sample.ema chooses among them"),
    ] = ()
    ema_ramp: Annotated[float, Ge(0), Doc("after n steps the decay is at most (1 + n) / (ramp + n); 0: no ramp")] = 10
    precision: Annotated[
        Autocast,
        Doc("autocast precision, auto: bf16 where that multiplies faster; weights stay in fp32"),
    ] = "bf16"
    times: Annotated[TimeSampling, Doc("how training times are drawn")] = "logit-normal"
    shift_base: Annotated[
        int | None,
        Ge(1),
        Doc(
            "noise levels are raised by the root of C·H·W / base, for large latents; published: 4096, none: not at all"
        ),
    ] = None
    mask: Annotated[float, Ge(0), Lt(1), Doc("share of snippet coordinates dropped in training")] = 0.4
    drop: Annotated[float, Ge(0), Lt(1), Doc("share of whole snippets dropped, which trains a branch for guidance")] = (
        0.0
    )
    cosine: Annotated[float, Ge(0), Doc("weight of the cosine loss")] = 1.0
    align: Annotated[float, Ge(0), Doc("weight of the alignment with patch tokens; 0 stores none")] = 0.5
    route: Annotated[
        float,
        Ge(0),
        Lt(1),
        Doc("share of tokens that go around the middle blocks in training, drawn for each picture; 0: none"),
    ] = 0.0
    seed: Annotated[int, Ge(0), Doc("of every draw in training, and of the order of pictures")] = 0

    def check(self) -> None:
        for decay in self.emas:
            if not 0 <= decay < 1:
                raise InputError(f"train.emas holds {decay}; give numbers from 0 to less than 1")

    def averages(self) -> dict[str, float]:
        """The decay of every average, by the group of its tensors."""
        decays = {AVERAGE: self.ema}
        for decay in sorted(self.emas):
            if decay != self.ema:
                decays[average_group(decay)] = decay
        return decays


# --- sampling --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SamplerConfig(Settings):
    """How samples are drawn; the defaults are those of the published figures. Times: 0 is noise, 1 is data."""

    SECTION: ClassVar[str] = "sample"

    kind: Annotated[Kind, Doc("the flow's ODE, or an SDE with the same marginals")] = "sde"
    method: Annotated[
        Method,
        Doc(
            "for the ODE alone: dopri5 chooses its own steps, multistep also uses the point before and is best with few"
        ),
    ] = "heun"
    steps: Annotated[int, Ge(2), Doc("points of the time grid")] = 50
    shift: Annotated[float, Gt(0), Doc("time shift of the grid; below 1 spends more points near noise, 1: none")] = (
        1.0  # published for ODE Euler: 0.3
    )
    diffusion: Annotated[Diffusion, Doc("the SDE's diffusion coefficient as a function of time")] = "linear"
    diffusion_norm: Annotated[float, Ge(0), Doc("factor of the diffusion coefficient")] = 1.0
    last: Annotated[Last, Doc("the SDE's last step, which adds no noise")] = "mean"
    last_size: Annotated[float, Gt(0), Lt(1), Doc("length of the last step in time")] = 0.004
    guidance: Annotated[float, Ge(0), Doc("guidance scale; 1: none")] = 1.0
    guidance_from: Annotated[float, Ge(0), Le(1), Doc("guided from this time on (t = 1 is data)")] = 0.0
    guidance_until: Annotated[float, Ge(0), Le(1), Doc("and up to this time, conditional elsewhere")] = 1.0
    precision: Annotated[
        Precision, Doc("of the network's matrix products; GPUs are several times as fast with less")
    ] = "fp32"
    rtol: Annotated[float, Gt(0), Doc("relative error of a step of dopri5")] = 1e-3
    atol: Annotated[float, Gt(0), Doc("absolute error of a step of dopri5")] = 1e-6

    def check(self) -> None:
        if self.kind == "sde" and self.method in ("dopri5", "multistep"):
            raise InputError(f"sample.method {self.method} is for sample.kind ode; use euler or heun with sde")
        if self.guidance_from > self.guidance_until:
            raise InputError("sample.guidance_from lies after sample.guidance_until; exchange them")

    def pieces(self) -> list[tuple[float, float, bool]]:
        """Where the velocity is smooth in time: beginning, end, and whether it is guided there."""
        if self.guidance == 1:
            return [(0.0, 1.0, False)]
        start, until = self.guidance_from, self.guidance_until
        stretches = [(0.0, start, False), (start, until, True), (until, 1.0, False)]
        return [(begin, end, guided) for begin, end, guided in stretches if begin < end]

    def summary(self) -> str:
        """Every setting that moves a sample, besides steps and guidance: two texts are equal where the samplers are."""
        name = f"{self.kind} {self.method}" + ("" if self.precision == "fp32" else f" in {self.precision}")
        if self.method == "dopri5":  # chooses its own steps
            return f"{name} rtol {self.rtol:g} atol {self.atol:g}"
        name += f" shift {self.shift:g}"
        if self.kind == "ode":
            return name
        last = "none" if self.last == "none" else f"{self.last} {self.last_size:g}"
        return f"{name} diffusion {self.diffusion} norm {self.diffusion_norm:g} last {last}"


# --- memory ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemoryConfig(Settings):
    """How much of the bank is kept to condition with."""

    SECTION: ClassVar[str] = "bank"

    snippets: Annotated[
        float | None,
        Gt(0),
        Doc("training pictures whose snippets are kept: a share below 1, or a number; none: all"),
    ] = None
    choice: Annotated[
        Choice,
        Doc("which are kept: balanced by class, the medoids of clusters, or those farthest from each other"),
    ] = "random"
    seed: Annotated[int, Ge(0), Doc("of what is random in the choice")] = 0
    rank: Annotated[
        int | None,
        Ge(1),
        Doc("numbers kept of each snippet, along the directions in which they vary most; none: all"),
    ] = None

    def check(self) -> None:
        if self.snippets and self.snippets > 1 and self.snippets % 1:
            raise InputError(
                f"bank.snippets {shown(self.snippets)} is neither a share nor a number of pictures; give 0.1, say, for "
                "a tenth, or 100 for a hundred"
            )

    @property
    def whole(self) -> bool:
        """Whether all of it is kept."""
        return self.snippets is None and self.rank is None

    def count(self, pictures: int) -> int:
        """Whose snippets are kept, of so many pictures."""
        wanted = pictures if self.snippets is None else self.snippets
        if wanted < 1:
            return max(1, round(wanted * pictures))
        if wanted > pictures:
            raise InputError(
                f"bank.snippets asks for {int(wanted):,} of {pictures:,} training pictures; give a smaller number, a share "
                "below 1, or null for all"
            )
        return int(wanted)


# --- prior -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PriorConfig(Settings):
    """How the distribution of the snippets is learned."""

    SECTION: ClassVar[str] = "prior"

    width: Annotated[int, Ge(8), Doc("numbers in a hidden layer")] = 256
    depth: Annotated[int, Ge(1), Doc("residual blocks")] = 2
    batch: Annotated[int, Ge(1), Doc("snippets a step")] = 256
    lr: Annotated[float, Gt(0), Doc("learning rate of AdamW after a warm-up of 100 steps")] = 1e-3
    ema: Annotated[float, Ge(0), Lt(1), Doc("decay of the averaged weights, reached by a ramp")] = 0.999
    drop: Annotated[float, Ge(0), Le(1), Doc("share of class labels dropped, which trains drawing without a class")] = (
        0.2
    )
    seed: Annotated[int, Ge(0), Doc("of every draw in training")] = 0
