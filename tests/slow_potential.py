"""The likelihoods of the text potential as its formula says: one pair, one word and one score at a time."""

import math

import torch
from torch import Tensor

from diffusion_lm.denoiser import Denoiser
from diffusion_lm.gaussian_diffusion import sqrt_betas
from diffusion_lm.vocabulary import PAD, START
from model.textdiffs import TextDiffs
from modules.noise import caption_noise


def noised(model: TextDiffs, word_ids: list[int], t: int, x_start_noise: Tensor, q_noise: Tensor) -> Tensor:
    """x_t of one caption (L, C): sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise."""
    alphas_cumprod, share = [], 1.0
    for beta in sqrt_betas(model.potential.diffusion.num_steps):
        share *= 1 - beta
        alphas_cumprod.append(share)
    words = word_ids + [PAD] * (model.potential.text_length - len(word_ids))
    table = model.potential.word_table
    rows = []
    for place, word in enumerate(words):
        x_0 = table[word] + math.sqrt(1 - alphas_cumprod[0]) * x_start_noise[place]
        rows.append(math.sqrt(alphas_cumprod[t]) * x_0 + math.sqrt(1 - alphas_cumprod[t]) * q_noise[place])
    return torch.stack(rows)


def log_p(
    denoiser: Denoiser, word_ids: list[int], x_t: Tensor, time: float, tokens: Tensor | None = None
) -> list[float]:
    """log p(w | x_t), or log p(w | x_t, v), of each word of one caption that is neither START nor PAD.

    :param x_t: (L, C).
    :param time: t * 1000 / T.
    :param tokens: of the video (S, W).
    """
    video = None if tokens is None else tokens[None]
    predicted = denoiser.denoise(x_t[None], torch.tensor([time]), video=video)[0].double()
    table, bias = denoiser.word_embedding.weight.double(), denoiser.lm_head.bias.double()
    found = []
    for place, word in enumerate(word_ids):
        if word not in (START, PAD):
            scores = [(predicted[place] @ row + shift).item() for row, shift in zip(table, bias, strict=True)]
            found.append(scores[word] - math.log(sum(map(math.exp, scores))))
    return found


@torch.no_grad()
def ratio(model: TextDiffs, caption: str, tokens: Tensor) -> float:
    """Mean over the draws of a test of the sum over the words of log p(w | x_t, v) - log p(w | x_t), in nats."""
    potential = model.potential
    steps, channels = potential.diffusion.num_steps, potential.student.config.channels
    word_ids = model.vocabulary.encode([caption], potential.text_length)[0].tolist()
    noise = caption_noise([caption], model.seed, 12, potential.text_length, channels)[0]
    total = 0.0
    for draw, t in enumerate(round(share * steps) for share in (0.6, 0.6, 0.7, 0.7, 0.8, 0.8)):
        x_t = noised(model, word_ids, t, noise[2 * draw], noise[2 * draw + 1])
        with_video = log_p(potential.student, word_ids, x_t, t * 1000 / steps, tokens)
        without = log_p(potential.student, word_ids, x_t, t * 1000 / steps)
        total += (sum(with_video) - sum(without)) / 6
    return total
