"""Rebuilds ``emoji.tar`` from the npm package ``emoji-datasource-google`` 16.0.0, or the same pictures by another hand.

    npm pack emoji-datasource-google@16.0.0 && tar xzf emoji-datasource-google-16.0.0.tgz
    python -m flows.assets.build_emoji package
    python -m flows.assets.build_emoji package --drawing twitter --target twitter.tar   # of emoji-datasource-twitter

The base set (no skin-tone variants), 64 px, flattened on white, lossless WebP, with the category as label.
Variants of one thing carry the same ``group``, so that the held-out split never separates them.
"""

from __future__ import annotations

import argparse
import io
import json
import re
from pathlib import Path

import webdataset as wds
from PIL import Image

GENDERED = re.compile(r"-200D-(2640|2642)-FE0F")
FACING = re.compile(r"-200D-27A1-FE0F")
PERSON = re.compile(r"^(1F468|1F469|1F9D1)(?=-200D)")
CLOCK = re.compile(r"^1F5(5[0-9A-F]|6[0-7])$")
MOON = re.compile(r"^1F31[1-8]$")

# Code points whose kinship the sequence itself does not show: the same figure drawn as man, woman and person.
KIN = {
    "claus": ("1F385", "1F936", "1F9D1-200D-1F384"),
    "crowned": ("1F934", "1F478", "1FAC5"),
    "adult": ("1F468", "1F469", "1F9D1"),
    "child": ("1F466", "1F467", "1F9D2"),
    "elder": ("1F474", "1F475", "1F9D3"),
    "pregnant": ("1F930", "1FAC3", "1FAC4"),
    "dancing": ("1F57A", "1F483"),
}
KIN_OF = {code: name for name, codes in KIN.items() for code in codes}


def group_of(unified: str, subcategory: str, name: str) -> str:
    """The name shared by all variants of one emoji: gender, direction, family members, hours, phases."""
    if subcategory == "family" or name.startswith("FAMILY"):
        return "family"
    if unified in KIN_OF:
        return KIN_OF[unified]
    if CLOCK.match(unified):
        return "clock-face"
    if MOON.match(unified):
        return "moon-phase"
    return PERSON.sub("PERSON", FACING.sub("", GENDERED.sub("", unified))).removesuffix("-FE0F")


def on_white(path: Path) -> Image.Image:
    with Image.open(path) as image:
        rgba = image.convert("RGBA")
    canvas = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(canvas, rgba).convert("RGB")


def build(package: Path, target: Path, drawing: str = "google") -> int:
    """Writes the WebDataset shard of a package of that drawing; returns how many pictures it holds."""
    entries = json.loads((package / "emoji.json").read_text())
    entries = sorted((e for e in entries if e[f"has_img_{drawing}"]), key=lambda e: e["unified"])
    with wds.TarWriter(str(target), mtime=0, user="", group="") as tar:
        for entry in entries:
            picture = io.BytesIO()
            on_white(package / f"img/{drawing}/64" / entry["image"]).save(picture, "WEBP", lossless=True, method=6)
            about = {
                "label": re.sub(r"\W+", "-", entry["category"].lower()),
                "group": group_of(entry["unified"], entry["subcategory"], entry["name"] or ""),
                "name": entry["short_name"],
            }
            key = entry["unified"].lower()
            tar.write({"__key__": key, "webp": picture.getvalue(), "json": json.dumps(about).encode()})
    return len(entries)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="the unpacked npm package")
    parser.add_argument("--drawing", default="google", help="whose pictures the package holds")
    parser.add_argument("--target", type=Path, default=Path(__file__).with_name("emoji.tar"))
    arguments = parser.parse_args()
    print(f"{build(arguments.package, arguments.target, arguments.drawing)} pictures in {arguments.target}")
