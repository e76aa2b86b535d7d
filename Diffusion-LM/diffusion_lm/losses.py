"""The end-to-end loss of Diffusion-LM: the denoiser and the word table are learned together."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion_lm.denoiser import Denoiser
from diffusion_lm.gaussian_diffusion import GaussianDiffusion

# Tokens of a block of word scores. All (N * L, V) scores at once, 48 MB for 64 captions of MSVD, miss the cache of a
# CPU: the term takes twice as long.
ROUNDING_BLOCK = 256


class EndToEndLoss(NamedTuple):
    """The loss and its four terms, scalars; total = x_start + prior + rounding + words."""

    total: Tensor
    x_start: Tensor  # regression of the network
    prior: Tensor  # what is left of x_0 at T
    rounding: Tensor  # cross-entropy of the words given x_0, in nats per token
    words: Tensor  # the same given the x_0 that the network predicts from x_t


def end_to_end_loss(
    denoiser: Denoiser,
    diffusion: GaussianDiffusion,
    word_ids: Tensor,
    t: Tensor,
    x_start_noise: Tensor,
    q_noise: Tensor,
) -> EndToEndLoss:
    """L_simple^e2e of Li et al. 2022, equation 2, with the network predicting x_0.

    x_0 = E[ids] + sigma_0 * noise. The network regresses to x_0, at t = 0 to the word embedding E[ids] itself. The
    rounding term -log p(ids | x_0) keeps the words apart, which the regression alone would shrink to one point. The
    prior term is |sqrt(abar_T) x_0|^2. Gradients reach the word table through all of them.

    The last term, -log p(ids | x_t), is not in Diffusion-LM (Dieleman et al. 2022, "Continuous diffusion for
    categorical data", train with it alone). Regression leaves the scores of words given a vague x_0 far too sure: at
    the noisiest step twice as many nats as the frequencies of the words have. As a likelihood, which is what TextDiffs
    asks it for, they would be worthless.

    :param word_ids: (N, L).
    :param t: integer steps (N,) in [0, T).
    :param x_start_noise: standard normal (N, L, C).
    :param q_noise: standard normal (N, L, C).
    """
    embedded = denoiser.word_embedding(word_ids)
    x_start = embedded + diffusion.x_start_std * x_start_noise
    predicted = denoiser(diffusion.q_sample(x_start, t, q_noise), diffusion.model_times[t])
    target = torch.where((t == 0)[:, None, None], embedded, x_start)
    regression = F.mse_loss(predicted.float(), target)
    prior = diffusion.alphas_cumprod[-1] * x_start.square().mean()
    rounding = rounding_loss(denoiser, x_start, word_ids)
    words = rounding_loss(denoiser, predicted, word_ids)
    return EndToEndLoss(regression + prior + rounding + words, regression, prior, rounding, words)


def rounding_loss(denoiser: Denoiser, x_start: Tensor, word_ids: Tensor) -> Tensor:
    """-log p(ids | x_0), the mean over all tokens.

    :param x_start: (N, L, C), or a prediction of it.
    :param word_ids: (N, L).
    """
    return nats(denoiser, x_start, word_ids).mean()


def nats(denoiser: Denoiser, x_start: Tensor, word_ids: Tensor) -> Tensor:
    """-log p(ids | x_0) of each token, (N, L), float32; arguments as above."""
    # float32 always: half precision cannot tell the scores of thousands of words apart
    with torch.autocast(x_start.device.type, enabled=False):
        rows, ids = x_start.float().flatten(0, 1), word_ids.flatten()
        blocks = zip(rows.split(ROUNDING_BLOCK), ids.split(ROUNDING_BLOCK), strict=True)
        parts = [F.cross_entropy(denoiser.logits(x), ids, reduction="none") for x, ids in blocks]
        return torch.cat(parts).view_as(word_ids)
