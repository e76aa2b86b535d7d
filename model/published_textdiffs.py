"""The published TextDiffs: X-Pool whose text embedding is moved towards each candidate video by a diffusion."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffusion_lm.sampling import Sampler
from diffusion_lm.vocabulary import Vocabulary
from model.clip import EncodedVideos
from model.retrieval import EncodedPairs
from model.word_reader import WordReader
from modules.losses import teacher_student
from modules.noise import sampling_noise, training_noise
from modules.pairs import Texts, Videos
from modules.text_diffusion import TextDiffusion, TrainingNoise

TEACHER_STUDENT_WEIGHT = 0.1


class PublishedTextDiffs(WordReader):
    """CLIP, X-Pool's frame pooling, and a text diffusion conditioned on the similarity of words and frames.

    :param text_diffusion: student, teacher and the layers around them.
    :param vocabulary: words of the diffusion.
    :param seed: of all noise.
    :param sampling_steps: S, steps at inference.
    """

    def __init__(
        self,
        clip: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        text_diffusion: TextDiffusion,
        vocabulary: Vocabulary,
        num_mha_heads: int = 1,
        transformer_dropout: float = 0.3,
        seed: int = 24,
        sampler: Sampler = "ddpm",
        sampling_steps: int | None = None,
    ) -> None:
        super().__init__(clip, tokenizer, vocabulary, num_mha_heads, transformer_dropout, seed)
        self.text_diffusion, self.sampler = text_diffusion, sampler
        self.sampling_diffusion = text_diffusion.diffusion.respaced(
            sampling_steps or text_diffusion.diffusion.num_steps
        )

    @property
    def reader(self) -> TextDiffusion:
        """The text diffusion."""
        return self.text_diffusion

    def networks(self) -> list[nn.Module]:
        """CLIP's encoders and the denoisers."""
        return [*super().networks(), self.text_diffusion.student, self.text_diffusion.teacher]

    def videos(self, encoded: EncodedVideos, names: Sequence[str] | None = None) -> Videos:
        """What `encode_videos` gave of M videos, ready to be scored."""
        channels = self.text_diffusion.frame_channels(encoded.frames)
        return replace(super().videos(encoded, names), frame_channels=channels)

    def text_embeddings(
        self, texts: Texts, videos: Videos, text_index: Tensor, video_index: Tensor, features: Tensor
    ) -> Tensor:
        """Diffused text c + exp(l) of each pair, (P, 1, D)."""
        x = self.text_diffusion.sample(*self._sampling(texts, videos, text_index, video_index))
        return (features + self.text_diffusion.log_shift(x).exp())[:, None]

    def _sampling(self, texts: Texts, videos: Videos, text_index: Tensor, video_index: Tensor) -> tuple:
        """Arguments of `TextDiffusion.sample` for pairs.

        :param text_index: (P,) on the CPU; `video_index` on the device.
        """
        assert texts.word_ids is not None and videos.frame_channels is not None  # which this model gave them
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
        )

    def draw_noise(self, step: int, rows: range) -> tuple[TrainingNoise, TrainingNoise]:
        """Noise of the student and of the teacher for rows of the batch of a training step, on the CPU."""
        diffusion = self.text_diffusion
        shape = (diffusion.diffusion.num_steps, diffusion.text_length, diffusion.student.config.channels)
        student, teacher = (training_noise(self.seed, step, stream, rows, *shape) for stream in range(2))
        return student, teacher

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
        output = self.text_diffusion(word_ids, pairs.videos.frames, *noise)
        distance = TEACHER_STUDENT_WEIGHT * teacher_student(output.teacher, output.student)
        embeddings = pairs.texts + output.log_shift.exp()
        return replace(pairs, embeddings=embeddings, penalties={"teacher_student": distance})
