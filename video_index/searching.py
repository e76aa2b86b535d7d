"""Queries over an index, in up to three stages that are each dearer than the one before and see fewer clips.

1. All clips by the cosine of the query with the mean of their frames (`mean_pooled`).
2. The best --pool_topk of them by the model's score of the query as encoded, with its own pooling (`pooled`).
3. Where the model's score of a pair is more than that, the best --rerank_topk of those by its score (`rescored`).

A clip that a later stage saw ranks before all that it did not see. With --pool_topk=0 --rerank_topk=0 the ranking is
that of the model's score of all pairs.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from config import SearchConfig
from model.clip import EncodedVideos
from model.retrieval import RetrievalModel, Texts, Videos
from modules.similarity import automatic_block, check_finite
from utils.device import autocast
from utils.errors import InputError
from utils.threads import map_in_order, one_thread_per_item
from video_index.encoding import TOKENS_DTYPE, Encoder, Part, spans_of
from video_index.files import state_of
from video_index.store import IndexedClip, Store

PAIRS_AT_ONCE = 4096  # of the second stage
UNDIVIDED = 2**20  # a count of pairs so high that memory alone divides them: few are fastest in one block


@dataclass(frozen=True)
class Hit:
    """A clip, or a sentence for one, and how well it fits."""

    score: float
    stage: str  # "mean_pooled", "pooled" or "rescored": what the score is
    clip: IndexedClip
    sentence: str | None = None


@dataclass(frozen=True)
class _Ranking:
    """Pairs of texts and videos, the best first."""

    text_index: Tensor  # (P,)
    video_index: Tensor  # (P,)
    scores: Tensor  # (P,)
    stages: list[str]  # (P,), the latest first

    def head(self, count: int) -> "_Ranking":
        """The best `count` pairs."""
        return _Ranking(self.text_index[:count], self.video_index[:count], self.scores[:count], self.stages[:count])

    def reordered(self, scores: Tensor, stage: str) -> "_Ranking":
        """The first pairs by their scores of a later stage (n,), before the others as they were."""
        scores, order = scores.cpu().sort(descending=True, stable=True)
        count = len(order)
        text_index, video_index, all_scores = (
            torch.cat([new, old[count:]])
            for new, old in (
                (self.text_index[:count][order], self.text_index),
                (self.video_index[:count][order], self.video_index),
                (scores, self.scores),
            )
        )
        return _Ranking(text_index, video_index, all_scores, [stage] * count + self.stages[count:])


class Searcher:
    """Answers queries.

    :param model: in evaluation mode, on `device`.
    :param dtype: of the matrix products.
    :raises InputError: the index holds nothing.
    """

    def __init__(
        self, model: RetrievalModel, store: Store, config: SearchConfig, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.model, self.store, self.config, self.device, self.dtype = model, store, config, device, dtype
        self.encoder = Encoder(model, config, device, dtype)
        self.clips: list[IndexedClip] = []
        with self._current():
            pass

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Inside, `clips` and `means` are those of the index as it is now, and it does not change.

        :raises InputError: it holds nothing.
        """
        with self.store.snapshot() as changed:
            if changed:
                self.clips, means = self.store.gallery()
                self.means = F.normalize(torch.from_numpy(means), dim=-1)  # (M, D)
            if not self.clips:
                raise InputError(f"--index={self.store.folder} holds no video: index some first")
            yield

    @torch.no_grad()
    def by_text(self, text: str) -> list[Hit]:
        """The best --topk clips for a text."""
        with self._current(), autocast(self.device, self.dtype):
            texts = self._texts([text])
            pooled = self.config.pool_topk
            wanted = 0 if pooled == 0 else max(pooled, self.config.topk)
            cosines, chosen = nearest(self.means, texts.features.cpu(), wanted)
            seen = chosen[:pooled] if pooled else chosen
            videos = self._videos(self._held([self.clips[index] for index in seen.tolist()]))
            everything = torch.arange(len(chosen))
            ranking = _Ranking(torch.zeros_like(everything), everything, cosines, ["mean_pooled"] * len(chosen))
            ranking = self._refined(texts, videos, ranking, len(seen)).head(self.config.topk)
        indices = chosen[ranking.video_index].tolist()
        return [
            Hit(score, stage, self.clips[index])
            for score, stage, index in zip(ranking.scores.tolist(), ranking.stages, indices, strict=True)
        ]

    @torch.no_grad()
    def like(self, video: str) -> list[Hit]:
        """The best --topk clips of other videos by the cosine of the mean-pooled features; of a long video, the part
        that is most like the clip counts.

        :raises InputError: the video is not in the index and does not decode.
        """
        with self._current():
            clips, encoded = self.encoded(video)
            names = {clips[0].file, *clips[0].others}
            own = sum(clip.file in names for clip in self.clips)
            cosines, chosen = nearest(self.means, encoded.frames.mean(1), self.config.topk + own)
            hits = [
                Hit(score, "mean_pooled", self.clips[index])
                for score, index in zip(cosines.tolist(), chosen.tolist(), strict=True)
            ]
        return [hit for hit in hits if hit.clip.file not in names][: self.config.topk]

    @torch.no_grad()
    def describe(self, video: str, sentences: Sequence[str]) -> list[Hit]:
        """The best --topk of N sentences for a video; of a long video, the part that fits a sentence best counts.

        :raises InputError: the video is not in the index and does not decode.
        """
        with self._current(), autocast(self.device, self.dtype):
            clips, encoded = self.encoded(video)
            texts, videos = self._texts(sentences), self._videos(encoded)
            means = F.normalize(encoded.frames.mean(1), dim=-1).to(self.device)
            cosines = (F.normalize(texts.features.float(), dim=-1) @ means.t()).flatten().cpu()
            cosines, pairs = cosines.sort(descending=True, stable=True)
            text_index, video_index = pairs // len(clips), pairs % len(clips)
            ranking = _Ranking(text_index, video_index, cosines, ["mean_pooled"] * len(pairs))
            ranking = self._refined(texts, videos, ranking, self.config.pool_topk or len(pairs))
        return _first_of_each(ranking, clips, sentences)[: self.config.topk]

    def encoded(self, video: str) -> tuple[list[IndexedClip], EncodedVideos]:
        """The clips of a video and what is encoded of them, from the index if it holds them as they are.

        :raises InputError: it is not there or does not decode.
        """
        file = os.path.abspath(video)
        state = state_of(file)
        known = self.store.video_at(file, state)
        held = [clip for clip in self.clips if clip.video == known]
        if held and len(held) == held[0].parts:
            return held, self._held(held)
        spans = spans_of(file, self.store.head.window)
        parts = [Part(file, span) for span in spans]
        clips = [IndexedClip(0, 0, file, *span, state.st_mtime_ns) for span in spans]
        return clips, self.encoder.all(parts)

    def _texts(self, sentences: Sequence[str]) -> Texts:
        """Sentences, encoded and ready to be scored."""
        tokens = self.model.tokenize(sentences)
        ids = [part.to(self.device) for part in tokens.pop("token_ids").split(self.config.batch_size)]
        features = torch.cat([self.model.encode_texts(part) for part in ids])
        check_finite("text", features, sentences)
        return self.model.texts(sentences, features, **{name: rows.to(self.device) for name, rows in tokens.items()})

    def _held(self, clips: Sequence[IndexedClip]) -> EncodedVideos:
        """What the index holds of clips; their tokens are read when they are scored."""
        ids = [clip.id for clip in clips]
        tokens = None if self.store.head.tokens is None else _StoredTokens(self.store, ids)
        return EncodedVideos(torch.from_numpy(self.store.frames(ids)), tokens)

    def _videos(self, encoded: EncodedVideos) -> Videos:
        return self.model.videos(encoded._replace(frames=encoded.frames.to(self.device)))

    def _refined(self, texts: Texts, videos: Videos, ranking: _Ranking, pooled: int) -> _Ranking:
        """The second stage for the first `pooled` pairs of a ranking, then the third where there is one."""
        ranking = ranking.reordered(self._pooled(texts, videos, ranking.head(pooled)), "pooled")
        if not self.model.rescores:
            return ranking
        best = ranking.head(min(self.config.rerank_topk or pooled, pooled))
        return ranking.reordered(self._rescored(texts, videos, best), "rescored")

    def _pooled(self, texts: Texts, videos: Videos, pairs: _Ranking) -> Tensor:
        """Scores of the texts as encoded, of pairs, (P,)."""
        scores = []
        for rows in torch.arange(len(pairs.scores)).split(PAIRS_AT_ONCE):
            text_index, video_index = (index[rows].to(self.device) for index in (pairs.text_index, pairs.video_index))
            scores.append(self.model.undiffused_pairs(texts, videos, text_index, video_index))
        return torch.cat(scores)

    def _rescored(self, texts: Texts, videos: Videos, pairs: _Ranking) -> Tensor:
        """The model's own score of pairs, (P,)."""
        block = self.config.batch_size_split or automatic_block(self.model.pair_bytes, self.device, UNDIVIDED)
        blocks = zip(pairs.text_index.split(block), pairs.video_index.split(block), strict=True)
        with one_thread_per_item(self.device) as workers:
            scored = map_in_order(lambda block: self.model.score_pairs(texts, videos, *block).strict, blocks, workers)
            return torch.cat(list(scored))


def nearest(means: Tensor, vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The clips whose cosine with the nearest of some vectors is highest.

    :param means: (M, D), of length 1.
    :param vectors: (W, D).
    :param count: how many; 0 or more than M: all.
    :return: their cosines in falling order, and their indices, each (count,).
    """
    cosines = means @ F.normalize(vectors.float(), dim=-1).t()
    return cosines.max(1).values.topk(min(count, len(means)) or len(means))


class _StoredTokens:
    """Tokens of M clips (M, S, W), of which `tokens[index]` reads those rows alone: memory may not hold all of them."""

    def __init__(self, store: Store, ids: Sequence[int]) -> None:
        self.store, self.ids = store, ids

    def __getitem__(self, index: Tensor) -> Tensor:
        """Those of the clips `index` (n,): (n, S, W), bfloat16."""
        halves = self.store.tokens([self.ids[row] for row in index.tolist()])
        return torch.from_numpy(halves).view(TOKENS_DTYPE)


def _first_of_each(ranking: _Ranking, clips: Sequence[IndexedClip], sentences: Sequence[str]) -> list[Hit]:
    """Each sentence once, with the clip that it ranks highest with."""
    hits: dict[int, Hit] = {}
    columns = (ranking.text_index.tolist(), ranking.video_index.tolist(), ranking.scores.tolist(), ranking.stages)
    for text, video, score, stage in zip(*columns, strict=True):
        hits.setdefault(text, Hit(score, stage, clips[video], sentences[text]))
    return list(hits.values())
