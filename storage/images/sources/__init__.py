"""Where pictures come from: listed once, then read by many workers. A module for each layout; see listing.py."""

from storage.images.sources.entries import Entry, Listing, require_usable
from storage.images.sources.listing import list_source, read_entries

__all__ = ["Entry", "Listing", "list_source", "read_entries", "require_usable"]
