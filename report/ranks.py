"""The rank of every query: report-ranks.csv beside the page, and how two evaluations of the same queries differ."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.annotations import Split
from modules.bootstrap import Difference, paired_difference
from utils.errors import InputError
from utils.files import written_or_refused

RANKS_FILE = "report-ranks.csv"
IDENTITY = ("direction", "video", "caption")  # columns that say which query it is
SEED = 0  # of the bootstrap: the same ranks give the same intervals
RECALL_AT = (1, 5, 10)


@dataclass(frozen=True)
class Compared:
    """A metric of two evaluations, "R1" in percent or "MeanR", with the difference of the first from the second."""

    name: str
    own: float
    other: float
    difference: Difference


def queries_of(split: Split) -> list[tuple[str, str, str]]:
    """IDENTITY of each text, as it asks for its video, then of each video, which is known by its first caption."""
    segments = split.segments
    texts = [
        ("t2v", segments[segment].video_id, text)
        for segment, text in zip(split.segment_of_caption, split.captions, strict=True)
    ]
    return texts + [("v2t", segment.video_id, segment.captions[0]) for segment in segments]


def write_ranks(path: Path, split: Split, ranks: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Write a CSV file: IDENTITY and the rank by every kind of score, a line for each query.

    :param ranks: by direction, then by kind of score: (queries,).
    :raises InputError: it cannot be written.
    """
    kinds = list(ranks["t2v"])
    columns = [np.concatenate([ranks["t2v"][kind], ranks["v2t"][kind]]).tolist() for kind in kinds]
    refusal = f"ranks {path} cannot be written"
    with written_or_refused(path, refusal) as unfinished, open(unfinished, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*IDENTITY, *kinds])
        writer.writerows([*query, *found] for query, *found in zip(queries_of(split), *columns, strict=True))


def read_ranks(folder: Path, split: Split) -> dict[str, np.ndarray]:
    """Strict ranks (queries,) by direction, of an evaluation that wrote its report to a folder.

    :raises InputError: there are none, or they are of other queries than those of the split.
    """
    path = folder / RANKS_FILE
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        found = [tuple(row[name] for name in IDENTITY) for row in rows]
        ranks = np.array([int(row["strict"]) for row in rows])
    except OSError as error:
        reason = f"{RANKS_FILE} cannot be read ({error.strerror})"
        raise InputError(f"--report={folder}: {reason}; test.py --report writes it beside its results") from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(f"{path} is no table of ranks; test.py --report writes it anew") from error
    if found != queries_of(split):
        raise InputError(
            f"{path} has other queries than this evaluation: evaluate both on the same videos and captions"
        )
    texts = len(split.captions)
    return {"t2v": ranks[:texts], "v2t": ranks[texts:]}


def compare(own: np.ndarray, other: np.ndarray) -> list[Compared]:
    """R@K and mean rank of two evaluations, with the paired difference.

    :param own: ranks (queries,); `other` those of the same queries.
    """
    values = {f"R{k}": (100.0 * (own <= k), 100.0 * (other <= k)) for k in RECALL_AT} | {"MeanR": (own, other)}
    return [
        Compared(name, float(first.mean()), float(second.mean()), paired_difference(first, second, SEED))
        for name, (first, second) in values.items()
    ]


def most_changed(own: np.ndarray, other: np.ndarray, most: int) -> list[int]:
    """Queries whose ranks differ by the largest factor, at most so many: from 1 to 10 is more than from 90 to 100."""
    factor = np.abs(np.log(own / other))
    return [int(query) for query in np.argsort(-factor, kind="stable")[:most] if factor[query]]
