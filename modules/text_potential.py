"""The text potential: how much better a video explains the words of a caption than no video does.

A diffusion model ranks by likelihood (Li et al. 2023, "Your Diffusion Model is Secretly a Zero-Shot Classifier";
Krojer et al. 2023, "DiffusionITM"), here that of words: with x_t a noised caption,

    ratio(w, v) = sum over its words of [log p_student(w_i | x_t, v) - log p_teacher(w_i | x_t)],

which estimates the pointwise mutual information of caption and video. The teacher is a frozen Diffusion-LM; the student
is the same network with cross-attention to the video's tokens, and equals it before training, where all ratios are 0.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_lm.denoiser import Denoiser, VideoMemory
from diffusion_lm.gaussian_diffusion import GaussianDiffusion
from diffusion_lm.vocabulary import PAD, START
from modules.video_encoder import VideoEncoder

LEAST_NOISE = 0.4  # of training: t is drawn from the steps from this share of T on
READ_AT = (0.7, 0.8, 0.9)  # shares of T at which a caption is read in a test


class NoisedWords(NamedTuple):
    """N captions and what the networks read of them, whatever the video."""

    word_ids: Tensor  # (N, l), l <= L: what lies behind is PAD for all of them
    x_t: Tensor  # (N, L, C)
    t: Tensor  # (N,)

    def rows(self, index: Tensor) -> "NoisedWords":
        """The captions `index` (P,)."""
        return NoisedWords(*(tensor.index_select(0, index) for tensor in self))


class TextPotential(nn.Module):
    """Student, teacher and the encoder of the videos that the student reads.

    :param student: with cross-attention of the width of the video encoder.
    :param teacher: unconditional, frozen here.
    :param text_length: L, tokens of a caption.
    """

    def __init__(
        self,
        student: Denoiser,
        teacher: Denoiser,
        video_encoder: VideoEncoder,
        diffusion: GaussianDiffusion,
        text_length: int,
    ) -> None:
        super().__init__()
        self.student, self.teacher, self.video_encoder = student, teacher, video_encoder
        self.diffusion, self.text_length = diffusion, text_length
        self.weight = nn.Parameter(torch.ones(()))  # of the ratio, in logits: 1 where its nats are those of the cosines
        self.teacher.requires_grad_(False)
        self.denoise = student.denoise

    def train(self, mode: bool = True) -> "TextPotential":
        """Training mode for everything but the teacher, which never drops out."""
        super().train(mode)
        self.teacher.eval()
        return self

    def compile_scoring(self) -> None:
        """Let torch.compile fuse the student, once; weights and their names stay as they are."""
        if self.denoise == self.student.denoise:
            self.denoise = torch.compile(self.student.denoise)

    def noised(self, word_ids: Tensor, t: Tensor, x_start_noise: Tensor, q_noise: Tensor) -> NoisedWords:
        """x_t ~ q(x_t | words) for given noise, with the words of the teacher, which never move.

        :param word_ids: (N, l).
        :param t: (N,).
        :param x_start_noise: spread of x_0 around the words (N, L, C), `q_noise` likewise that of x_t.
        """
        padded = F.pad(word_ids, (0, self.text_length - word_ids.shape[1]), value=PAD)
        x_start = self.teacher.word_embedding(padded) + self.diffusion.x_start_std * x_start_noise
        return NoisedWords(word_ids, self.diffusion.q_sample(x_start, t, q_noise), t)

    @torch.no_grad()
    def prior(self, noised: NoisedWords) -> Tensor:
        """log p_teacher(w_i | x_t) of each word, 0 where there is none: (N, l), float32."""
        predicted = self.teacher.denoise(noised.x_t, self.diffusion.model_times[noised.t])
        return _log_p(self.teacher, predicted, noised.word_ids)

    def log_p(self, noised: NoisedWords, memory: Sequence[VideoMemory]) -> Tensor:
        """log p_student(w_i | x_t, v) of each word of N captions with a video each, as `prior`: (N, l).

        :param memory: what `student.video_memory` gave of the videos.
        """
        predicted = self.denoise(noised.x_t, self.diffusion.model_times[noised.t], memory=memory)
        return _log_p(self.student, predicted, noised.word_ids)


def is_word(word_ids: Tensor) -> Tensor:
    """Which tokens are counted: the words and the end, neither START nor PAD, which say nothing of a video."""
    return (word_ids != PAD) & (word_ids != START)


def _log_p(denoiser: Denoiser, predicted: Tensor, word_ids: Tensor) -> Tensor:
    """Log-probabilities of words (N, l) where x_0 is predicted to be (N, L, C); 0 for what is no word.

    In float32 always: half precision cannot tell the scores of thousands of words apart.
    """
    with torch.autocast(predicted.device.type, enabled=False):
        logits = denoiser.logits(predicted[:, : word_ids.shape[1]].float())
        log_p = -F.cross_entropy(logits.transpose(1, 2), word_ids, reduction="none")
        return torch.where(is_word(word_ids), log_p, 0.0)
