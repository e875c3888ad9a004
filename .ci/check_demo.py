"""Checks the summary of a demo run: every stage's rows, a distance between floor and ceiling, and the picture of pairs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image

ROWS = {"ingest": 1911, "latents": 3822, "bank": 3822}


def check(summary: dict) -> None:
    stages = {stage["stage"]: stage for stage in summary["stages"]}
    for name, rows in ROWS.items():
        assert stages[name]["rows"] == rows, f"{name} made {stages[name]['rows']} rows, not {rows}"
    metrics = stages["evaluate"]["details"]["metrics"]
    for split in ("train", "held_out"):
        floor, value, ceiling = (
            metrics[f"{split}/{what}/fd-emoji-evaluator"] for what in ("floor", "samples", "ceiling")
        )
        print(f"{split}: floor {floor:.4g}, samples {value:.4g}, ceiling {ceiling:.4g}")
        assert floor < value < ceiling / 2, f"{split}: the samples are hardly better than decoded noise"
    for picture in stages["evaluate"]["pictures"].values():
        with Image.open(picture) as image:
            assert image.width > 500, picture
    print(f"demo in {summary['seconds']:.0f} s:", {name: round(stage["seconds"], 1) for name, stage in stages.items()})


if __name__ == "__main__":
    check(json.loads(Path(sys.argv[1]).read_text().strip().splitlines()[-1]))
