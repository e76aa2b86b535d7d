"""Say before a long run which videos are there, missing, unreadable or cut short.

`python preprocess/check_data.py --dataset_name=MSRVTT --videos_dir=DIR` takes the flags of train.py. Every video is
decoded once. The names go to <output_dir>/check_data_<dataset>.txt. Exit code 1 when a video is not in order.
"""

import logging
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from config import Config
from datasets.annotations import Split, own_validation, read_split
from datasets.container import condition_of
from datasets.files import shown
from datasets.timeline import timeline
from utils.errors import InputError, RunError
from utils.processes import each
from utils.program import run_program

logger = logging.getLogger(__name__)

NOT_IN_VIDEO = "with times that are not in the video"  # of its segments; one line for each time
VIDEO_STATES = ("unreadable", "cut short", NOT_IN_VIDEO)


def main() -> None:
    config = Config.parse(program="train", prog="preprocess/check_data.py", description=__doc__)
    report: list[str] = []
    problems = Counter()
    names = splits_of(config)
    for name in names:
        try:
            places = (config.dataset_dir, config.videos_dir, config.msrvtt_train_file)
            split = read_split(config.dataset_name, name, *places)
        except InputError as error:  # annotations of one split may be all that somebody has
            problems["without annotations"] += 1
            if problems["without annotations"] == len(names):
                raise
            logger.error("%s: %s", name, error)
            continue
        found = check_split(split)
        counts = Counter(state for state, *_ in found)
        bad = {video for state, video, _ in found if state in VIDEO_STATES}
        logger.info(
            "%s: %d of %d videos are in order, %s%s",
            name,
            len({shown(segment.path) for segment in split.segments} - bad),
            len({segment.video_id for segment in split.segments}) + len(split.missing),
            ", ".join(f"{counts[state]} {state}" for state in ("missing", *VIDEO_STATES)),
            f"; {counts['not annotated']} are listed but not annotated" * bool(counts["not annotated"]),
        )
        problems.update(state for state, *_ in found if state != "not annotated")
        report += ["\t".join((name, *line)) for line in found]
    path = Path(config.output_dir) / f"check_data_{config.dataset_name}.txt"
    write_report(path, report)
    if problems:
        raise RunError(", ".join(f"{count} {state}" for state, count in problems.items()) + f"; names are in {path}")


def splits_of(config: Config) -> list[str]:
    """The splits whose videos a run reads; those that are held out for validation are among those of training."""
    try:
        own = config.select_on == "val" and own_validation(config.dataset_name, config.dataset_dir)
    except InputError:  # told when the split itself is read
        own = False
    return ["train", *["val"] * own, config.test_split]


def check_split(split: Split) -> list[tuple[str, str, str]]:
    """State, video and reason of all that is not in order in a split."""
    found = [("not annotated", video_id, "") for video_id in split.unannotated]
    found += [("missing", video_id, "") for video_id in split.missing]
    spans: dict[Path, list[tuple[float | None, float | None]]] = {}
    for segment in split.segments:
        spans.setdefault(segment.path, []).append((segment.start, segment.end))
    for (path, _), problems in each(check_segments, sorted(spans.items()), split.name):
        found += [(state, shown(path), reason) for state, reason in problems]
    return found


def check_segments(video: tuple[Path, Sequence[tuple[float | None, float | None]]]) -> list[tuple[str, str]]:
    """State and reason of all that is not in order with a video and the times of its segments. Decodes all of it."""
    path, spans = video
    state, reason = check_video(path)
    problems = [] if state == "whole" else [(state, reason)]
    if state != "unreadable" and any(span != (None, None) for span in spans):
        clock = timeline(path)
        problems += [
            (NOT_IN_VIDEO, reason) for reason in dict.fromkeys(clock.beyond(*span) for span in spans) if reason
        ]
    return problems


def check_video(path: Path) -> tuple[str, str]:
    """ "whole", "unreadable" or "cut short", and why. Decodes all of it."""
    try:
        lost = condition_of(path).cut_short
    except InputError as error:
        return "unreadable", str(error)
    return ("cut short", lost) if lost else ("whole", "")


def write_report(path: Path, lines: list[str]) -> None:
    """One line for each video that is not in order: split, state, video and reason."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(run_program("check_data.py", main))
