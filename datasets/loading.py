"""Batches of frames: torch datasets and loaders over the clips of a split.

What is random in a sample (frames, crop, flip, what replaces a video that does not decode) is a function of (seed,
epoch, sample), so it does not depend on the number of workers or processes, nor on where a run was resumed.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from datasets.annotations import Clip, Split
from datasets.failures import FailedVideos
from datasets.frame_cache import CacheSettings, FrameCache
from datasets.transforms import apply_seeded, test_transform, train_transform
from datasets.video import read_frames
from diffusion_lm.errors import InputError
from diffusion_lm.machine import cores

MAX_REPLACEMENTS = 10  # of one sample; that many draws from a set with 1 % bad videos never fail
WAITS_FOR_SIGNALS = hasattr(signal, "sigwaitinfo")  # which macOS does not have


class Sample(NamedTuple):
    """One training sample."""

    frames: Tensor  # uint8 (F, 3, R, R)
    index: int  # of its caption
    failed: tuple[InputError, ...] = ()  # what was said of the videos that it replaces


class TrainPairs(Dataset):
    """Pairs (video, caption) of a training split; a key is (epoch, index of the caption).

    A pair whose video does not decode is replaced by another one, drawn from (seed, epoch, index).

    :param cache: settings of the frame cache, None for none.
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
    ) -> None:
        self.clips, self.clip_of_caption = split.clips, split.clip_of_caption
        self.sample_type, self.seed = sample_type, seed
        self.read = _reader(num_frames, sample_type, cache)
        self.transform = train_transform(input_res, split.flip)

    def __len__(self) -> int:
        return len(self.clip_of_caption)

    def __getitem__(self, key: tuple[int, int]) -> Sample | InputError:
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch, index))
        failed: list[InputError] = []
        for attempt in range(1, MAX_REPLACEMENTS + 2):
            try:
                return Sample(self._frames(index, rng), index, tuple(failed))
            except InputError as error:
                failed.append(error)
            rng = np.random.default_rng((self.seed, *key, attempt))
            index = int(rng.integers(len(self)))
        return failed[0]

    def _frames(self, index: int, rng: np.random.Generator) -> Tensor:
        clip = self.clips[self.clip_of_caption[index]]
        frames = self.read(clip, rng if self.sample_type == "rand" else None)
        return apply_seeded(self.transform, _channels_first(frames), int(rng.integers(2**62))).contiguous()


class TestVideos(Dataset):
    """The videos of a test split, each once.

    :param cache: settings of the frame cache, None for none.
    :return: of `[index]`: uint8 frames (F, 3, R, R) and the index of the clip, or an InputError.
    """

    __test__ = False  # not a pytest class

    def __init__(self, split: Split, num_frames: int, input_res: int, cache: CacheSettings | None = None) -> None:
        self.clips = split.clips
        self.read = _reader(num_frames, "uniform", cache)
        self.transform = test_transform(input_res)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Sample | InputError:
        try:
            frames = self.transform(_channels_first(self.read(self.clips[index], None)))
            return Sample(frames.contiguous(), index)
        except InputError as error:
            return error


class _Decoder:
    """Reads the frames of clips from their videos."""

    def __init__(self, num_frames: int) -> None:
        self.num_frames = num_frames

    def read(self, clip: Clip, rng: np.random.Generator | None) -> np.ndarray:
        """RGB uint8 (F, H, W, 3)."""
        return read_frames(clip.path, self.num_frames, rng, clip.start, clip.end)


def _reader(
    num_frames: int, sample_type: str, cache: CacheSettings | None
) -> Callable[[Clip, np.random.Generator | None], np.ndarray]:
    """What gives the frames (F, H, W, 3) of a clip: the frame cache, or the decoder itself."""
    return (_Decoder(num_frames) if cache is None else FrameCache(cache, num_frames, sample_type)).read


class EpochSampler(Sampler):
    """Keys (epoch, index) of one epoch for one of several processes, in an order drawn from (seed, epoch).

    The batch of a step is a slice of that order, the same samples for any number of processes; each process takes its
    rows of it. What does not fill a batch is dropped. Call `set_epoch` before each epoch.

    :param length: samples of the data set.
    :param batch_size: samples of a step in each process.
    """

    def __init__(self, length: int, seed: int, batch_size: int, rank: int = 0, size: int = 1) -> None:
        self.length, self.seed, self.batch_size, self.rank, self.size = length, seed, batch_size, rank, size
        self.epoch = self.start = 0

    @property
    def steps(self) -> int:
        """Steps of a whole epoch."""
        return self.length // (self.batch_size * self.size)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """The epoch that the next iteration gives, without its first `start` steps."""
        self.epoch, self.start = epoch, start

    def batches(self) -> np.ndarray:
        """The samples of every step of the epoch, of all processes: (steps, samples)."""
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        return order[: self.steps * self.batch_size * self.size].reshape(self.steps, -1)

    def __len__(self) -> int:
        return (self.steps - self.start) * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        first = self.rank * self.batch_size
        own = self.batches()[self.start :, first : first + self.batch_size]
        return ((self.epoch, int(index)) for index in own.flat)


def train_loader(
    pairs: TrainPairs, batch_size: int, num_workers: int, seed: int, pin_memory: bool, rank: int = 0, size: int = 1
) -> DataLoader:
    """Shuffled batches (frames uint8 (B, F, 3, R, R), caption indices (B,)); the rest of an epoch is dropped.

    :param batch_size: B, of this process, which is `rank` of `size`.
    """
    if len(pairs) < batch_size * size:
        several = "" if size == 1 else f" in {size} processes"
        raise InputError(f"--batch_size={batch_size}{several} is more than the {len(pairs)} training pairs")
    sampler = EpochSampler(len(pairs), seed, batch_size, rank, size)
    apart = torch.Generator()  # else every iteration would draw a number of the stream that dropout draws from
    return _loader(pairs, batch_size, num_workers, pin_memory, sampler=sampler, drop_last=True, generator=apart)


def test_loader(videos: TestVideos, batch_size: int, num_workers: int, pin_memory: bool) -> DataLoader:
    """Batches (frames uint8 (B, F, 3, R, R), clip indices (B,)) in order."""
    return _loader(videos, batch_size, num_workers, pin_memory)


test_loader.__test__ = False  # not a pytest function


def separate_loader(videos: TestVideos, batch_size: int, num_workers: int, pin_memory: bool) -> DataLoader:
    """Lists of samples in order, with an InputError in the place of each that does not decode."""
    return _loader(videos, batch_size, num_workers, pin_memory, collate_fn=list)


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


def _collate(samples: Sequence[Sample | InputError]) -> Batch | InputError:
    for sample in samples:
        if isinstance(sample, InputError):
            return sample
    frames, indices, failed = zip(*samples, strict=True)
    return Batch(torch.stack(frames), torch.tensor(indices), [errors for errors in failed if errors])


def batches(loader: DataLoader, failed: FailedVideos | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches (frames, indices) of a loader.

    :param failed: counts the samples that had to be replaced; None starts a new count.
    :raises InputError: a test video does not decode, no replacement of a training video does, or too many failed.
    """
    failed = failed or FailedVideos(len(loader) * (loader.batch_size or 1))
    for batch in loader:
        if isinstance(batch, InputError):
            raise batch
        for errors in batch.failed:
            failed.add(errors)
        yield batch.frames, batch.indices


def _init_worker(worker_id: int) -> None:
    """One thread per worker: the workers are the parallelism. OpenCV has one wherever datasets.video is imported.

    Signals that stop a run go to all its processes, but the main one still needs its batches then: a worker ends when
    the main process says so.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if WAITS_FOR_SIGNALS:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    """Leave at a SIGTERM of the main process, whose exit waits for its workers; others may send what they like."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        continue
    os._exit(0)


def _channels_first(frames: np.ndarray) -> Tensor:
    """uint8 (F, H, W, 3) -> (F, 3, H, W), the same memory: torch resizes it in that order in half the time."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2)
