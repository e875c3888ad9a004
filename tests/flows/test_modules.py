from __future__ import annotations

import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import flows


def test_no_module_hides_a_package() -> None:
    """Prefect puts the folder of a deployment's entrypoint in front of all packages: a flows/overrides.py would be what
    LanceDB gets for the package of that name."""
    ours = {path.stem for path in Path(flows.__file__).parent.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert not (ours - {"__init__", "__pycache__"}) & (set(packages_distributions()) | set(sys.stdlib_module_names))
