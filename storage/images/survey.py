"""A look at some pictures of a source as they are, before anything is made of them: sizes, modes, profiles, copies."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from storage.images.decoding import FORMATS, MAX_PIXELS, WHITE, Rejected, centre_crop, decode
from storage.images.formats import PLUGINS
from storage.images.isolation import Crashed, Isolated
from storage.images.sources import Entry, Listing, read_entries

SEED = 0


@dataclass(frozen=True)
class Look:
    """One picture. With a `reason` it cannot be used, and the rest says nothing."""

    label: str | None = None
    format: str = ""
    mode: str = ""
    """Pillow's word for what a pixel holds: RGB, L, CMYK, P, I;16 and so on."""
    profile: str = ""
    """What its colour profile calls itself; empty where there is none."""
    width: int = 0
    height: int = 0
    image: NDArray[np.uint8] | None = None
    """The square that training would see, uint8 [S, S, 3]."""
    reason: str = ""

    @property
    def content(self) -> str:
        """The same for pictures of the same pixels, whatever their files."""
        assert self.image is not None, "the picture can be used"
        return hashlib.sha256(self.image.tobytes()).hexdigest()


def survey(
    listing: Listing, count: int, size: int, max_pixels: int = MAX_PIXELS, background: str = WHITE
) -> Iterator[Look]:
    """Looks at `count` pictures of a listing, drawn at random and the same each time, at `size` pixels.

    Each is decoded in a process of its own, since one may take down whoever touches it.
    """
    entries = drawn(listing, count)
    with Isolated(look) as guarded:
        for entry, data in zip(entries, read_entries(entries, listing.source), strict=True):
            if isinstance(data, OSError):
                yield Look(reason=f"unreadable: {data.strerror or data}")
                continue
            try:
                yield guarded(entry.label, data, size, max_pixels, background)
            except Crashed as crash:
                yield Look(reason=f"the decoder {crash}")


def drawn(listing: Listing, count: int) -> list[Entry]:
    """So many of the usable entries, in the order of the listing."""
    usable = np.flatnonzero(listing.table["reason"].is_null().to_numpy())
    chosen = np.sort(np.random.default_rng(SEED).permutation(usable)[:count])
    return [Entry(**row) for row in listing.table.take(chosen).to_pylist()]


def look(label: str | None, data: bytes, size: int, max_pixels: int, background: str = WHITE) -> Look:
    """One picture of these bytes."""
    decoded = decode(data, max_pixels, background)
    if isinstance(decoded, Rejected):
        return Look(reason=decoded.reason)
    try:
        square = np.asarray(centre_crop(decoded.image, size, max_pixels))
    except ValueError as error:
        return Look(reason=str(error))
    kind, mode, profile = _header(data)
    return Look(label, kind, mode, profile, decoded.width, decoded.height, square)


def _header(data: bytes) -> tuple[str, str, str]:
    """Format, mode and profile as the file states them; empty where it opens only without its metadata."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            known = (*FORMATS, *(plugin.name for plugin in PLUGINS if plugin.name in Image.OPEN))
            image = Image.open(io.BytesIO(data), formats=known)
            return image.format or "", image.mode, _profile(image.info.get("icc_profile"))
    except Exception:  # noqa: BLE001 (as in decoding: hostile bytes fail in every way there is)
        return "", "", ""


def _profile(profile: object) -> str:
    if not isinstance(profile, bytes) or not profile:
        return ""
    try:
        told = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).strip()
    except (ImageCms.PyCMSError, OSError, ValueError):
        return "one that cannot be read"
    return told.encode("ascii", "replace").decode()[:40] if told.isprintable() and told else "one without a name"
