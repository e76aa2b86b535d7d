"""Say before a long run which videos are there, missing, unreadable or cut short.

`python preprocess/check_data.py --dataset_name=MSRVTT --videos_dir=DIR` takes the flags of train.py. Every video is
decoded once. The names go to <output_dir>/check_data_<dataset>.txt. Exit code 1 when a video is not in order.
"""

import logging
import sys
from collections import Counter
from pathlib import Path

import cv2

from config import Config
from datasets.annotations import Split, read_split
from datasets.container import packet_times
from datasets.video import open_video, shown
from diffusion_lm.errors import InputError, RunError
from preprocess.parallel import each
from trainer.run_folder import run_program

logger = logging.getLogger(__name__)

WHOLE = 0.98  # share of the length that the header says, from which on a video counts as whole
DECODED = 0.9  # share of the packets that must decode


def main() -> None:
    config = Config.parse(prog="preprocess/check_data.py", description=__doc__)
    report: list[str] = []
    problems = Counter()
    for name in ("train", config.test_split):
        try:
            places = (config.dataset_dir, config.videos_dir, config.msrvtt_train_file)
            split = read_split(config.dataset_name, name, *places)
        except InputError as error:  # annotations of one split may be all that somebody has
            logger.error("%s: %s", name, error)
            problems["without annotations"] += 1
            continue
        found = check_split(split)
        counts = Counter(state for state, *_ in found)
        logger.info(
            "%s: %d of %d videos are in order, %d missing, %d unreadable, %d cut short%s",
            name,
            len({clip.path for clip in split.clips}) - counts["unreadable"] - counts["cut short"],
            len({clip.video_id for clip in split.clips}) + len(split.missing),
            counts["missing"],
            counts["unreadable"],
            counts["cut short"],
            f"; {counts['not annotated']} are listed but not annotated" * bool(counts["not annotated"]),
        )
        problems.update(state for state, *_ in found if state != "not annotated")
        report += ["\t".join((name, *line)) for line in found]
    path = Path(config.output_dir) / f"check_data_{config.dataset_name}.txt"
    write_report(path, report)
    if problems:
        raise RunError(", ".join(f"{count} {state}" for state, count in problems.items()) + f"; names are in {path}")


def check_split(split: Split) -> list[tuple[str, str, str]]:
    """State, video and reason of all that is not in order in a split."""
    found = [("not annotated", video_id, "") for video_id in split.unannotated]
    found += [("missing", video_id, "") for video_id in split.missing]
    paths = sorted({clip.path for clip in split.clips})
    for path, (state, reason) in each(check_video, paths, split.name):
        if state != "whole":
            found.append((state, shown(path), reason))
    return found


def check_video(path: Path) -> tuple[str, str]:
    """ "whole", "unreadable" or "cut short", and why. Decodes all of it."""
    try:
        capture = open_video(path)
    except InputError as error:
        return "unreadable", str(error)
    try:
        if not capture.isOpened():
            return "unreadable", "it does not open"
        said, fps = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS) or 1.0
        decoded = 0
        while capture.grab():
            decoded += 1
    finally:
        capture.release()
    if not decoded:
        return "unreadable", "no frame decodes"
    times, _ = packet_times(path)
    visible = sum(time >= 0 for time in times)  # an edit list hides what lies before 0
    if decoded < DECODED * visible:
        return "cut short", f"{decoded} of {visible} frames decode"
    length, there = said / fps, max(times, default=0.0) / 1000 + 1 / fps
    if len(times) < said and there < WHOLE * length:
        return "cut short", f"{there:.1f} of {length:.1f} s are there"
    return "whole", ""


def write_report(path: Path, lines: list[str]) -> None:
    """One line for each video that is not in order: split, state, video and reason."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(run_program("check_data.py", main))
