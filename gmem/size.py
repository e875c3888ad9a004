"""How large a network is, by arithmetic: for plans, which need no torch to be made."""

from __future__ import annotations

from gmem.settings import NetworkConfig

TIME_FEATURES = 256
"""Cosines and sines by which the network is told the time."""


def parameter_count(config: NetworkConfig) -> int:
    """How many numbers its weights are, the fixed positions included, as `gmem.network.parameter_count` counts them."""
    width = config.width
    patches = config.latent_channels * config.patch**2
    count = config.grid**2 * width
    count += affine(patches, width)
    count += affine(TIME_FEATURES, width)
    count += affine(width, width)
    count += config.depth * _block(width)
    count += width
    count += affine(width, 2 * width)
    count += affine(width, patches)
    if config.conditioning == "memory":
        count += affine(config.snippet_dim, width)
    if config.conditioning == "label":
        count += width * (config.classes + 1)
    if config.projection_dim:
        hidden = config.projection_hidden
        count += affine(width, hidden)
        count += affine(hidden, hidden)
        count += affine(hidden, config.projection_dim)
    return count


def _block(width: int) -> int:
    """Two norms, attention, SwiGLU and modulation."""
    hidden = feed_forward(width)
    count = 2 * width
    count += affine(width, 3 * width)
    count += affine(width, width)
    count += affine(width, 2 * hidden)
    count += affine(hidden, width)
    count += affine(width, 6 * width)
    return count


def feed_forward(width: int) -> int:
    """Hidden width of SwiGLU."""
    return int(2 / 3 * 4 * width)


def affine(into: int, out: int) -> int:
    """Numbers in a matrix and a bias."""
    return into * out + out
