"""Image <-> latent by a diffusers AutoencoderKL, from shipped weights, a local folder or a hub.

Images are float [B, 3, H, W] in [-1, 1]; latents are raw (no scaling factor), float32 [B, C, H / factor, W / factor].
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gmem.errors import InputError
from gmem.weights import WeightsRef, weights_hash


def standardise(latent: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Latent [B, C, h, w] with per-channel mean and deviation [C] taken out."""
    return (latent - _per_channel(mean, latent)) / _per_channel(std, latent)


def destandardise(latent: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """The inverse of `standardise`."""
    return latent * _per_channel(std, latent) + _per_channel(mean, latent)


def _per_channel(values: Tensor, latent: Tensor) -> Tensor:
    if values.shape != (latent.shape[1],):
        raise InputError(
            f"latent statistics have shape {tuple(values.shape)} but the latents have {latent.shape[1]} channels; "
            "take the statistics of the table that these latents come from"
        )
    return values.to(latent).view(1, -1, 1, 1)


class Tokenizer:
    """A frozen autoencoder; `load_tokenizer` loads one. `identity` names it: source, hash of the weights, factor, channels.

    >>> tokenizer = load_tokenizer("shipped:emoji-tokenizer")
    >>> latents = tokenizer.encode(torch.zeros(2, 3, 64, 64))
    >>> latents.shape, tokenizer.decode(latents).shape
    (torch.Size([2, 12, 8, 8]), torch.Size([2, 3, 64, 64]))
    """

    def __init__(self, model: Any, name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32):
        self.device, self.dtype = torch.device(device), dtype
        self.factor: int = 2 ** (len(model.config.block_out_channels) - 1)
        self.channels: int = model.config.latent_channels
        self.identity: dict[str, Any] = {
            "name": name,
            "sha256": weights_hash(model.state_dict()),
            "factor": self.factor,
            "channels": self.channels,
        }
        # The plain way: diffusers' own warns of modules to be kept in float32 also where there are none.
        moved = nn.Module.to(model.requires_grad_(False).eval(), self.device, dtype)
        self.model = moved.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def encode(self, images: Tensor, ids: Tensor | None = None) -> Tensor:
        """Raw latents, float32 [B, C, H/f, W/f].

        Args:
            images: [B, 3, H, W] in [-1, 1], on any device.
            ids: [B] integers, each the seed of its own draw from the posterior; None: the posterior's mean.

        Raises ValueError when the sides are not multiples of the factor.
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % self.factor or images.shape[3] % self.factor:
            raise InputError(
                f"the tokenizer takes images [B, 3, H, W] with sides divisible by {self.factor}, not "
                f"{tuple(images.shape)}; choose an image size that is a multiple of {self.factor}"
            )
        posterior = self.model.encode(self._place(images)).latent_dist
        mean = posterior.mean.float()
        if ids is None:
            return mean
        return mean + posterior.std.float() * seeded_normal(ids, tuple(mean.shape[1:])).to(mean)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Raw latents [B, C, h, w] -> images [B, 3, f h, f w], float32, not clamped (`to_bytes` does)."""
        if latents.ndim != 4 or latents.shape[1] != self.channels:
            raise InputError(
                f"this tokenizer decodes latents of {self.channels} channels, not {tuple(latents.shape)}; "
                "load the tokenizer that made them"
            )
        return self.model.decode(self._place(latents)).sample.float()

    def _place(self, values: Tensor) -> Tensor:
        return values.to(self.device, self.dtype).contiguous(memory_format=torch.channels_last)


def seeded_normal(ids: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Normal draws [B, *shape], each row from its own generator seeded by its id: the same in whatever batch."""
    rows = [torch.randn(shape, generator=torch.Generator().manual_seed(int(i))) for i in ids.tolist()]
    return torch.stack(rows) if rows else torch.empty((0, *shape))


def load_tokenizer(source: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Tokenizer:
    """Loads a frozen autoencoder.

    Args:
        source: `shipped:NAME`, a folder in the diffusers layout, or a hub id (also of a pipeline with a `vae` part).
        device, dtype: where and in what it computes; images and latents are float32.

    Raises ValueError in one sentence when there is nothing there or it is no AutoencoderKL.
    """
    return Tokenizer(_load_model(WeightsRef.parse(source)), source, device, dtype)


def _load_model(ref: WeightsRef) -> Any:
    from diffusers import AutoencoderKL

    if ref.kind in ("timm", "onnx"):
        raise InputError(f"'{ref}' is an encoder; give a tokenizer's folder, 'shipped:NAME' or a hub id")
    folder = ref.folder()
    local = folder.is_dir()
    part = "vae" if local and (folder / "vae" / "config.json").is_file() else None
    if local and part is None and not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no config.json; give a folder that diffusers' AutoencoderKL was saved in")
    if not local and ref.kind == "folder":
        raise InputError(f"there is no folder {ref}; give a tokenizer's folder, 'shipped:NAME' or a hub id")
    try:
        return _read(AutoencoderKL, str(folder if local else ref), part)
    except Exception as error:  # the hub client, diffusers and safetensors each have their own families of errors
        raise InputError(
            f"the tokenizer '{ref}' could not be loaded as an AutoencoderKL: {_first_line(error)}"
        ) from error


def _read(kind: Any, where: str, part: str | None) -> Any:
    options = {"torch_dtype": torch.float32, "low_cpu_mem_usage": False, "use_safetensors": True}
    if part is None and not Path(where).is_dir():
        try:
            return kind.from_pretrained(where, **options)
        except OSError:
            part = "vae"
    return kind.from_pretrained(where, subfolder=part, **options)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
