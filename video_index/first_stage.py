"""The first stage of a search: which clips come near a text or a video by the mean of their frames."""

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.errors import InputError
from utils.files import written_whole

logger = logging.getLogger(__name__)

EXACT_ROWS = 100_000  # up to so many, all are compared
FAISS_FILE = "means-{}.faiss"
TRAINING_ROWS_PER_CELL = 64
CELLS_SHARE = 16  # one cell of so many is looked through: 96 to 99 % of the true 500 best


class FirstStage:
    """Cosines with the mean-pooled features of M clips: exact, or of those that faiss finds above EXACT_ROWS.

    :param means: (M, D), not normalised.
    :param folder: where the structure of faiss is kept.
    :raises InputError: faiss is needed and not installed.
    """

    def __init__(self, means: Tensor, folder: Path) -> None:
        self.means = F.normalize(means, dim=-1)
        self.faiss = _faiss_index(self.means.numpy(), folder) if len(means) > EXACT_ROWS else None

    def best(self, vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The clips whose cosine with the nearest of some vectors is highest.

        :param vectors: (W, D).
        :param count: how many; 0 or more than M: all.
        :return: their cosines in falling order, and their indices, each (count,).
        """
        count = min(count, len(self.means)) or len(self.means)
        vectors = F.normalize(vectors.float(), dim=-1)
        if self.faiss is None or count == len(self.means):
            return (self.means @ vectors.t()).max(1).values.topk(count)
        _, found = self.faiss.search(vectors.numpy(), count)
        near = torch.from_numpy(np.unique(found[found >= 0]))
        cosines, order = (self.means[near] @ vectors.t()).max(1).values.topk(min(count, len(near)))
        return cosines, near[order]


def _faiss_index(means: np.ndarray, folder: Path) -> Any:
    """Cells of near vectors, made once for each state of an index and kept in its folder."""
    logging.getLogger("faiss").setLevel(logging.WARNING)  # it tells how it loads
    try:
        import faiss
    except ImportError as error:
        raise InputError(
            f"an index of more than {EXACT_ROWS} clips is searched with faiss: pip install faiss-cpu"
        ) from error
    path = folder / FAISS_FILE.format(hashlib.sha256(means.tobytes()).hexdigest()[:16])
    if path.exists():
        try:
            cells = faiss.read_index(str(path))
        except RuntimeError as error:
            raise InputError(f"{path} cannot be read: delete it") from error
    else:
        logger.info("faiss: arranging %d clips", len(means))
        cells = _arranged(faiss, means)
        _keep(faiss, cells, path)
    cells.nprobe = max(1, cells.nlist // CELLS_SHARE)
    return cells


def _arranged(faiss: Any, means: np.ndarray) -> Any:
    count = int(4 * len(means) ** 0.5)
    cells = faiss.index_factory(means.shape[1], f"IVF{count},Flat", faiss.METRIC_INNER_PRODUCT)
    cells.cp.max_points_per_centroid, cells.cp.min_points_per_centroid = TRAINING_ROWS_PER_CELL, 1
    cells.cp.niter = 10
    some = np.random.default_rng(0).permutation(len(means))[: count * TRAINING_ROWS_PER_CELL]
    cells.train(means[np.sort(some)])
    cells.add(means)
    return cells


def _keep(faiss: Any, cells: Any, path: Path) -> None:
    """For the next search. Where the folder cannot be written, that one arranges them again."""
    try:
        with written_whole(path) as unfinished:
            faiss.write_index(cells, str(unfinished))
        for older in path.parent.glob(FAISS_FILE.format("*")):
            if older != path:
                older.unlink(missing_ok=True)
    except (OSError, RuntimeError):
        logger.warning("%s cannot be written: every search will arrange the clips anew", path)
