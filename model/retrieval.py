"""What every retrieval model is: CLIP, frames pooled for each text, and a score for each pair."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from model.clip import ClipRetrieval

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


class RetrievalModel(ClipRetrieval):
    """CLIP with frames that are pooled for each text. Archs differ in the pooling and in whether the text moves.

    The interface of every model: `tokenize`, `encode_texts`, `encode_videos` (inputs to features), `texts`, `videos`
    (features to what is scored), `undiffused`, `pool`, `score_pairs`; in training `draw_noise`, `encode_pairs`,
    `scored_texts` and `similarities`.

    :param clip: CLIP, `tokenizer` its tokenizer.
    :param pool_frames: FramePooling, or what has its methods.
    """

    moves_text = False  # whether the text is moved towards each video; if not, the strict score is the undiffused one
    diffuses = False  # whether that is done by a text diffusion, whose sampling `set_sampling` changes
    needs_mean_pooled = False  # whether `scored_texts` reads the mean over the texts of the pooled videos
    pair_bytes = 0  # memory that one pair of a block of `score_pairs` takes, about

    def __init__(self, clip: CLIPModel, tokenizer: CLIPTokenizer, pool_frames: nn.Module) -> None:
        super().__init__(clip, tokenizer)
        self.pool_frames = pool_frames
        self.loss_weights = {"retrieval": 1.0}  # of the retrieval loss of each of `scored_texts`

    def texts(self, captions: Sequence[str], features: Tensor, word_ids: Tensor | None = None) -> Texts:
        """Captions and their features (N, D), ready to be scored."""
        return Texts(captions, features, self.pool_frames.queries(features), word_ids)

    def videos(self, features: Tensor, names: Sequence[str] | None = None) -> Videos:
        """Frame features (M, F, D), ready to be scored."""
        return Videos(features, *self.pool_frames.keys_values(features), names)

    def undiffused(self, texts: Texts, videos: Videos, chosen: slice) -> Iterator[tuple[slice, Tensor]]:
        """cos(text as encoded, p(v|t)) of all texts with the chosen videos, some texts at a time.

        In float32 whatever the autocast: it costs little, and the order that it gives decides what is reranked.

        :return: pairs of a slice of the texts and their scores (texts of the slice, chosen videos).
        """
        with torch.autocast(texts.features.device.type, enabled=False):
            keys = videos.keys[chosen].float()
            atoms = self.pool_frames.atoms(videos.values[chosen].float())
            for start in range(0, len(texts), TEXTS_AT_ONCE):
                rows = slice(start, start + TEXTS_AT_ONCE)
                queries = texts.queries[rows].float()
                yield rows, self.pool_frames.cosines(texts.features[rows].float(), queries, keys, atoms)

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

    def scored_texts(self, pairs: EncodedPairs, mean_pooled: Tensor | None) -> Tensor:
        """Embeddings of each text that training scores against all videos, (B, E, D), one for each of `loss_weights`.

        :param mean_pooled: of the video of each pair, the mean of p(v|t) over all texts of the batch (B, D); None
            unless `needs_mean_pooled`.
        """
        return pairs.embeddings[:, None]

    def similarities(self, texts: Tensor, embeddings: Tensor, frames: Tensor) -> Tensor:
        """cos(embedding e of text i, p(v_j | t_i)) of every text and every video, (T, E, V), float32.

        :param texts: text features (T, D), which pool the frames.
        :param embeddings: text embeddings that are scored (T, E, D).
        :param frames: frame features (V, F, D).
        """
        pooled = F.normalize(self.pool_frames(texts, frames).float(), dim=-1)  # (videos, texts, D)
        return torch.einsum("ted,vtd->tev", F.normalize(embeddings.float(), dim=-1), pooled)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of the last axis in float32, whatever the autocast; the shapes broadcast."""
    return F.cosine_similarity(a.float(), b.float(), dim=-1)
