"""Evaluation of a model on a test split, under both protocols and in both directions."""

import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from config import Config
from datasets.annotations import MOTION_TEST, Split
from datasets.failures import TimesBeyond
from datasets.frame_cache import CacheSettings
from datasets.loading import TestVideos, batches, test_loader
from datasets.transforms import Preprocessing
from evaluation.embeddings import Embeddings, new_tokens
from evaluation.motion import motion_rows, twin_pairs
from evaluation.results import Evaluation, SharedCaptions, evaluate_similarity, save_similarity
from model.clip import EncodedVideos
from model.retrieval import RetrievalModel
from model.textdiffs import TextDiffs
from modules.pairs import Texts, Videos
from modules.similarity import Share, Similarity, automatic_block, similarity
from utils import distributed
from utils.device import autocast
from utils.errors import InputError
from utils.progress import progress
from utils.threads import map_in_order, one_thread_per_item, videos_at_once

logger = logging.getLogger(__name__)

SMALL_BLOCK_PAIRS = 32  # of --save_memory_mode


class Evaluator:
    """Evaluates models on one split. Several processes share decoding, encoding and scoring, by whole batches.

    :param split: the test split.
    :param config: batch and block sizes, frames.
    :param dtype: of the matrix products.
    :param preprocessing: of these models.
    """

    def __init__(
        self, split: Split, config: Config, device: torch.device, dtype: torch.dtype, preprocessing: Preprocessing
    ) -> None:
        self.split, self.config, self.device, self.dtype = split, config, device, dtype
        owner = split.segment_of_caption
        single = len(owner) == len(split.segments) and len(set(owner)) == len(owner)
        self.own_text = torch.tensor(owner).argsort() if single else None
        self.videos_at_once = videos_at_once(config.batch_size, device)
        self.texts_of = _shares(len(owner), config.batch_size)
        self.videos_of = _shares(len(split.segments), self.videos_at_once)
        assert config.input_res is not None  # as `Config.of_model` has it
        videos = Subset(
            TestVideos(split, config.num_frames, config.input_res, CacheSettings.of(config), preprocessing),
            self.videos_of[distributed.rank()].tolist(),
        )
        self.loader = test_loader(videos, self.videos_at_once, config.num_workers, device.type == "cuda")
        self.tokens: dict[str, Tensor] | None = None  # of all captions
        self.beyond = TimesBeyond(split)
        self.shared_captions = SharedCaptions.of(split)

    def __call__(self, model: RetrievalModel, mix: bool = False) -> Evaluation:
        """Encode, score, rank; the model is left in the mode in which it came.

        :param mix: let the model choose by this split how much the parts of its score count.
        """
        started = time.perf_counter()
        training = model.training
        model.eval()
        evaluation = self.evaluate(model, self.encode(model), mix=mix)
        model.train(training)
        return replace(evaluation, seconds=time.perf_counter() - started)

    def encode(self, model: RetrievalModel) -> Embeddings:
        """Features of all texts and videos of the split. The model is in evaluation mode, here and below."""
        return self.encode_orders(model, [None])[0]

    @torch.no_grad()
    def encode_orders(self, model: RetrievalModel, orders: Sequence[Tensor | None]) -> list[Embeddings]:
        """What `encode` gives for each of several orders of the frames, which are decoded once.

        :param orders: for each video the frame that takes each place (M, F), on the CPU; None: as they are.
        """
        with autocast(self.device, self.dtype), one_thread_per_item(self.device) as workers:
            texts = self._encode_texts(model, workers)
            return [Embeddings(texts, videos) for videos in self._encode_videos(model, workers, orders)]

    def evaluate(
        self,
        model: RetrievalModel,
        embeddings: Embeddings,
        sims: Path | None = None,
        look: Callable[[Similarity], None] | None = None,
        mix: bool = False,
    ) -> Evaluation:
        """Score all pairs of what is encoded, and rank.

        :param sims: file for the score matrices.
        :param look: is shown the score matrices, in the main process, before they go.
        :param mix: as in a call.
        """
        started = time.perf_counter()
        with self._matrix_folder() as folder:
            scores = self.similarity(model, embeddings, self.config.rerank_topk, folder)
            if mix:
                model.mix(scores, self.split.segment_of_caption)
            seconds = time.perf_counter() - started
            if sims is not None and distributed.is_main():
                save_similarity(sims, scores, self.split.segment_of_caption)
            if look is not None and distributed.is_main():
                look(scores)
            results, references = evaluate_similarity(scores, self.split.segment_of_caption)
            motion = self._motion(model, embeddings, scores) if self.split.name == MOTION_TEST else []
        videos = len(self.split.segments)
        return Evaluation(
            results, references, time.perf_counter() - started, seconds, scores.pairs_diffused,
            videos=videos, annotated=videos + len(self.split.missing), beyond=len(self.beyond.reasons),
            split=self.split.name, shared_captions=self.shared_captions, motion=motion,
        )  # fmt: skip

    @torch.no_grad()
    def similarity(
        self,
        model: RetrievalModel,
        embeddings: Embeddings,
        rerank_topk: int,
        folder: Path | None,
        condition: EncodedVideos | None = None,
    ) -> Similarity:
        """The score matrices, complete in every process.

        :param condition: what a text diffusion is told of the videos in the place of what they show. Candidates, and
            what frames are pooled to, stay those of the embeddings.
        """
        if self.config.compile:
            model.compile_scoring()
        with autocast(self.device, self.dtype), one_thread_per_item(self.device) as workers:
            texts, videos = self._ready(model, embeddings)
            if condition is not None:
                told = model.videos(EncodedVideos(condition.frames.to(self.device), condition.tokens))
                videos = replace(videos, tokens=told.tokens, frame_channels=told.frame_channels)
            logger.info("scoring %d texts x %d videos", len(texts), len(videos))
            share = Share(distributed.rank(), distributed.size(), distributed.merge_maximum)
            block = self._block_pairs(model)
            own_text = self.own_text if model.pools else None
            return similarity(model, texts, videos, own_text, block, rerank_topk, share, folder, workers)

    @torch.no_grad()
    def word_ratios(
        self, model: TextDiffs, embeddings: Embeddings, text_index: Tensor, video_index: Tensor
    ) -> tuple[np.ndarray, np.ndarray]:
        """How much better each word of a text is predicted with a video than without, in nats, for P pairs (P, l), and
        the ids of these words (P, l); in this process alone.

        :param text_index: (P,), `video_index` likewise; on the CPU.
        """
        with autocast(self.device, self.dtype):
            used, rows = text_index.unique(return_inverse=True)  # few of the texts, and only these are prepared
            texts, videos = self._ready(model, embeddings, used)
            block = self.config.batch_size_split or automatic_block(model.pair_bytes, self.device, len(rows))
            pairs = zip(rows.split(block), video_index.split(block), strict=True)
            ratios = torch.cat([model.word_ratios(texts, videos, *pair) for pair in pairs])
            assert texts.word_ids is not None
            return ratios.cpu().numpy(), texts.word_ids[rows.to(self.device)].cpu().numpy()

    @torch.no_grad()
    def _motion(self, model: RetrievalModel, embeddings: Embeddings, scores: Similarity) -> list[dict[str, Any]]:
        """Scores of the twins, also of those that were not reranked together; each process scores all of them."""
        kinds, twins = twin_pairs(self.split)
        index = twins.repeat_interleave(2, dim=1).flatten(), twins.repeat(1, 2).flatten()  # of texts, of videos
        found = {name: getattr(scores, name)[index[0].numpy(), index[1].numpy()] for name in ("strict", "undiffused")}
        if scores.first is not None and kinds:
            with autocast(self.device, self.dtype), one_thread_per_item(self.device):
                texts, videos = self._ready(model, embeddings)
                blocks = zip(*(part.split(self._block_pairs(model)) for part in index), strict=True)
                strict = torch.cat([model.score_pairs(texts, videos, *block).strict for block in blocks])
            found["strict"] = strict.float().cpu().numpy()
        return [row for name, values in found.items() for row in motion_rows(name, kinds, values.reshape(-1, 2, 2))]

    def _ready(
        self, model: RetrievalModel, embeddings: Embeddings, chosen: Tensor | None = None
    ) -> tuple[Texts, Videos]:
        """Texts and videos of the split, ready to be scored.

        :param chosen: the texts (n,), on the CPU; None: all.
        """
        captions, features, tokens = self.split.captions, embeddings.texts, self._tokenized(model)
        if chosen is not None:
            captions, features = [captions[index] for index in chosen.tolist()], features[chosen.to(features.device)]
            tokens = {name: rows[chosen] for name, rows in tokens.items()}
        there = {name: rows.to(self.device) for name, rows in tokens.items()}
        texts = model.texts(captions, features.to(self.device), there)
        names = [str(segment.path) for segment in self.split.segments]
        encoded = embeddings.videos
        return texts, model.videos(EncodedVideos(encoded.frames.to(self.device), encoded.tokens), names)

    def _block_pairs(self, model: RetrievalModel) -> int:
        """The same in every process: the partition into blocks is one."""
        given = self.config.batch_size_split
        pairs = len(self.split.captions) * len(self.split.segments)
        automatic = min(distributed.gather_objects(automatic_block(model.pair_bytes, self.device, pairs)))
        return given or (min(SMALL_BLOCK_PAIRS, automatic) if self.config.save_memory_mode else automatic)

    @contextmanager
    def _matrix_folder(self) -> Iterator[Path | None]:
        """Where --save_memory_mode keeps the score matrices until they are ranked: beside the runs, not in /tmp, which
        may be memory."""
        if not self.config.save_memory_mode:
            yield None
            return
        try:
            Path(self.config.output_dir).mkdir(parents=True, exist_ok=True)
            folder = tempfile.TemporaryDirectory(prefix=".scores-", dir=self.config.output_dir)
        except OSError as error:
            raise InputError(f"--output_dir={self.config.output_dir} cannot be written: {error.strerror}") from error
        with folder as name:
            yield Path(name)

    def _encode_videos(
        self, model: RetrievalModel, workers: int, orders: Sequence[Tensor | None]
    ) -> list[EncodedVideos]:
        """All videos, in the order of the split, for each of the orders of their frames."""
        loaded = progress(
            batches(self.loader, beyond=self.beyond.of_segment),
            "encoding videos",
            len(self.loader),
            "batches",
            shown=distributed.is_main(),
        )
        folder = Path(self.config.output_dir) if self.config.save_memory_mode else None
        shape = model.token_shape
        tokens = [None if shape is None else new_tokens(len(self.split.segments), shape, folder) for _ in orders]

        def encode(batch: tuple[Tensor, Tensor]) -> Tensor:
            """Frame features of a batch (B, orders, F, D); the tokens go where they are kept."""
            frames, features = batch[0].to(self.device, non_blocking=True), []
            for order, kept in zip(orders, tokens, strict=True):
                encoded = model.encode_videos(frames if order is None else reordered(frames, order[batch[1]]))
                if kept is not None and encoded.tokens is not None:
                    kept[batch[1]] = encoded.tokens.to("cpu", kept.dtype)
                features.append(encoded.frames)
            return torch.stack(features, dim=1)

        sizes = (len(orders), self.config.num_frames, model.embed_dim)
        features = self._encode(encode, loaded, workers, self.videos_of, sizes)
        for kept in tokens:
            if kept is not None:
                self._share_tokens(kept)
        for reasons in distributed.gather_objects(self.beyond.reasons):
            self.beyond.reasons |= reasons
        if self.beyond.reasons:
            logger.warning(self.beyond.summary())
        return [EncodedVideos(*videos) for videos in zip(features.unbind(1), tokens, strict=True)]

    def _share_tokens(self, tokens: Tensor) -> None:
        """Complete the tokens of all videos (M, S, W) in every process, some batches at a time."""
        if distributed.size() == 1:
            return
        parts = [share.split(self.videos_at_once) for share in self.videos_of]
        own = parts[distributed.rank()]
        for turn in range(max(map(len, parts))):
            index = own[turn] if turn < len(own) else torch.empty(0, dtype=torch.long)
            sent = tokens[index].view(torch.uint8)  # which every backend can exchange
            rows = distributed.gather_rows(index)
            tokens[rows] = distributed.gather_rows(sent).view(tokens.dtype)

    def _encode_texts(self, model: RetrievalModel, workers: int) -> Tensor:
        """Text features (N, D) of all captions, in the order of the split."""
        ids = self._tokenized(model)["token_ids"][self.texts_of[distributed.rank()]]
        parts = (part for part in ids.split(self.config.batch_size) if len(part))
        return self._encode(
            lambda part: model.encode_texts(part.to(self.device)), parts, workers, self.texts_of, (model.embed_dim,)
        )

    def _tokenized(self, model: RetrievalModel) -> dict[str, Tensor]:
        """What the model reads of all captions, made once."""
        if self.tokens is None:
            self.tokens = model.tokenize(self.split.captions)
        return self.tokens

    def _encode(
        self, encoder: Callable[[Any], Tensor], inputs: Iterable[Any], workers: int, shares: list[Tensor],
        shape: tuple[int, ...],
    ) -> Tensor:  # fmt: skip
        """Features (items, *shape) of all items, in every process, from batches of the share of this one."""
        features = [torch.empty(0, *shape, device=self.device)]
        features += map_in_order(encoder, inputs, workers)
        return _gathered(torch.cat(features), shares)


def reordered(frames: Tensor, order: Tensor) -> Tensor:
    """Frames (B, F, ...) in another order: in the place f of video b that of number order[b, f], order (B, F)."""
    return frames[torch.arange(len(frames))[:, None], order]


def _shares(count: int, batch_size: int) -> list[Tensor]:
    """Which of `count` items each process encodes: every so many-th batch, so that batches are the same for any number
    of processes."""
    whole = torch.arange(count).split(batch_size)
    size = distributed.size()
    return [torch.cat([torch.empty(0, dtype=torch.long), *whole[rank::size]]) for rank in range(size)]


def _gathered(features: Tensor, shares: Sequence[Tensor]) -> Tensor:
    """Features of the share of this process (n, ...) -> those of all items, in order, in every process."""
    if len(shares) == 1:
        return features
    rows = distributed.gather_rows(features.cpu())
    return torch.empty_like(rows).index_copy_(0, torch.cat(list(shares)), rows).to(features.device)
