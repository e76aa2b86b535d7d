"""Which pairs make the batches of an epoch: a batch holds each video once at most."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from datasets.annotations import Segment
from datasets.files import identity

MAX_REPLACEMENTS = 10  # of one sample; that many draws from a set with 1 % bad videos never fail
SPARE = MAX_REPLACEMENTS + 1  # what the numbers that choose replacements are drawn from, beside each replacement's own


class Key(NamedTuple):
    """What a training sample is asked for with."""

    epoch: int
    index: int  # of its caption
    spare: tuple[int, ...] = ()  # captions of other videos, which take its place in turn if its video does not decode


class EpochSampler(Sampler):
    """Keys of one epoch for one of several processes, in an order drawn from (seed, epoch).

    The batch of a step, of all processes, holds no video twice: in the loss the pairs of one video would be each
    other's wrong answers. It is a function of (seed, epoch), the same for any number of processes; each of these takes
    its rows of it. What fits into no batch is left out, other pairs in each epoch. Call `set_epoch` before each epoch.

    :param videos: of each pair of the data set the index of its video.
    :param batch_size: samples of a step in each process.
    :return: of iterating: keys of TrainPairs (epoch, index of the pair, pairs that may take its place).
    """

    def __init__(self, videos: Sequence[int], seed: int, batch_size: int, rank: int = 0, size: int = 1) -> None:
        self.videos, self.seed, self.batch_size, self.rank, self.size = np.asarray(videos), seed, batch_size, rank, size
        self.epoch = self.start = 0
        self.steps = most_batches(np.bincount(self.videos), batch_size * size)  # of a whole epoch

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """The epoch that the next iteration gives, without its first `start` steps."""
        self.epoch, self.start = epoch, start

    def batches(self) -> np.ndarray:
        """The samples of every step of the epoch, of all processes: (steps, samples)."""
        return batches_without_repeats(
            self.videos, self.steps, self.batch_size * self.size, np.random.default_rng((self.seed, self.epoch))
        )

    def __len__(self) -> int:
        return (self.steps - self.start) * self.batch_size

    def __iter__(self) -> Iterator[Key]:
        first = self.rank * self.batch_size
        for step, batch in enumerate(self.batches()[self.start :], self.start):
            spare = self._spare(step, batch)
            for row in range(first, first + self.batch_size):
                own = np.concatenate([spare[row :: len(batch)], np.roll(spare, -row)])[:MAX_REPLACEMENTS]
                yield Key(self.epoch, int(batch[row]), tuple(own.tolist()))

    def _spare(self, step: int, batch: np.ndarray) -> np.ndarray:
        """Pairs that may replace samples of a batch: of videos that are not in it, each of another one. Every row of
        the batch takes its own of them first, so that no two replacements are of one video either; where there are too
        few of them rows share."""
        rng = np.random.default_rng((self.seed, self.epoch, step, SPARE))
        count = min(len(self.videos), len(batch) * (MAX_REPLACEMENTS + 1))
        drawn = rng.choice(len(self.videos), count, replace=False)
        _, first = np.unique(self.videos[drawn], return_index=True)
        drawn = drawn[np.sort(first)]
        return drawn[np.isin(self.videos[drawn], self.videos[batch], invert=True)]


def most_batches(counts: np.ndarray, size: int) -> int:
    """How many batches of `size` pairs an epoch can have where a batch holds each video once at most.

    In S batches a video with c pairs fills min(c, S) places, and places that are filled in this way can be dealt out.

    :param counts: pairs of each video.
    """
    low, high = 0, int(counts.sum()) // size
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(counts, middle).sum() >= middle * size else (low, middle - 1)
    return low


def batches_without_repeats(videos: np.ndarray, steps: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Slices of a random order of the pairs, each pair once at most, no video twice in a slice: pairs (steps, size).

    A pair whose video is in the slice already waits for the next one. A video with as many pairs as there are slices
    left takes a place in each of them, so that every slice gets full.

    :param videos: of each pair.
    :param steps: at most what `most_batches` gives.
    """
    order = rng.permutation(len(videos))
    order = order[_count_up(videos[order]) < steps][: steps * size]  # a video is at most once in a slice
    wanted = videos[order]
    dealt = rng.permuted(_deal(wanted, steps, size), axis=1)  # those that had to wait came first
    pairs = np.empty_like(order)
    pairs[dealt.argsort(axis=None, kind="stable")] = order[wanted.argsort(kind="stable")]
    return pairs.reshape(steps, size)


def _count_up(values: np.ndarray) -> np.ndarray:
    """How often each value has come before."""
    by_value = values.argsort(kind="stable")
    ordered = values[by_value]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    counts = np.empty_like(values)
    counts[by_value] = np.arange(len(values)) - np.repeat(starts, np.diff(starts, append=len(values)))
    return counts


def _deal(videos: np.ndarray, steps: int, size: int) -> np.ndarray:
    """Videos in a random order -> the same in slices (steps, size) without repeats.

    :param videos: steps * size of them, each `steps` times at most.
    """
    left = np.bincount(videos)
    most = left.max(initial=0)
    coming, waiting = iter(videos.tolist()), Counter()  # waiting: in the order in which they came
    ahead = Counter()  # that were taken before their turn
    slices = np.empty((steps, size), dtype=videos.dtype)
    for step in range(steps):
        remaining = steps - step
        chosen = dict.fromkeys(np.flatnonzero(left == remaining).tolist() if most >= remaining else ())
        for video in chosen:
            if not _take(waiting, video):
                ahead[video] += 1
        for video in list(waiting):
            if len(chosen) < size and video not in chosen:
                chosen[video] = _take(waiting, video)
        while len(chosen) < size:
            video = next(coming)
            if _take(ahead, video):
                continue
            if video in chosen:
                waiting[video] += 1
            else:
                chosen[video] = True
        slices[step] = list(chosen)
        left[slices[step]] -= 1
    return slices


def _take(counter: Counter, value: int) -> bool:
    """Take one out of a counter, whose values are then gone when none is left; whether there was one."""
    if value not in counter:
        return False
    counter[value] -= 1
    if not counter[value]:
        del counter[value]
    return True


def same_videos(segments: Sequence[Segment]) -> list[int]:
    """For each segment the first one of the same pixels: the same file from the same start to the same end. Segments of
    one film with other bounds are others."""
    first: dict[tuple, int] = {}
    return [
        first.setdefault((identity(segment.path), segment.start or 0.0, segment.end), index)
        for index, segment in enumerate(segments)
    ]
