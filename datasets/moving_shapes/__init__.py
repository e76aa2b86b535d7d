"""MovingShapes: a small text-video retrieval set that is drawn from a seed instead of downloaded.

A video shows one to three shapes that move and change before a background. A caption tells only part of that, as the
captions of MSR-VTT do: some objects, some of their attributes, in the words and the kind of sentence of one of many
people. Direction and order of events are facts that a bag of frames does not hold, so pooling over time alone cannot
solve the set.

    <root>/annotations.json    {"version", "seed", "train": [{"video_id", "captions"}, ...], "test": [...]}
    <root>/large.json          {"version", "seed", "test": [...]}, where the large test split was asked for
    <root>/motion.json         {"version", "seed", "motion": [...]}, where the twins were asked for
    <root>/videos/<video_id>.mp4

Video i of a split depends on (seed, split, i) alone: a larger train split leaves every other video as it was, and the
large test split begins with the usual one. The videos 2i and 2i + 1 of the split `motion` are twins, see `motion.py`.
"""

import json
import logging
import multiprocessing
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2

from datasets.moving_shapes.captions import Caption, describe
from datasets.moving_shapes.motion import PAIRS, twins_of
from datasets.moving_shapes.motion import SPLIT as MOTION_SPLIT
from datasets.moving_shapes.scene import SIDE, Scene, render, sample_scene, stream
from utils.errors import InputError
from utils.files import written_whole
from utils.progress import progress

__all__ = [
    "ANNOTATIONS", "LARGE", "MOTION", "SEED", "Caption", "captions_of", "ensure", "ensure_large", "ensure_motion",
    "generate", "render", "scene_of",
]  # fmt: skip

logger = logging.getLogger(__name__)

SEED = 24
VERSION = 2  # 1 had the same videos, and captions of fewer words
ANNOTATIONS = "annotations.json"
LARGE = "large.json"
MOTION = "motion.json"
LARGE_TEST_VIDEOS = 500  # enough to tell two models that differ by a few points
FPS = 12
CAPTIONS_PER_VIDEO = {"train": 5, "test": 1}


def scene_of(seed: int, split: str, index: int) -> Scene:
    """The scene of a split's video."""
    if split == MOTION_SPLIT:
        return twins_of(seed, index // 2).scenes[index % 2]
    return sample_scene(stream(seed, split, index, 0))


def captions_of(seed: int, split: str, videos: int) -> list[list[Caption]]:
    """Captions of the first videos of a split.

    Those of one video differ. No two of the test split are alike, as retrieval is measured on it.
    """
    if split == MOTION_SPLIT:
        return [[caption] for pair in range(videos // 2) for caption in twins_of(seed, pair).captions]
    per_video = CAPTIONS_PER_VIDEO[split]
    captions, taken = [], set()
    for index in range(videos):
        scene, rng = scene_of(seed, split, index), stream(seed, split, index, 1)
        if per_video > 1:
            taken = set()
        captions.append([])
        while len(captions[-1]) < per_video:
            caption = describe(scene, rng)
            if caption.text not in taken:
                taken.add(caption.text)
                captions[-1].append(caption)
    return captions


def _write_video(job: tuple[Path, int, str, int]) -> None:
    folder, seed, split, index = job
    path = folder / f"{split}{index:04d}.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), FPS, (SIDE, SIDE))
    if not writer.isOpened():
        raise OSError(f"OpenCV could not open {path} to write an mp4v video")
    for frame in render(scene_of(seed, split, index)):
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()


def generate(
    root: Path, seed: int = SEED, train_videos: int = 1600, test_videos: int = 100, workers: int | None = None
) -> None:
    """Write the data set to `root`, all of it or nothing; if another process is first, its copy stays.

    Processes are spawned, so a script that calls this needs the `if __name__ == "__main__"` guard.

    workers: processes that draw and encode, by default one per core; the files do not depend on it.
    Raises InputError when root holds other files, and OSError when a video cannot be written.
    """
    root = root.resolve()
    if root.exists() and not (root / ANNOTATIONS).exists() and (root.is_file() or any(root.iterdir())):
        raise InputError(f"{root} holds files but no {ANNOTATIONS}; move it away to have MovingShapes generated there")
    videos = {"train": train_videos, "test": test_videos}
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as scratch:
        unfinished = Path(scratch) / root.name
        (unfinished / "videos").mkdir(parents=True)
        wanted = [(split, index) for split in videos for index in range(videos[split])]
        _write_videos(unfinished / "videos", seed, wanted, workers)
        _write_annotations(unfinished / ANNOTATIONS, seed, videos)
        try:
            unfinished.rename(root)
        except OSError:
            if not (root / ANNOTATIONS).exists():
                raise
            logger.info("%s is complete already; this copy is discarded", root)


def _write_videos(folder: Path, seed: int, wanted: Sequence[tuple[str, int]], workers: int | None) -> None:
    """Draw and encode videos (split, index), in several processes."""
    jobs = [(folder, seed, split, index) for split, index in wanted]
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        for _ in progress(pool.imap_unordered(_write_video, jobs, chunksize=8), "MovingShapes", len(jobs), "videos"):
            pass


def _write_annotations(path: Path, seed: int, videos: dict[str, int]) -> None:
    """Captions of the first videos of each split."""
    annotations = {"version": VERSION, "seed": seed} | {
        split: [
            {"video_id": f"{split}{index:04d}", "captions": [caption.text for caption in captions]}
            for index, captions in enumerate(captions_of(seed, split, count))
        ]
        for split, count in videos.items()
    }
    with written_whole(path) as unfinished:
        unfinished.write_text(json.dumps(annotations, indent=1) + "\n", encoding="utf-8")


def ensure(root: Path, seed: int = SEED) -> None:
    """Generate the data set unless `root` holds it; InputError when it holds another version or seed of it."""
    path = root / ANNOTATIONS
    if not path.exists():
        generate(root, seed)
    _check(path, seed, f"delete {root} to have it generated again")


def ensure_large(
    root: Path, seed: int = SEED, test_videos: int = LARGE_TEST_VIDEOS, workers: int | None = None
) -> None:
    """Add the large test split to the data set of `root`, as `_ensure_more`."""
    ensure(root, seed)
    there = len(json.loads((root / ANNOTATIONS).read_text(encoding="utf-8"))["test"])
    _ensure_more(root / LARGE, seed, "test", range(there, test_videos), workers)


def ensure_motion(root: Path, seed: int = SEED, pairs: int = PAIRS, workers: int | None = None) -> None:
    """Add the twins to the data set of `root`, as `_ensure_more`."""
    ensure(root, seed)
    _ensure_more(root / MOTION, seed, MOTION_SPLIT, range(2 * pairs), workers)


def _ensure_more(path: Path, seed: int, split: str, new: range, workers: int | None) -> None:
    """Add videos to those of a split, and their list in a file of its own, unless it is there.

    Nothing that is there changes. The list is written last, so that an interrupted call is made up for by the next one,
    and several processes may do it at once.
    """
    if not path.exists():
        with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as scratch:
            _write_videos(Path(scratch), seed, [(split, index) for index in new], workers)
            for video in sorted(Path(scratch).iterdir()):
                video.replace(path.parent / "videos" / video.name)
        _write_annotations(path, seed, {split: new.stop})
    _check(path, seed, f"delete {path} to have it generated again")


def _check(path: Path, seed: int, remedy: str) -> None:
    """InputError when an annotation file is of another version or seed."""
    try:
        annotations = json.loads(path.read_text(encoding="utf-8"))
        found = (annotations["version"], annotations["seed"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not an annotation file of MovingShapes ({error!r}); {remedy}") from error
    if found != (VERSION, seed):
        raise InputError(
            f"{path} has version {found[0]} and seed {found[1]}, wanted are version {VERSION} and seed {seed}; {remedy}"
        )
