"""Image -> snippet and patch tokens, by a timm vision transformer: shipped, from a hub, or from a file.

Images are float [B, 3, H, W] in [-1, 1], cropped square (as ADM does) by whoever made the shards. The snippet is the
class token where the network has one, else its own pooling; both come after the final norm, as the networks' authors
use them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmem.errors import InputError
from gmem.weights import WeightsRef, weights_hash


class Features(NamedTuple):
    """snippet [B, D] and patch tokens [B, grid * grid, D] (row by row), float32, not normalised."""

    snippet: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Preprocessing:
    """From [-1, 1] to what the network was trained on."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    antialias: bool

    def __call__(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> normalised, then resized [B, 3, size, size] (the published order)."""
        mean = torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, -1, 1, 1)
        images = ((images.float() + 1) / 2 - mean) / std
        if images.shape[-2:] == (self.size, self.size):
            return images
        return F.interpolate(images, size=(self.size, self.size), mode=self.interpolation, antialias=self.antialias)


class Encoder:
    """A frozen encoder; `load_encoder` loads one. `identity` names it: source, hash of the weights, preprocessing, dimension.

    >>> encoder = load_encoder("shipped:emoji-encoder", image_size=64)
    >>> snippet, tokens = encoder(torch.zeros(2, 3, 64, 64))
    >>> snippet.shape, tokens.shape
    (torch.Size([2, 192]), torch.Size([2, 64, 192]))
    """

    def __init__(self, model: nn.Module, name: str, preprocessing: Preprocessing, device: str | torch.device = "cpu"):
        self.device = torch.device(device)
        self.preprocessing = preprocessing
        self.dim: int = model.num_features  # type: ignore[assignment]
        self.prefix: int = model.num_prefix_tokens  # type: ignore[assignment]
        self.grid: int = preprocessing.size // _patch(model)
        self.identity: dict[str, Any] = {
            "name": name,
            "sha256": weights_hash(model.state_dict()),
            "preprocessing": asdict(preprocessing),
            "dim": self.dim,
        }
        self.model: Any = model.requires_grad_(False).eval().to(self.device)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Features:
        """Images [B, 3, H, W] in [-1, 1] -> Features. Raises ValueError for other shapes."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"an encoder takes images [B, 3, H, W] in [-1, 1], not {tuple(images.shape)}")
        hidden = self.model.forward_features(self.preprocessing(images.to(self.device)))
        if has_class_token(self.model):
            snippet = hidden[:, 0]
        else:
            snippet = self.model.forward_head(hidden, pre_logits=True)
        return Features(snippet.float(), hidden[:, self.prefix :].float())


def has_class_token(model: Any) -> bool:
    """Whether the first token stands for the picture (CLIP, DINO) rather than a pooling of the patches (SigLIP)."""
    return getattr(model, "cls_token", None) is not None


def _patch(model: Any) -> int:
    return int(model.patch_embed.patch_size[0])


def input_size(image_size: int, native: int, patch: int) -> int:
    """The side at which a network sees pictures of `image_size`.

    Networks for small pictures (under 224) see everything at their own size. The others get one token for every
    16 pixels, which is the grid of an f16 latent: 256 -> 224 and 512 -> 448 for patch 14, unchanged for patch 16;
    pictures under 256 are enlarged to what 256 would be. A patch wider than 16 keeps the picture's own pixels.
    """
    if native < 224:
        return native
    tokens = max(image_size, 256) // max(16, patch)
    return tokens * patch


def load_encoder(source: str, device: str | torch.device = "cpu", image_size: int | None = None) -> Encoder:
    """Loads a frozen encoder.

    Args:
        source: `shipped:NAME`, `timm:MODEL` (hub weights), `timm:MODEL@FILE`, or a folder in timm's hub layout.
        device: where it computes; images may lie elsewhere.
        image_size: side in pixels of the pictures it will be given (256 when not said), from which the network's input
            and its grid follow.

    Raises ValueError in one sentence when there is nothing there or it does not fit.
    """
    ref = WeightsRef.parse(source)
    if ref.kind == "onnx":
        raise InputError(
            f"'{source}' can measure, and makes no snippets and patch tokens; name it in evaluate.copy_detector or "
            "evaluate.further_encoders"
        )
    if ref.kind == "timm":
        name = ref.name
    elif (ref.folder() / "config.json").is_file():
        name = f"local-dir:{ref.folder()}"
    else:
        raise InputError(
            f"there is no encoder at '{source}'; give 'shipped:NAME', 'timm:MODEL', 'timm:MODEL@FILE' or a folder "
            "with config.json and model.safetensors"
        )
    if ref.file and not Path(ref.file).is_file():
        raise InputError(f"there is no file {ref.file} with weights for '{name}'")
    model, preprocessing = build(name, image_size or 256, pretrained=True, file=ref.file, source=source)
    return Encoder(model, ref.network, preprocessing, device)


def build(
    name: str, image_size: int, *, pretrained: bool, file: str = "", source: str = ""
) -> tuple[nn.Module, Preprocessing]:
    """The timm network and its preprocessing for pictures of `image_size`; random weights unless `pretrained`."""
    import timm

    try:
        with torch.device("meta"):  # only to ask: nothing is allocated or drawn
            plain: Any = timm.create_model(name, pretrained=False, num_classes=0)
        config: dict[str, Any] = plain.pretrained_cfg
        _require_plain_vit(plain, name)
        size = input_size(image_size, config["input_size"][-1], _patch(plain))
        sized: dict[str, Any] = {} if size == _native_size(plain) else {"img_size": size}
        overlay = {"file": file} if file else None
        model = timm.create_model(name, pretrained=pretrained, num_classes=0, pretrained_cfg_overlay=overlay, **sized)
    except Exception as error:  # timm, the hub client and safetensors each have their own families of errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise InputError(f"the encoder '{source or name}' could not be loaded: {reason}") from error
    preprocessing = Preprocessing(
        size=size,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"] if config["interpolation"] in ("bicubic", "bilinear") else "bicubic",
        antialias=config["input_size"][-1] < 224,  # the large networks' published features come without
    )
    return model, preprocessing


def _native_size(model: Any) -> int:
    return int(model.patch_embed.img_size[0]) if model.patch_embed.img_size else 0


def _require_plain_vit(model: Any, name: str) -> None:
    if not (hasattr(model, "num_prefix_tokens") and hasattr(model, "patch_embed")):
        raise InputError(f"{name} is no plain vision transformer with a grid of patch tokens; choose a ViT")
