"""Token-wise interaction (WTI of DRL, Wang et al. 2022): words and frames are compared one by one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from model.clip import EncodedVideos
from model.encoders import text_parts
from model.retrieval import TEXTS_AT_ONCE, EncodedPairs, RetrievalModel
from modules.frame_pooling import SimplePooling
from modules.pairs import PairScores, Texts, Videos
from modules.token_interaction import TokenInteraction


class Words(NamedTuple):
    """What scoring reads of the texts of B pairs."""

    weighted: Tensor  # (B, t, D)


class TokenWise(RetrievalModel):
    """The encoder, and cosines of its words with its frames. The first stage of a search takes the features of whole
    texts and the mean of the frames.

    :param clip: the encoder, `tokenizer` its tokenizer.
    """

    pools = False

    def __init__(self, clip: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(clip, tokenizer, SimplePooling("avg"))
        self.interaction = TokenInteraction(self.embed_dim)

    def texts(self, captions: Sequence[str], features: Tensor, tokens: Mapping[str, Tensor]) -> Texts:
        """Captions, their features (N, D) and tokens, ready to be scored: words are encoded here."""
        token_ids = tokens["token_ids"]
        queries = torch.cat([self._words(token_ids[rows])[1] for rows in _slices(len(token_ids))])
        return Texts(captions, features, queries)

    def videos(self, encoded: EncodedVideos, names: Sequence[str] | None = None) -> Videos:
        """What `encode_videos` gave of M videos, ready to be scored."""
        frames = self.interaction.frames(encoded.frames)
        return Videos(encoded.frames, frames, frames, names)

    def undiffused(self, texts: Texts, videos: Videos, chosen: slice) -> Iterator[tuple[slice, Tensor]]:
        """Scores of all texts with the chosen videos, some texts at a time, in float32 whatever the autocast.

        :return: pairs of a slice of the texts and their scores (texts of the slice, chosen videos).
        """
        with torch.autocast(texts.features.device.type, enabled=False):
            for rows in _slices(len(texts)):
                yield rows, self.interaction(texts.queries[rows].float(), videos.keys[chosen].float())

    def undiffused_pairs(self, texts: Texts, videos: Videos, text_index: Tensor, video_index: Tensor) -> Tensor:
        """What `undiffused` gives, of P pairs, (P,).

        :param text_index: (P,), `video_index` likewise; both on the device.
        """
        with torch.autocast(texts.features.device.type, enabled=False):
            return self.interaction.pairs(texts.queries[text_index].float(), videos.keys[video_index].float())

    def score_pairs(
        self, texts: Texts, videos: Videos, text_index: Tensor, video_index: Tensor, own_pooled: Tensor | None = None
    ) -> PairScores:
        """Scores of P pairs, which has no published protocol: no video is pooled for a text.

        :param text_index: (P,), `video_index` likewise; both on the CPU.
        """
        index = (part.to(texts.features.device, non_blocking=True) for part in (text_index, video_index))
        return PairScores(self.undiffused_pairs(texts, videos, *index), None)

    def encode_pairs(self, frames: Tensor, token_ids: Tensor, noise: tuple = ()) -> EncodedPairs:
        """All that the loss needs of pairs and that does not depend on other pairs.

        :param frames: uint8 (B, F, 3, R, R).
        :param token_ids: (B, tokens).
        """
        features, weighted = self._words(token_ids)
        pairs = EncodedPairs(features, self.encode_videos(frames), features, {})
        return replace(pairs, reading=Words(weighted))

    def similarities(
        self, pairs: EncodedPairs, videos: EncodedVideos, own: Tensor, mean_pooled: Tensor | None = None
    ) -> Tensor:
        """Scores of every text with every video in training, (T, 1, V), float32; arguments as in `RetrievalModel`."""
        frames = self.interaction.frames(videos.frames)
        with torch.autocast(frames.device.type, enabled=False):
            return self.interaction(pairs.reading.weighted.float(), frames.float())[:, None]

    def _words(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids (N, tokens) -> features of the texts (N, D), and of their words (N, tokens, D), weighted."""
        features, words, given = text_parts(self.clip, token_ids, self.tokenizer)
        return features, self.interaction.words(words, given)


def _slices(texts: int) -> Iterator[slice]:
    for start in range(0, texts, TEXTS_AT_ONCE):
        yield slice(start, start + TEXTS_AT_ONCE)
