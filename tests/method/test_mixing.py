"""How much a second score counts beside a first one."""

import numpy as np
import pytest

from modules.mixing import LEAST_WEIGHT, MOST_WEIGHT, best_weight

TEXTS, VIDEOS = 400, 100


@pytest.fixture
def made_up() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two scores of which each adds to what a softmax of 3 base + 1.5 more draws as the right video of a text."""
    random = np.random.default_rng(0)
    base, more = random.normal(size=(2, TEXTS, VIDEOS))
    owner = (3 * base + 1.5 * more + random.gumbel(size=base.shape)).argmax(1)
    return base, more, owner


def test_the_weight_that_drew_the_pairs_is_found(made_up: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    base, more, owner = made_up
    found = best_weight(base, base + more, owner)
    assert found == pytest.approx(0.5, abs=0.1)
    assert best_weight(base, base + 4 * more, owner) == pytest.approx(found / 4, rel=1e-2)  # whatever its unit
    assert best_weight(10 * base, 10 * (base + more), owner) == pytest.approx(found, rel=1e-2)


def test_a_score_that_says_nothing_or_all_gets_the_bound(
    made_up: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    base, more, owner = made_up
    noise = np.random.default_rng(1).normal(size=base.shape)
    assert best_weight(base, base + noise, owner) < 0.1
    assert best_weight(base, base - more, owner) < 10 * LEAST_WEIGHT  # worse than nothing
    assert best_weight(noise, noise + more + 2 * base, owner) > MOST_WEIGHT / 2


def test_pairs_that_nobody_scored_are_no_candidates(made_up: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    base, more, owner = made_up
    both = base + more
    both[base < np.partition(base, VIDEOS - 20, axis=1)[:, VIDEOS - 20, None]] = -np.inf
    assert best_weight(base, both, owner) == pytest.approx(0.5, abs=0.2)
    assert best_weight(base, np.full_like(base, -np.inf), owner) == 1.0


def test_few_pairs_change_little(made_up: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    base, more, owner = made_up
    one = np.flatnonzero(owner == owner[0])[:1]
    assert best_weight(base[one, :1], (base + more)[one, :1], np.array([0])) == 1.0  # nothing to tell it from
    few = np.argsort(owner)[:8]
    assert 0.2 < best_weight(base[few, :4], (base + more)[few, :4], np.minimum(owner[few], 3)) < 5


def test_other_texts_of_a_video_are_not_wrong() -> None:
    """Twenty texts a video, of which the first score knows the video, and the second tells the texts apart."""
    random = np.random.default_rng(0)
    owner = np.repeat(np.arange(10), 20)
    base = 2.0 * (owner[:, None] == np.arange(10)) + random.normal(size=(200, 10))
    of_text = 5 * random.normal(size=(200, 1)) * np.ones((1, 10))
    assert best_weight(base, base + of_text, owner) < 0.2  # says nothing of the video
