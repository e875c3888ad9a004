"""Image -> vector, by a network in an ONNX file. Made for SSCD, the copy detector; needs onnxruntime, an optional extra.

`onnx:FILE`, or `onnx:FILE?size=320&output=NAME` with any of these settings:

size      side in pixels at which the network sees pictures; left out: what the file says, else 288 as SSCD is used
mean, std of red, green and blue between 0 and 1, such as 0.5,0.5,0.5; left out: ImageNet's
output    name of the output that is the vector; left out: the only one
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from gmem.errors import InputError
from gmem.weights import WeightsRef, content_identity, content_sha256

SSCD_SIZE = 288
"""Of the small edge: what its authors recommend beside 320 px for pictures that are made square."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Colour = tuple[float, ...]


@dataclass(frozen=True)
class Settings:
    """What stands behind the question mark."""

    size: int | None = None
    mean: Colour | None = None
    std: Colour | None = None
    output: str | None = None

    @classmethod
    def parse(cls, text: str) -> Settings:
        """InputError where it is not NAME=VALUE&NAME=VALUE of known names with possible values."""
        read: dict[str, Callable[[str], Any]] = {"size": _size, "mean": _colour, "std": _colour, "output": str}
        found = {}
        for name, value in parse_qsl(text, keep_blank_values=True):
            if name not in read:
                raise InputError(f"an ONNX network has no setting '{name[:40]}'; there are {', '.join(read)}")
            try:
                found[name] = read[name](value)
            except ValueError:
                example = "288" if name == "size" else "0.5,0.5,0.5"
                raise InputError(
                    f"{name}={value[:40]} is not possible; give a value such as {name}={example}"
                ) from None
        return cls(**found)


def _size(text: str) -> int:
    size = int(text)
    if not 16 <= size <= 4096:
        raise ValueError
    return size


def _colour(text: str) -> Colour:
    values = tuple(float(part) for part in text.split(","))
    if len(values) != 3 or not all(0 < value < 1 for value in values):
        raise ValueError
    return values


class OnnxNetwork:
    """Computes on the CPU, as many pictures at once as it is given. `sha256` is the file's; `preprocessing` says how
    pictures are given to it, and which output is taken; `dim` is the vector's length.

    Pictures reach its size as Pillow resizes them (bilinear, bytes again). A network that takes bytes normalises them
    itself; one that takes floats is given them by mean and std.
    """

    def __init__(self, source: str) -> None:
        """`source`: onnx:FILE and its settings. InputError in one sentence where onnxruntime or the file is missing, or
        the file does not hold a network from pictures to vectors."""
        ref = WeightsRef.parse(source)
        settings = Settings.parse(ref.settings)
        self._session = _session(ref.name)
        self._takes = _Input.of(self._session, ref.name)
        if self._takes.bytes and (settings.mean or settings.std):
            raise InputError(f"{ref.name} takes bytes, and normalises them itself; leave mean and std away")
        self._size = self._takes.side or settings.size or SSCD_SIZE
        if settings.size and settings.size != self._size:
            raise InputError(f"{ref.name} takes pictures of {self._size} px alone; leave size={settings.size} away")
        self._mean = _channels(settings.mean or IMAGENET_MEAN)
        self._std = _channels(settings.std or IMAGENET_STD)
        self._output = _output(self._session, settings.output, ref.name)
        given = "bytes" if self._takes.bytes else f"mean {_text(self._mean)}, std {_text(self._std)}"
        self.sha256 = content_sha256(ref.name)
        self.preprocessing = f"bilinear to {self._size} px, {given}, output {self._output}"
        self.dim = self._tried(ref.name)

    def __call__(self, images: Tensor) -> Tensor:
        """Images uint8 [N, 3, H, W] -> vectors float32 [N, D]."""
        resized = F.interpolate(images.cpu(), (self._size, self._size), mode="bilinear", antialias=True)
        pictures = self._arranged(resized.numpy())
        batches = np.split(pictures, len(pictures)) if self._takes.single else [pictures]
        found = [self._session.run([self._output], {self._takes.name: batch})[0] for batch in batches]
        return torch.from_numpy(np.concatenate(found)).float()

    def _arranged(self, pictures: NDArray[np.uint8]) -> NDArray:
        values: NDArray = pictures
        if not self._takes.bytes:
            values = (pictures.astype(np.float32) / 255 - self._mean) / self._std
        if self._takes.channels_last:
            values = np.moveaxis(values, 1, -1)
        return np.ascontiguousarray(values)

    def _tried(self, file: str) -> int:
        """The vector's length, as two grey pictures have it."""
        grey = torch.full((2, 3, self._size, self._size), 128, dtype=torch.uint8)
        try:
            found = self(grey)
        except Exception as error:  # onnxruntime has a class of its own for each way to fail
            raise InputError(f"{file} does not run on pictures of {self._size} px: {_told(error)}") from error
        if found.ndim != 2 or len(found) != len(grey):
            raise InputError(
                f"output '{self._output}' of {file} has shape {tuple(found.shape)} for two pictures, not a vector for "
                "each; name another by output=NAME"
            )
        return found.shape[1]


@dataclass(frozen=True)
class _Input:
    """What the network takes: floats or bytes, [N, 3, H, W] or [N, H, W, 3], of one side alone, one at a time."""

    name: str
    bytes: bool
    channels_last: bool
    side: int | None
    single: bool

    @classmethod
    def of(cls, session: Any, file: str) -> _Input:
        """InputError where it takes anything else. A side or a count that the file leaves open is a text or None."""
        inputs = session.get_inputs()
        told = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs) or "nothing"
        refusal = InputError(
            f"{file} takes {told[:200]}, and no pictures as floats or bytes [N, 3, H, W] or [N, H, W, 3]"
        )
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in ("tensor(float)", "tensor(uint8)"):
            raise refusal
        count, *sides = inputs[0].shape
        channels_last = sides[2] == 3
        channels = sides.pop(2 if channels_last else 0)
        fixed = {side for side in sides if isinstance(side, int)}
        coloured = channels == 3 or not isinstance(channels, int)
        some = count == 1 or not isinstance(count, int)
        if not coloured or not some or len(fixed) > 1:
            raise refusal
        return cls(
            name=inputs[0].name,
            bytes=inputs[0].type == "tensor(uint8)",
            channels_last=channels_last,
            side=next(iter(fixed), None),
            single=count == 1,
        )


def _session(file: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            f"{file} needs onnxruntime, which is not installed; install it by pip install 'gmem-pipeline[onnx]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors alone, which are raised as well
    content_identity(file)  # which says it where there is no such file
    try:
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        raise InputError(f"{file} is no ONNX network that can be run: {_told(error)}") from error


def _output(session: Any, asked: str | None, file: str) -> str:
    names = [each.name for each in session.get_outputs()]
    if len(names) == 1 and asked in (None, names[0]):
        return str(names[0])
    if asked and asked in names:
        return asked
    remedy = f"name one by output=NAME: there are {', '.join(names)[:200]}"
    raise InputError(f"{file} has no output '{asked}'; {remedy}" if asked else f"{file} has several outputs; {remedy}")


def _told(error: Exception) -> str:
    """The reason alone, without onnxruntime's codes and places."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)[:200]


def _channels(colour: Colour) -> NDArray[np.float32]:
    """[3, 1, 1]."""
    return np.array(colour, dtype=np.float32)[:, None, None]


def _text(colour: NDArray) -> str:
    return ",".join(f"{value:g}" for value in colour.ravel())
