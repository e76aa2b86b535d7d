"""The samples of a batch: each pair once an epoch, no video twice in a batch, the same for any number of processes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.annotations import Segment
from datasets.epochs import EpochSampler, batches_without_repeats, most_batches, same_videos


@pytest.mark.parametrize("size", [2, 4])
def test_processes_share_the_batch_of_one(size):
    videos = [pair // 3 for pair in range(30)]
    alone = EpochSampler(videos, 3, 8)
    parts = [EpochSampler(videos, 3, 8 // size, rank, size) for rank in range(size)]
    for sampler in (alone, *parts):
        sampler.set_epoch(2, start=1)
        assert sampler.steps == 3 and len(sampler) == 2 * sampler.batch_size
    keys, shared = list(alone), [list(part) for part in parts]
    own = 8 // size
    assert keys == [key for step in range(2) for part in shared for key in part[step * own : (step + 1) * own]]
    assert [key.index for key in keys] == alone.batches()[1:].ravel().tolist()
    alone.set_epoch(2)
    assert list(alone)[8:] == keys


@pytest.mark.parametrize(
    ("counts", "size", "steps"),
    [
        ([20] * 900, 32, 562),  # 18,000 / 32
        ([1] * 100, 32, 3),
        ([3, 3, 3], 3, 3),
        ([3, 3, 3], 2, 4),
        ([5, 1, 1], 2, 2),  # the first is in both batches
        ([100, 1, 1, 1], 2, 3),
        ([9, 9], 3, 0),
    ],
)
def test_steps_of_an_epoch(counts, size, steps):
    assert most_batches(np.array(counts), size) == steps


def all_ways(counts, size):
    """The most batches without repeats, by trying: a batch of the videos with most captions left is never worse."""
    left, steps = sorted(counts, reverse=True), 0
    while len(left) >= size and left[size - 1] > 0:
        left = sorted([count - (place < size) for place, count in enumerate(left)], reverse=True)
        steps += 1
    return steps


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=25), st.integers(1, 12), st.integers(0, 2**32))
def test_no_batch_holds_a_video_twice(counts, size, seed):
    """Every step is full, every pair comes once at most, and as many as can be come."""
    videos = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    steps = most_batches(np.array(counts), size)
    assert steps == all_ways(counts, size)
    batches = batches_without_repeats(videos, steps, size, np.random.default_rng(seed))
    assert batches.shape == (steps, size)
    assert len(set(batches.flat)) == batches.size
    assert all(len(set(videos[batch])) == size for batch in batches)
    if len(videos) == steps * size:
        assert sorted(batches.flat) == list(range(len(videos)))


def test_the_order_is_as_good_as_random():
    """Pairs are left out alike, and videos meet each other alike, also where repeats have to be avoided often."""
    counts, size, epochs = [6] * 10, 4, 3000  # 60 pairs in 15 batches
    videos = np.repeat(np.arange(10), counts)
    met = np.zeros((10, 10))
    for epoch in range(epochs):
        for batch in batches_without_repeats(videos, 15, size, np.random.default_rng((1, epoch))):
            met[np.ix_(videos[batch], videos[batch])] += 1
    expected = epochs * 15 * size * (size - 1) / (10 * 9)
    assert abs(met[~np.eye(10, dtype=bool)] / expected - 1).max() < 0.05
    assert (met.diagonal() == 6 * epochs).all()
    videos, used = np.repeat(np.arange(4), [9, 3, 3, 3]), np.zeros(18)  # the first fills 8 places at most, with 9 pairs
    for epoch in range(epochs):
        used[batches_without_repeats(videos, 8, 2, np.random.default_rng((2, epoch)))] += 1
    assert abs(used[:9] / used[:9].mean() - 1).max() < 0.05 and abs(used[9:] / used[9:].mean() - 1).max() < 0.05


def test_segments_of_one_film_are_different_videos_and_repeated_ids_are_not():
    film, other = Path("film.mp4"), Path("other.mp4")
    segments = [
        Segment("a", film, ("x",), 0.0, 5.0), Segment("b", film, ("y",), 5.0, 9.0), Segment("c", other, ("z",)),
        Segment("c", other, ("w",)), Segment("a", film, ("v",), None, 5.0), Segment("d", film, ("u",)),
    ]  # fmt: skip
    assert same_videos(segments) == [0, 1, 2, 2, 0, 5]


def test_links_to_one_file_are_one_video(tmp_path):
    film = tmp_path / "film.mp4"
    film.touch()
    (tmp_path / "soft.mp4").symlink_to(film)
    (tmp_path / "hard.mp4").hardlink_to(film)
    (tmp_path / "other.mp4").touch()
    names = ("film", "soft", "hard", "other")
    segments = [Segment(name, tmp_path / f"{name}.mp4", (name,)) for name in names]
    assert same_videos(segments) == [0, 0, 0, 3]


@pytest.mark.parametrize("size", [1, 3])
def test_replacements_repeat_no_video_of_the_batch(size):
    """Whichever samples of a batch of all processes are replaced, and however often."""
    videos = [pair // 4 for pair in range(2000)]
    samplers = [EpochSampler(videos, 5, 12 // size, rank, size) for rank in range(size)]
    for sampler in samplers:
        sampler.set_epoch(3, start=2)
    parts = [list(sampler) for sampler in samplers]
    alone = EpochSampler(videos, 5, 12)
    alone.set_epoch(3, start=2)
    keys, own = list(alone), 12 // size
    for step in range(alone.steps - 2):
        batch = keys[12 * step :][:12]
        assert batch == [key for part in parts for key in part[own * step :][:own]]
        used = [videos[pair] for key in batch for pair in (key.index, *key.spare[:8])]
        assert len(used) == len(set(used)) == 12 * 9


@pytest.mark.parametrize(("videos", "spares"), [(12, 0), (13, 1), (20, 8)])
def test_replacements_are_shared_where_a_batch_holds_most_videos(videos, spares):
    sampler = EpochSampler([pair // 2 for pair in range(2 * videos)], 5, 12)
    for key in list(sampler)[:12]:
        assert len({pair // 2 for pair in key.spare}) == spares
    batch = {key.index // 2 for key in list(sampler)[:12]}
    assert not batch & {pair // 2 for key in list(sampler)[:12] for pair in key.spare}
