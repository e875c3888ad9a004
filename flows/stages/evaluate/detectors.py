"""The networks whose features an evaluation compares, and what is gathered of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flows.recipe.model import Recipe
from flows.stages.evaluate.stage import INCEPTION, copy_detector, named_encoders
from gmem.encoder import load_encoder
from gmem.metrics import FeatureSums, Sums, load_inception
from gmem.onnx import OnnxNetwork
from gmem.pixels import from_bytes
from gmem.weights import WeightsRef


@dataclass(frozen=True)
class Detector:
    """A network whose features are compared. `identity`: detector, detector_hash, resize, as a protocol names them.

    One without `moments` measures no distance of sets, and is only asked for the nearest pictures.
    """

    identity: dict[str, str]
    features: Callable[[Tensor], dict[str, Tensor]]
    moments: tuple[str, ...]
    kept: tuple[str, ...]

    def sums(self) -> FeatureSums:
        return FeatureSums(self.moments, self.kept)


def load_detectors(recipe: Recipe, device: str) -> dict[str, Detector]:
    """The recipe's evaluation encoders, the FID Inception network where the recipe names its weights, and its copy
    detector."""
    evaluate = recipe.evaluate
    found = {name: _encoder(name, source, recipe, device) for name, source in named_encoders(evaluate).items()}
    if evaluate.inception:
        inception = load_inception(evaluate.inception, device)
        found[INCEPTION] = Detector(inception.identity, inception, ("pool", "spatial"), ("pool", "logits"))
    for name, source in copy_detector(evaluate).items():
        found[name] = replace(_encoder(name, source, recipe, device), moments=())
    return found


def _encoder(name: str, source: str, recipe: Recipe, device: str) -> Detector:
    if WeightsRef.parse(source).kind == "onnx":
        return _onnx(name, OnnxNetwork(source))
    encoder = load_encoder(source, device, recipe.data.image_size)
    about = {
        "detector": name,
        "detector_hash": encoder.identity["sha256"],
        "resize": f"{encoder.preprocessing.interpolation} to {encoder.preprocessing.size} px",
    }
    return Detector(about, lambda images: {"pool": encoder(from_bytes(images)).snippet}, ("pool",), ("pool",))


def _onnx(name: str, network: OnnxNetwork) -> Detector:
    about = {"detector": name, "detector_hash": network.sha256, "resize": network.preprocessing}
    return Detector(about, lambda images: {"pool": network(images)}, ("pool",), ("pool",))


@torch.inference_mode()
def features_of(detectors: dict[str, Detector], images: Tensor, index: Any, batch: int, device: str) -> Sums:
    """Features of uint8 [N, 3, H, W] for every detector; `index` [N] numbers the pictures."""
    found = {name: detector.sums() for name, detector in detectors.items()}
    for name, detector in detectors.items():
        for start in range(0, len(images), batch):
            features = detector.features(images[start : start + batch].to(device))
            rows = {stream: values.float().cpu() for stream, values in features.items()}
            found[name].update(rows, index[start : start + batch])
    return found


def merge(total: Sums, part: Sums) -> None:
    """Adds `part` to `total`, in place. What comes out of Ray's object store cannot be written to: begin with none."""
    for name, sums in part.items():
        total.setdefault(name, FeatureSums(sums.moments, sums.kept)).merge(sums)
