"""What a search says: a table for people, JSON for programs, and thumbnails."""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.files import shown
from datasets.video import read_frames
from utils.errors import InputError
from utils.files import written_whole
from video_index.searching import Hit
from video_index.store import IndexedClip

logger = logging.getLogger(__name__)

GREY = np.full((3, 4, 3), 200, dtype=np.uint8)  # in the place of a thumbnail that cannot be made
TITLE_LENGTH, NAME_LENGTH = 100, 26
CELL_INCHES = (2.2, 2.0)
MOST_CELLS = 100  # in each direction; a picture may be 65,536 pixels wide


@dataclass(frozen=True)
class Answer:
    """The hits of a query, the best first."""

    kind: str  # "query", "like" or "describe"
    query: str  # a sentence, or the name of a video
    hits: Sequence[Hit]
    seconds: float


def as_json(answer: Answer) -> str:
    """One line: the query, the seconds that it took, and its hits with rank, score, stage, file, start and
    end, and others: further names of the same video."""
    hits = [
        {"rank": rank, "score": round(hit.score, 6), "stage": hit.stage}
        | ({} if hit.sentence is None else {"caption": hit.sentence})
        | {"file": _text(hit.clip.file), "start": hit.clip.start, "end": hit.clip.end}
        | ({"others": list(map(_text, hit.clip.others))} if hit.clip.others else {})
        for rank, hit in enumerate(answer.hits, start=1)
    ]
    record: dict[str, Any] = {answer.kind: answer.query, "seconds": round(answer.seconds, 4), "hits": hits}
    return json.dumps(record)


def _text(name: str) -> str:
    """A name as its bytes say, whatever the locale."""
    return os.fsencode(name).decode("utf-8", "replace")


def as_table(answer: Answer) -> str:
    """The query and a line for each hit: rank, score, time and file or sentence."""
    lines = []
    for rank, hit in enumerate(answer.hits, start=1):
        what = named(hit.clip) if hit.sentence is None else hit.sentence
        lines.append(f"{rank:4}  {hit.score:7.4f}  {time_of(hit):>21}  {what}")
    title = answer.query if answer.kind == "query" else f"{answer.kind} {answer.query}"
    return "\n".join([f"{title}  ({answer.seconds:.3f} s)", *lines])


def named(clip: IndexedClip) -> str:
    """The name of a clip's file, and how many more it has."""
    more = f"  (and {len(clip.others)} more of the same)" if clip.others else ""
    return f"{shown(clip.file)}{more}{'' if os.path.lexists(clip.file) else '  (not there now)'}"


def time_of(hit: Hit) -> str:
    """From when to when the clip is, as 1:02:03.4; empty where its length is not known."""
    if hit.clip.start is None or hit.clip.end is None:
        return ""
    return f"{clock(hit.clip.start)} - {clock(hit.clip.end)}"


def clock(seconds: float) -> str:
    """Minutes and seconds to a tenth, and hours where there are some."""
    minutes, tenths = divmod(round(seconds * 10), 600)
    hours, minutes = divmod(minutes, 60)
    rest = f"{tenths / 10:04.1f}"
    return f"{hours}:{minutes:02}:{rest}" if hours else f"{minutes}:{rest}"


def thumbnail(hit: Hit) -> tuple[np.ndarray, str | None]:
    """The middle frame of a clip, RGB uint8 (H, W, 3), or a grey area and why."""
    try:
        return read_frames(Path(hit.clip.file), 1, start=hit.clip.start, end=hit.clip.end)[0], None
    except InputError as error:
        reason = str(error) if Path(hit.clip.file).exists() else f"video {shown(hit.clip.file)} is gone"
        return GREY, reason


def contact_sheet(path: Path, answers: Sequence[Answer]) -> None:
    """A picture with a row for each query: thumbnails of its hits with rank, score, file and time.

    :raises InputError: it cannot be written.
    """
    from matplotlib.figure import Figure  # slow to import

    if len(answers) > MOST_CELLS or any(len(answer.hits) > MOST_CELLS for answer in answers):
        logger.warning("%s shows the first %d queries, and of each the first %d hits", path, MOST_CELLS, MOST_CELLS)
        answers = [replace(answer, hits=answer.hits[:MOST_CELLS]) for answer in answers[:MOST_CELLS]]
    columns = max(len(answer.hits) for answer in answers)
    width, height = CELL_INCHES
    figure = Figure(figsize=(max(6, columns * width), len(answers) * (height + 0.4)), layout="constrained")
    rows = figure.subfigures(len(answers), 1, squeeze=False)[:, 0]
    for row, answer in zip(rows, answers, strict=True):
        row.suptitle(_shortened(answer.query, TITLE_LENGTH), fontsize=10, parse_math=False)
        cells = row.subplots(1, columns, squeeze=False)[0]
        for cell in cells:
            cell.axis("off")
        for cell, (picture, caption) in zip(cells, _pictures(answer), strict=False):
            cell.imshow(picture)
            cell.set_title(caption, fontsize=7, parse_math=False)
    try:
        with written_whole(path) as unfinished:
            figure.savefig(unfinished, format="png", dpi=100)
    except OSError as error:
        raise InputError(f"--contact_sheet={path} cannot be written: {error.strerror}") from error


def _pictures(answer: Answer) -> Iterator[tuple[np.ndarray, str]]:
    """Thumbnail and caption of each hit."""
    for rank, hit in enumerate(answer.hits, start=1):
        picture, problem = thumbnail(hit)
        if problem:
            logger.warning("no thumbnail: %s", problem)
        name = _shortened(shown(Path(hit.clip.file).name), NAME_LENGTH)
        yield picture, f"{rank}.  {hit.score:.3f}\n{name}\n{'no picture' if problem else time_of(hit)}"


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
