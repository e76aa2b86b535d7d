"""Noise that is a function of what it is for, not of when it is drawn."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from modules.stochastic_text import Prior
from modules.text_diffusion import SamplingNoise, TrainingNoise

KEPT_CAPTIONS = 8  # whose noise stays in memory: pairs come text by text, so blocks share their last captions


def sampling_noise(captions: Sequence[str], seed: int, steps: int, length: int, channels: int) -> SamplingNoise:
    """The noise of sampling for each caption, a function of (seed, caption) alone.

    So a score does not depend on batch, block, order or process. It is drawn on the CPU and is the same for every
    device. Fewer steps give the same x_start and x_T.

    :return: x_start and x_T (N, L, C), steps (N, S, L, C), float32.
    """
    noise = np.stack([_caption_noise(caption, seed, steps, length, channels) for caption in captions])
    tensor = torch.from_numpy(noise)
    return SamplingNoise(tensor[:, 0], tensor[:, 1], tensor[:, 2:])


@lru_cache(KEPT_CAPTIONS)
def _caption_noise(caption: str, seed: int, steps: int, length: int, channels: int) -> np.ndarray:
    """(steps + 2, L, C), kept because the next block of pairs asks for the same captions."""
    return _generator_of_caption(caption, seed).standard_normal((steps + 2, length, channels), dtype=np.float32)


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
    t = np.empty(len(rows), dtype=np.int64)
    noise = np.empty((len(rows), 2, length, channels), dtype=np.float32)
    for place, row in enumerate(rows):
        generator = _generator_of_row(seed, stream, step, row)
        t[place] = generator.integers(diffusion_steps)
        generator.standard_normal(dtype=np.float32, out=noise[place])
    return TrainingNoise(torch.from_numpy(t), torch.from_numpy(noise[:, 0]), torch.from_numpy(noise[:, 1]))
