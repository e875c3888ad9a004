"""The Inception network of FID: the 2015 graph with TensorFlow 1's bilinear resizing, in torch.

The blocks and the resizing are torch-fidelity's (exact to TensorFlow on a CPU). The network around them is put together
here because theirs reads its weights with an unrestricted pickle, and does not give the features of sFID.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmem.errors import InputError
from gmem.precision import multiplying
from gmem.weights import file_sha256

DETECTOR = "inception-v3-2015-12-05"
RESIZE = "bilinear to 299 px as TensorFlow 1, no antialiasing"
WEIGHTS_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
WEIGHTS_SHA256_PREFIX = "6726825d"
SIZE = 299
DIMENSIONS = {"pool": 2048, "spatial": 2023}
SPATIAL_CHANNELS = 7  # ADM keeps 7 of 192 channels, so that 17 x 17 positions give 2023 numbers, about as many as pool
_BEFORE_SPATIAL = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c"),
)
_FROM_SPATIAL = ("Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c")


class FidInception(nn.Module):
    """uint8 pictures [B, 3, H, W] -> features by name, float32.

    `pool` [B, 2048]: averaged last features (FID, KID, precision and recall); `spatial` [B, 2023]: the first 7 channels
    of the 1 x 1 branch of block 6d (TensorFlow's mixed_6/conv), positions before channels as ADM's evaluator lays them
    out (sFID); `logits` [B, 1008]: without the bias, as ADM's evaluator and improved-gan take them (Inception Score).
    """

    streams = ("pool", "spatial", "logits")

    def __init__(self, sha256: str) -> None:
        super().__init__()
        from torch_fidelity import feature_extractor_inceptionv3 as blocks

        conv = blocks.BasicConv2d
        self.Conv2d_1a_3x3 = conv(3, 32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = conv(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = conv(32, 64, kernel_size=3, padding=1)
        self.MaxPool_1 = nn.MaxPool2d(kernel_size=3, stride=2)
        self.Conv2d_3b_1x1 = conv(64, 80, kernel_size=1)
        self.Conv2d_4a_3x3 = conv(80, 192, kernel_size=3)
        self.MaxPool_2 = nn.MaxPool2d(kernel_size=3, stride=2)
        self.Mixed_5b = blocks.InceptionA(192, pool_features=32)
        self.Mixed_5c = blocks.InceptionA(256, pool_features=64)
        self.Mixed_5d = blocks.InceptionA(288, pool_features=64)
        self.Mixed_6a = blocks.InceptionB(288)
        self.Mixed_6b = blocks.InceptionC(768, channels_7x7=128)
        self.Mixed_6c = blocks.InceptionC(768, channels_7x7=160)
        self.Mixed_6d = blocks.InceptionC(768, channels_7x7=160)
        self.Mixed_6e = blocks.InceptionC(768, channels_7x7=192)
        self.Mixed_7a = blocks.InceptionD(768)
        self.Mixed_7b = blocks.InceptionE_1(1280)
        self.Mixed_7c = blocks.InceptionE_2(2048)
        self.fc = nn.Linear(2048, 1008)
        self.identity = {"detector": DETECTOR, "detector_hash": sha256, "resize": RESIZE}
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Raises ValueError on anything but uint8 pictures of three channels."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"The detector takes uint8 pictures [B, 3, H, W], not {images.dtype} {tuple(images.shape)}."
            )
        x = (resize(images.float()) - 128) / 128
        with multiplying(images.device.type, "fp32"):  # anything less would move the FID
            for name in _BEFORE_SPATIAL:
                x = getattr(self, name)(x)
            spatial = self.Mixed_6d.branch1x1(x)[:, :SPATIAL_CHANNELS]
            for name in _FROM_SPATIAL:
                x = getattr(self, name)(x)
            pool = F.adaptive_avg_pool2d(x, 1).flatten(1)
            logits = pool @ self.fc.weight.T
        return {"pool": pool, "spatial": spatial.permute(0, 2, 3, 1).flatten(1), "logits": logits}


def load_inception(weights: str | Path = WEIGHTS_URL, device: str | torch.device = "cpu") -> FidInception:
    """The network with weights in torch-fidelity's layout, from a local file, or an address (kept in torch's hub cache).

    Raises ValueError on a file that is missing, holds more than tensors, or tensors of another network, or NaN.
    """
    path = _downloaded(str(weights)) if str(weights).startswith(("http://", "https://")) else Path(weights)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types here, from pickle's to zip's
        raise InputError(f"{path} holds no readable Inception weights: fetch {WEIGHTS_URL}.") from error
    with torch.device("meta"):  # no time is spent on numbers that the file replaces
        network = FidInception(file_sha256(path))
    _load(network, state, path)
    return network.to(device)


def random_inception(seed: int = 0, device: str | torch.device = "cpu") -> FidInception:
    """The same network with random weights: for tests, and where no weights can be had (its numbers mean little)."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = FidInception(sha256="")
        network.to_empty(device="cpu")
        torch.manual_seed(seed)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):  # torch's default lets every feature fade to 0
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d | nn.Linear):
                module.reset_parameters()
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in network.state_dict().values()))
    network.identity |= {"detector": f"{DETECTOR}-random", "detector_hash": digest.hexdigest()}
    return network.to(device)


def resize(images: Tensor) -> Tensor:
    """Float pictures [B, C, H, W] to 299 px: sample positions i * H / 299, clamped at the border, no antialiasing."""
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    return interpolate_bilinear_2d_like_tensorflow1x(images, size=(SIZE, SIZE), align_corners=False)


def _downloaded(url: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = WEIGHTS_SHA256_PREFIX if url == WEIGHTS_URL else None
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=False)
        except (OSError, RuntimeError) as error:  # RuntimeError: another hash
            raise InputError(f"{url} cannot be fetched ({error}): give the weights as a local file.") from error
    return path


def _load(network: FidInception, state: object, path: Path) -> None:
    wanted = network.state_dict()
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} holds something else than a dictionary of tensors: fetch {WEIGHTS_URL}.")
    # files from before 2018 lack a counter which only training reads
    counters = {name: torch.tensor(0) for name in wanted if name.endswith("num_batches_tracked")}
    state = {**counters, **state}
    wrong = sorted(set(wanted) ^ set(state)) + sorted(
        name for name in set(wanted) & set(state) if wanted[name].shape != state[name].shape
    )
    if wrong:
        raise InputError(
            f"{path} is not the FID Inception network: {len(wrong)} tensors are missing, surplus or of another shape, "
            f"such as {', '.join(map(str, wrong[:3]))}."
        )
    if not all(torch.isfinite(value).all() for value in state.values()):
        raise InputError(f"{path} holds NaN or infinity: fetch the file again.")
    network.load_state_dict({name: value.to(wanted[name].dtype) for name, value in state.items()}, assign=True)
    network.requires_grad_(False)
