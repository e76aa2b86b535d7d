"""Noise that is a function of what it is for, not of when it is drawn."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

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
    digest = hashlib.sha256(f"{seed}\0{caption}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], np.uint64)))
    return generator.standard_normal((steps + 2, length, channels), dtype=np.float32)


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
        bits = np.random.Philox(key=(seed % 2**64, stream), counter=(0, 0, step, row))  # draws count in the first two
        generator = np.random.Generator(bits)
        t[place] = generator.integers(diffusion_steps)
        generator.standard_normal(dtype=np.float32, out=noise[place])
    return TrainingNoise(torch.from_numpy(t), torch.from_numpy(noise[:, 0]), torch.from_numpy(noise[:, 1]))
