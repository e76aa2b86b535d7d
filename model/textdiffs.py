"""TextDiffs: X-Pool whose text embedding is diffused towards each candidate video."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from diffusion_lm.vocabulary import Vocabulary
from model.retrieval import EncodedPairs, Texts, Videos, cosine, mean_cosines, unit_mean
from model.xpool import XPool
from modules.losses import choose_negatives, teacher_student
from modules.noise import sampling_noise, training_noise
from modules.text_diffusion import NoisedTexts, Sampler, TextDiffusion, TrainingNoise

TEACHER_STUDENT_WEIGHT = 0.1
ALL = slice(None)


@dataclass(frozen=True)
class Objective:
    """How TextDiffs is trained beyond the published recipe, which is the default."""

    negatives: int = 0  # K, videos of the batch towards which each text is diffused beside its own
    hard_share: float = 0.5  # of the most similar ones among them
    undiffused_weight: float = 0.0  # of the retrieval loss of the texts as encoded


class TextDiffs(XPool):
    """CLIP, X-Pool's frame pooling, and a text diffusion conditioned on the similarity of words and frames.

    :param text_diffusion: student, teacher and the layers around them.
    :param vocabulary: words of the diffusion.
    :param shared_noise: teacher and student see the same t and noise.
    :param seed: of all noise.
    :param sampling_steps: S, steps at inference.
    :param objective: what training scores, and how.
    :param sentence_condition: whether the condition of every token also holds the cosine of the whole text.
    :param score_fusion: weight of the text as encoded in the score.
    :param fused_pooling: what that text is compared with: the frames pooled for it, or their mean.
    :param round_last: whether the last step of sampling rounds to words like the others.
    """

    moves_text = diffuses = True

    def __init__(
        self,
        clip: CLIPModel,
        tokenizer: CLIPTokenizer,
        text_diffusion: TextDiffusion,
        vocabulary: Vocabulary,
        num_mha_heads: int = 1,
        transformer_dropout: float = 0.3,
        shared_noise: bool = True,
        seed: int = 24,
        sampler: Sampler = "ddpm",
        sampling_steps: int | None = None,
        objective: Objective = Objective(),
        sentence_condition: bool = False,
        score_fusion: float = 0.0,
        fused_pooling: Literal["text", "mean"] = "text",
        round_last: bool = True,
    ) -> None:
        super().__init__(clip, tokenizer, num_mha_heads, transformer_dropout)
        self.text_diffusion, self.vocabulary = text_diffusion, vocabulary
        self.shared_noise, self.seed = shared_noise, seed
        self.objective, self.sentence_condition, self.score_fusion = objective, sentence_condition, score_fusion
        self.fused_pooling, self.round_last = fused_pooling, round_last
        if objective.undiffused_weight:
            self.loss_weights = self.loss_weights | {"undiffused": objective.undiffused_weight}
        self.set_sampling(sampler, sampling_steps or text_diffusion.diffusion.num_steps)

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """CLIP's token ids and the word ids of the diffusion (N, L)."""
        word_ids = self.vocabulary.encode(captions, self.text_diffusion.text_length)
        return super().tokenize(captions) | {"word_ids": word_ids}

    def networks(self) -> list[nn.Module]:
        """CLIP's encoders and the denoisers."""
        return [*super().networks(), self.text_diffusion.student, self.text_diffusion.teacher]

    def videos(self, features: Tensor, names: Sequence[str] | None = None) -> Videos:
        """Frame features (M, F, D), ready to be scored."""
        return replace(super().videos(features, names), frame_channels=self.text_diffusion.frame_channels(features))

    def set_sampling(self, sampler: Sampler, steps: int) -> None:
        """Sample in another way from now on: S = `steps` of the T steps."""
        self.sampler, self.sampling_diffusion = sampler, self.text_diffusion.diffusion.respaced(steps)

    def compile_sampling(self) -> None:
        """Let torch.compile fuse the denoiser of `score_pairs`, once."""
        self.text_diffusion.compile_sampling()

    @property
    def pair_bytes(self) -> int:
        """Activations of one pair at their peak, about: those of a layer of the denoiser, or the word scores."""
        sizes, length = self.text_diffusion.student.config, self.text_diffusion.text_length
        words = self.text_diffusion.student.vocabulary_size
        return 4 * length * (2 * sizes.intermediate_size + 10 * sizes.hidden_size + 2 * words)

    def text_embeddings(
        self, texts: Texts, videos: Videos, text_index: Tensor, video_index: Tensor, features: Tensor
    ) -> Tensor:
        """Diffused text c + exp(l) of each pair, (P, 1, D)."""
        x = self.text_diffusion.sample(*self._sampling(texts, videos, text_index, video_index))
        return (features + self.text_diffusion.log_shift(x).exp())[:, None]

    def score_steps(self, texts: Texts, videos: Videos, text_index: Tensor, video_index: Tensor) -> Iterator[Tensor]:
        """Strict scores of P pairs, (P,), as if each step of the sampling were the last: with the x_0 that it predicts.

        :param text_index: (P,), `video_index` likewise; both on the CPU.
        """
        text_on_device, video_on_device = (index.to(texts.features.device) for index in (text_index, video_index))
        pooled = self.pool(texts, videos, text_on_device, video_on_device)
        features = texts.features[text_on_device]
        for x in self.text_diffusion.sample_steps(*self._sampling(texts, videos, text_index, video_on_device)):
            moved = cosine(features + self.text_diffusion.log_shift(x).exp(), pooled)
            yield self._pairs_fused(moved, features, pooled, videos, video_on_device)

    def _sampling(self, texts: Texts, videos: Videos, text_index: Tensor, video_index: Tensor) -> tuple:
        """Arguments of `TextDiffusion.sample` for pairs.

        :param text_index: (P,) on the CPU; `video_index` on the device.
        """
        used, rows = text_index.unique(return_inverse=True)  # the texts of the block, each once
        noise = sampling_noise(
            [texts.captions[index] for index in used.tolist()],
            self.seed,
            self.sampling_diffusion.num_steps if self.sampler == "ddpm" else 0,
            self.text_diffusion.text_length,
            self.text_diffusion.student.config.channels,
        )
        device = texts.features.device
        return (
            texts.word_ids[used.to(device, non_blocking=True)],
            videos.frame_channels[video_index],
            noise.to(device),
            rows.to(device, non_blocking=True),
            self.sampling_diffusion,
            self.sampler,
            self._sentence(texts.features, videos.features, text_index, video_index),
            self.round_last,
        )

    def _sentence(
        self, texts: Tensor, frames: Tensor, text_index: Tensor | slice = ALL, video_index: Tensor | slice = ALL
    ) -> Tensor | None:
        """Cosine of the text of each pair with each frame of its video, where the condition holds it: (P, F).

        :param texts: (N, D), `frames` (M, F, D).
        :param text_index: (P,), `video_index` likewise; all: the n-th text goes with the n-th video.
        """
        if not self.sentence_condition:
            return None  # before a frame is gathered
        if isinstance(text_index, Tensor):
            text_index = text_index.to(texts.device, non_blocking=True)
        return cosine(texts[text_index][:, None], frames[video_index])

    def draw_noise(self, step: int, rows: range) -> tuple[TrainingNoise, TrainingNoise]:
        """Noise of the student and of the teacher for rows of the batch of a training step, on the CPU."""
        diffusion = self.text_diffusion
        shape = (diffusion.diffusion.num_steps, diffusion.text_length, diffusion.student.config.channels)
        student = training_noise(self.seed, step, 0, rows, *shape)
        return student, student if self.shared_noise else training_noise(self.seed, step, 1, rows, *shape)

    def encode_pairs(
        self, frames: Tensor, token_ids: Tensor, word_ids: Tensor, noise: tuple[TrainingNoise, TrainingNoise]
    ) -> EncodedPairs:
        """Encode pairs and diffuse each text towards its own video.

        :param frames: uint8 (B, F, 3, R, R).
        :param token_ids: (B, tokens).
        :param word_ids: (B, L).
        :param noise: rows of what `draw_noise` gave, on the device.
        """
        pairs = super().encode_pairs(frames, token_ids)
        output = self.text_diffusion(word_ids, pairs.frames, *noise, self._sentence(pairs.texts, pairs.frames))
        distance = TEACHER_STUDENT_WEIGHT * teacher_student(output.teacher, output.student)
        return replace(
            pairs,
            embeddings=pairs.texts + output.log_shift.exp(),
            penalties={"teacher_student": distance},
            noised=output.noised,
        )

    def similarities(
        self, pairs: EncodedPairs, frames: Tensor, own: Tensor, mean_pooled: Tensor | None = None
    ) -> Tensor:
        """Those of the diffused texts, and where it has a weight of the texts as encoded, (T, E, V).

        A text is diffused towards its own video; with `Objective.negatives` also towards K others, which it meets as
        evaluation does, and towards all others it goes as diffused towards its own.
        """
        pooled = self._unit_pooled(pairs.texts, frames)
        diffused, undiffused = self._cosines(torch.stack([pairs.embeddings, pairs.texts], dim=1), pooled).unbind(1)
        if self.objective.negatives:
            chosen = choose_negatives(undiffused, own, self.objective.negatives, self.objective.hard_share)
            diffused = diffused.scatter(1, chosen, self._towards(pairs, frames, pooled, chosen))
        as_encoded = mean_cosines(pairs.texts, unit_mean(frames)) if self.fused_pooling == "mean" else undiffused
        scored = [self._fused(diffused, as_encoded)]
        if "undiffused" in self.loss_weights:
            scored.append(self._fused(undiffused, as_encoded))
        return torch.stack(scored, dim=1)

    def _towards(self, pairs: EncodedPairs, frames: Tensor, pooled: Tensor, chosen: Tensor) -> Tensor:
        """Strict scores of texts with chosen videos, (T, K), all in one call of the student.

        :param pooled: unit p(v|t) of all videos (V, T, D).
        :param chosen: K videos for each text (T, K).
        """
        text = torch.arange(len(chosen), device=chosen.device).repeat_interleave(chosen.shape[1])
        video = chosen.flatten()
        noised = NoisedTexts(*(tensor[text] for tensor in pairs.noised))
        log_shift = self.text_diffusion.log_shift_towards(
            noised,
            self.text_diffusion.frame_channels(frames)[video],
            self._sentence(pairs.texts, frames, text, video),
        )
        return cosine(pairs.texts[text] + log_shift.exp(), pooled[video, text]).view_as(chosen)
