"""Batches of frames: torch datasets and loaders over the segments of a split.

What is random in a sample (frames, crop, flip, what replaces a video that does not decode) is a function of (seed,
epoch, sample), so it does not depend on the number of workers or processes, nor on where a run was resumed.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from datasets.annotations import Segment, Split
from datasets.epochs import EpochSampler, Key, same_videos
from datasets.failures import FailedVideos
from datasets.frame_cache import CacheSettings, FrameCache
from datasets.timeline import timeline
from datasets.transforms import OPENAI, Preprocessing, apply_seeded, test_transform, train_transform
from datasets.video import ReadSegment, read_segments
from utils.errors import InputError
from utils.machine import cores

logger = logging.getLogger(__name__)

RUN_SEGMENTS = 16  # of a long film, that one worker reads
PARENT_SECONDS = 0.5  # after which a worker looks whether the main process is still there
WAITS_FOR_SIGNALS = hasattr(signal, "sigwaitinfo")  # which macOS does not have


class Sample(NamedTuple):
    """One training sample."""

    frames: Tensor  # uint8 (F, 3, R, R)
    index: int  # of its caption
    failed: tuple[InputError, ...] = ()  # what was said of the videos that it replaces
    beyond: str = ""  # why its times cannot be those of a segment of its video


class TrainPairs(Dataset):
    """Pairs (video, caption) of a training split, by Key.

    A pair whose video does not decode is replaced by the first of those that its key names which does.

    :param cache: settings of the frame cache, None for none.
    :param preprocessing: of the model that will see the frames.
    :return: of `[key]`: a Sample; an InputError is returned, not raised, where no replacement decodes either, so that
        it reaches the main process as it is.
    """

    def __init__(
        self,
        split: Split,
        num_frames: int,
        input_res: int,
        sample_type: str,
        seed: int,
        cache: CacheSettings | None = None,
        preprocessing: Preprocessing = OPENAI,
    ) -> None:
        self.segments, self.segment_of_caption = split.segments, split.segment_of_caption
        self.sample_type, self.seed = sample_type, seed
        self.read = _reader(num_frames, sample_type, cache)
        self.transform = train_transform(input_res, split.flip, preprocessing)

    def __len__(self) -> int:
        return len(self.segment_of_caption)

    @cached_property
    def videos(self) -> list[int]:
        """The video of each pair, by `same_videos`."""
        owner = same_videos(self.segments)
        return [owner[segment] for segment in self.segment_of_caption]

    def __getitem__(self, key: Key) -> Sample | InputError:
        epoch, first, spare = Key(*key)
        failed: list[InputError] = []
        for attempt, index in enumerate((first, *spare)):
            rng = np.random.default_rng((self.seed, epoch, first, attempt) if attempt else (self.seed, epoch, first))
            try:
                frames, beyond = self._frames(index, rng)
                return Sample(frames, index, tuple(failed), beyond)
            except InputError as error:
                failed.append(error)
        if spare:
            return failed[0]
        return InputError(f"{failed[0]}; no video can take its place, as the batch has all others: lower --batch_size")

    def _frames(self, index: int, rng: np.random.Generator) -> tuple[Tensor, str]:
        segment = self.segments[self.segment_of_caption[index]]
        read = self.read(segment, rng if self.sample_type == "rand" else None)
        seed = int(rng.integers(2**62))
        return apply_seeded(self.transform, _channels_first(read.frames), seed).contiguous(), read.beyond


class TestVideos(Dataset):
    """The videos of a test split, each once.

    :param cache: settings of the frame cache, None for none.
    :param preprocessing: of the model that will see the frames.
    :return: of `[index]`: uint8 frames (F, 3, R, R) and the index of the segment, or an InputError.
    """

    __test__ = False  # not a pytest class

    def __init__(
        self,
        split: Split,
        num_frames: int,
        input_res: int,
        cache: CacheSettings | None = None,
        preprocessing: Preprocessing = OPENAI,
    ) -> None:
        self.segments = split.segments
        self.read = _reader(num_frames, "uniform", cache)
        self.transform = test_transform(input_res, preprocessing)

    def __len__(self) -> int:
        return len(self.segments)

    def __getitem__(self, index: int) -> Sample | InputError:
        try:
            read = self.read(self.segments[index], None)
            return Sample(self.transform(_channels_first(read.frames)).contiguous(), index, beyond=read.beyond)
        except InputError as error:
            return error


class FilmSegments(IterableDataset):
    """Segments that lie side by side in films, so that each film is decoded about once for all of its segments.

    :param segments: those of a film one after the other, in the order of their times.
    :return: of an iteration: samples, an index that of a segment; (index, InputError) for one that does not decode.
    """

    def __init__(
        self, segments: Sequence[Segment], num_frames: int, input_res: int, preprocessing: Preprocessing = OPENAI
    ) -> None:
        self.segments, self.num_frames = segments, num_frames
        self.transform = test_transform(input_res, preprocessing)

    def __len__(self) -> int:
        return len(self.segments)

    def __iter__(self) -> Iterator[Sample | tuple[int, InputError]]:
        worker = get_worker_info()
        workers, own = (1, 0) if worker is None else (worker.num_workers, worker.id)
        for number, indices in enumerate(self._runs(split=workers > 1)):
            if number % workers == own:
                yield from self._samples(indices)

    def _runs(self, split: bool) -> list[Sequence[int]]:
        """The segments of each film; those of a long one in several parts, where workers can seek to them."""
        runs = []
        for _, group in groupby(range(len(self.segments)), key=lambda index: self.segments[index].path):
            indices = list(group)
            length = len(indices)
            if split and length > RUN_SEGMENTS and _seeks(self.segments[indices[0]].path):
                length = RUN_SEGMENTS
            runs += [indices[start : start + length] for start in range(0, len(indices), length)]
        return runs

    def _samples(self, indices: Sequence[int]) -> Iterator[Sample | tuple[int, InputError]]:
        segments = [self.segments[index] for index in indices]
        read = read_segments(segments[0].path, self.num_frames, [(segment.start, segment.end) for segment in segments])
        for index in indices:
            try:
                frames = next(read).frames
            except InputError as error:
                yield from ((left, error) for left in indices if left >= index)
                return
            yield Sample(self.transform(_channels_first(frames)).contiguous(), index)


def _seeks(path: Path) -> bool:
    try:
        return not timeline(path).counted
    except InputError:
        return False


class _Decoder:
    """Reads the frames of segments from their videos."""

    def __init__(self, num_frames: int) -> None:
        self.num_frames = num_frames

    def read(self, segment: Segment, rng: np.random.Generator | None) -> ReadSegment:
        """Its F frames."""
        return next(read_segments(segment.path, self.num_frames, [(segment.start, segment.end)], rng))


def _reader(
    num_frames: int, sample_type: str, cache: CacheSettings | None
) -> Callable[[Segment, np.random.Generator | None], ReadSegment]:
    """What gives the frames of a segment: the frame cache, or the decoder itself."""
    return (_Decoder(num_frames) if cache is None else FrameCache(cache, num_frames, sample_type)).read


def batch_that_fits(pairs: TrainPairs, batch_size: int, parts: int) -> int:
    """--batch_size, or what is left of it where there are fewer videos than a batch of `parts` times as many pairs has,
    as it holds each of them once. That is told.

    :param parts: processes x chunks.
    """
    count = len(set(pairs.videos))
    fitting = max(1, count // parts)
    if fitting >= batch_size or len(pairs) < batch_size * parts:
        return batch_size
    logger.warning(
        "a batch holds each video once, and there are only %d training videos: it has %d pairs instead of %d",
        count, fitting * parts, batch_size * parts,
    )  # fmt: skip
    return fitting


def train_loader(
    pairs: TrainPairs, batch_size: int, num_workers: int, seed: int, pin_memory: bool, rank: int = 0, size: int = 1
) -> DataLoader:
    """Shuffled batches (frames uint8 (B, F, 3, R, R), caption indices (B,)), see EpochSampler.

    :param batch_size: B, of this process, which is `rank` of `size`.
    :raises InputError: there are fewer videos than a batch of all processes holds.
    """
    videos = pairs.videos
    sampler = EpochSampler(videos, seed, batch_size, rank, size)
    whole, count = batch_size * size, len(set(videos))
    several = "" if size == 1 else f" in {size} processes"
    if len(pairs) < whole:
        raise InputError(f"--batch_size={batch_size}{several} is more than the {len(pairs)} training pairs")
    if count < whole:
        raise InputError(
            f"a batch of {batch_size}{several} holds each video once, and there are {count} training videos"
        )
    left_out = len(pairs) - sampler.steps * whole
    if left_out >= whole:
        logger.warning(
            "%d of the %d training pairs are left out of each epoch, others each time: a batch of %d holds each of "
            "the %d videos once, and some have more captions than there can be batches",
            left_out, len(pairs), whole, count,
        )  # fmt: skip
    apart = torch.Generator()  # else every iteration would draw a number of the stream that dropout draws from
    return _loader(pairs, batch_size, num_workers, pin_memory, sampler=sampler, drop_last=True, generator=apart)


def test_loader(videos: Dataset, batch_size: int, num_workers: int, pin_memory: bool) -> DataLoader:
    """TestVideos, or some of them, in batches (frames uint8 (B, F, 3, R, R), segment indices (B,)) in order."""
    return _loader(videos, batch_size, num_workers, pin_memory)


test_loader.__test__ = False  # not a pytest function


def film_loader(films: FilmSegments, batch_size: int, num_workers: int, pin_memory: bool) -> DataLoader:
    """Lists of samples, with (index, InputError) in the place of each that does not decode. Segments of one film come
    in order, films in any."""
    return _loader(films, batch_size, num_workers, pin_memory, collate_fn=list)


def _loader(
    dataset: Dataset,
    batch_size: int,
    num_workers: int,
    pin_memory: bool,
    collate_fn: Callable[[list], object] | None = None,
    **options: object,
) -> DataLoader:
    workers = min(num_workers, cores())
    return Loader(
        dataset,
        batch_size=batch_size,
        num_workers=workers,
        pin_memory=pin_memory,
        collate_fn=collate_fn or _collate,
        worker_init_fn=_init_worker,
        persistent_workers=workers > 0,
        **options,
    )


class Loader(DataLoader):
    """A loader whose workers block SIGTERM from their start on, see `_init_worker`.

    They inherit that: libraries start threads in a worker before `_init_worker` runs, and a single one that does not
    block the signal would let it end the worker.
    """

    def __iter__(self) -> Iterator:
        if not WAITS_FOR_SIGNALS:
            return super().__iter__()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Batch(NamedTuple):
    """Samples that were put together."""

    frames: Tensor  # uint8 (B, F, 3, R, R)
    indices: Tensor  # (B,)
    failed: list[tuple[InputError, ...]]  # of each sample that replaces another, why
    beyond: list[tuple[int, str]]  # index of each sample whose times are not in its video, and why


def _collate(samples: Sequence[Sample | InputError]) -> Batch | InputError:
    for sample in samples:
        if isinstance(sample, InputError):
            return sample
    frames, indices, failed, _ = zip(*samples, strict=True)
    beyond = [(sample.index, sample.beyond) for sample in samples if sample.beyond]
    return Batch(torch.stack(frames), torch.tensor(indices), [errors for errors in failed if errors], beyond)


def batches(
    loader: DataLoader, failed: FailedVideos | None = None, beyond: Callable[[int, str], None] | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches (frames, indices) of a loader.

    :param failed: counts the samples that had to be replaced; None starts a new count.
    :param beyond: is told the index of each sample whose times are not in its video, and why.
    :raises InputError: a test video does not decode, no replacement of a training video does, or too many failed.
    """
    failed = failed or FailedVideos(len(loader) * (loader.batch_size or 1))
    for batch in loader:
        if isinstance(batch, InputError):
            raise batch
        for errors in batch.failed:
            failed.add(errors)
        for index, reason in batch.beyond:
            if beyond is not None:
                beyond(index, reason)
        yield batch.frames, batch.indices


def _init_worker(worker_id: int) -> None:
    """One thread per worker: the workers are the parallelism. OpenCV has one wherever datasets.video is imported.

    Signals that stop a run go to all its processes, but the main one still needs its batches then: a worker ends when
    the main process says so.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if WAITS_FOR_SIGNALS:
        threading.Thread(target=_end_with_parent, args=(multiprocessing.parent_process().pid,), daemon=True).start()
    torch.set_num_threads(1)


def _end_with_parent(parent: int) -> None:
    """Leave at a SIGTERM of the main process, whose exit waits for its workers, or soon after it has been killed;
    others may send what they like."""
    while os.getppid() == parent:
        sent = signal.sigtimedwait({signal.SIGTERM}, PARENT_SECONDS)
        if sent is not None and sent.si_pid == parent:
            break
    os._exit(0)


def _channels_first(frames: np.ndarray) -> Tensor:
    """uint8 (F, H, W, 3) -> (F, 3, H, W), the same memory: torch resizes it in that order in half the time."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2)
