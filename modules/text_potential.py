"""The text potential: how much better a video explains the words of a caption than no video does.

A diffusion model ranks by likelihood (Li et al. 2023, "Your Diffusion Model is Secretly a Zero-Shot Classifier";
Krojer et al. 2023, "DiffusionITM"), here that of words: with x_t a noised caption,

    ratio(w, v) = sum over its words of [log p(w_i | x_t, v) - log p(w_i | x_t)],

which estimates the pointwise mutual information of caption and video. Both terms are those of one network, a
Diffusion-LM with cross-attention to the tokens of a video, which the second one leaves out (as in classifier-free
guidance, Ho and Salimans 2022). What training teaches it of language alone cancels, so ratios of different captions can
be compared. The cross-attention adds nothing before training: all ratios are 0 then, and both terms are those of the
pre-trained Diffusion-LM.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_lm.denoiser import Denoiser
from diffusion_lm.gaussian_diffusion import GaussianDiffusion
from diffusion_lm.losses import nats
from diffusion_lm.vocabulary import PAD, START
from modules.video_encoder import VideoEncoder

LEAST_NOISE = 0.6  # of training: t is drawn from the steps from this share of T on
READ_AT = (0.6, 0.6, 0.7, 0.7, 0.8, 0.8)  # shares of T at which a caption is read in a test


class NoisedWords(NamedTuple):
    """N captions and what the networks read of them, whatever the video."""

    word_ids: Tensor  # (N, l), l <= L: what lies behind is PAD for all of them
    x_t: Tensor  # (N, L, C)
    t: Tensor  # (N,)

    def rows(self, index: Tensor) -> "NoisedWords":
        """The captions `index` (P,)."""
        return NoisedWords(*(tensor.index_select(0, index) for tensor in self))


class TextPotential(nn.Module):
    """The network that reads captions, and the encoder of the videos with which it reads them.

    :param student: a Diffusion-LM with cross-attention of the width of the video encoder.
    :param word_table: where the words of a caption lie before noise (V, C): those of the pre-trained Diffusion-LM,
        which never move, so that x_t is a function of seed and caption alone.
    :param text_length: L, tokens of a caption.
    """

    word_table: Tensor
    read_weight: Tensor  # a scalar

    def __init__(
        self,
        student: Denoiser,
        word_table: Tensor,
        video_encoder: VideoEncoder,
        diffusion: GaussianDiffusion,
        text_length: int,
    ) -> None:
        super().__init__()
        self.student, self.video_encoder = student, video_encoder
        self.diffusion, self.text_length = diffusion, text_length
        self.register_buffer("word_table", word_table)
        self.weight = nn.Parameter(torch.ones(()))  # of the ratio, in logits: 1 where its nats are those of the cosines
        self.register_buffer("read_weight", torch.ones(()))  # times that, in a test; see `TextDiffs.mix`
        self.denoise = student.denoise  # of scoring, which may be compiled

    def noised(self, word_ids: Tensor, t: Tensor, x_start_noise: Tensor, q_noise: Tensor) -> NoisedWords:
        """x_t ~ q(x_t | words) for given noise, with the words where `word_table` has them.

        :param word_ids: (N, l).
        :param t: (N,).
        :param x_start_noise: spread of x_0 around the words (N, L, C), `q_noise` likewise that of x_t.
        """
        padded = F.pad(word_ids, (0, self.text_length - word_ids.shape[1]), value=PAD)
        x_start = F.embedding(padded, self.word_table) + self.diffusion.x_start_std * x_start_noise
        return NoisedWords(word_ids, self.diffusion.q_sample(x_start, t, q_noise), t)

    def log_p(self, noised: NoisedWords, video: Tensor | None = None) -> Tensor:
        """log p(w_i | x_t, v) of each word of N captions, 0 where there is none: (N, l), float32.

        :param video: tokens of the videos (N, S, W), or of fewer, see `VideoAttention`; None: log p(w_i | x_t).
        """
        denoise = self.student.denoise if self.training else self.denoise  # only scoring is compiled
        x_start = denoise(noised.x_t, self.diffusion.model_times[noised.t], video=video)
        word_ids = noised.word_ids
        log_p = -nats(self.student, x_start[:, : word_ids.shape[1]], word_ids)
        return torch.where(is_word(word_ids), log_p, 0.0)


def is_word(word_ids: Tensor) -> Tensor:
    """Which tokens are counted: the words and the end, neither START nor PAD, which say nothing of a video."""
    return (word_ids != PAD) & (word_ids != START)
