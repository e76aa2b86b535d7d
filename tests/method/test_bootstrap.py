"""The paired bootstrap against closed forms and against resampling one query after the other."""

import numpy as np
import pytest

from modules.bootstrap import mean_interval, paired_difference


def test_what_is_the_same_differs_by_nothing():
    found = np.random.default_rng(0).random(50) < 0.4
    assert paired_difference(found, found, seed=1) == (0, 0, 0)


def test_a_constant_difference_is_sure():
    values = np.arange(7)
    assert paired_difference(values + 0.5, values, seed=1) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("won", "lost", "queries"), [(30, 10, 400), (60, 55, 200), (25, 0, 100)])
def test_the_interval_has_the_variance_of_mcnemar(won, lost, queries):
    """Of b won and c lost queries of n the variance of the mean difference is (b + c - (b - c)^2 / n) / n^2."""
    first, second = np.zeros(queries, bool), np.zeros(queries, bool)
    first[:won], second[won : won + lost] = True, True
    mean, low, high = paired_difference(first, second, seed=2)
    deviation = np.sqrt(won + lost - (won - lost) ** 2 / queries) / queries
    assert mean == pytest.approx((won - lost) / queries)
    assert (low, high) == pytest.approx((mean - 1.96 * deviation, mean + 1.96 * deviation), abs=1.1 / queries)


def test_it_is_resampling_of_queries():
    rng = np.random.default_rng(3)
    first, second = rng.random(40) < 0.6, rng.random(40) < 0.4
    resampled = [(first[rows].astype(int) - second[rows]).mean() for rows in rng.integers(40, size=(20_000, 40))]
    mean, low, high = paired_difference(first, second, seed=4, resamples=20_000)
    assert (low, high) == pytest.approx(np.quantile(resampled, (0.025, 0.975)), abs=1 / 40 + 1e-9)
    assert mean == pytest.approx(first.mean() - second.mean())
    assert paired_difference(second, first, seed=4)[0] == -mean


def test_the_seed_decides():
    first, second = np.arange(30) % 3 == 0, np.random.default_rng(5).random(30)
    assert paired_difference(first, second, seed=6) == paired_difference(first, second, seed=6)
    assert paired_difference(first, second, seed=6) != paired_difference(first, second, seed=7)


def test_values_must_be_paired():
    for first, second in ((np.ones(3), np.ones(4)), (np.ones(0), np.ones(0))):
        with pytest.raises(ValueError, match="paired"):
            paired_difference(first, second, seed=1)


@pytest.mark.parametrize(("hits", "queries"), [(84, 100), (430, 1000)])
def test_the_interval_of_a_mean_is_that_of_a_share(hits, queries):
    mean, low, high = mean_interval(np.arange(queries) < hits, seed=1)
    deviation = np.sqrt(hits * (queries - hits) / queries) / queries
    assert mean == pytest.approx(hits / queries)
    assert (low, high) == pytest.approx((mean - 1.96 * deviation, mean + 1.96 * deviation), abs=1.1 / queries)
