"""Noise that is a function of what it is for, not of when it is drawn."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from modules.stochastic_text import Prior

KEPT_CAPTIONS = 8  # whose noise stays in memory: pairs come text by text, so blocks share their last captions


class TrainingNoise(NamedTuple):
    """What one training step draws for B captions."""

    t: Tensor  # diffusion steps (B,)
    x_start: Tensor  # spread of x_0 around the word embeddings (B, L, C)
    q: Tensor  # noise of q(x_t | x_0), (B, L, C)


class SamplingNoise(NamedTuple):
    """What sampling draws for N captions in S steps."""

    x_start: Tensor  # noise in the x_0 of the condition (N, L, C)
    x_T: Tensor  # (N, L, C)
    steps: Tensor  # noise of each step, from the noisiest to t = 0, (N, S, L, C); DDIM needs none of it

    def to(self, device: torch.device) -> "SamplingNoise":
        """The same on a device."""
        return SamplingNoise(*(tensor.to(device, non_blocking=True) for tensor in self))


def sampling_noise(captions: Sequence[str], seed: int, steps: int, length: int, channels: int) -> SamplingNoise:
    """The noise of sampling for each caption, a function of (seed, caption) alone.

    So a score does not depend on batch, block, order or process. It is drawn on the CPU and is the same for every
    device. Fewer steps give the same x_start and x_T.

    :return: x_start and x_T (N, L, C), steps (N, S, L, C), float32.
    """
    noise = caption_noise(captions, seed, steps + 2, length, channels)
    return SamplingNoise(noise[:, 0], noise[:, 1], noise[:, 2:])


def caption_noise(captions: Sequence[str], seed: int, draws: int, length: int, channels: int) -> Tensor:
    """Standard normal noise for each caption, as above: (N, draws, L, C). Fewer draws give the first of them."""
    return torch.from_numpy(np.stack([_of_caption(caption, seed, draws, length, channels) for caption in captions]))


@lru_cache(KEPT_CAPTIONS)
def _of_caption(caption: str, seed: int, draws: int, length: int, channels: int) -> np.ndarray:
    """(draws, L, C), kept because the next block of pairs asks for the same captions."""
    return _generator_of_caption(caption, seed).standard_normal((draws, length, channels), dtype=np.float32)


def prior_samples(captions: Sequence[str], seed: int, trials: int, embed_dim: int, prior: Prior) -> Tensor:
    """The samples from the prior of T-MASS for each caption, a function of (seed, caption) alone, as above.

    :return: (N, trials, D), float32. Fewer trials give the first of them.
    """
    return torch.from_numpy(
        np.stack([_caption_samples(caption, seed, trials, embed_dim, prior) for caption in captions])
    )


@lru_cache(KEPT_CAPTIONS)
def _caption_samples(caption: str, seed: int, trials: int, embed_dim: int, prior: Prior) -> np.ndarray:
    return prior.draw(_generator_of_caption(caption, seed), (trials, embed_dim))


def prior_of_training(seed: int, step: int, rows: range, embed_dim: int, prior: Prior) -> Tensor:
    """A sample of T-MASS for each of B pairs, (B, D), a function of (seed, step, its row in the batch) alone."""
    return torch.from_numpy(np.stack([prior.draw(_generator_of_row(seed, 0, step, row), (embed_dim,)) for row in rows]))


def _generator_of_caption(caption: str, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}\0{caption}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], np.uint64)))


def _generator_of_row(seed: int, stream: int, step: int, row: int) -> np.random.Generator:
    bits = np.random.Philox(key=(seed % 2**64, stream), counter=(0, 0, step, row))  # draws count in the first two
    return np.random.Generator(bits)


def training_noise(
    seed: int, step: int, stream: int, rows: range, diffusion_steps: int, length: int, channels: int
) -> TrainingNoise:
    """The noise of one training step, for each pair a function of (seed, step, stream, its row in the batch) alone.

    So it does not depend on how many processes share the batch.

    :param stream: separates independent draws of the same step.
    :param rows: of the batch of all processes.
    """
    drawn = reading_noise(seed, step, rows, 1, range(diffusion_steps), length, channels, stream)
    return TrainingNoise(*(part[:, 0] for part in drawn))


def reading_noise(
    seed: int, step: int, rows: range, draws: int, times: range, length: int, channels: int, stream: int = 0
) -> TrainingNoise:
    """The noise of one training step for the captions that are read with each video, as above.

    :param draws: R, captions of each video.
    :param times: the steps of the diffusion that are drawn from.
    :return: t (B, R), x_start and q (B, R, L, C).
    """
    t = np.empty((len(rows), draws), dtype=np.int64)
    noise = np.empty((len(rows), 2, draws, length, channels), dtype=np.float32)
    for place, row in enumerate(rows):
        generator = _generator_of_row(seed, stream, step, row)
        t[place] = generator.integers(times.start, times.stop, draws)
        generator.standard_normal(dtype=np.float32, out=noise[place])
    return TrainingNoise(torch.from_numpy(t), torch.from_numpy(noise[:, 0]), torch.from_numpy(noise[:, 1]))


def other_captions(own: Sequence[int], same_video: Sequence[Sequence[int]], count: int, seed: int, step: int,
                   rows: range) -> Tensor:  # fmt: skip
    """For each pair of a training step other captions of its video, in an order that is a function as above.

    :param own: the caption of each pair.
    :param same_video: all captions of the video of each pair.
    :param count: of each pair.
    :return: (B, count), -1 where a video has no more.
    """
    chosen = torch.full((len(own), count), -1)
    for place, (caption, captions, row) in enumerate(zip(own, same_video, rows, strict=True)):
        others = [other for other in captions if other != caption]
        order = _generator_of_row(seed, 1, step, row).permutation(len(others))[:count]
        chosen[place, : len(order)] = torch.tensor([others[i] for i in order], dtype=torch.long)
    return chosen
