"""Queries over an index, in up to three stages that are each dearer than the one before and see fewer segments.

1. All segments by the cosine of the query with the mean of their frames (`mean_pooled`).
2. The best --pool_topk of them by the model's score of the query's original embedding, with its own pooling (`pooled`).
3. Where the model's score of a pair is more than that, the best --rerank_topk of those by its score (`rescored`).

A segment that a later stage saw ranks before all that it did not see. With --pool_topk=0 --rerank_topk=0 the ranking is
that of the model's score of all pairs.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from config import SearchConfig
from evaluation.embeddings import TOKENS_DTYPE, encode_captions
from model.clip import EncodedVideos
from model.retrieval import RetrievalModel, Texts, Videos
from modules.frame_pooling import mean_of_frames
from modules.similarity import automatic_block
from utils.device import autocast
from utils.errors import InputError
from utils.threads import map_in_order, one_thread_per_item
from video_index.files import state_of
from video_index.query import Query
from video_index.ranking import Ranking, combined, moment, nearest, shares
from video_index.store import IndexedSegment, Store

PAIRS_AT_ONCE = 4096  # of the second stage
UNDIVIDED = 2**20  # a count of pairs so high that memory alone divides them: few are fastest in one block


@dataclass(frozen=True)
class Hit:
    """A segment, or a sentence for one, and how well it fits."""

    score: float
    stage: str  # "mean_pooled", "pooled" or "rescored": what the score is
    segment: IndexedSegment
    sentence: str | None = None
    share: float | None = None  # of the library's segments that score less, in percent; of segments
    moment: tuple[float | None, float | None] | None = None  # where it is more than the segment: the neighbours with it

    @property
    def start(self) -> float | None:
        """Of the moment, in seconds; None: of the whole video, whose length is not known."""
        return self.segment.start if self.moment is None else self.moment[0]

    @property
    def end(self) -> float | None:
        """Of the moment, in seconds."""
        return self.segment.end if self.moment is None else self.moment[1]


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
        self.segments: list[IndexedSegment] = []
        self.parts: dict[tuple[int, int], int] = {}  # the index of each segment by video and part
        with self.current():
            pass

    @contextmanager
    def current(self) -> Iterator[None]:
        """Inside, `segments` and `means` are those of the index as it is now, and it does not change.

        :raises InputError: it holds nothing.
        """
        with self.store.snapshot() as changed:
            if changed:
                self.segments, means = self.store.gallery()
                self.means = F.normalize(torch.from_numpy(means), dim=-1)  # (M, D)
                self.parts = {(segment.video, segment.part): index for index, segment in enumerate(self.segments)}
            if not self.segments:
                raise InputError(f"--index={self.store.folder} holds no video: index some first")
            yield

    @torch.no_grad()
    def search(self, query: Query) -> list[Hit]:
        """The best segments for a query. Without a text there is the first stage alone.

        :raises InputError: a video is not in the index and does not decode, or a folder holds nothing.
        """
        with self.current(), autocast(self.device, self.dtype):
            vectors, own = self._vectors(query)
            cosines, rows = nearest(self.means, vectors.cpu())
            passing = query.filters.passing(self.segments, self.store.roots())
            if own:
                passing = [index for index in passing if self.segments[index].file not in own]
            searched = torch.from_numpy(np.fromiter(passing, np.int64))
            pooled = self.config.pool_topk or len(searched)
            all_count = query.per_video or query.min_score > 0
            wanted = len(searched) if all_count else max(pooled, query.topk or self.config.topk)
            found = cosines[searched].topk(min(wanted, len(searched)))
            chosen = searched[found.indices]
            ranking = Ranking(rows[chosen], torch.arange(len(chosen)), found.values, ["mean_pooled"] * len(chosen))
            if query.texts and len(chosen):
                texts = self._texts(query.texts[:1] * len(vectors), vectors)
                seen = chosen[:pooled]
                videos = self._videos(self._held([self.segments[index] for index in seen.tolist()]))
                ranking = self._refined(texts, videos, ranking, len(seen))
            ranked = chosen[ranking.video_index]
            hits = self._hits(query, ranking, ranked, shares(ranked, searched, cosines), cosines)
            return list(islice(hits, query.topk or self.config.topk))

    def _vectors(self, query: Query) -> tuple[Tensor, set[str]]:
        """What is searched for (W, D), and the names of the video that it is to be like."""
        sentences = (*query.texts, *query.minus)
        features = self._text_features(sentences) if sentences else torch.zeros(0, self.model.embed_dim)
        like, own = None, set()
        if query.like is not None:
            segments, encoded = self._of_index(query.like) if isinstance(query.like, int) else self.encoded(query.like)
            like, own = mean_of_frames(encoded.frames).to(features), {segments[0].file, *segments[0].others}
        count = len(query.texts)
        return combined(features[:count], features[count:], like), own

    def _hits(self, query: Query, ranking: Ranking, ranked: Tensor, share: Tensor, cosines: Tensor) -> Iterator[Hit]:
        """The hits of a ranking, the best first.

        :param ranked: the segments of the ranking (P,); `share` of the library that scores less, (P,).
        :param cosines: of all segments (M,).
        """
        videos = set()
        columns = (ranked.tolist(), ranking.scores.tolist(), ranking.stages, share.tolist())
        for index, score, stage, percent in zip(*columns, strict=True):
            segment = self.segments[index]
            if percent < query.min_score or (query.per_video and segment.video in videos):
                continue
            videos.add(segment.video)
            span = moment(index, self.segments, self.parts, cosines) if query.per_video else None
            yield Hit(score, stage, segment, share=percent, moment=span)

    @torch.no_grad()
    def describe(self, video: str, sentences: Sequence[str]) -> list[Hit]:
        """The best --topk of N sentences for a video; of a long video, the segment that fits a sentence best counts.

        :raises InputError: the video is not in the index and does not decode.
        """
        with self.current(), autocast(self.device, self.dtype):
            segments, encoded = self.encoded(video)
            texts = self._texts(sentences, self._text_features(sentences))
            videos = self._videos(encoded)
            means = F.normalize(mean_of_frames(encoded.frames), dim=-1).to(self.device)
            cosines = (F.normalize(texts.features.float(), dim=-1) @ means.t()).flatten().cpu()
            cosines, pairs = cosines.sort(descending=True, stable=True)
            text_index, video_index = pairs // len(segments), pairs % len(segments)
            ranking = Ranking(text_index, video_index, cosines, ["mean_pooled"] * len(pairs))
            ranking = self._refined(texts, videos, ranking, self.config.pool_topk or len(pairs))
        return _first_of_each(ranking, segments, sentences)[: self.config.topk]

    def encoded(self, video: str) -> tuple[list[IndexedSegment], EncodedVideos]:
        """The segments of a video and what is encoded of them, from the index if it holds them as they are.

        :raises InputError: it is not there or does not decode.
        """
        file = os.path.abspath(video)
        state = state_of(file)
        known = self.store.video_at(file, state)
        held = [segment for segment in self.segments if segment.video == known]
        if held and len(held) == held[0].parts:
            return held, self._held(held)
        from video_index.encoding import (
            Encoder,
            NewSegment,
            spans_of,
        )  # FFmpeg and OpenCV, which most queries do without

        spans = spans_of(file, self.store.head.window)
        encoder = Encoder(self.model, self.config, self.device, self.dtype)
        segments = [IndexedSegment(0, 0, file, *span, state.st_mtime_ns) for span in spans]
        return segments, encoder.all([NewSegment(file, span) for span in spans])

    def _of_index(self, id: int) -> tuple[list[IndexedSegment], EncodedVideos]:
        """A segment of the index.

        :raises InputError: there is none of that id.
        """
        held = [segment for segment in self.segments if segment.id == id]
        if not held:
            raise InputError(f"--index={self.store.folder} holds no segment {id}")
        return held, self._held(held)

    def _text_features(self, sentences: Sequence[str]) -> Tensor:
        """Sentences encoded, (N, D)."""
        return encode_captions(self.model, sentences, self.config.batch_size, self.device)

    def _texts(self, sentences: Sequence[str], features: Tensor) -> Texts:
        """Sentences and what stands for them (N, D), ready to be scored."""
        tokens = self.model.tokenize(sentences)
        return self.model.texts(sentences, features, {name: rows.to(self.device) for name, rows in tokens.items()})

    def _held(self, segments: Sequence[IndexedSegment]) -> EncodedVideos:
        """What the index holds of segments; their tokens are read when they are scored."""
        ids = [segment.id for segment in segments]
        tokens = None if self.store.head.tokens is None else _StoredTokens(self.store, ids)
        return EncodedVideos(torch.from_numpy(self.store.frames(ids)), tokens)

    def _videos(self, encoded: EncodedVideos) -> Videos:
        return self.model.videos(encoded._replace(frames=encoded.frames.to(self.device)))

    def _refined(self, texts: Texts, videos: Videos, ranking: Ranking, pooled: int) -> Ranking:
        """The second stage for the first `pooled` pairs of a ranking, then the third where there is one."""
        ranking = ranking.reordered(self._pooled(texts, videos, ranking.head(pooled)), "pooled")
        if not self.model.rescores:
            return ranking
        best = ranking.head(min(self.config.rerank_topk or pooled, pooled))
        return ranking.reordered(self._rescored(texts, videos, best), "rescored")

    def _pooled(self, texts: Texts, videos: Videos, pairs: Ranking) -> Tensor:
        """Scores of the original text embeddings, of pairs, (P,)."""
        scores = []
        for rows in torch.arange(len(pairs.scores)).split(PAIRS_AT_ONCE):
            text_index, video_index = (index[rows].to(self.device) for index in (pairs.text_index, pairs.video_index))
            scores.append(self.model.undiffused_pairs(texts, videos, text_index, video_index))
        return torch.cat(scores)

    def _rescored(self, texts: Texts, videos: Videos, pairs: Ranking) -> Tensor:
        """The model's own score of pairs, (P,)."""
        block = self.config.batch_size_split or automatic_block(self.model.pair_bytes, self.device, UNDIVIDED)
        blocks = zip(pairs.text_index.split(block), pairs.video_index.split(block), strict=True)
        with one_thread_per_item(self.device) as workers:
            scored = map_in_order(lambda block: self.model.score_pairs(texts, videos, *block).strict, blocks, workers)
            return torch.cat(list(scored))


class _StoredTokens:
    """Tokens of M segments (M, S, W), of which `tokens[index]` reads those rows alone: memory may not hold all."""

    def __init__(self, store: Store, ids: Sequence[int]) -> None:
        self.store, self.ids = store, ids

    def __getitem__(self, index: Tensor) -> Tensor:
        """Those of the segments `index` (n,): (n, S, W), bfloat16."""
        halves = self.store.tokens([self.ids[row] for row in index.tolist()])
        return torch.from_numpy(halves).view(TOKENS_DTYPE)


def _first_of_each(ranking: Ranking, segments: Sequence[IndexedSegment], sentences: Sequence[str]) -> list[Hit]:
    """Each sentence once, with the segment that it ranks highest with."""
    hits: dict[int, Hit] = {}
    columns = (ranking.text_index.tolist(), ranking.video_index.tolist(), ranking.scores.tolist(), ranking.stages)
    for text, video, score, stage in zip(*columns, strict=True):
        hits.setdefault(text, Hit(score, stage, segments[video], sentences[text]))
    return list(hits.values())
