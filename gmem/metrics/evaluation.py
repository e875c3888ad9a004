"""From gathered features to results, each with its protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from numpy.typing import NDArray

from gmem.metrics.adm import AdmReference
from gmem.metrics.frechet import frechet_distance
from gmem.metrics.inception import DETECTOR
from gmem.metrics.kernel import kernel_distance
from gmem.metrics.manifold import DENSITY_NEIGHBOURS, NEIGHBOURS, Overlap, overlap
from gmem.metrics.memorisation import Memorisation
from gmem.metrics.protocol import Protocol, Result
from gmem.metrics.score import inception_score
from gmem.metrics.statistics import Gaussian
from gmem.metrics.sums import FeatureSums

FEWEST = 4
"""Members on each side below which there are no two halves for the kernel distance."""
SPLITS = 10

Overlaps = Callable[[NDArray, NDArray], Overlap]  # samples [N, D], reference [M, D]


def measure(
    samples: FeatureSums,
    reference: FeatureSums | AdmReference,
    protocol: Protocol,
    subject: str = "",
    overlaps: Overlaps = overlap,
    features: FeatureSums | None = None,
    kernel_subsets: int = 100,
) -> list[Result]:
    """Every metric that the gathered streams allow: Fréchet distances of `pool` and `spatial`, and, of kept features,
    the kernel distance and precision and recall (`pool`) and the Inception Score (`logits`).

    On the FID Inception network they bear their usual names (fid, sfid, kid, ...), on any other detector their
    family's, so that nobody takes one for the other (fd-NAME, kd-NAME, ...). ADM files hold no features: metrics that
    need the reference's take them from `features` or are left out. So are metrics for which there are too few samples
    (below 4 for the kernel distance, 6 for precision and recall, 10 for the Inception Score).

    Args:
        samples: features of the generated pictures, one detector's.
        reference: the same detector's features of real pictures, or an ADM file's statistics.
        protocol: detector, reference, sampler and all else that the numbers depend on; goes into every result.
        subject: what was measured, for people.
        overlaps: finds precision and recall, the costliest of all, such as where a GPU is.
        features: of an ADM file's own pictures.
        kernel_subsets: subsets of the kernel distance.

    Raises ValueError where the protocol does not count the samples as they are, or statistics do not fit.

    >>> import numpy as np
    >>> def gathered(seed):
    ...     sums = FeatureSums(moments=["pool"], kept=["pool"])
    ...     sums.update({"pool": np.random.default_rng(seed).normal(size=(64, 8))}, np.arange(64))
    ...     return sums
    >>> told = dict.fromkeys(["resize", "reference", "reference_hash", "sampler", "guidance", "snippets", "latents"], "...")
    >>> protocol = Protocol(
    ...     detector="mine", detector_hash="...", reference_count=None, count=64, seed=0, steps=50, calls=99, **told
    ... )
    >>> [result.metric for result in measure(gathered(0), gathered(1), protocol)]
    ['fd-mine', 'kd-mine', 'precision-mine', 'recall-mine']
    """
    if samples.count != protocol.count:
        raise ValueError(f"The protocol asks for {protocol.count} samples, and there are {samples.count}.")
    moments = _reference_moments(reference)
    pictures = reference if isinstance(reference, FeatureSums) else features
    protocol = replace(protocol, reference_count=moments["pool"].count)
    results = [
        _frechet(samples, moments, stream, protocol) for stream in sorted(set(samples.statistics) & set(moments))
    ]
    if pictures and "pool" in samples.kept and "pool" in pictures.kept and min(samples.count, pictures.count) >= FEWEST:
        counted = replace(protocol, reference_count=pictures.count)
        results += _between_features(samples, pictures, counted, overlaps, kernel_subsets)
    if "logits" in samples.kept and samples.count >= SPLITS:
        score = inception_score(samples.features("logits"), SPLITS)
        results.append(Result("inception_score", score.value, protocol, details={"deviation": score.deviation}))
    return [replace(result, subject=subject) for result in results]


def _reference_moments(reference: FeatureSums | AdmReference) -> dict[str, Gaussian]:
    if isinstance(reference, FeatureSums):
        moments = {name: statistics.gaussian() for name, statistics in reference.statistics.items()}
    else:
        pairs = {"pool": reference.pool, "spatial": reference.spatial}
        moments = {name: gaussian for name, gaussian in pairs.items() if gaussian is not None}
    if "pool" not in moments:
        raise ValueError("The reference holds no statistics of pooled features: run the detector over its pictures.")
    return moments


def _frechet(samples: FeatureSums, moments: dict[str, Gaussian], stream: str, protocol: Protocol) -> Result:
    usual = {"pool": ("fid", "fd"), "spatial": ("sfid", "sfd")}.get(stream, (f"fid-{stream}", f"fd-{stream}"))
    value = frechet_distance(samples.statistics[stream], moments[stream])
    return Result(_named(*usual, protocol), value, protocol)


def _between_features(
    samples: FeatureSums, reference: FeatureSums, protocol: Protocol, overlaps: Overlaps, kernel_subsets: int
) -> list[Result]:
    x, y = samples.features("pool"), reference.features("pool")
    kernel = kernel_distance(x, y, subsets=kernel_subsets)
    results = [
        Result(
            _named("kid", "kd", protocol),
            kernel.value,
            protocol,
            standard_error=kernel.standard_error,
            details={"deviation": kernel.deviation, "subset": kernel.subset, "subsets": kernel.subsets},
        )
    ]
    if min(len(x), len(y)) <= max(NEIGHBOURS, DENSITY_NEIGHBOURS):
        return results
    found = overlaps(x, y)
    for name, value in (("precision", found.precision), ("recall", found.recall)):
        results.append(Result(_named(name, name, protocol), value, protocol, details={"neighbours": NEIGHBOURS}))
    return results


def memorisation_results(found: Memorisation, protocol: Protocol, subject: str = "") -> list[Result]:
    """The numbers of a memorisation as results: memorisation_ratio, _closer, and where sources are known _from_source."""
    values = {"ratio": found.ratio, "closer": found.closer, "from_source": found.from_source}
    names = {name: _named(f"memorisation_{name}", f"memorisation_{name}", protocol) for name in values}
    return [Result(names[n], value, protocol, subject) for n, value in values.items() if value is not None]


def _named(on_inception: str, elsewhere: str, protocol: Protocol) -> str:
    return on_inception if protocol.detector == DETECTOR else f"{elsewhere}-{protocol.detector}"
