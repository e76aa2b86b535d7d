"""What a video file says about its frames without decoding one: when each is shown and which are key frames."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

REMEMBERED_FILES = 20_000  # of each process; a file of 3,000 frames takes 24 kB


@dataclass(frozen=True)
class Packets:
    """The packets of a video stream, one for each frame, in the order in which the frames are shown."""

    times: np.ndarray  # milliseconds from the beginning, increasing, float64 (n,)
    keys: np.ndarray  # indices of the key frames, (keys,)

    def index_at(self, time: float) -> int | None:
        """The frame that is shown at a time in milliseconds; None when none begins there."""
        index = int(np.searchsorted(self.times, time - 1e-3))
        return index if index < len(self.times) and abs(self.times[index] - time) < 1e-3 else None

    def key_before(self, index: int) -> int:
        """The last key frame that is not behind frame `index`."""
        return int(self.keys[np.searchsorted(self.keys, index, side="right") - 1])


def index_packets(path: Path) -> Packets | None:
    """Read the packets of a video without decoding them: about 0.01 ms each, once for each file.

    :return: None when frames cannot be told by their times: some have no or the same time, or do not start at 0 (as
        where an edit list hides the first ones), or the first is no key frame.
    """
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return _index_packets(str(path), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=REMEMBERED_FILES)
def _index_packets(path: str, size: int, mtime_ns: int) -> Packets | None:
    """`size` and `mtime_ns` are there to be keys: a file that changed is read again."""
    times, keys = packet_times(Path(path))
    if not times:
        return None
    order = np.argsort(times, kind="stable")
    shown, is_key = np.array(times)[order], np.array(keys)[order]
    if not is_key[0] or abs(shown[0]) > 1e-3 or (len(shown) > 1 and np.diff(shown).min() < 0.01):
        return None
    return Packets(shown, np.flatnonzero(is_key))


def packet_times(path: Path) -> tuple[list[float], list[bool]]:
    """Time in milliseconds of every packet, as they lie in the file, and whether it holds a key frame."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1, cv2.CAP_PROP_N_THREADS, 1])
    times, keys = [], []
    try:
        while capture.grab():
            times.append(capture.get(cv2.CAP_PROP_POS_MSEC))
            keys.append(capture.get(cv2.CAP_PROP_LRF_HAS_KEY_FRAME) > 0)
    finally:
        capture.release()
    return times, keys
