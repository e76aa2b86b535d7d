"""Frames of a video file: which ones, and their pixels."""

import copy
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from datasets.container import Packets, index_packets
from diffusion_lm.errors import InputError

# Threads of OpenCV's own would hang a worker that is forked after they started; frames are too small for them anyway.
cv2.setNumThreads(1)

# OpenCV seeks to a frame by decoding on from the last key frame that lies at least so many frames before it.
SEEK_MARGIN = 16
# What a seek costs besides, in frames that could have been decoded instead.
SEEK_COST = 6


def part_bounds(n: int, num_frames: int) -> np.ndarray:
    """Where the min(F, n) equal parts of [0, n) begin, and n."""
    return np.linspace(0, n, min(num_frames, n) + 1).astype(int)


def frame_indices(n: int, num_frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Frames to take of n: [0, n) is cut into min(F, n) equal parts, one frame each; a short video repeats its last.

    :param n: frames that there are, at least 1.
    :param num_frames: F.
    :param rng: takes a random frame of each part; None takes the middle one, (first + last) // 2.
    :return: non-decreasing integers (F,).
    """
    bounds = part_bounds(n, num_frames)
    first, last = bounds[:-1], bounds[1:] - 1
    indices = (first + last) // 2 if rng is None else rng.integers(first, last + 1)
    return np.concatenate([indices, np.full(num_frames - len(indices), indices[-1])])


@dataclass(frozen=True)
class ClipFrames:
    """Frames of a clip: the chosen ones, and how many there are to choose from."""

    count: int  # n, frames of the clip
    indices: np.ndarray  # numbers in the clip of the frames below, increasing, (k,)
    pixels: np.ndarray  # RGB uint8 (k, H, W, 3)


def read_frames(
    path: Path,
    num_frames: int,
    rng: np.random.Generator | None = None,
    start: float | None = None,
    end: float | None = None,
) -> np.ndarray:
    """Decode F frames of a video.

    :param rng: as of `frame_indices`; what it draws depends on the number of frames that the clip turns out to have.
    :param start: bound of the clip in seconds, None for the beginning; `end` likewise.
    :return: RGB uint8 (F, H, W, 3).
    :raises InputError: the file does not open or holds no frame in the clip; names it.
    """
    clip = decode_clip(path, lambda n: frame_indices(n, num_frames, copy.deepcopy(rng)), start, end)
    wanted = frame_indices(clip.count, num_frames, rng)
    return clip.pixels[np.searchsorted(clip.indices, wanted)]


def decode_clip(
    path: Path, choose: Callable[[int], np.ndarray], start: float | None = None, end: float | None = None
) -> ClipFrames:
    """Decode chosen frames of a clip, with as few others as possible.

    A long video is read by a plan that is made of what its container says: on to the next wanted frame, or by a seek to
    a key frame before it. A short one, or one whose container cannot be relied on, is decoded straight through and its
    frames are counted, because headers lie; what is said is tried first, so that one pass is enough where it is right.

    :param choose: n -> numbers in [0, n) of the wanted frames; called again when n turns out to be another.
    :raises InputError: the file does not open or holds no frame in the clip; names it.
    """
    capture = open_video(path)
    try:
        if not capture.isOpened():
            raise InputError(f"video {path} does not open: not a video, or cut short")
        fps = capture.get(cv2.CAP_PROP_FPS) or 1.0
        n = max(1, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        clip = _Clip(n, fps, choose, start, end)
        if n >= (SEEK_MARGIN + SEEK_COST) * len(clip.chosen):
            packets = index_packets(path)
            if multiprocessing.parent_process() is None:  # not in a worker
                capture = _reopen(capture, path, os.cpu_count() or 1)
            if packets and len(packets.times) == n:
                frames = _decode_planned(capture, packets, clip.wanted, fps)
                if frames:
                    return clip.with_frames(frames)
                capture = _reopen(capture, path)
            elif packets:
                clip = _Clip(len(packets.times), fps, choose, start, end)
        for _ in range(2):
            frames, counted = _decode_through(capture, clip.wanted)
            if counted == clip.frames_of_video and frames:
                return clip.with_frames(frames)
            if not counted:
                break
            clip = _Clip(counted, fps, choose, start, end)
            capture = _reopen(capture, path)
    finally:
        capture.release()
    raise InputError(f"video {path} does not decode: no frame can be read")


class _Clip:
    """The part of a video from `start` to `end`, and the frames that are wanted of it, if the video has n frames."""

    def __init__(
        self, n: int, fps: float, choose: Callable[[int], np.ndarray], start: float | None, end: float | None
    ) -> None:
        self.frames_of_video = n
        low, high = _clip_bounds(n, fps, start, end)
        self.count = high - low
        self.chosen = np.unique(choose(self.count))
        self.wanted = low + self.chosen

    def with_frames(self, frames: list[np.ndarray]) -> ClipFrames:
        """The result, of the frames `wanted`; one of another size (a stream may change) takes that of the first."""
        height, width = frames[0].shape[:2]
        alike = [f if f.shape[:2] == (height, width) else cv2.resize(f, (width, height)) for f in frames]
        return ClipFrames(self.count, self.chosen, np.stack(alike))


def check_name(path: str | Path) -> None:
    """Refuse names at which OpenCV would end the process.

    :raises InputError: a name is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"video {shown(path)} cannot be read: its name is not UTF-8, rename it") from error


def shown(path: str | Path) -> str:
    """The name of a file as text that can be written anywhere."""
    return os.fsencode(path).decode("utf-8", "replace")


def open_video(path: Path, threads: int = 1) -> cv2.VideoCapture:
    """By FFmpeg only: what OpenCV tries after it takes some names for patterns and writes to standard error.

    One thread is best in a worker, as the workers are the parallelism, and for a short clip, as starting threads costs
    more than decoding it.

    :raises InputError: as `check_name`. A file that does not open is told by the capture.
    """
    check_name(path)
    return cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, threads])


def _reopen(capture: cv2.VideoCapture, path: Path, threads: int = 1) -> cv2.VideoCapture:
    """From the first frame again."""
    capture.release()
    return open_video(path, threads)


def _clip_bounds(n: int, fps: float, start: float | None, end: float | None) -> tuple[int, int]:
    """Frames [low, high) of the clip, at least one."""
    low = 0 if start is None else min(max(0, round(start * fps)), n - 1)
    high = n if end is None else min(max(low + 1, round(end * fps)), n)
    return low, high


def _decode_planned(
    capture: cv2.VideoCapture, packets: Packets, wanted: np.ndarray, fps: float
) -> list[np.ndarray] | None:
    """The wanted frames in RGB, each reached in the cheaper way; None when a frame is not where its packet says."""
    # Where packets tell only when they are decoded (AVI), B-frames let every frame come later than its packet says.
    if not capture.grab() or packets.index_at(capture.get(cv2.CAP_PROP_POS_MSEC)) != 0:
        return None
    frames, position = [], 1  # position: the frame that is decoded next
    for index in wanted.tolist():
        key = packets.key_before(max(0, index - SEEK_MARGIN))
        if index - key + SEEK_COST < index - position:
            position = _seek(capture, packets, index, fps)
            if position is None:
                return None
        while position <= index:
            if not capture.grab():
                return None
            position += 1
        if packets.index_at(capture.get(cv2.CAP_PROP_POS_MSEC)) != index:
            return None
        ok, frame = capture.retrieve()
        if not ok:
            return None
        frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    return frames


def _seek(capture: cv2.VideoCapture, packets: Packets, index: int, fps: float) -> int | None:
    """Decode frame `index` or one a little before it.

    OpenCV numbers frames by time x mean rate, so at a variable rate its seek lands on another frame than the number
    says. Which one that is, its time tells.

    :return: the frame behind the decoded one, None when no such place is found.
    """
    number = round(packets.times[index] / 1000 * fps)
    for step_back in (0, 1, 4, 16, 64):
        capture.set(cv2.CAP_PROP_POS_FRAMES, max(0, number - step_back * SEEK_MARGIN))
        landed = packets.index_at(capture.get(cv2.CAP_PROP_POS_MSEC)) if capture.grab() else None
        if landed is not None and landed <= index:
            return landed + 1
    return None


def _decode_through(capture: cv2.VideoCapture, wanted: np.ndarray) -> tuple[list[np.ndarray], int]:
    """Read straight through: the wanted frames in RGB, as far as they are there, and how many frames there are."""
    frames, count, chosen = [], 0, set(wanted.tolist())
    while capture.grab():
        if count in chosen:
            ok, frame = capture.retrieve()
            if not ok:
                break
            frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
        count += 1
    return frames, count
