"""Decoded frames on disk, so that an epoch decodes nothing.

One safetensors file holds the frames that a segment may be asked for, scaled down to a short side: `pixels`
(k, H, W, 3) uint8, their `numbers` (k,), and of how many frames they are in its metadata. Its name is a hash of what it
was made of (video file with size and time, segment, sampling), so a video that changed is decoded again. It is written
beside its place and moved there, so many processes and machines may fill a cache at once; a file that is cut short is
taken for absent.

With random sampling a part of a segment (DESIGN.md, section 2) with at most CANDIDATES frames is kept whole, and
training sees the very frames that it would see without a cache. Of a longer part CANDIDATES frames are kept, drawn once
for each segment, and one of them is drawn each time: every single draw is still a random frame of its part, but the
draws of different epochs fall on these few. Short segments and 3 fps copies of a minute lose nothing, and disk space is
bounded.
"""

import copy
import functools
import hashlib
import logging
import math
import os
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from config import Config
from datasets.annotations import Segment
from datasets.video import ReadSegment, SegmentFrames, decode_segment, frame_indices, part_bounds
from utils.errors import InputError
from utils.files import written_whole

logger = logging.getLogger(__name__)

VERSION = 3
SUFFIX = ".safetensors"
CANDIDATES = 6
SHORT_SIDE = 256  # pixels, to which the shorter side of larger frames is reduced; a larger input takes its own
ABANDONED = 3600  # seconds after which an unfinished file is taken for that of a process which died
SHARE_BETWEEN_SCANS = 64  # the folder is measured again whenever this process has added 1/64 of the limit


@dataclass(frozen=True)
class Entry:
    """A file of the cache."""

    path: Path
    count: int  # n, frames of the segment
    indices: np.ndarray  # numbers in the segment of the frames that are kept, increasing, (k,)
    shape: tuple[int, int, int, int]  # of their pixels

    @classmethod
    def open(cls, path: Path) -> "Entry | None":
        """None when the file is absent, cut short or something else."""
        try:
            with safe_open(path, "numpy") as file:
                shape = file.get_slice("pixels").get_shape()
                return cls(path, int(file.metadata()["frames"]), file.get_tensor("numbers"), tuple(shape))
        except (OSError, SafetensorError):
            return None

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Frames (len(rows), H, W, 3) by their rows in the file, read into their place: slices of safetensors are
        copied three times, and a memory map waits for each page.

        :raises InputError: the file has gone or was cut short meanwhile.
        """
        frames = np.empty((len(rows), *self.shape[1:]), dtype=np.uint8)
        try:
            with open(self.path, "rb", buffering=0) as file:
                start = file.seek(-math.prod(self.shape), os.SEEK_END)  # the tensor of bytes is the last
                for frame, row in zip(frames, rows.tolist(), strict=True):
                    file.seek(start + row * frame.nbytes)
                    if file.readinto(frame) != frame.nbytes:
                        raise OSError("it was cut short")
        except OSError as error:
            raise InputError(f"frame cache: {self.path} cannot be read: {error.strerror or error}") from error
        return frames


@dataclass(frozen=True)
class CacheSettings:
    """--frame_cache, --frame_cache_gb (None: no limit), and the shorter side of frames."""

    folder: Path
    limit_gb: float | None = None
    short_side: int = SHORT_SIDE

    @classmethod
    def of(cls, config: Config) -> "CacheSettings | None":
        """The settings of a run; None without a cache."""
        if config.frame_cache is None:
            return None
        return cls(Path(config.frame_cache), config.frame_cache_gb, max(SHORT_SIDE, config.input_res or 0))


class FrameCache:
    """Frames of segments, from the disk where they are there and from the video where not.

    :param settings: where and how.
    :param num_frames: F.
    :param sample_type: "uniform" or "rand".
    :raises InputError: the folder cannot be made or written.
    """

    def __init__(self, settings: CacheSettings, num_frames: int, sample_type: str) -> None:
        self.settings, self.num_frames, self.sample_type = settings, num_frames, sample_type
        self.full = False  # nothing more is added
        self.size = self.added = 0
        self.limit = float("inf") if settings.limit_gb is None else settings.limit_gb * 1e9
        try:
            settings.folder.mkdir(parents=True, exist_ok=True)
            self.scan()
            tempfile.TemporaryFile(dir=settings.folder).close()
        except OSError as error:
            raise InputError(f"--frame_cache={settings.folder} cannot be written: {error.strerror}") from error

    def read(self, segment: Segment, rng: np.random.Generator | None) -> ReadSegment:
        """Frames of a segment, as `datasets.video.read_segments` gives them but scaled down to the short side.

        :param rng: for "rand"; None for "uniform".
        :raises InputError: the segment is not in the cache and cannot be decoded.
        """
        path = self._path(segment)
        if (entry := Entry.open(path)) is not None:
            return ReadSegment(entry.read(self._rows(entry.count, entry.indices, rng)))
        frames = self._decode(segment, rng if self.full else None)
        if not self.full:
            self._write(path, frames)
        stored = self._stored(segment, frames.count)
        wanted = stored[self._rows(frames.count, stored, rng)]
        return ReadSegment(frames.pixels[np.searchsorted(frames.indices, wanted)], frames.beyond)

    def holds(self, segment: Segment) -> bool:
        """Whether the frames of a segment are there."""
        return Entry.open(self._path(segment)) is not None

    def store(self, segment: Segment) -> str:
        """Decode a segment into the cache, unless it is there or the cache is full.

        :return: why its times cannot be those of a segment of its video; empty where they can.
        :raises InputError: it cannot be decoded.
        """
        if self.full or self.holds(segment):
            return ""
        frames = self._decode(segment, None)
        self._write(self._path(segment), frames)
        return frames.beyond

    def scan(self) -> None:
        """Measure the folder, and remove what processes that died left unfinished."""
        self.size = self.added = 0
        for folder in [self.settings.folder, *self.settings.folder.glob("??")]:
            for file in folder.glob("*"):
                try:
                    stat = file.stat()
                    if file.name.startswith(".") and time.time() - stat.st_mtime > ABANDONED:
                        file.unlink()
                    elif file.is_file():
                        self.size += stat.st_size
                        if file.suffix != SUFFIX and file.name[0] != "." and folder != self.settings.folder:
                            tell_of_older(self.settings.folder)
                except FileNotFoundError:  # moved or removed by another process meanwhile
                    continue

    def _path(self, segment: Segment) -> Path:
        try:
            stat = os.stat(segment.path)
        except OSError as error:
            raise InputError(f"video {segment.path} cannot be read: {error.strerror}") from error
        made_of = (
            VERSION, os.path.abspath(segment.path), stat.st_size, stat.st_mtime_ns, segment.start, segment.end,
            self.num_frames, self.sample_type, CANDIDATES * (self.sample_type == "rand"), self.settings.short_side,
        )  # fmt: skip
        name = _hash(made_of).hex()[:40]
        return self.settings.folder / name[:2] / f"{name[2:]}{SUFFIX}"

    def _decode(self, segment: Segment, only: np.random.Generator | None) -> SegmentFrames:
        """The frames that a cache keeps of a segment, or of those only the ones that this generator would draw."""

        def choose(n: int) -> np.ndarray:
            stored = self._stored(segment, n)
            return stored if only is None else stored[self._rows(n, stored, copy.deepcopy(only))]

        frames = decode_segment(segment.path, choose, segment.start, segment.end)
        return replace(frames, pixels=scale_down(frames.pixels, self.settings.short_side))

    def _stored(self, segment: Segment, n: int) -> np.ndarray:
        """Numbers of the frames that are kept of a segment of n frames, increasing; the same on every machine."""
        if self.sample_type == "uniform":
            return np.unique(frame_indices(n, self.num_frames))
        seed = _hash((segment.video_id, segment.start, segment.end, self.num_frames))
        return candidates(n, self.num_frames, np.random.default_rng(list(seed[:16])))

    def _rows(self, n: int, stored: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """Which of the stored frames are taken, (F,)."""
        if rng is None:
            return np.searchsorted(stored, frame_indices(n, self.num_frames))
        starts = np.searchsorted(stored, part_bounds(n, self.num_frames))
        rows = rng.integers(starts[:-1], starts[1:])  # where all frames are stored, the draw of frame_indices
        return np.concatenate([rows, np.full(self.num_frames - len(rows), rows[-1])])

    def _write(self, path: Path, frames: SegmentFrames) -> None:
        """Add an entry, unless the cache is full; a disk that is full is reported once and ends the adding.

        A segment whose times are wrong is not kept, so that every reading tells of it. What another process has added
        meanwhile stays, as it may still be read.
        """
        if frames.beyond or Entry.open(path) is not None or not self._fits(frames.pixels.nbytes):
            return
        tensors = {"pixels": np.ascontiguousarray(frames.pixels), "numbers": frames.indices}
        try:
            path.parent.mkdir(exist_ok=True)
            with written_whole(path) as unfinished:
                save_file(tensors, unfinished, {"frames": str(frames.count)})
            self.size += path.stat().st_size
            self.added += path.stat().st_size
        except (OSError, SafetensorError) as error:
            self._stop(getattr(error, "strerror", None) or str(error))

    def _fits(self, bytes_added: int) -> bool:
        if self.added * SHARE_BETWEEN_SCANS > self.limit:
            self.scan()  # others may have added, too
        if self.size + bytes_added > self.limit:
            self._stop(f"--frame_cache_gb={self.settings.limit_gb:g} is reached")
        return not self.full

    def _stop(self, reason: str) -> None:
        self.full = True
        logger.warning("frame cache %s takes no more frames: %s", self.settings.folder, reason)


@functools.cache
def tell_of_older(folder: Path) -> None:
    """Say once that there are files which nothing reads."""
    logger.warning(
        "frame cache %s holds files of an older version, which are not read: delete it to free the disk", folder
    )


def candidates(n: int, num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """The frames of each part that are kept for random sampling: all of them, or CANDIDATES that `rng` draws."""
    bounds = part_bounds(n, num_frames)
    kept = [
        np.arange(low, high) if high - low <= CANDIDATES else low + rng.choice(high - low, CANDIDATES, replace=False)
        for low, high in pairwise(bounds)
    ]
    return np.sort(np.concatenate(kept))


def scale_down(pixels: np.ndarray, short_side: int) -> np.ndarray:
    """Frames (k, H, W, 3) with a shorter side of at most `short_side`."""
    height, width = pixels.shape[1:3]
    scale = short_side / min(height, width)
    if scale >= 1:
        return pixels
    size = (max(short_side, round(width * scale)), max(short_side, round(height * scale)))
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in pixels])


def _hash(value: tuple) -> bytes:
    return hashlib.sha256(repr(value).encode("utf-8", "surrogateescape")).digest()
