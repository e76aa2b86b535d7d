"""How sure a difference of two systems is that were measured on the same queries."""

from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000


class Difference(NamedTuple):
    """A mean difference, or a mean, and its 95 % interval."""

    mean: float
    low: float
    high: float


def paired_difference(first: np.ndarray, second: np.ndarray, seed: int, resamples: int = RESAMPLES) -> Difference:
    """The mean of `first` - `second`, with the percentile interval of the paired bootstrap over queries.

    Resampling n queries is a multinomial draw of how often each difference occurs, so the resamples take as much work
    as there are different values, whatever n. Queries are taken as independent, also where they are of one video.

    :param first: a value for each query (n,), such as whether it was answered; `second` likewise.
    :raises ValueError: there is no query, or not the same number.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape or not first.size:
        raise ValueError(f"paired values are needed, not {first.shape} and {second.shape}")
    values, counts = np.unique(first - second, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(first.size, counts / first.size, size=resamples)
    low, high = np.quantile(drawn @ values / first.size, (0.025, 0.975))
    return Difference(float((first - second).mean()), float(low), float(high))


def mean_interval(values: np.ndarray, seed: int, resamples: int = RESAMPLES) -> Difference:
    """The mean of a value for each query (n,), with the interval that `paired_difference` has for it. Of equal values,
    such as a recall of 0 or 100 %, the interval has no width, which says nothing about other queries."""
    return paired_difference(values, np.zeros_like(values), seed, resamples)
