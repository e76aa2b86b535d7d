"""Fill the frame cache ahead of training.

`python preprocess/cache_frames.py --frame_cache=DIR --dataset_name=MSRVTT --videos_dir=DIR` takes the flags of
train.py: those that choose videos and frames must be the same. What is there already is kept. One line for each
failure.
"""

import functools
import logging
import sys

from config import Config
from datasets.annotations import Segment
from datasets.frame_cache import CacheSettings, FrameCache
from datasets.holdout import training_splits
from utils.errors import InputError, RunError
from utils.processes import each
from utils.program import run_program

logger = logging.getLogger(__name__)


def main() -> None:
    config = Config.parse(program="train", prog="preprocess/cache_frames.py", description=__doc__)
    settings = CacheSettings.of(config)
    if settings is None:
        raise InputError("--frame_cache is missing: the folder to fill")
    failed = 0
    splits = training_splits(config)
    for split in filter(None, (splits.train, splits.val, splits.test)):
        name, segments = split.name, split.segments
        sample_type = config.video_sample_type if name == "train" else "uniform"
        for _, reason in each(functools.partial(store, settings, config.num_frames, sample_type), segments, name):
            if reason:
                logger.warning("%s", reason)
                failed += 1
        there = sum(map(FrameCache(settings, config.num_frames, sample_type).holds, segments))
        logger.info("%s: %d of %d segments are in %s", name, there, len(segments), settings.folder)
    if failed:
        raise RunError(f"{failed} segments are not in the cache")


# one for each process, because it counts what it adds
process_cache = functools.cache(FrameCache)


def store(settings: CacheSettings, num_frames: int, sample_type: str, segment: Segment) -> str:
    """Put the frames of a segment into the cache. Returns what was wrong, if anything was."""
    try:
        beyond = process_cache(settings, num_frames, sample_type).store(segment)
    except InputError as error:
        return str(error)
    return beyond and f"{segment.path}: {beyond}"


if __name__ == "__main__":
    sys.exit(run_program("cache_frames.py", main))
