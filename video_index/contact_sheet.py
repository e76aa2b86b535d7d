"""Pictures of what a search finds."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from datasets.files import shown
from datasets.video import read_frames
from utils.errors import InputError
from utils.files import written_or_refused
from video_index.answers import Answer, time_of
from video_index.searching import Hit

logger = logging.getLogger(__name__)

GREY = np.full((3, 4, 3), 200, dtype=np.uint8)  # in the place of a thumbnail that cannot be made
TITLE_LENGTH, NAME_LENGTH = 100, 26
CELL_INCHES, COLUMNS, DPI = (2.2, 2.0), 6, 100
MOST_ROWS, MOST_HITS = 240, 100  # a picture may be 65,536 pixels high


def thumbnail(hit: Hit) -> tuple[np.ndarray, str | None]:
    """The middle frame of a segment, RGB uint8 (H, W, 3), or a grey area and why."""
    try:
        return read_frames(Path(hit.segment.file), 1, start=hit.segment.start, end=hit.segment.end)[0], None
    except InputError as error:
        reason = str(error) if Path(hit.segment.file).exists() else f"video {shown(hit.segment.file)} is gone"
        return GREY, reason


def contact_sheet(path: Path, answers: Sequence[Answer]) -> None:
    """A picture, PNG or JPEG by its name, with thumbnails of the hits of each query, COLUMNS in a row: rank, score,
    file and time.

    :raises InputError: it cannot be written.
    """
    from matplotlib.figure import Figure  # slow to import

    some = _that_fit(answers)
    if some != list(answers):
        logger.warning("%s shows %d queries, and of each the first %d hits at most", path, len(some), MOST_HITS)
    heights = [CELL_INCHES[1] * _rows(answer) + 0.4 for answer in some]
    figure = Figure(figsize=(COLUMNS * CELL_INCHES[0], sum(heights)), layout="constrained")
    parts = figure.subfigures(len(some), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, answer in zip(parts, some, strict=True):
        part.suptitle(_shortened(answer.title, TITLE_LENGTH), fontsize=10, parse_math=False)
        cells = part.subplots(_rows(answer), COLUMNS, squeeze=False).flatten()
        for cell in cells:
            cell.axis("off")
        for cell, (picture, caption) in zip(cells, _pictures(answer), strict=False):
            cell.imshow(picture)
            cell.set_title(caption, fontsize=7, parse_math=False)
    refusal = f"--contact_sheet={path} cannot be written"
    with written_or_refused(path, refusal) as unfinished, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the names are in the table, too
        figure.savefig(unfinished, format="png" if path.suffix.lower() == ".png" else "jpg", dpi=DPI)


def _rows(answer: Answer) -> int:
    return max(1, -(-len(answer.hits) // COLUMNS))


def _that_fit(answers: Sequence[Answer]) -> list[Answer]:
    """The first answers and hits, so many that the picture does not grow too high."""
    fitting, rows = [], 0
    for answer in answers:
        answer = replace(answer, hits=answer.hits[:MOST_HITS]) if len(answer.hits) > MOST_HITS else answer
        rows += _rows(answer)
        if rows > MOST_ROWS:
            break
        fitting.append(answer)
    return fitting


def _pictures(answer: Answer) -> Iterator[tuple[np.ndarray, str]]:
    """Thumbnail and caption of each hit."""
    for rank, hit in enumerate(answer.hits, start=1):
        picture, problem = thumbnail(hit)
        if problem:
            logger.warning("no thumbnail: %s", problem)
        name = _shortened(shown(Path(hit.segment.file).name), NAME_LENGTH)
        yield picture, f"{rank}.  {hit.score:.3f}\n{name}\n{'no picture' if problem else time_of(hit)}"


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
