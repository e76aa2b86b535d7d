"""Frames of a video file: which ones, and their pixels."""

from pathlib import Path

import cv2
import numpy as np

from diffusion_lm.errors import InputError


def frame_indices(n: int, num_frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Frames to take of n: [0, n) is cut into min(F, n) equal parts, one frame each; a short video repeats its last.

    :param n: frames that there are, at least 1.
    :param num_frames: F.
    :param rng: takes a random frame of each part; None takes the middle one, (first + last) // 2.
    :return: non-decreasing integers (F,).
    """
    bounds = np.linspace(0, n, min(num_frames, n) + 1).astype(int)
    first, last = bounds[:-1], bounds[1:] - 1
    indices = (first + last) // 2 if rng is None else rng.integers(first, last + 1)
    return np.concatenate([indices, np.full(num_frames - len(indices), indices[-1])])


def read_frames(
    path: Path,
    num_frames: int,
    rng: np.random.Generator | None = None,
    start: float | None = None,
    end: float | None = None,
) -> np.ndarray:
    """Decode F frames of a video.

    The frames are counted by decoding, because headers lie; what the header says is tried first, so that one pass is
    enough where it is right.

    :param start: bound of the clip in seconds, None for the beginning; `end` likewise.
    :return: RGB uint8 (F, H, W, 3).
    :raises InputError: the file does not open or holds no frame in the clip; names it.
    """
    capture = _open(path)
    try:
        if not capture.isOpened():
            raise InputError(f"video {path} does not open: not a video, or cut short")
        fps = capture.get(cv2.CAP_PROP_FPS) or 1.0
        n = max(1, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        state = None if rng is None else rng.bit_generator.state
        for _ in range(2):
            if rng is not None:
                rng.bit_generator.state = state
            low, high = _clip_bounds(n, fps, start, end)
            wanted = low + frame_indices(high - low, num_frames, rng)
            frames, counted = _decode(capture, wanted)
            if counted == n and frames:
                return np.stack([frames[index] for index in wanted])
            n = counted
            if not n:
                break
            capture.release()
            capture = _open(path)
    finally:
        capture.release()
    raise InputError(f"video {path} does not decode: no frame can be read")


def _open(path: Path) -> cv2.VideoCapture:
    """By FFmpeg only: what OpenCV tries after it takes some names for patterns and writes to standard error.

    One thread: the workers are the parallelism, and starting threads costs more than decoding a short clip.
    """
    return cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])


def _clip_bounds(n: int, fps: float, start: float | None, end: float | None) -> tuple[int, int]:
    """Frames [low, high) of the clip, at least one."""
    low = 0 if start is None else min(max(0, round(start * fps)), n - 1)
    high = n if end is None else min(max(low + 1, round(end * fps)), n)
    return low, high


def _decode(capture: cv2.VideoCapture, wanted: np.ndarray) -> tuple[dict[int, np.ndarray], int]:
    """Read straight through: the wanted frames in RGB, and how many frames there are."""
    frames, count, chosen = {}, 0, set(wanted.tolist())
    while capture.grab():
        if count in chosen:
            ok, frame = capture.retrieve()
            if not ok:
                break
            frames[count] = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        count += 1
    return frames, count
