"""When each frame of a film is shown.

One clock holds everywhere: seconds from the beginning of the file, where the first of its streams begins, by the time
stamps of the frames.
"""

import math
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from datasets.container import UNTOLD, Film, packet_times, rate_of
from datasets.files import shown
from utils.errors import InputError

TOLERANCE = 0.5e-3  # seconds; time stamps of some containers are whole milliseconds
STANDS = 1.0  # seconds that a picture must still stand to belong to a segment that begins while it is shown
FAR = (
    60.0  # seconds; a segment that ends as far behind twice the length of its film is not timed in seconds of this film
)
REMEMBERED_FRAMES = 4_000_000  # of each process, at 8 bytes
DISORDER = 0.1  # share of the frames that may have no time stamp, or one out of order
MOMENT = 1.0  # seconds; what goes farther back is the beginning of another recording
NEAR = 8  # frames at either side of such a place


@dataclass(frozen=True)
class Timeline:
    """When the n frames of a film are shown."""

    pts: np.ndarray  # time stamps in units of the stream, increasing, int64 (n,)
    unit: float  # seconds of one
    origin: float  # where the file begins, seconds on the clock of the stream
    end: float  # when the last frame goes, seconds from the beginning of the file
    key_pts: np.ndarray  # of the packets at which decoding may begin, increasing, int64 (k,); hidden ones included
    key_dts: np.ndarray  # when these are decoded, (k,)
    counted: bool = False  # frames are told by their order, as their time stamps tell nothing or are not kept to

    @property
    def times(self) -> np.ndarray:
        """When each frame is shown, seconds from the beginning of the file, float64 (n,)."""
        return self.pts * self.unit - self.origin

    def between(self, start: float | None, end: float | None) -> tuple[int, int]:
        """Frames [low, high) of a segment, at least one: those that begin in [start, end) seconds.

        The picture that is on screen when the segment begins belongs to it where it stands for STANDS of it, or no
        other one begins in it. Behind the last frame it is the last.
        """
        n = len(self.pts)
        low = 0 if start is None else int(np.searchsorted(self.pts, math.ceil(self._stamp(start - TOLERANCE))))
        high = n if end is None else int(np.searchsorted(self.pts, math.ceil(self._stamp(end - TOLERANCE))))
        if start is not None and self.number_at(start) < low:
            following = self.pts[low] * self.unit - self.origin if low < n else math.inf
            low -= high <= low or following - start >= STANDS
        low = min(low, n - 1)
        return low, max(high, low + 1)

    def beyond(self, start: float | None, end: float | None) -> str:
        """Why times cannot be those of a segment of this film: it begins behind the end, or ends far behind it; else
        empty. Times in another unit than seconds show here."""
        behind = start is not None and start > self.end - TOLERANCE
        if not behind and (end is None or end <= 2 * self.end + FAR):
            return ""
        until = "its end" if end is None else f"{end:g}"
        return f"a segment from {start or 0:g} to {until} s, of a film of {self.end:.1f} s"

    def number_at(self, time: float) -> int:
        """The frame on screen at a time in seconds; before the first one that is shown, that."""
        return max(0, int(np.searchsorted(self.pts, math.floor(self._stamp(time + TOLERANCE)), side="right")) - 1)

    def _stamp(self, time: float) -> float:
        """A time in seconds as a time stamp, so that a long film is searched without working out all of its times."""
        return (time + self.origin) / self.unit

    def key_before(self, number: int) -> int:
        """The last key packet from which frame `number` can be decoded, as a row of `key_pts`."""
        return max(0, int(np.searchsorted(self.key_pts, self.pts[number], side="right")) - 1)

    def number_of(self, pts: int | None) -> int | None:
        """The frame with a time stamp; None when there is none."""
        if pts is None:
            return None
        number = int(np.searchsorted(self.pts, pts))
        return number if number < len(self.pts) and self.pts[number] == pts else None


class _Memory:
    """The timelines of the files that were read last, so many frames of them at most."""

    def __init__(self) -> None:
        self.timelines: OrderedDict[tuple[str, int, int], Timeline] = OrderedDict()
        self.frames = 0

    def take(self, key: tuple[str, int, int]) -> Timeline | None:
        """Take a timeline out, None where it is not held."""
        found = self.timelines.pop(key, None)
        self.frames -= 0 if found is None else len(found.pts)
        return found

    def put(self, key: tuple[str, int, int], value: Timeline) -> None:
        """Put a timeline in, as the one used last."""
        self.timelines[key] = value
        self.frames += len(value.pts)
        while self.frames > REMEMBERED_FRAMES and len(self.timelines) > 1:
            self.frames -= len(self.timelines.popitem(last=False)[1].pts)


_memory = _Memory()


def timeline(path: Path, decoded: bool = False) -> Timeline:
    """When the frames of a film are shown, read once for each file: by its packets, about 2 us each, which need not be
    decoded, or where they tell nothing by decoding all of it.

    :param decoded: decode all in any case, as the frames were not those that the packets promise.
    :raises InputError: it does not open, or no frame of it decodes; names it.
    """
    try:
        stat = os.stat(path)
    except OSError as error:
        raise InputError(f"video {shown(path)} cannot be read: {error.strerror}") from error
    key = (os.path.abspath(path), stat.st_size, stat.st_mtime_ns)  # a file that changed is read again
    found = _memory.take(key)
    if found is None or (decoded and not found.counted):
        found = None
        if not decoded:
            with Film(path) as film:
                found = _by_packets(film)
        if found is None:
            with Film(path) as film:
                found = _by_frames(film)
    _memory.put(key, found)
    return found


def _by_packets(film: Film) -> Timeline | None:
    """None where frames cannot be told by their packets: some have no time stamp or the same, time goes back or farther
    on than a film lasts, or the first frame that decodes is not the first that is promised."""
    packets, first = packet_times(film)
    if not packets or any(packet.pts is None for packet in packets):
        return None
    decoded_at = [packet.dts for packet in packets if packet.dts is not None]
    if any(early > late for early, late in pairwise(decoded_at)):  # recordings that were put together
        return None
    packets.sort(key=lambda packet: packet.pts)
    keys = [packet for packet in packets if packet.is_key]
    # what lies before the first key packet does not decode
    visible = [packet for packet in packets if not packet.hidden and keys and packet.pts >= keys[0].pts]
    pts = np.array([packet.pts for packet in visible], dtype=np.int64)
    steps = np.diff(pts)
    if not visible or ((steps <= 0) | (steps > film.longest_step)).any() or first != pts[0]:
        return None
    key_pts = np.array([key.pts for key in keys], dtype=np.int64)
    key_dts = np.array([key.pts if key.dts is None else key.dts for key in keys], dtype=np.int64)
    origin, end = film.origin_with(pts), _end(pts, visible[-1].length)
    if end * film.unit - origin >= UNTOLD:
        return None
    return Timeline(pts, film.unit, origin, end * film.unit - origin, key_pts, key_dts)


def _by_frames(film: Film) -> Timeline:
    """By decoding all of it. Where the stamps of showing are out of order those of decoding serve, as in FFmpeg, and
    where there are none, or they take longer than a film lasts, the rate that the header says."""
    frames = [(frame.pts, frame.dts, frame.duration or 0) for frame in film.frames()]
    if not frames:
        raise InputError(f"video {shown(film.path)} does not decode: no frame can be read")
    shown_at, decoded_at, lengths = zip(*frames, strict=True)
    candidates = (_increasing(stamps, film) for stamps in (shown_at, decoded_at))
    pts = next((stamps for stamps in candidates if stamps is not None), None)
    none = np.empty(0, dtype=np.int64)
    if pts is None:
        unit = 1 / rate_of(film.stream)
        return Timeline(np.arange(len(frames)), unit, 0.0, len(frames) * unit, none, none, counted=True)
    origin, end = film.origin_with(pts), _end(pts, lengths[-1])
    if end * film.unit - origin >= UNTOLD:  # a beginning that nobody waits for
        pts, origin, end = pts - pts[0], 0.0, end - int(pts[0])
    return Timeline(pts, film.unit, origin, end * film.unit - origin, none, none, counted=True)


def _increasing(stamps: Sequence[int | None], film: Film) -> np.ndarray | None:
    """The time stamps of frames that follow each other, int64 (n,), made to increase; None where too many do not, or
    the last is farther from the first than a film lasts.

    Frames without a stamp, or with one out of order as where a file is damaged, come between their neighbours.
    """
    known = np.array([number for number, stamp in enumerate(stamps) if stamp is not None], dtype=np.int64)
    values = np.array([stamps[number] for number in known], dtype=np.int64)
    rising = np.diff(values)
    rising = rising[rising > 0]
    if not len(known) or not (len(rising) or len(stamps) == 1):
        return None
    usual = int(np.median(rising)) if len(rising) else 1
    values = _joined(values, usual, film)
    kept = _longest_rising(values)
    if len(kept) < (1 - DISORDER) * (known[-1] + 1):  # behind the last one: decoders that end leave them out
        return None
    known, values = known[kept], values[kept]
    if int(values[-1] - values[0]) * film.unit >= UNTOLD:
        return None
    numbers = np.arange(len(stamps))
    outside = usual * (np.minimum(numbers - known[0], 0) + np.maximum(numbers - known[-1], 0))
    times = np.rint(np.interp(numbers, known, values)).astype(np.int64) + outside
    return np.maximum.accumulate(times - numbers) + numbers  # the same stamp twice: one after the other


def _joined(stamps: np.ndarray, usual: int, film: Film) -> np.ndarray:
    """Time stamps of recordings that were put together, where time goes back: each follows the one before it, a usual
    step on. Single stamps that are out of order stay as they are."""
    stamps = stamps.copy()
    far = round(MOMENT / film.unit)
    steps = np.diff(stamps)
    for seam in (np.flatnonzero((steps < -far) | (steps > film.longest_step)) + 1).tolist():
        before, behind = stamps[max(0, seam - NEAR) : seam], stamps[seam : seam + NEAR]
        if (np.median(behind) - np.median(before)) * np.sign(steps[seam - 1]) > far:
            stamps[seam:] += stamps[seam - 1] + usual - stamps[seam]
    return stamps


def _longest_rising(values: np.ndarray) -> list[int]:
    """The rows of a longest part of values (n,) that never goes down."""
    tails: list[int] = []  # the least last value of a part of each length
    rows: list[int] = []  # where it is
    before: list[int] = []  # of each row, the one before it in its part
    for row, value in enumerate(values.tolist()):
        length = bisect_right(tails, value)
        before.append(rows[length - 1] if length else -1)
        tails[length : length + 1] = [value]
        rows[length : length + 1] = [row]
    part, row = [], rows[-1]
    while row >= 0:
        part.append(row)
        row = before[row]
    return part[::-1]


def _end(pts: np.ndarray, length: int) -> int:
    """When the last frame goes: by its own length, or that of the one before it."""
    return int(pts[-1]) + (length or (int(pts[-1] - pts[-2]) if len(pts) > 1 else 0))
