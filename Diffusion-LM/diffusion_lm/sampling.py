"""Captions out of noise."""

from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from diffusion_lm.denoiser import Denoiser, nearest_word
from diffusion_lm.gaussian_diffusion import GaussianDiffusion
from diffusion_lm.vocabulary import START, UNK, Vocabulary

Sampler = Literal["ddpm", "ddim"]
SAMPLERS: tuple[str, ...] = get_args(Sampler)
SAMPLING_BATCH = 256  # captions
TEMPERATURE = 0.6  # of captions for people: fewer different ones than at 1, and more of them fluent


class Reading(NamedTuple):
    """What a network with cross-attention reads."""

    video: Tensor  # tokens of videos (N, S, W)
    table: Tensor  # where the words lie of which it reads noise (V, C)


@torch.no_grad()
def sample_words(
    denoiser: Denoiser,
    diffusion: GaussianDiffusion,
    noise: Tensor,
    sampler: Sampler = "ddpm",
    temperature: float = 1.0,
    reading: Reading | None = None,
) -> Tensor:
    """Word ids from noise: predict x_0 and step, for all steps; then take the nearest row of the word table.

    Words are chosen once, at the end: where each token of an early, vague prediction were snapped to the word that is
    most likely for itself alone, captions would break off. UNK stands for words that are not known: it is never chosen.

    A network that reads videos has learned nothing but the probabilities of words, and none of START: with it x_0 is
    the mean of the words by their probabilities, and START where captions begin.

    :param diffusion: S steps.
    :param noise: x_T, then the noise of each step from the noisiest to t = 0, standard normal (N, S + 1, L, C).
    :param temperature: factor of the noise of the steps (DDIM has none); 1 samples from the model.
    :param reading: what is read, one video for each caption; None: nothing.
    :return: integer ids (N, L).
    """
    denoiser.eval()
    known = torch.arange(denoiser.vocabulary_size, device=noise.device)
    known = known[known != UNK]
    words = (denoiser.word_embedding.weight if reading is None else reading.table)[known]
    x_t = noise[:, 0]
    for index, step in enumerate(reversed(range(diffusion.num_steps)), start=1):
        t = torch.full((len(x_t),), step, device=x_t.device)
        if reading is None:
            x_start = denoiser(x_t, diffusion.model_times[t])
        else:
            predicted = denoiser.denoise(x_t, diffusion.model_times[t], video=reading.video)
            x_start = denoiser.logits(predicted)[..., known].softmax(-1) @ words
            x_start[:, 0] = words[START]
        if sampler == "ddpm":
            x_t = diffusion.ddpm_step(x_start, x_t, t, temperature * noise[:, index])
        else:
            x_t = diffusion.ddim_step(x_start, x_t, t)
    return known[nearest_word(x_start, words)]


def sample_captions(
    denoiser: Denoiser,
    diffusion: GaussianDiffusion,
    vocabulary: Vocabulary,
    count: int,
    length: int,
    seed: int,
    sampler: Sampler = "ddpm",
    temperature: float = TEMPERATURE,
    reading: Reading | None = None,
) -> list[str]:
    """Generated captions. A caption depends on the seed and its place alone, not on `count`.

    :param length: L, tokens of a caption.
    :param temperature: as in `sample_words`.
    :param reading: likewise, but of one video, which all captions are of.
    """
    device = diffusion.betas.device
    shape = (diffusion.num_steps + 1, length, denoiser.config.channels)
    captions: list[str] = []
    for first in range(0, count, SAMPLING_BATCH):
        places = range(first, min(first + SAMPLING_BATCH, count))
        noise = np.stack([np.random.default_rng((seed, p)).standard_normal(shape, dtype=np.float32) for p in places])
        read = reading and Reading(reading.video.expand(len(places), -1, -1), reading.table)
        ids = sample_words(denoiser, diffusion, torch.from_numpy(noise).to(device), sampler, temperature, read)
        captions += map(vocabulary.decode, ids.tolist())
    return captions
