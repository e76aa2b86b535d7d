"""The similarity engine: score matrices of all (text, video) pairs, streamed in blocks of pairs.

Two stages. The first scores all pairs with the original text embeddings, which is cheap. The second scores as the model
does: all pairs, or with `rerank_topk` only the best of each query. Memory is set by the block: nothing of size
texts x videos x D ever exists, only the N x M float32 matrices, which can lie on disk.

Several processes share the work by whole blocks of one fixed partition, so that a pair is computed with the same
neighbours, and has the same bits, whatever their number (on a CPU inside `one_thread_per_item`).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from modules.frame_pooling import mean_of_frames
from modules.metrics import FirstStage, row_slices
from modules.pairs import PairScores, Texts, Videos
from utils.errors import RunError
from utils.progress import progress
from utils.threads import map_in_order

logger = logging.getLogger(__name__)

VIDEOS_AT_ONCE = 64  # of the first stage
MEMORY_SHARE = 0.5  # of the free memory that a block may take
MOST_PAIRS = 8192  # in a block
FEWEST_BLOCKS = 4
CACHE_BYTES = 2**26  # a CPU is fastest while what it works on stays near
FALLBACK_FREE_BYTES = 2**31  # where a system does not tell its free memory


class PairScorer(Protocol):
    """What the engine needs of a model."""

    rescores: bool  # False: the strict score is the undiffused one, and there is no second stage

    @property
    def pair_bytes(self) -> int:
        """Memory that a pair of a block takes, about."""
        ...

    def pool(self, texts: Texts, videos: Videos, text_index: Tensor, video_index: Tensor) -> Tensor:
        """p(v|t) of pairs, (P, D)."""
        ...

    def undiffused(self, texts: Texts, videos: Videos, chosen: slice) -> Iterator[tuple[slice, Tensor]]:
        """First-stage scores of the chosen videos: slices of the texts, and (texts of the slice, chosen videos)."""
        ...

    def score_pairs(
        self, texts: Texts, videos: Videos, text_index: Tensor, video_index: Tensor, own_pooled: Tensor | None
    ) -> PairScores:
        """Scores of pairs."""
        ...


@dataclass(frozen=True)
class Similarity:
    """Score matrices [text, video], float32; -inf where `first` is given and the pair was not diffused."""

    strict: np.ndarray  # cos(text for v, p(v|t))
    published: np.ndarray | None  # cos(text for v, p(v | v's own caption)); None where a video has several captions
    undiffused: np.ndarray  # cos(original text embedding, p(v|t))
    mean_pooled: np.ndarray  # cos(original text embedding, mean of the frames)
    first: FirstStage | None = None  # what chose the diffused pairs; None when all of them were
    pairs_diffused: int = 0


@dataclass(frozen=True)
class Share:
    """The part of the work that this process does.

    :param merge: completes a matrix in place, each entry being the maximum over all processes.
    """

    rank: int = 0
    size: int = 1
    merge: Callable[[np.ndarray], None] = lambda matrix: None


@torch.no_grad()
def similarity(
    model: PairScorer,
    texts: Texts,
    videos: Videos,
    own_text: Tensor | None = None,
    block_pairs: int | None = None,
    rerank_topk: int = 0,
    share: Share | None = None,
    folder: Path | None = None,
    workers: int = 1,
) -> Similarity:
    """Score every text with every video.

    :param texts: N texts, from `model.texts`.
    :param videos: M videos, from `model.videos`.
    :param own_text: for each video the index of its one caption (M,); None where it has several or none, and the
        published protocol is not defined.
    :param block_pairs: pairs diffused at once; default: `automatic_block`. The scores do not depend on it but for
        rounding. A block that does not fit into memory is halved.
    :param rerank_topk: K, diffuse only the K best videos of each text and the K best texts of each video; 0 or
        K >= min(N, M): all pairs.
    :param share: of several processes, all of which call this with the same arguments.
    :param folder: keep the matrices in files there instead of in memory.
    :param workers: threads that score blocks, on a CPU; what `one_thread_per_item` gives.
    :raises RunError: a feature or a score is NaN or infinite, or a single pair does not fit into memory.
    """
    check_finite("text", texts.features, texts.captions)
    check_finite("frame", videos.features, videos.names)
    shape = (len(texts), len(videos))
    new_matrix = _Matrices(shape, folder)
    own_pooled = None if own_text is None else _own_pooled(model, texts, videos, own_text)
    problem = _Problem(model, texts, videos, own_pooled, share or Share(), workers)
    undiffused, mean_pooled = new_matrix("undiffused"), new_matrix("mean_pooled")
    published = None if own_text is None else new_matrix("published")
    _first_stage(problem, undiffused, mean_pooled, None if model.rescores else published)
    if not model.rescores:
        return Similarity(undiffused, published, undiffused, mean_pooled)
    first = None if not 0 < rerank_topk < min(shape) else choose_candidates(undiffused, rerank_topk)
    strict = new_matrix("strict")
    block_pairs = block_pairs or automatic_block(model.pair_bytes, texts.features.device, shape[0] * shape[1])
    total = _diffuse(problem, strict, published, first, block_pairs)
    return Similarity(strict, published, undiffused, mean_pooled, first, total)


@dataclass(frozen=True)
class _Problem:
    """What both stages work on."""

    model: PairScorer
    texts: Texts
    videos: Videos
    own_pooled: Tensor | None  # p(v | v's own caption), (M, D)
    share: Share
    workers: int

    def refuse_bad(self, scores: np.ndarray, text_index: np.ndarray, video_index: np.ndarray) -> None:
        """:raises RunError: a score is NaN or infinite; the indices are those of the scores, or broadcast to them."""
        if np.isfinite(scores).all():
            return
        bad = tuple(np.argwhere(~np.isfinite(scores))[0])
        text, video = (int(np.broadcast_to(index, scores.shape)[bad]) for index in (text_index, video_index))
        names = self.videos.names
        raise RunError(
            f'the score of "{self.texts.captions[text]}" with {names[video] if names else f"video {video}"} is '
            f"{scores[bad]}; try --precision=fp32 or another checkpoint"
        )


def automatic_block(pair_bytes: int, device: torch.device, pairs: int) -> int:
    """Pairs that a block may have: a power of two, and at most half of the free memory of the device.

    :param pairs: to be scored in all; a CPU divides them into enough blocks to keep its threads busy.
    """
    memory = int(MEMORY_SHARE * _free_bytes(device))
    if device.type == "cpu":
        memory = min(memory, CACHE_BYTES)
    fitting = max(1, memory // max(1, pair_bytes))
    if device.type == "cpu":
        fitting = min(fitting, max(1, pairs // FEWEST_BLOCKS))
    return min(MOST_PAIRS, 2 ** (fitting.bit_length() - 1))


def check_finite(kind: str, features: Tensor, names: Sequence[str] | None) -> None:
    """:raises RunError: a feature is NaN or infinite, so that no order of the scores would mean anything.

    :param features: (N, ...), `names` what they belong to.
    """
    good = torch.isfinite(features).flatten(1).all(1)
    if not good.all():
        index = int(good.logical_not().nonzero()[0, 0])
        name = "" if names is None else f" ({names[index]})"
        what = "text" if kind == "text" else "video"
        raise RunError(
            f"{kind} features hold NaN or infinite values: {int((~good).sum())} of {len(good)}, the first is {what} "
            f"{index}{name}; try --precision=fp32 or another checkpoint"
        )


def _first_stage(
    problem: _Problem, undiffused: np.ndarray, mean_pooled: np.ndarray, published: np.ndarray | None
) -> None:
    """Fill the matrices of the scores that need no diffusion, some videos at a time."""
    texts, videos, share = problem.texts, problem.videos, problem.share
    unit_texts = F.normalize(texts.features.float(), dim=-1)
    products = [(mean_pooled, mean_of_frames(videos.features))]
    if published is not None and problem.own_pooled is not None:
        products.append((published, problem.own_pooled))
    products = [(matrix, F.normalize(vectors.float(), dim=-1)) for matrix, vectors in products]

    def score(start: int) -> None:
        chosen = slice(start, min(start + VIDEOS_AT_ONCE, len(videos)))
        for rows, scores in problem.model.undiffused(texts, videos, chosen):
            values = scores.cpu().numpy()
            problem.refuse_bad(values, np.arange(len(texts))[rows, None], np.arange(chosen.start, chosen.stop))
            undiffused[rows, chosen] = values
            with torch.autocast(unit_texts.device.type, enabled=False):
                for matrix, vectors in products:
                    matrix[rows, chosen] = (unit_texts[rows] @ vectors[chosen].t()).cpu().numpy()

    starts = range(0, len(videos), VIDEOS_AT_ONCE)[share.rank :: share.size]
    done = map_in_order(score, starts, problem.workers)
    for _ in progress(done, "first stage", len(starts), "blocks", shown=share.rank == 0):
        pass
    for matrix in (undiffused, *(matrix for matrix, _ in products)):
        share.merge(matrix)


def choose_candidates(undiffused: np.ndarray, topk: int) -> FirstStage:
    """The K best candidates of each query in each direction, all ties with the last of them included.

    So the choice does not depend on the order of texts and videos.
    """
    text_floor, video_floor = (np.empty(n, dtype=np.float32) for n in undiffused.shape)
    for floor, scores in ((text_floor, undiffused), (video_floor, undiffused.T)):
        queries, gallery = scores.shape
        for rows in row_slices(queries, gallery):
            floor[rows] = np.partition(scores[rows], gallery - topk, axis=1)[:, gallery - topk]
    return FirstStage(undiffused, text_floor, video_floor)


def _diffuse(
    problem: _Problem, strict: np.ndarray, published: np.ndarray | None, first: FirstStage | None, block_pairs: int
) -> int:
    """Fill the matrices of the chosen pairs; returns how many pairs these are."""
    total = strict.size if first is None else sum(len(pairs) for pairs in _chosen_pairs(first))
    share = problem.share
    mine = islice(_blocks_of_pairs(strict.shape, first, block_pairs), share.rank, None, share.size)
    scored = map_in_order(_BlockScorer(problem, block_pairs), mine, problem.workers)
    with progress(None, "diffusion", -(-total // share.size), "pairs", shown=share.rank == 0) as bar:
        for pairs, scores in chain.from_iterable(scored):
            for matrix, values in ((strict, scores.strict), (published, scores.published)):
                if matrix is not None and values is not None:
                    host = values.float().cpu().numpy()
                    problem.refuse_bad(host, *np.divmod(pairs, strict.shape[1]))
                    matrix.reshape(-1)[pairs] = host
            bar.update(len(pairs))
    for matrix in (strict, published):
        if matrix is not None:
            share.merge(matrix)
    return total


def _chosen_pairs(first: FirstStage) -> Iterator[np.ndarray]:
    """Pairs to diffuse, as text * M + video, text by text, some texts at a time."""
    queries, gallery = first.scores.shape
    for rows in row_slices(queries, gallery):
        of_videos = first.scores[rows] >= first.video_floor
        yield np.flatnonzero(first.candidates_of_texts(rows) | of_videos) + rows.start * gallery


def _blocks_of_pairs(shape: tuple[int, int], first: FirstStage | None, block_pairs: int) -> Iterator[np.ndarray]:
    """Pairs in blocks, all but the last of the same size, text by text so that a block has few texts."""
    if first is None:
        total = shape[0] * shape[1]
        for start in range(0, total, block_pairs):
            yield np.arange(start, min(start + block_pairs, total))
        return
    waiting = np.empty(0, dtype=np.int64)
    for pairs in _chosen_pairs(first):
        waiting = np.concatenate([waiting, pairs])
        whole = len(waiting) // block_pairs * block_pairs
        yield from waiting[:whole].reshape(-1, block_pairs)
        waiting = waiting[whole:]
    if len(waiting):
        yield waiting


class _BlockScorer:
    """Scores blocks of pairs; halves them from the first that does not fit into memory on."""

    def __init__(self, problem: _Problem, block_pairs: int) -> None:
        self.problem, self.most = problem, block_pairs

    def __call__(self, pairs: np.ndarray) -> list[tuple[np.ndarray, PairScores]]:
        """Pairs as text * M + video -> parts of them and their PairScores."""
        parts: list[tuple[np.ndarray, PairScores]] = []
        done = 0
        while done < len(pairs):
            part = pairs[done : done + self.most]
            scores = self._try(part)
            if scores is not None:
                done += len(part)
                parts.append((part, scores))
            elif len(part) == 1:
                raise RunError("a single (text, video) pair does not fit into memory: lower --diffusion_text_len")
            else:
                self.most = min(self.most, len(part) // 2)  # another thread may have halved it already
                logger.warning("out of memory: going on with %d pairs at once", self.most)
        return parts

    def _try(self, pairs: np.ndarray) -> PairScores | None:
        """The scores, or None when memory does not suffice.

        In a function of its own: the error holds the tensors of the failed try until it is left.
        """
        texts, videos = self.problem.texts, self.problem.videos
        text_index, video_index = map(torch.from_numpy, np.divmod(pairs, len(videos)))
        try:
            return self.problem.model.score_pairs(texts, videos, text_index, video_index, self.problem.own_pooled)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):  # GPU, CPU
                return None
            raise


def _own_pooled(model: PairScorer, texts: Texts, videos: Videos, own_text: Tensor) -> Tensor:
    """p(v | v's own caption) of every video, (M, D)."""
    device = texts.features.device
    blocks = torch.arange(len(videos)).split(VIDEOS_AT_ONCE)
    return torch.cat([model.pool(texts, videos, own_text[block].to(device), block.to(device)) for block in blocks])


class _Matrices:
    """Makes float32 matrices of one shape, full of -inf, in memory or in files of a folder."""

    def __init__(self, shape: tuple[int, int], folder: Path | None) -> None:
        self.shape, self.folder = shape, folder

    def __call__(self, name: str) -> np.ndarray:
        if self.folder is None:
            return np.full(self.shape, -np.inf, dtype=np.float32)
        matrix = np.memmap(self.folder / f"{name}.f32", dtype=np.float32, mode="w+", shape=self.shape)
        for rows in row_slices(*self.shape):
            matrix[rows] = -np.inf
        return matrix


def _free_bytes(device: torch.device) -> int:
    """Memory that is free on a device."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # another system than Linux
        return FALLBACK_FREE_BYTES
