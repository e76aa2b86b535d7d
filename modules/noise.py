"""Noise that is a function of what it is for, not of when it is drawn."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from modules.text_diffusion import SamplingNoise, TrainingNoise


def sampling_noise(captions: Sequence[str], seed: int, steps: int, length: int, channels: int) -> SamplingNoise:
    """The noise of sampling for each caption, a function of (seed, caption) alone.

    So a score does not depend on batch, block, order or process. It is drawn on the CPU and is the same for every
    device.

    :return: x_start and x_T (N, L, C), steps (N, S, L, C), float32.
    """
    noise = np.empty((len(captions), steps + 2, length, channels), dtype=np.float32)
    for row, caption in zip(noise, captions, strict=True):
        digest = hashlib.sha256(f"{seed}\0{caption}".encode()).digest()
        np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], np.uint64))).standard_normal(
            dtype=np.float32, out=row
        )
    tensor = torch.from_numpy(noise)
    return SamplingNoise(tensor[:, 0], tensor[:, 1], tensor[:, 2:])


def training_noise(
    seed: int, step: int, stream: int, batch: int, diffusion_steps: int, length: int, channels: int
) -> TrainingNoise:
    """The noise of one training step, a function of (seed, step, stream).

    :param stream: separates independent draws of the same step.
    """
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, step, stream))))
    t = generator.integers(diffusion_steps, size=batch)
    x_start, q = generator.standard_normal((2, batch, length, channels), dtype=np.float32)
    return TrainingNoise(torch.from_numpy(t), torch.from_numpy(x_start), torch.from_numpy(q))
