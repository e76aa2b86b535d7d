"""TextDiffs: X-Pool, and a text diffusion that tells how well a video explains the words of a caption."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffusion_lm.vocabulary import PAD, Vocabulary
from model.clip import EncodedVideos
from model.retrieval import EncodedPairs
from model.word_reader import WordReader
from modules.losses import hardest_videos
from modules.metrics import row_slices
from modules.mixing import best_weight
from modules.noise import TrainingNoise, caption_noise, reading_noise
from modules.pairs import PairScores, Texts, Videos
from modules.similarity import Similarity
from modules.text_potential import LEAST_NOISE, READ_AT, NoisedWords, TextPotential, is_word
from utils.device import product_dtype

NEVER = -1e3  # similarity of a text with a video of the batch that it is not read against: no share in a softmax
TEXTS_AT_ONCE = 256  # whose prior is computed together


class ReadPairs(NamedTuple):
    """What the potential of the wrong videos needs of B pairs whose captions were read with their own videos."""

    word_ids: Tensor  # (B, l)
    x_t: Tensor  # (B, L, C)
    t: Tensor  # (B,)
    prior: Tensor  # log p of the caption without a video (B,)
    own_ratio: Tensor  # of the caption and its own video (B,)


class TextDiffs(WordReader):
    """The score of a pair is X-Pool's cosine, and a share of the log ratio of `modules.text_potential`.

    In training the logits are s times the cosine plus w times the nats of one draw, with CLIP's logit scale s and a
    learned w. A test takes the mean of several draws, which has less noise, and a multiple of w that held-out videos
    choose, see `mix`.

    :param potential: the network that reads captions, and the encoder of the videos.
    :param vocabulary: words of the diffusion.
    :param seed: of all noise.
    :param negatives: K, wrong videos with which each text is also read in training.
    :param captions_read: R, captions of each video that are read with it in training.
    """

    mean_penalties = True

    def __init__(
        self,
        clip: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        potential: TextPotential,
        vocabulary: Vocabulary,
        num_mha_heads: int = 1,
        transformer_dropout: float = 0.3,
        seed: int = 24,
        negatives: int = 1,
        captions_read: int = 5,
    ) -> None:
        super().__init__(clip, tokenizer, vocabulary, num_mha_heads, transformer_dropout, seed)
        self.potential = potential
        self.negatives, self.captions_read = negatives, captions_read
        self.loss_weights = {"retrieval": 1.0, "potential": 1.0}
        self.moved_by_muon = ("potential.",)

    @property
    def reader(self) -> TextPotential:
        """The network of the text potential."""
        return self.potential

    @property
    def token_shape(self) -> tuple[int, int]:
        """(S, W) of the tokens of a video."""
        return self.potential.video_encoder.tokens

    def select(self, tokens: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
        """Rows of what `tokenize` gave, ids cut to the longest caption among them.

        :param index: (B,), or (B, R): of the first column, and the words of all; -1 is a caption without words.
        """
        index = index.view(len(index), -1)
        chosen = super().select(tokens, index[:, 0])
        word_ids = torch.where(index[..., None] < 0, PAD, tokens["word_ids"][index])
        return chosen | {"word_ids": without_padding(word_ids)}

    def networks(self) -> list[nn.Module]:
        """CLIP's encoders and that of the videos; the denoisers are called by other names than `forward`."""
        return [*super().networks(), self.potential.video_encoder]

    def encoders(self) -> list[nn.Module]:
        """What texts and videos are encoded with: CLIP and the encoder of the videos."""
        return [*super().encoders(), self.potential.video_encoder]

    def encode_videos(self, frames: Tensor) -> EncodedVideos:
        """Frames uint8 (B, F, 3, R, R) -> their features and the tokens of the videos.

        CLIP learns by contrast alone: the nats of words would outweigh it.
        """
        features, patches = self.frame_features(frames)
        return EncodedVideos(features, self.potential.video_encoder(patches.detach()))

    @property
    def pair_bytes(self) -> int:
        """Memory of one pair at its peak, about: that of `WordReader`, and the tokens of the video."""
        tokens, width = self.token_shape
        return super().pair_bytes + 4 * tokens * width

    # Scoring

    @property
    def nat(self) -> Tensor:
        """What a nat of the mean ratio adds to a score, a scalar."""
        return self.potential.read_weight * self.potential.weight / self.clip.logit_scale.exp()

    def mix(self, scores: Similarity, video_of_text: Sequence[int]) -> None:
        """Choose what a nat adds by pairs of which the right ones are known, and score them so, in place.

        :param scores: of this model.
        """
        factor = best_weight(scores.undiffused, scores.strict, np.asarray(video_of_text))
        self.potential.read_weight.mul_(factor)
        for rows in row_slices(*scores.strict.shape):
            potential = scores.strict[rows] - scores.undiffused[rows]
            more = (factor - 1) * np.where(np.isfinite(potential), potential, 0)  # pairs that nobody scored stay -inf
            for matrix in (scores.strict, scores.published):
                if matrix is not None:
                    matrix[rows] += more

    @torch.no_grad()
    def texts(self, captions: Sequence[str], features: Tensor, tokens: Mapping[str, Tensor]) -> Texts:
        """Captions, their features (N, D) and tokens, with the prior of their words (N, l)."""
        texts = super().texts(captions, features, {"word_ids": without_padding(tokens["word_ids"])})
        parts = []
        for rows in torch.arange(len(texts)).split(TEXTS_AT_ONCE):
            parts.append(torch.stack([self.potential.log_p(noised) for noised in self._draws(texts, rows)]).mean(0))
        return replace(texts, prior=torch.cat(parts))

    def score_pairs(
        self, texts: Texts, videos: Videos, text_index: Tensor, video_index: Tensor, own_pooled: Tensor | None = None
    ) -> PairScores:
        """Score P pairs: X-Pool's cosine and the text potential, which has no part in the published protocol's leak.

        Arguments as in `RetrievalModel`.
        """
        base = super().score_pairs(texts, videos, text_index, video_index, own_pooled)
        ratios = self.word_ratios(texts, videos, text_index, video_index).sum(1)
        potential = self.nat * ratios
        return PairScores(base.strict + potential, None if base.published is None else base.published + potential)

    @torch.no_grad()
    def word_ratios(self, texts: Texts, videos: Videos, text_index: Tensor, video_index: Tensor) -> Tensor:
        """log p(w_i | x_t, v) - log p(w_i | x_t) of each word of P pairs, the mean over the draws: (P, l), float32.

        :param text_index: (P,), `video_index` likewise; both on the CPU.
        """
        assert texts.prior is not None and videos.tokens is not None  # which this model gave them
        device = texts.features.device
        used_texts, text_rows = text_index.unique(return_inverse=True)  # each text and video of the block once
        used_videos, video_rows = video_index.unique(return_inverse=True)
        text_rows, video_rows = (rows.to(device, non_blocking=True) for rows in (text_rows, video_rows))
        tokens = videos.tokens[used_videos].to(device, non_blocking=True)
        tokens = tokens.to(product_dtype(texts.features))[video_rows]
        log_p = [self.potential.log_p(noised.rows(text_rows), tokens) for noised in self._draws(texts, used_texts)]
        prior = texts.prior[used_texts.to(device, non_blocking=True)][text_rows]
        return torch.stack(log_p).mean(0) - prior

    def _draws(self, texts: Texts, index: Tensor) -> Iterator[NoisedWords]:
        """The texts `index` (n,), on the CPU, noised as they are read: a function of seed and caption."""
        assert texts.word_ids is not None
        captions = [texts.captions[row] for row in index.tolist()]
        device, diffusion = texts.features.device, self.potential.diffusion
        shape = (self.potential.text_length, self.potential.student.config.channels)
        noise = caption_noise(captions, self.seed, 2 * len(READ_AT), *shape).to(device, non_blocking=True)
        word_ids = texts.word_ids[index.to(device, non_blocking=True)]
        for draw, share in enumerate(READ_AT):
            t = torch.full((len(captions),), min(diffusion.num_steps - 1, round(share * diffusion.num_steps)))
            yield self.potential.noised(
                word_ids, t.to(device, non_blocking=True), noise[:, 2 * draw], noise[:, 2 * draw + 1]
            )

    # Training

    def draw_noise(self, step: int, rows: range) -> tuple[TrainingNoise]:
        """t and noise for the captions that are read with rows of the batch of a training step, on the CPU; the same
        for all videos of a text."""
        steps = self.potential.diffusion.num_steps
        times = range(min(steps - 1, round(LEAST_NOISE * steps)), steps)
        shape = (self.potential.text_length, self.potential.student.config.channels)
        return (reading_noise(self.seed, step, rows, self.captions_read, times, *shape),)

    def encode_pairs(
        self, frames: Tensor, token_ids: Tensor, word_ids: Tensor, noise: tuple[TrainingNoise]
    ) -> EncodedPairs:
        """Encode pairs, and read captions with the video of each pair and its own caption without one.

        :param frames: uint8 (B, F, 3, R, R).
        :param token_ids: (B, tokens).
        :param word_ids: of the captions that are read, the pair's own first (B, R, l).
        :param noise: rows of what `draw_noise` gave, on the device.
        """
        pairs = super().encode_pairs(frames, token_ids)
        count = word_ids.shape[1]
        drawn = TrainingNoise(*(part[:, :count] for part in noise[0]))
        noised = self.potential.noised(word_ids.flatten(0, 1), *(part.flatten(0, 1) for part in drawn))
        own = NoisedWords(*(part.unflatten(0, (-1, count))[:, 0] for part in noised))
        with_video = self.potential.log_p(noised, pairs.videos.tokens)
        with_video, without = with_video.unflatten(0, (-1, count)), self.potential.log_p(own)
        log_p = torch.cat([with_video, without[:, None]], dim=1)
        readings = 1 + is_word(word_ids).any(2).sum(1)  # a video may have fewer captions than are read
        nats = -log_p.sum((1, 2)) / readings
        prior = without.sum(1).detach()
        return replace(
            pairs, penalties={"words": nats}, reading=ReadPairs(*own, prior, with_video[:, 0].sum(1) - prior)
        )

    def similarities(
        self, pairs: EncodedPairs, videos: EncodedVideos, own: Tensor, mean_pooled: Tensor | None = None
    ) -> Tensor:
        """Those of X-Pool, and the scores of each text with its own and the K wrong videos that are most similar to it,
        NEVER for the others: (T, 2, V)."""
        base = super().similarities(pairs, videos, own)[:, 0]
        wrong = hardest_videos(base, own, self.negatives)
        ratios = pairs.reading.own_ratio[:, None]
        if videos.tokens is not None and wrong.shape[1]:  # there is none in a batch of one video
            ratios = torch.cat([ratios, self._ratios(pairs.reading, videos.tokens, wrong)], dim=1)
        chosen = torch.cat([own[:, None], wrong], dim=1)
        scores = base.gather(1, chosen) + self.potential.weight * ratios / self.clip.logit_scale.exp()
        return torch.stack([base, torch.full_like(base, NEVER).scatter(1, chosen, scores)], dim=1)

    def _ratios(self, read: ReadPairs, tokens: Tensor, videos: Tensor) -> Tensor:
        """Log ratio of T captions, each with K videos of the batch, (T, K).

        :param tokens: of all videos (V, S, W).
        :param videos: (T, K) in [0, V).
        """
        text = torch.arange(len(videos), device=videos.device).repeat_interleave(videos.shape[1])
        noised = NoisedWords(read.word_ids, read.x_t, read.t).rows(text)
        return (self.potential.log_p(noised, tokens[videos.flatten()]).sum(1) - read.prior[text]).view_as(videos)


def without_padding(word_ids: Tensor) -> Tensor:
    """Word ids (..., L) up to the end of the longest caption: (..., l). Where they are on a GPU, this waits for it."""
    return word_ids[..., : int((word_ids != PAD).sum(-1).max())]
