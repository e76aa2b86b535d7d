"""Captions out of noise."""

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion_lm.denoiser import Denoiser, nearest_word
from diffusion_lm.gaussian_diffusion import GaussianDiffusion
from diffusion_lm.vocabulary import UNK, Vocabulary

Sampler = Literal["ddpm", "ddim"]
SAMPLERS: tuple[str, ...] = get_args(Sampler)
SAMPLING_BATCH = 256  # captions


@torch.no_grad()
def sample_words(denoiser: Denoiser, diffusion: GaussianDiffusion, noise: Tensor, sampler: Sampler = "ddpm") -> Tensor:
    """Word ids from noise: predict x_0, snap every token to the nearest row of the word table, step; for all steps.

    UNK stands for words that are not known, so it is never generated.

    :param diffusion: S steps.
    :param noise: x_T, then the noise of each step from the noisiest to t = 0, standard normal (N, S + 1, L, C).
    :return: integer ids (N, L).
    """
    denoiser.eval()
    known = torch.arange(denoiser.vocabulary_size, device=noise.device)
    known = known[known != UNK]
    table = denoiser.word_embedding.weight[known]
    x_t = noise[:, 0]
    for index, step in enumerate(reversed(range(diffusion.num_steps)), start=1):
        t = torch.full((len(x_t),), step, device=x_t.device)
        nearest = nearest_word(denoiser(x_t, diffusion.model_times[t]), table)
        x_start = F.embedding(nearest, table)
        if sampler == "ddpm":
            x_t = diffusion.ddpm_step(x_start, x_t, t, noise[:, index])
        else:
            x_t = diffusion.ddim_step(x_start, x_t, t)
    return known[nearest]


def sample_captions(
    denoiser: Denoiser,
    diffusion: GaussianDiffusion,
    vocabulary: Vocabulary,
    count: int,
    length: int,
    seed: int,
    sampler: Sampler = "ddpm",
) -> list[str]:
    """Generated captions. A caption depends on the seed and its place alone, not on `count`.

    :param length: L, tokens of a caption.
    """
    device = diffusion.betas.device
    shape = (diffusion.num_steps + 1, length, denoiser.config.channels)
    captions: list[str] = []
    for first in range(0, count, SAMPLING_BATCH):
        places = range(first, min(first + SAMPLING_BATCH, count))
        noise = np.stack([np.random.default_rng((seed, p)).standard_normal(shape, dtype=np.float32) for p in places])
        ids = sample_words(denoiser, diffusion, torch.from_numpy(noise).to(device), sampler)
        captions += map(vocabulary.decode, ids.tolist())
    return captions
