"""The published text diffusion: a student that moves a text towards a video, taught by a frozen Diffusion-LM."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_lm.denoiser import Denoiser, nearest_word
from diffusion_lm.gaussian_diffusion import GaussianDiffusion
from diffusion_lm.sampling import Sampler
from modules.noise import SamplingNoise, TrainingNoise


@dataclass
class TrainingOutput:
    """What a training step of the diffusion gives."""

    log_shift: Tensor  # l, (B, D)
    student: Tensor  # x_0 predicted by the student (B, L, C)
    teacher: Tensor  # x_0 predicted by the teacher (B, L, C), no gradient


class TextDiffusion(nn.Module):
    """Diffuses the word embeddings of a caption, conditioned on how similar each word is to each frame.

    :param student: denoiser with condition layers, trained with the retrieval model.
    :param teacher: denoiser of the same shape, frozen here.
    :param diffusion: the T-step process.
    :param embed_dim: D, width of the text and frame features.
    :param text_length: L, tokens of a caption.
    :param rounding_table: word table (V, C) to which sampling snaps, where it is not the student's own.
    """

    rounding_table: Tensor | None

    def __init__(
        self,
        student: Denoiser,
        teacher: Denoiser,
        diffusion: GaussianDiffusion,
        embed_dim: int,
        text_length: int,
        rounding_table: Tensor | None = None,
    ) -> None:
        super().__init__()
        channels = student.config.channels
        self.student, self.teacher, self.diffusion = student, teacher, diffusion
        self.text_length = text_length
        self.linear_text = nn.Linear(embed_dim, channels)
        self.linear_sims = nn.Linear(channels, embed_dim)
        self.linear_sims_sum = nn.Linear(text_length, 1)
        self.register_buffer("rounding_table", rounding_table)
        self.denoise = student.denoise  # of sampling, which may be compiled
        self.teacher.requires_grad_(False)
        self.student.lm_head.bias.requires_grad_(False)  # which only pre-training uses, to name words

    def train(self, mode: bool = True) -> "TextDiffusion":
        """Training mode for everything but the teacher, which never drops out."""
        super().train(mode)
        self.teacher.eval()
        return self

    def x_start(self, word_ids: Tensor, noise: Tensor, denoiser: Denoiser | None = None) -> Tensor:
        """x_0 = E[ids] + sigma_0 * noise with the word table of `denoiser` (default: the student).

        :param word_ids: (N, L).
        :param noise: (N, L, C).
        """
        return (denoiser or self.student).word_embedding(word_ids) + self.diffusion.x_start_std * noise

    def frame_channels(self, frames: Tensor) -> Tensor:
        """Frame features (N, F, D) -> unit vectors among the word embeddings (N, F, C)."""
        return F.normalize(self.linear_text(frames).float(), dim=-1)

    def condition(self, x_start: Tensor, frame_channels: Tensor) -> Tensor:
        """Cosine of every token of x_0 (N, L, C) with every frame (N, F, C): s (N, L, F)."""
        return F.normalize(x_start, dim=-1) @ frame_channels.transpose(1, 2)

    def log_shift(self, x: Tensor) -> Tensor:
        """Denoised text x (N, L, C) -> l (N, D); the diffused text is c + exp(l).

        `linear_sims_sum` over tokens of `linear_sims` of each token. Both are linear, so the tokens are summed first
        and no (N, L, D) tensor is made.
        """
        weights = self.linear_sims_sum.weight[0]  # (L,)
        summed = torch.einsum("nlc,l->nc", x, weights)
        bias = self.linear_sims.bias * weights.sum() + self.linear_sims_sum.bias
        return F.linear(summed, self.linear_sims.weight) + bias

    def forward(
        self, word_ids: Tensor, frames: Tensor, noise: TrainingNoise, teacher_noise: TrainingNoise
    ) -> TrainingOutput:
        """One training step: student and teacher predict x_0 for each caption and its own video.

        :param word_ids: (B, L).
        :param frames: frame features of the video of each caption (B, F, D).
        """
        frame_channels = self.frame_channels(frames)
        student = self._predict(self.student, word_ids, noise, frame_channels)
        with torch.no_grad():
            teacher = self._predict(self.teacher, word_ids, teacher_noise, frame_channels)
        return TrainingOutput(self.log_shift(student), student, teacher)

    def _predict(self, denoiser: Denoiser, word_ids: Tensor, noise: TrainingNoise, frame_channels: Tensor) -> Tensor:
        x_start = self.x_start(word_ids, noise.x_start, denoiser)
        x_t = self.diffusion.q_sample(x_start, noise.t, noise.q)
        return denoiser(x_t, self.diffusion.model_times[noise.t], self.condition(x_start, frame_channels))

    @torch.no_grad()
    def sample(
        self,
        word_ids: Tensor,
        frame_channels: Tensor,
        noise: SamplingNoise,
        rows: Tensor | None = None,
        diffusion: GaussianDiffusion | None = None,
        sampler: Sampler = "ddpm",
    ) -> Tensor:
        """Denoise captions towards videos, from pure noise to x_0.

        :param word_ids: of N captions (N, L).
        :param frame_channels: what `frame_channels` gives for the video of each of P pairs (P, F, C).
        :param noise: of the N captions, drawn for the steps of `diffusion`.
        :param rows: the caption of each pair (P,); default: P = N, one pair for each caption.
        :param diffusion: the steps to take; default all T.
        :return: the x_0 that the last step predicts, rounded to words (P, L, C): both samplers step to it.
        """
        diffusion = diffusion or self.diffusion
        if rows is None:
            rows = torch.arange(len(word_ids), device=word_ids.device)
        table = self.student.word_embedding.weight if self.rounding_table is None else self.rounding_table
        condition = self.condition(self.x_start(word_ids, noise.x_start)[rows], frame_channels)
        condition_term = self.student.condition_term(condition)
        x_t = noise.x_T[rows]
        for index, step in enumerate(reversed(range(diffusion.num_steps))):
            t = torch.full((1,), step, device=x_t.device)  # one row: it serves all pairs
            predicted = self.denoise(x_t, diffusion.model_times[t], condition_term)
            x_start = F.embedding(nearest_word(predicted, table), table)
            if step == 0:
                break
            if sampler == "ddpm":
                x_t = diffusion.ddpm_step(x_start, x_t, t, noise.steps[rows, index])
            else:
                x_t = diffusion.ddim_step(x_start, x_t, t)
        return x_start
