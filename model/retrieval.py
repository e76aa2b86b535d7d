"""What every retrieval model is: CLIP, frames pooled for each text, and a score for each pair."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from model.clip import ClipRetrieval, EncodedVideos
from modules.frame_pooling import FramePooling, SimplePooling
from modules.pairs import PairScores, Texts, Videos
from modules.similarity import Similarity

TEXTS_AT_ONCE = 128  # of `undiffused`
Rows = TypeVar("Rows", bound=NamedTuple)  # of tensors of as many rows, or None


@dataclass(frozen=True)
class EncodedPairs:
    """B pairs of a training batch, encoded."""

    texts: Tensor  # text features (B, D), by which frames are pooled
    videos: EncodedVideos  # of B videos
    embeddings: Tensor  # text embeddings that are scored (B, D)
    penalties: dict[str, Tensor]  # further terms of the loss by name, of each pair (B,)
    reading: Any = None  # what more `similarities` needs: a named tuple of tensors of B rows

    def split(self, size: int) -> "list[EncodedPairs]":
        """Chunks of pairs, without the penalties and the tokens of the videos."""
        frames = (EncodedVideos(part) for part in self.videos.frames.split(size))
        reading = split_rows(self.reading, size) if self.reading else [None] * (len(self.texts) // size)
        rows = zip(self.texts.split(size), frames, self.embeddings.split(size), reading, strict=True)
        return [EncodedPairs(texts, videos, embeddings, {}, reading) for texts, videos, embeddings, reading in rows]

    @classmethod
    def join(cls, parts: "list[EncodedPairs]") -> "EncodedPairs":
        """The pairs of all chunks."""
        if len(parts) == 1:
            return parts[0]
        texts, embeddings = (torch.cat([getattr(part, name) for part in parts]) for name in ("texts", "embeddings"))
        penalties = {name: torch.cat([part.penalties[name] for part in parts]) for name in parts[0].penalties}
        videos = join_rows([part.videos for part in parts])
        reading = parts[0].reading and join_rows([part.reading for part in parts])
        return cls(texts, videos, embeddings, penalties, reading)


def split_rows(rows: Rows, size: int) -> list[Rows]:
    """Chunks of a named tuple of tensors with B rows each; what is None stays None."""
    columns = (repeat(None) if tensor is None else tensor.split(size) for tensor in rows)
    return [rows._make(chunk) for chunk in zip(*columns, strict=False)]


def join_rows(parts: Sequence[Rows]) -> Rows:
    """One named tuple of the rows of all; what is None stays None."""
    columns = zip(*parts, strict=True)
    return parts[0]._make(None if column[0] is None else torch.cat(column) for column in columns)


class RetrievalModel(ClipRetrieval):
    """CLIP with frames that are pooled for each text. Archs differ in the pooling and in what more a score looks at.

    The interface of every model: `tokenize`, `encode_texts`, `encode_videos` (inputs to features), `texts`, `videos`
    (features to what is scored), `undiffused`, `pool`, `score_pairs`; in training `draw_noise`, `encode_pairs` and
    `similarities`.

    :param clip: CLIP, `tokenizer` its tokenizer.
    :param pool_frames: how the frames of a video become one embedding.
    """

    pools = True  # whether a video becomes one embedding for a text, as the published protocol asks
    rescores = False  # whether `score_pairs` is more than `undiffused`, which then only chooses what is scored
    needs_mean_pooled = False  # whether `similarities` reads the mean over the texts of the pooled videos
    captions_read = 1  # captions of each video that `encode_pairs` reads, the pair's own included
    negatives = 0  # wrong videos of a batch that `similarities` looks at more closely for each text
    mean_penalties = False  # whether penalties are averaged over the pairs of a batch, not summed

    def __init__(
        self, clip: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pool_frames: FramePooling | SimplePooling
    ) -> None:
        super().__init__(clip, tokenizer)
        self.pool_frames = pool_frames
        self.loss_weights = {"retrieval": 1.0}  # of the retrieval losses of `similarities`
        self.moved_by_muon: tuple[str, ...] = ()  # how names of parameters begin that have potential_lr

    @property
    def token_shape(self) -> tuple[int, int] | None:
        """(S, W) of the tokens of a video, of models that read them."""
        return None

    @property
    def pair_bytes(self) -> int:
        """Memory that one pair of a block of `score_pairs` takes, about."""
        return 0

    def texts(self, captions: Sequence[str], features: Tensor, tokens: Mapping[str, Tensor]) -> Texts:
        """Captions and their features (N, D), ready to be scored.

        :param tokens: what `tokenize` gave of them, on the device.
        """
        return Texts(captions, features, self.pool_frames.queries(features), tokens.get("word_ids"))

    def videos(self, encoded: EncodedVideos, names: Sequence[str] | None = None) -> Videos:
        """What `encode_videos` gave of M videos, ready to be scored."""
        keys, values = self.pool_frames.keys_values(encoded.frames)
        return Videos(encoded.frames, keys, values, names, encoded.tokens)

    def undiffused(self, texts: Texts, videos: Videos, chosen: slice) -> Iterator[tuple[slice, Tensor]]:
        """cos(original text embedding, p(v|t)) of all texts with the chosen videos, some texts at a time.

        In float32 whatever the autocast: it costs little, and the order that it gives decides what is reranked.

        :return: pairs of a slice of the texts and their scores (texts of the slice, chosen videos).
        """
        with torch.autocast(texts.features.device.type, enabled=False):
            keys = videos.keys[chosen].float()
            atoms: Any = self.pool_frames.atoms(videos.values[chosen].float())
            for start in range(0, len(texts), TEXTS_AT_ONCE):
                rows = slice(start, start + TEXTS_AT_ONCE)
                queries = texts.queries[rows].float()
                yield rows, self.pool_frames.cosines(texts.features[rows].float(), queries, keys, atoms)

    def undiffused_pairs(self, texts: Texts, videos: Videos, text_index: Tensor, video_index: Tensor) -> Tensor:
        """What `undiffused` gives, of P pairs, (P,).

        :param text_index: (P,), `video_index` likewise; both on the device.
        """
        return cosine(texts.features[text_index], self.pool(texts, videos, text_index, video_index))

    def pool(self, texts: Texts, videos: Videos, text_index: Tensor, video_index: Tensor) -> Tensor:
        """p(v|t) of P pairs, (P, D).

        :param text_index: (P,), `video_index` likewise.
        """
        return self.pool_frames.pool_pairs(
            texts.queries[text_index], videos.keys[video_index], videos.values[video_index]
        )

    def score_pairs(
        self, texts: Texts, videos: Videos, text_index: Tensor, video_index: Tensor, own_pooled: Tensor | None = None
    ) -> PairScores:
        """Score P pairs: cos(text, p(v|t)). Of several embeddings of a text, the one that scores best under strict
        counts for both protocols.

        :param text_index: (P,) in [0, N), `video_index` (P,) in [0, M); both on the CPU, where they are made, so that
            no step waits for the device.
        :param own_pooled: p(v | v's own caption), (M, D), of the published protocol; None where it is not defined.
        """
        device = texts.features.device
        text_on_device = text_index.to(device, non_blocking=True)
        video_on_device = video_index.to(device, non_blocking=True)
        pooled = self.pool(texts, videos, text_on_device, video_on_device)
        features = texts.features[text_on_device]
        embeddings = self.text_embeddings(texts, videos, text_index, video_on_device, features)
        strict, best = cosine(embeddings, pooled[:, None]).max(1)
        if own_pooled is None:
            return PairScores(strict, None)
        chosen = embeddings.take_along_dim(best[:, None, None], dim=1)[:, 0]
        return PairScores(strict, cosine(chosen, own_pooled[video_on_device]))

    def text_embeddings(
        self, texts: Texts, videos: Videos, text_index: Tensor, video_index: Tensor, features: Tensor
    ) -> Tensor:
        """Embeddings of the text of each pair to be scored against the video of the pair, (P, S, D), S samples each.

        :param text_index: (P,) on the CPU; `video_index` on the device.
        :param features: text features of the pairs (P, D).
        """
        return features[:, None]

    def mix(self, scores: Similarity, video_of_text: Sequence[int]) -> None:
        """Choose by pairs of which the right ones are known how much the parts of a score count: here it has one."""

    def compile_scoring(self) -> None:
        """Let torch.compile fuse what `score_pairs` spends its time in: nothing here."""

    def draw_noise(self, step: int, rows: range) -> tuple:
        """What `encode_pairs` needs for rows of the batch of a training step beyond its inputs: nothing here."""
        return ()

    def encode_pairs(self, frames: Tensor, token_ids: Tensor, *args: Any, **kwargs: Any) -> EncodedPairs:
        """All that the loss needs of pairs and that does not depend on other pairs.

        :param frames: uint8 (B, F, 3, R, R).
        :param token_ids: (B, tokens).
        :param kwargs: what else `tokenize` and, as `noise`, `draw_noise` give: for archs that read it.
        """
        texts = self.encode_texts(token_ids)
        return EncodedPairs(texts, self.encode_videos(frames), texts, {})

    def pooled_sum(self, texts: Tensor, frames: Tensor) -> Tensor:
        """Sum over the texts (T, D) of p(v_j | t) of every video (V, F, D): (V, D), float32."""
        return self.pool_frames(texts, frames).float().sum(1)

    def similarities(
        self, pairs: EncodedPairs, videos: EncodedVideos, own: Tensor, mean_pooled: Tensor | None = None
    ) -> Tensor:
        """Scores of every text with every video in training, (T, E, V), float32, one of E for each of `loss_weights`.

        Here cos(embedding of text i, p(v_j | t_i)).

        :param pairs: T of the pairs of the batch.
        :param videos: all V videos of the batch.
        :param own: the video of each text, (T,) in [0, V).
        :param mean_pooled: of the video of each text, the mean of p(v|t) over all texts of the batch (T, D); None
            unless `needs_mean_pooled`.
        """
        return self._cosines(pairs.embeddings[:, None], self._unit_pooled(pairs.texts, videos.frames))

    def _unit_pooled(self, texts: Tensor, frames: Tensor) -> Tensor:
        """p(v|t) of length 1 for every video (V, F, D) and text (T, D): (V, T, D), float32."""
        return F.normalize(self.pool_frames(texts, frames).float(), dim=-1)

    @staticmethod
    def _cosines(embeddings: Tensor, pooled: Tensor) -> Tensor:
        """Of E embeddings of each text (T, E, D) with what each video is for it (V, T, D): (T, E, V).

        In float32 whatever the autocast: the loss multiplies them by up to 100.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            return torch.einsum("ted,vtd->tev", F.normalize(embeddings.float(), dim=-1), pooled)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of the last axis in float32, whatever the autocast; the shapes broadcast."""
    return F.cosine_similarity(a.float(), b.float(), dim=-1)
