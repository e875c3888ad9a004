"""How exactly a device multiplies, for as long as a context lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gmem.settings import Precision


@contextmanager
def multiplying(device: str, precision: Precision) -> Iterator[None]:
    """On a `device` type ("cpu", "cuda"), whatever the caller's settings are.

    tf32: factors rounded to 10 bits of mantissa, several times as fast on GPUs since Ampere, elsewhere fp32. bf16: matrix
    products by autocast, everything else in float32.
    """
    backends: Any = torch.backends  # whose stubs do not know `conv`
    units = (backends.cudnn.conv, backends.cuda.matmul)
    before = [unit.fp32_precision for unit in units]
    try:
        for unit in units:
            unit.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        for unit, setting in zip(units, before, strict=True):
            unit.fp32_precision = setting
