"""What every retrieval model is: CLIP, frames pooled for each text, and a score for each pair."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from model.clip import ClipRetrieval
from modules.text_diffusion import NoisedTexts

TEXTS_AT_ONCE = 128  # of `undiffused`


@dataclass(frozen=True)
class Texts:
    """N encoded captions, ready to be scored."""

    captions: Sequence[str]
    features: Tensor  # (N, D)
    queries: Tensor  # (N, heads, D / heads)
    word_ids: Tensor | None = None  # (N, L), for models with a text diffusion

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class Videos:
    """M encoded videos, with all that scoring needs and that does not depend on the text."""

    features: Tensor  # (M, F, D)
    keys: Tensor  # (M, F, heads, D / heads)
    values: Tensor  # (M, F, heads, D / heads)
    names: Sequence[str] | None = None  # for messages
    mean: Tensor | None = None  # what `unit_mean` gives (M, D), where the score is fused with it
    frame_channels: Tensor | None = None  # (M, F, C), for models with a text diffusion

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class PairScores:
    """Scores of P pairs, float32."""

    strict: Tensor  # (P,)
    published: Tensor | None  # (P,), None where the protocol is not defined


@dataclass(frozen=True)
class EncodedPairs:
    """B pairs of a training batch, encoded."""

    texts: Tensor  # text features (B, D), by which frames are pooled
    frames: Tensor  # frame features (B, F, D)
    embeddings: Tensor  # text embeddings that are scored (B, D)
    penalties: dict[str, Tensor]  # further terms of the loss by name, scalars, summed over the pairs
    noised: NoisedTexts | None = None  # what moves the texts towards more videos, for models with a text diffusion

    def split(self, size: int) -> "list[EncodedPairs]":
        """Chunks of pairs, without the penalties."""
        rows = zip(*(tensor.split(size) for tensor in (self.texts, self.frames, self.embeddings)), strict=True)
        noised = split_rows(self.noised, size) if self.noised else [None] * (len(self.texts) // size)
        return [EncodedPairs(*chunk, {}, noise) for chunk, noise in zip(rows, noised, strict=True)]

    @classmethod
    def join(cls, parts: "list[EncodedPairs]") -> "EncodedPairs":
        """The pairs of all chunks."""
        if len(parts) == 1:
            return parts[0]
        joined = (torch.cat([getattr(part, name) for part in parts]) for name in ("texts", "frames", "embeddings"))
        penalties = {name: sum(part.penalties[name] for part in parts) for name in parts[0].penalties}
        noised = None
        if parts[0].noised is not None:
            noised = NoisedTexts(*map(torch.cat, zip(*(part.noised for part in parts), strict=True)))
        return cls(*joined, penalties, noised)


def split_rows(rows: NamedTuple, size: int) -> list[NamedTuple]:
    """Chunks of a named tuple of tensors with B rows each."""
    return [type(rows)(*chunk) for chunk in zip(*(tensor.split(size) for tensor in rows), strict=True)]


class RetrievalModel(ClipRetrieval):
    """CLIP with frames that are pooled for each text. Archs differ in the pooling and in whether the text moves.

    The interface of every model: `tokenize`, `encode_texts`, `encode_videos` (inputs to features), `texts`, `videos`
    (features to what is scored), `undiffused`, `pool`, `score_pairs`; in training `draw_noise`, `encode_pairs` and
    `similarities`.

    :param clip: CLIP, `tokenizer` its tokenizer.
    :param pool_frames: FramePooling, or what has its methods.
    """

    moves_text = False  # whether the text is moved towards each video; if not, the strict score is the undiffused one
    diffuses = False  # whether that is done by a text diffusion, whose sampling `set_sampling` changes
    needs_mean_pooled = False  # whether `similarities` reads the mean over the texts of the pooled videos
    score_fusion = 0.0  # w, weight of the text as encoded in the scores of models that move it
    fused_pooling = "text"  # what it is compared with there: frames pooled for it, or their "mean"
    pair_bytes = 0  # memory that one pair of a block of `score_pairs` takes, about

    def __init__(self, clip: CLIPModel, tokenizer: CLIPTokenizer, pool_frames: nn.Module) -> None:
        super().__init__(clip, tokenizer)
        self.pool_frames = pool_frames
        self.loss_weights = {"retrieval": 1.0}  # of the retrieval losses of `similarities`

    def texts(self, captions: Sequence[str], features: Tensor, word_ids: Tensor | None = None) -> Texts:
        """Captions and their features (N, D), ready to be scored."""
        return Texts(captions, features, self.pool_frames.queries(features), word_ids)

    def videos(self, features: Tensor, names: Sequence[str] | None = None) -> Videos:
        """Frame features (M, F, D), ready to be scored."""
        mean = unit_mean(features) if self.fused_pooling == "mean" else None
        return Videos(features, *self.pool_frames.keys_values(features), names, mean)

    def undiffused(self, texts: Texts, videos: Videos, chosen: slice) -> Iterator[tuple[slice, Tensor]]:
        """cos(text as encoded, p(v|t)) of all texts with the chosen videos, some texts at a time; with `score_fusion`
        the score of `score_pairs` of a text that does not move.

        In float32 whatever the autocast: it costs little, and the order that it gives decides what is reranked.

        :return: pairs of a slice of the texts and their scores (texts of the slice, chosen videos).
        """
        with torch.autocast(texts.features.device.type, enabled=False):
            keys = videos.keys[chosen].float()
            atoms = self.pool_frames.atoms(videos.values[chosen].float())
            for start in range(0, len(texts), TEXTS_AT_ONCE):
                rows = slice(start, start + TEXTS_AT_ONCE)
                queries = texts.queries[rows].float()
                features = texts.features[rows].float()
                cosines = self.pool_frames.cosines(features, queries, keys, atoms)
                if videos.mean is not None:
                    cosines = self._fused(cosines, mean_cosines(features, videos.mean[chosen]))
                yield rows, cosines

    def undiffused_pairs(self, texts: Texts, videos: Videos, text_index: Tensor, video_index: Tensor) -> Tensor:
        """What `undiffused` gives, of P pairs, (P,).

        :param text_index: (P,), `video_index` likewise; both on the device.
        """
        pooled, features = self.pool(texts, videos, text_index, video_index), texts.features[text_index]
        return self._pairs_fused(cosine(features, pooled), features, pooled, videos, video_index)

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
        """Score P pairs. Of several embeddings of a text, the one that scores best under strict counts for both.

        The score is (1 - w) cos(moved text, p(v|t)) + w cos(text as encoded, q), where q is p(v|t) or the mean of the
        frames, and w the `score_fusion`.

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
        strict = self._pairs_fused(strict, features, pooled, videos, video_on_device)
        if own_pooled is None:
            return PairScores(strict, None)
        chosen = embeddings.take_along_dim(best[:, None, None], dim=1)[:, 0]
        own_pooled = own_pooled[video_on_device]
        published = cosine(chosen, own_pooled)
        return PairScores(strict, self._pairs_fused(published, features, own_pooled, videos, video_on_device))

    def _pairs_fused(
        self, moved: Tensor, features: Tensor, pooled: Tensor, videos: Videos, video_index: Tensor
    ) -> Tensor:
        """Scores of moved texts (P,) with a share of those of the texts as encoded.

        :param features: text features (P, D).
        :param pooled: what the moved texts were compared with (P, D).
        :param video_index: (P,), on the device.
        """
        if not self.score_fusion:
            return moved
        compared = pooled if videos.mean is None else videos.mean[video_index]
        return self._fused(moved, cosine(features, compared))

    def _fused(self, moved: Tensor, as_encoded: Tensor) -> Tensor:
        """Scores of moved texts and of these texts as encoded, put together."""
        return (1 - self.score_fusion) * moved + self.score_fusion * as_encoded

    def text_embeddings(
        self, texts: Texts, videos: Videos, text_index: Tensor, video_index: Tensor, features: Tensor
    ) -> Tensor:
        """Embeddings of the text of each pair to be scored against the video of the pair, (P, S, D), S samples each.

        :param text_index: (P,) on the CPU; `video_index` on the device.
        :param features: text features of the pairs (P, D).
        """
        return features[:, None]

    def compile_sampling(self) -> None:
        """Let torch.compile fuse what `score_pairs` spends its time in: nothing here."""

    def draw_noise(self, step: int, rows: range) -> tuple:
        """What `encode_pairs` needs for rows of the batch of a training step beyond its inputs: nothing here."""
        return ()

    def encode_pairs(
        self, frames: Tensor, token_ids: Tensor, word_ids: Tensor | None = None, noise: tuple = ()
    ) -> EncodedPairs:
        """All that the loss needs of pairs and that does not depend on other pairs.

        :param frames: uint8 (B, F, 3, R, R).
        :param token_ids: (B, tokens).
        """
        texts = self.encode_texts(token_ids)
        return EncodedPairs(texts, self.encode_videos(frames), texts, {})

    def pooled_sum(self, texts: Tensor, frames: Tensor) -> Tensor:
        """Sum over the texts (T, D) of p(v_j | t) of every video (V, F, D): (V, D), float32."""
        return self.pool_frames(texts, frames).float().sum(1)

    def similarities(
        self, pairs: EncodedPairs, frames: Tensor, own: Tensor, mean_pooled: Tensor | None = None
    ) -> Tensor:
        """Scores of every text with every video in training, (T, E, V), float32, one of E for each of `loss_weights`.

        Here cos(embedding of text i, p(v_j | t_i)).

        :param pairs: T of the pairs of the batch.
        :param frames: frame features of all videos of the batch (V, F, D).
        :param own: the video of each text, (T,) in [0, V).
        :param mean_pooled: of the video of each text, the mean of p(v|t) over all texts of the batch (T, D); None
            unless `needs_mean_pooled`.
        """
        return self._cosines(pairs.embeddings[:, None], self._unit_pooled(pairs.texts, frames))

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


def unit_mean(frames: Tensor) -> Tensor:
    """Frame features (M, F, D) -> the mean of their unit vectors, of length 1 (M, D), float32."""
    return F.normalize(F.normalize(frames.float(), dim=-1).mean(1), dim=-1)


def mean_cosines(texts: Tensor, unit_means: Tensor) -> Tensor:
    """Cosines of text features (T, D) with what `unit_mean` gave (V, D), in float32 whatever the autocast: (T, V)."""
    with torch.autocast(texts.device.type, enabled=False):
        return F.normalize(texts.float(), dim=-1) @ unit_means.t()
