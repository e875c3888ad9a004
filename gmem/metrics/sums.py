"""What one evaluation gathers from its features, on however many workers."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gmem.errors import InputError
from gmem.metrics.statistics import GaussianStatistics, as_features

FORMAT_VERSION = 1

Sums = dict[str, "FeatureSums"]
"""Features by detector."""


class FeatureSums:
    """Statistics of some streams of features, the features themselves of some, and which samples they are of.

    A stream is a name (`pool`, `spatial`, `logits`) with a feature [D] for every sample. Each sample has an index:
    kept features are given back in the order of the index, so numbers that depend on order (the Inception Score's
    splits, a seeded subset) are the same however the work was spread, and a sample counted twice is noticed.
    """

    def __init__(self, moments: Collection[str] = ("pool",), kept: Collection[str] = ()) -> None:
        if not set(moments) | set(kept):
            raise ValueError("Nothing would be gathered: name at least one stream for statistics or to be kept.")
        self.moments = tuple(sorted(moments))
        self.kept = tuple(sorted(kept))
        self.statistics: dict[str, GaussianStatistics] = {}
        self._index: list[NDArray[np.int64]] = []
        self._seen: set[int] = set()
        self._kept: dict[str, list[NDArray]] = {name: [] for name in self.kept}

    @property
    def count(self) -> int:
        return sum(len(part) for part in self._index)

    @property
    def index(self) -> NDArray[np.int64]:
        """The samples' indices, rising."""
        return np.sort(np.concatenate(self._index)) if self._index else np.zeros(0, dtype=np.int64)

    def update(self, streams: Mapping[str, Tensor | NDArray], index: Tensor | NDArray) -> None:
        """Adds a batch: features [B, D] for each stream (further streams are ignored), and the samples' indices [B].

        Raises ValueError, and adds nothing, where a stream is missing, lengths or dimensions differ, numbers are not
        finite, or an index came before.
        """
        missing = (set(self.moments) | set(self.kept)) - set(streams)
        if missing:
            raise ValueError(f"The features lack {', '.join(sorted(missing))}: ask the detector for every stream.")
        numbers = np.asarray(index, dtype=np.int64)
        rows = {name: as_features(streams[name], name).copy() for name in {*self.moments, *self.kept}}
        for name, features in rows.items():
            if numbers.shape != (len(features),):
                raise ValueError(f"{len(features)} features of {name} need as many indices, not {numbers.shape}.")
            self._check_dim(name, features.shape[1])
        self._check_new(numbers)
        self._note(numbers)
        for name in self.moments:
            self._statistics(name, rows[name].shape[1]).hold(rows[name])
        for name in self.kept:
            self._kept[name].append(rows[name])

    def merge(self, other: FeatureSums) -> None:
        """Adds another worker's samples. Raises ValueError, and adds nothing, where streams differ or samples repeat."""
        if (self.moments, self.kept) != (other.moments, other.kept):
            raise ValueError("Sums of different streams cannot be merged: give every worker the same.")
        numbers = np.concatenate(other._index) if other._index else other.index
        self._check_new(numbers)
        for name in {*self.moments, *self.kept}:
            if other.count:
                self._check_dim(name, other._dim(name))
        for name, statistics in other.statistics.items():
            self._statistics(name, statistics.dim).merge(statistics)
        for name in self.kept:
            # Copied, since arrays from a shared store hold there all that they came with.
            self._kept[name] += [rows.copy() for rows in other._kept[name]]
        self._note(numbers)

    def features(self, name: str) -> NDArray:
        """Kept features [N, D] in the order of the index. Raises ValueError where the stream was not kept or is empty."""
        if name not in self.kept:
            raise ValueError(f"The features of {name} were not kept: name it in `kept` before the evaluation.")
        if not self._kept[name]:
            raise ValueError("No samples were gathered: update before asking for features.")
        order = np.argsort(np.concatenate(self._index))
        return np.concatenate(self._kept[name])[order]

    def arrays(self) -> dict[str, NDArray]:
        """Everything as named arrays, to send, or to store as npz or safetensors."""
        streams = json.dumps({"moments": self.moments, "kept": self.kept}).encode()
        arrays: dict[str, NDArray] = {
            "format_version": np.asarray(FORMAT_VERSION),
            "streams": np.frombuffer(streams, dtype=np.uint8),
            "index": self.index,
        }
        for name, statistics in self.statistics.items():
            arrays |= {f"moments/{name}/{key}": value for key, value in statistics.state().items()}
        return arrays | {f"kept/{name}": self.features(name) for name in self.kept if self.count}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray]) -> FeatureSums:
        """The inverse of `arrays`. Raises ValueError on arrays of another origin."""
        version = np.ravel(arrays.get("format_version", -1))  # safetensors may give [1] for a scalar
        if version.tolist() != [FORMAT_VERSION] or not {"streams", "index"} <= set(arrays):
            raise InputError(f"These are no feature sums of format {FORMAT_VERSION}: {sorted(arrays)[:5]}.")
        try:
            sums = cls(**json.loads(np.asarray(arrays["streams"]).tobytes()))
            sums._note(np.ravel(np.asarray(arrays["index"], dtype=np.int64)))
            if not sums.count:
                return sums
            for name in sums.moments:
                state = {key: arrays[f"moments/{name}/{key}"] for key in ("count", "mean", "scatter")}
                sums.statistics[name] = GaussianStatistics.from_state(state)
            sums._kept = {name: [as_features(arrays[f"kept/{name}"], name)] for name in sums.kept}
        except KeyError as error:
            raise InputError(f"The feature sums lack {error}: they were not written whole.") from error
        except (TypeError, IndexError, RecursionError, OverflowError) as error:
            raise InputError("These are no feature sums: their arrays are of other types.") from error
        sums._check_counts()
        return sums

    def _statistics(self, name: str, dim: int) -> GaussianStatistics:
        return self.statistics.setdefault(name, GaussianStatistics(dim))

    def _dim(self, name: str) -> int | None:
        if name in self.statistics:
            return self.statistics[name].dim
        return self._kept[name][0].shape[1] if self._kept.get(name) else None

    def _check_dim(self, name: str, dim: int | None) -> None:
        known = self._dim(name)
        if known is not None and dim != known:
            raise ValueError(f"Features of {name} with {dim} dimensions do not belong to those with {known} before.")

    def _check_new(self, numbers: NDArray[np.int64]) -> None:
        new = set(numbers.tolist())
        repeated = sorted(new & self._seen)
        if repeated or len(new) != len(numbers):
            raise ValueError(f"A sample would count twice (index {repeated[:3] or 'within a batch'}): give each once.")

    def _note(self, numbers: NDArray[np.int64]) -> None:
        self._index.append(numbers.copy())
        self._seen.update(numbers.tolist())

    def _check_counts(self) -> None:
        counts = {self.count}
        counts |= {statistics.count for statistics in self.statistics.values()}
        counts |= {len(parts[0]) for parts in self._kept.values()}
        if len(counts) > 1:
            raise InputError(f"The sums do not hold together: they are of {sorted(counts)} samples.")


# --- the file of several detectors' sums -----------------------------------------------------------------------------


def write_sums(sums: Sums) -> bytes:
    """An .npz of `<detector>|<array>`."""
    buffer = io.BytesIO()
    arrays = {f"{name}|{key}": array for name, one in sums.items() for key, array in one.arrays().items()}
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def read_sums(data: bytes) -> Sums:
    """The inverse of `write_sums`, without unpickling. Raises ValueError on other content."""
    arrays: dict[str, dict[str, NDArray]] = {}
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            for name in archive.files:
                detector, _, key = name.partition("|")
                arrays.setdefault(detector, {})[key] = archive[name]
    except Exception as error:  # numpy, zipfile and zlib fail on damaged bytes in every way there is
        raise InputError("These are no feature sums: not an .npz of plain numbers.") from error
    return {detector: FeatureSums.from_arrays(values) for detector, values in arrays.items()}
