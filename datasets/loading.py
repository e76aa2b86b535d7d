"""Batches of frames: torch datasets and loaders over the clips of a split.

What is random in a sample (frames, crop, flip) is a function of (seed, epoch, sample), so it does not depend on the
number of workers.
"""

import os
import signal
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from datasets.annotations import Split
from datasets.transforms import apply_seeded, test_transform, train_transform
from datasets.video import read_frames
from diffusion_lm.errors import InputError


class TrainPairs(Dataset):
    """Pairs (video, caption) of a training split; a key is (epoch, index of the caption).

    :return: of `[key]`: uint8 frames (F, 3, R, R) and the index of the caption; an InputError is returned, not
        raised, so that it reaches the main process as it is.
    """

    def __init__(self, split: Split, num_frames: int, input_res: int, sample_type: str, seed: int) -> None:
        self.clips, self.clip_of_caption = split.clips, split.clip_of_caption
        self.num_frames, self.sample_type, self.seed = num_frames, sample_type, seed
        self.transform = train_transform(input_res, split.flip)

    def __len__(self) -> int:
        return len(self.clip_of_caption)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int] | InputError:
        epoch, index = key
        clip = self.clips[self.clip_of_caption[index]]
        rng = np.random.default_rng((self.seed, epoch, index))
        try:
            frames = read_frames(
                clip.path, self.num_frames, rng if self.sample_type == "rand" else None, clip.start, clip.end
            )
        except InputError as error:
            return error
        return apply_seeded(self.transform, _channels_first(frames), int(rng.integers(2**62))), index


class TestVideos(Dataset):
    """The videos of a test split, each once.

    :return: of `[index]`: uint8 frames (F, 3, R, R) and the index of the clip, or an InputError.
    """

    __test__ = False  # not a pytest class

    def __init__(self, split: Split, num_frames: int, input_res: int) -> None:
        self.clips, self.num_frames = split.clips, num_frames
        self.transform = test_transform(input_res)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | InputError:
        clip = self.clips[index]
        try:
            frames = read_frames(clip.path, self.num_frames, None, clip.start, clip.end)
        except InputError as error:
            return error
        return self.transform(_channels_first(frames)), index


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


def _loader(dataset: Dataset, batch_size: int, num_workers: int, pin_memory: bool, **options: object) -> DataLoader:
    workers = min(num_workers, os.cpu_count() or 1)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=workers,
        pin_memory=pin_memory,
        collate_fn=_collate,
        worker_init_fn=_init_worker,
        persistent_workers=workers > 0,
        **options,
    )


def _collate(samples: Sequence[tuple[Tensor, int] | InputError]) -> tuple[Tensor, Tensor] | InputError:
    for sample in samples:
        if isinstance(sample, InputError):
            return sample
    frames, indices = zip(*samples, strict=True)
    return torch.stack(frames), torch.tensor(indices)


def batches(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of a loader; the error of a video that does not decode is raised here."""
    for batch in loader:
        if isinstance(batch, InputError):
            raise batch
        yield batch


def _init_worker(worker_id: int) -> None:
    """One thread per worker: the workers are the parallelism. Signals that stop a run go to all its processes; the main
    one still needs its batches then, and ends the workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def _channels_first(frames: np.ndarray) -> Tensor:
    """uint8 (F, H, W, 3) -> (F, 3, H, W)."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
