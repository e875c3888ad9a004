"""What a file's own configuration says against the way its network would be read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from gmem.network import Network
from gmem.published import read_network
from gmem.published_config import network_choices
from gmem.settings import NetworkConfig

CONFIG = NetworkConfig(2, 32, 2, latent_channels=4, latent_size=4, snippet_dim=8, projection_after=2)
PUBLISHED = {
    "ckpt_path": None,
    "data": {"latent_norm": True, "latent_multiplier": 1.0, "image_size": 256},
    "transport": {"path_type": "Linear", "prediction": "velocity", "loss_weight": None},
    "sample": {"mode": "SDE", "timestep_shift": 0.3},
}


def read(folder: Path, **beside: Any) -> NetworkConfig:
    torch.manual_seed(0)
    torch.save({"ema": Network(CONFIG).state_dict(), **beside}, folder / "x.pt")
    return read_network(folder / "x.pt").config


def test_what_the_published_training_states_is_read_as_it_is(tmp_path: Path) -> None:
    assert read(tmp_path, config=PUBLISHED) == CONFIG
    assert read(tmp_path, args=argparse.Namespace(prediction="v", path_type="linear")) == CONFIG
    assert read(tmp_path, config={"prediction": "data", "snippet_scale": 3}).prediction == "data"


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("transport", "prediction", "noise"),
        ("transport", "prediction", "score"),
        ("transport", "path_type", "GVP"),
        ("transport", "path_type", "VP"),
        ("data", "latent_multiplier", 0.18215),
        ("data", "latent_norm", False),
    ],
)
def test_a_network_trained_otherwise_is_refused(tmp_path: Path, section: str, key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"x\.pt states config\.{section}\.{key}: {value!r}, ") as error:
        read(tmp_path, config=PUBLISHED | {section: {key: value}})
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=rf"states args\.{key}: {value!r}, "):
        read(tmp_path, args=argparse.Namespace(**{key: value}))


@pytest.mark.parametrize("value", ["x" * 10_000, 10**5000, [1], {"a": 1}], ids=["text", "number", "list", "dict"])
@pytest.mark.parametrize("key", ["prediction", "snippet_scale", "projection_after"])
def test_values_of_no_use_are_quoted_short(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=key) as error:
        network_choices("x.pt", {"config": {key: value}})
    assert len(str(error.value)) < 250


def test_settings_nested_without_end(tmp_path: Path) -> None:
    nested: dict[str, Any] = {}
    for _ in range(200):
        nested = {"a": nested}
    assert read(tmp_path, config=nested, args=nested) == CONFIG
