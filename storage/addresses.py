"""Addresses as they may be shown."""

from __future__ import annotations

import re


def without_userinfo(text: str) -> str:
    """The text with its addresses as they may be shown: `http://me:password@host` is `http://host`."""
    return re.sub(r"(?<=://)[^\s/?#]+@", "", text)
