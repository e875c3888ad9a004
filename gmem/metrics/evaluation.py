"""From gathered features to results, each with its protocol."""

from __future__ import annotations

from dataclasses import replace

import torch

from gmem.metrics.adm import AdmReference
from gmem.metrics.frechet import frechet_distance
from gmem.metrics.inception import DETECTOR
from gmem.metrics.kernel import kernel_distance
from gmem.metrics.manifold import precision_recall
from gmem.metrics.protocol import Protocol, Result
from gmem.metrics.score import inception_score
from gmem.metrics.statistics import Gaussian
from gmem.metrics.sums import FeatureSums


def measure(
    samples: FeatureSums,
    reference: FeatureSums | AdmReference,
    protocol: Protocol,
    subject: str = "",
    device: str | torch.device = "cpu",
) -> list[Result]:
    """Every metric that the gathered streams allow: Fréchet distances of `pool` and `spatial`, and, of kept features,
    the kernel distance and precision and recall (`pool`) and the Inception Score (`logits`).

    On the FID Inception network they bear their usual names (fid, sfid, kid, ...), on any other detector their
    family's, so that nobody takes one for the other (fd-NAME, kd-NAME, ...). ADM files hold no features: metrics that
    need the reference's are left out.

    Raises ValueError where the protocol does not count the samples as they are, or statistics do not fit.
    """
    if samples.count != protocol.count:
        raise ValueError(f"The protocol asks for {protocol.count} samples, and there are {samples.count}.")
    moments = _reference_moments(reference)
    protocol = replace(protocol, reference_count=moments["pool"].count)
    results = [
        _frechet(samples, moments, stream, protocol) for stream in sorted(set(samples.statistics) & set(moments))
    ]
    if isinstance(reference, FeatureSums) and "pool" in samples.kept and "pool" in reference.kept:
        results += _between_features(samples, reference, protocol, device)
    if "logits" in samples.kept:
        score = inception_score(samples.features("logits"))
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
    samples: FeatureSums, reference: FeatureSums, protocol: Protocol, device: str | torch.device
) -> list[Result]:
    x, y = samples.features("pool"), reference.features("pool")
    kernel = kernel_distance(x, y)
    results = [
        Result(
            _named("kid", "kd", protocol),
            kernel.value,
            protocol,
            standard_error=kernel.standard_error,
            details={"deviation": kernel.deviation, "subset": kernel.subset, "subsets": kernel.subsets},
        )
    ]
    manifolds = precision_recall(x, y, device=device)
    for name, value in (("precision", manifolds.precision), ("recall", manifolds.recall)):
        results.append(Result(_named(name, name, protocol), value, protocol, details={"neighbours": 3}))
    return results


def _named(on_inception: str, elsewhere: str, protocol: Protocol) -> str:
    return on_inception if protocol.detector == DETECTOR else f"{elsewhere}-{protocol.detector}"
