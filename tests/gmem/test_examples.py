"""The examples in docstrings, run as they stand."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = ("network", "sampler", "generator", "encoder", "tokenizer", "memory", "metrics.evaluation", "settings")


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_show(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(f"gmem.{name}"))
    assert tried and not failed
