"""docs/notebook.md as a reader runs it, on the store of a small run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from flows.recipe.files import assignments

from .conftest import SMALL

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.md"

pytestmark = pytest.mark.timeout(300)


def test_from_an_opened_bank_to_a_picture(
    first: dict[str, dict[str, Any]], pictures: Path, store: Path, tmp_path: Path
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", NOTEBOOK.read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line and not line.startswith("#")]) <= 20
    values = [*SMALL, f"data.source={pictures}", "data.max_pixels=100000000", f"store={store}"]
    small = {"extends": "emoji", "name": "emoji"} | assignments(values)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    code = code.replace('load("emoji")', 'load("small.yaml")')
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "80 snippets of 192 numbers" in done.stdout
    with Image.open(tmp_path / "neighbours.png") as picture:
        assert picture.format == "PNG" and picture.width > picture.height
