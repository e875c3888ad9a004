"""Reads the published files, and writes two of them back: GMem networks, banks, latent statistics, VA-VAE tokenizers.

Files are mapped, not read, where their format allows, and never unpickled without restriction.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gmem import ldm
from gmem.errors import InputError
from gmem.memory import Components
from gmem.network import Network
from gmem.published_config import network_choices
from gmem.settings import SIZES, NetworkConfig
from gmem.tensor_files import Mismatch, Tensors, bare_names, check, kind, read_file, require_plain, write_tensors

WEIGHTS_FILE, CONFIG_FILE = "diffusion_pytorch_model.safetensors", "config.json"
STATISTICS_FILE = "latents_stats.pt"


@dataclass(frozen=True)
class PublishedNetwork:
    """A network's weights as they lie in a file, under the published names, and what its shapes say about it."""

    config: NetworkConfig
    tensors: Tensors
    part: str  # "ema", "model" or "state dict": which weights of the file these are

    @property
    def size(self) -> str:
        """The size's name, such as "XL", or depth x width for one that has none."""
        shape = (self.config.depth, self.config.width, self.config.heads)
        return next((name for name, size in SIZES.items() if size == shape), f"{shape[0]}x{shape[1]}")

    def build(self) -> Network:
        """The network in float32, ready to sample; float32 weights stay mapped to the file."""
        with torch.device("meta"):
            network = Network(self.config)
        network.load_state_dict({name: value.float() for name, value in self.tensors.items()}, assign=True)
        return network.eval()


def read_network(path: str | Path, part: str = "ema") -> PublishedNetwork:
    """The network in a published checkpoint (a dictionary with `ema` and `model`), a bare state dict or a folder.

    `part` says which weights of a checkpoint to take. ValueError when the file is no such network, see `check`.
    """
    content = _read_folder(Path(path)) if Path(path).is_dir() else read_file(path)
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds {kind(content)}, not a network's weights; did you mean `gmem import bank`?")
    found = next((p for p in (part, "ema", "model", "state_dict") if isinstance(content.get(p), Mapping)), None)
    tensors = bare_names(path, content if found is None else content[found])
    config = _network_config(str(path), tensors, network_choices(str(path), content))
    with torch.device("meta"):
        expected = {name: value.shape for name, value in Network(config).state_dict().items()}
    what = f"{path} is not a GMem network of {config.depth} blocks of width {config.width}"
    check(what, tensors, expected)
    _check_one_type(str(path), tensors)
    return PublishedNetwork(config, tensors, found or "state dict")


def write_network(path: str | Path, ema: Tensors, config: NetworkConfig, model: Tensors | None = None) -> None:
    """Writes the published checkpoint layout: `ema`, `model` (the trained weights, if there are any) and `config`.

    Types and bits of the tensors stay as they are; names too, but that the trained weights' get the prefix of data
    parallelism, without which the published trainer resumes from none.
    """
    content: dict[str, Any] = {"ema": ema, "config": asdict(config)}
    if model is not None:
        content["model"] = {f"module.{name}": value for name, value in model.items()}
    torch.save(content, path)


def write_folder(folder: str | Path, tensors: Tensors, config: NetworkConfig) -> None:
    """Writes a folder such as the hub carries: weights as safetensors beside a `config.json`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_tensors(Path(folder) / WEIGHTS_FILE, tensors)
    (Path(folder) / CONFIG_FILE).write_text(json.dumps({"_class_name": "GMemNetwork", **asdict(config)}, indent=2))


ORTHONORMAL = 1e-2
"""How far products of directions may be from 0 and 1: those of half floats are."""


@dataclass(frozen=True)
class PublishedBank:
    """A bank's snippets [rows, dim], or with `components` their coefficients [rows, rank], mapped to their file."""

    snippets: Tensor
    components: Components | None = None

    @property
    def rows(self) -> int:
        return self.snippets.shape[0]

    @property
    def dim(self) -> int:
        """Of a snippet in full."""
        return self.components.basis.shape[1] if self.components else self.snippets.shape[1]

    def chunks(self, size: int = 16384) -> Iterator[Tensor]:
        """The snippets or coefficients in order, at most `size` at a time, each in memory of its own; ValueError at NaN or infinity."""
        for start in range(0, self.rows, size):
            chunk = self.snippets[start : start + size].clone()
            bad = (~chunk.isfinite().all(1)).nonzero()
            if len(bad):
                raise InputError(f"row {start + int(bad[0])} of the bank holds NaN or infinity; get the file again")
            yield chunk


def read_bank(path: str | Path) -> PublishedBank:
    """The bank in a file (torch, safetensors or numpy) with one tensor [N, D] of float32, float16 or bfloat16, or in the
    published factorised form: coefficients `C` [N, k], directions `M` [D, k] and `mean` [D]."""
    content = read_file(path)
    if isinstance(content, Mapping) and {"C", "M", "mean"} <= content.keys():
        return _factorised(path, content)
    if isinstance(content, Mapping) and len(content) == 1:
        content = next(iter(content.values()))
    if not isinstance(content, Tensor):
        raise InputError(f"{path} holds {kind(content)}, not a bank; a bank is one tensor [N, D] of snippets")
    content = require_plain(path, "the bank", content)
    if content.dim() != 2 or not content.is_floating_point() or not content.numel():
        raise InputError(
            f"{path} holds {content.dtype} of shape {list(content.shape)}; a bank is one tensor [N, D] of floats"
        )
    return PublishedBank(content)


def _factorised(path: str | Path, content: Mapping[str, Any]) -> PublishedBank:
    """x = mean + C Mᵀ; the singular values `S`, which C has in it, and the dimensions say nothing more."""
    codes, directions, mean = (require_plain(path, f"tensor {name}", content[name]) for name in ("C", "M", "mean"))
    shapes = [list(tensor.shape) for tensor in (codes, directions, mean)]
    fits = [len(shape) for shape in shapes] == [2, 2, 1] and shapes[1] == [shapes[2][0], shapes[0][1]]
    if not fits or not all(tensor.is_floating_point() and tensor.numel() for tensor in (codes, directions, mean)):
        raise InputError(
            f"{path} holds C, M and mean of shapes {shapes}, which are no factorised bank; C is [N, k], M [D, k], mean [D]"
        )
    directions, mean = directions.float().T.contiguous(), mean.float()
    if not (directions.isfinite().all() and mean.isfinite().all()):
        raise InputError(f"the directions in {path} hold NaN or infinity; get the file again")
    if (directions @ directions.T - torch.eye(len(directions))).abs().max() > ORTHONORMAL:
        raise InputError(
            f"the directions M in {path} are not orthonormal, as those of a decomposition are; get the file again"
        )
    return PublishedBank(codes, Components(mean, directions))


def read_latent_statistics(path: str | Path, channels: int | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [C], float32, from a published `latents_stats.pt`."""
    content = read_file(path)
    if not isinstance(content, Mapping) or not all(isinstance(content.get(k), Tensor) for k in ("mean", "std")):
        raise InputError(f"{path} holds {kind(content)}; latent statistics are a dictionary with `mean` and `std`")
    mean, std = (require_plain(path, key, content[key]).float().flatten() for key in ("mean", "std"))
    if len(mean) != len(std) or (channels is not None and len(mean) != channels):
        raise InputError(
            f"{path} has {len(mean)} means and {len(std)} deviations"
            f"{'' if channels is None else f', but the latents have {channels} channels'}; "
            "give the statistics of this tokenizer"
        )
    if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
        raise InputError(f"{path} has a mean or deviation that is NaN, infinite or not positive; get it again")
    return mean, std


def write_latent_statistics(path: str | Path, mean: Tensor, std: Tensor) -> None:
    """Writes mean and standard deviation [C] as a published `latents_stats.pt` holds them, [1, C, 1, 1]."""
    torch.save({name: value.view(1, -1, 1, 1) for name, value in (("mean", mean), ("std", std))}, path)


def read_tokenizer(path: str | Path) -> Any:
    """The diffusers `AutoencoderKL` in a VA-VAE (or any latent-diffusion) checkpoint; its own losses are ignored."""
    from diffusers import AutoencoderKL

    content = read_file(path)
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds {kind(content)}, not an autoencoder's weights")
    nested = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), Mapping)), content)
    tensors = ldm.without_training_parts(bare_names(path, nested))
    try:
        settings = ldm.autoencoder_config(tensors)
        with torch.device("meta"):
            model: Any = AutoencoderKL(**settings)
    except KeyError as error:
        raise InputError(f"{path} is not a latent-diffusion autoencoder: tensor {error} is missing") from error
    except (IndexError, ValueError, RuntimeError, ArithmeticError) as error:
        raise InputError(f"{path} is not a latent-diffusion autoencoder: its shapes fit no layers") from error
    expected = {name: value.shape for name, value in model.state_dict().items()}
    check(f"{path} is not the autoencoder that its shapes announce", ldm.diffusers_names(tensors), expected)
    _check_one_type(str(path), tensors)
    weights = {name: value.float().clone() for name, value in ldm.diffusers_names(tensors).items()}
    model.load_state_dict(weights, assign=True)
    return model.eval()


def _read_folder(folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / CONFIG_FILE).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{folder} has no readable {CONFIG_FILE}; give a folder written by `gmem export`") from error
    return {"ema": read_file(folder / WEIGHTS_FILE), "config": about}


def _network_config(path: str, tensors: Tensors, choices: Mapping[str, Any]) -> NetworkConfig:
    """The network's measures from its shapes; `choices` are what no shape tells."""
    needed = ("pos_embed", "x_embedder.proj.weight", "feat_rope.freqs_cos", "blocks.0.attn.qkv.weight")
    if missing := [name for name in needed if name not in tensors]:
        raise Mismatch(f"{path} is not a GMem network", missing, sorted(tensors), [])
    shape = {name: value.shape for name, value in tensors.items()}
    dimensions = {"pos_embed": 3, "x_embedder.proj.weight": 4, "feat_rope.freqs_cos": 2}
    if odd := [f"{n} {list(shape[n])}" for n, count in dimensions.items() if len(shape[n]) != count or 0 in shape[n]]:
        raise Mismatch(f"{path} is not a GMem network", [], [], odd)
    width, channels, patch, _ = shape["x_embedder.proj.weight"]
    snippet, label = _matrix(shape, "condition_projection.linear"), _matrix(shape, "y_embedder.embedding_table")
    head = _matrix(shape, "projector.0.4")
    depth = _depth(path, tensors)
    return NetworkConfig(
        depth=depth,
        width=width,
        heads=width // shape["feat_rope.freqs_cos"][1],
        patch=patch,
        latent_channels=channels,
        latent_size=math.isqrt(shape["pos_embed"][1]) * patch,
        snippet_dim=snippet[1] if snippet else 768,
        projection_dim=head[0] if head else 0,
        projection_hidden=head[1] if head else 2048,
        projection_after=min(choices.get("projection_after", 4), depth),
        conditioning="memory" if snippet else "label" if label else "none",
        classes=label[0] - 1 if label else 0,
        snippet_scale=float(choices.get("snippet_scale", 1.0)),
        prediction=choices.get("prediction", "velocity"),
    )


def _matrix(shape: Mapping[str, torch.Size], name: str) -> torch.Size | None:
    """Rows and columns of an optional layer's weights."""
    found = shape.get(f"{name}.weight")
    return found if found and len(found) == 2 else None


def _depth(path: str, tensors: Tensors) -> int:
    """The number of blocks; a file may name any, and no more are built than it holds tensors for."""
    named = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    odd = [number[:80] for number in named if not re.fullmatch(r"\d{1,6}", number, re.ASCII)]
    numbers = {int(number) for number in named} if not odd else set()
    if odd or numbers != set(range(len(numbers))):
        raise InputError(f"{path} is not a GMem network: its blocks are not numbered from 0; get it again")
    return len(numbers)


def _check_one_type(path: str, tensors: Tensors) -> None:
    fixed = ("pos_embed", "feat_rope.")
    types = {str(value.dtype) for name, value in tensors.items() if not name.startswith(fixed)}
    if len(types) > 1:
        raise InputError(f"{path} mixes weights of {' and '.join(sorted(types))}; save them in one type")
