"""Frames of a video file: which ones, and their pixels."""

import copy
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import Interpolation, VideoReformatter

from datasets.container import Film
from datasets.files import PICTURE_EXTENSIONS, shown, split_name
from datasets.timeline import Timeline, timeline
from utils.errors import InputError

# Threads of OpenCV's own would hang a worker that is forked after they started; frames are too small for them anyway.
cv2.setNumThreads(1)

SEEK_COST = 6  # what a seek costs, in frames that could have been decoded instead
ENOUGH = 512  # pixels of a photo
LONG = 256  # frames from which on a film is worth the start of the decoder's threads

Times = tuple[float | None, float | None]  # of a segment: start and end in seconds, None for those of the film


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
class SegmentFrames:
    """Frames of a segment: the chosen ones, and how many there are to choose from."""

    count: int  # n, frames of the segment
    indices: np.ndarray  # numbers in the segment of the frames below, increasing, (k,)
    pixels: np.ndarray  # RGB uint8 (k, H, W, 3), upright, of square pixels
    beyond: str = ""  # why its times cannot be those of a segment of this film, see `Timeline.beyond`


class ReadSegment(NamedTuple):
    """F frames of a segment."""

    frames: np.ndarray  # RGB uint8 (F, H, W, 3)
    beyond: str = ""  # as of SegmentFrames


def read_frames(
    path: Path,
    num_frames: int,
    rng: np.random.Generator | None = None,
    start: float | None = None,
    end: float | None = None,
) -> np.ndarray:
    """The frames of `read_segments` for one segment, RGB uint8 (F, H, W, 3).

    :param start: bound of the segment in seconds, None for the beginning; `end` likewise.
    """
    return next(read_segments(path, num_frames, [(start, end)], rng)).frames


def read_segments(
    path: Path, num_frames: int, spans: Sequence[Times], rng: np.random.Generator | None = None
) -> Iterator[ReadSegment]:
    """Decode F frames of each of several segments of a video.

    :param rng: as of `frame_indices`; what it draws depends on the number of frames that a segment turns out to have.
        With it there is one segment.
    :raises InputError: the file does not open or no frame of it decodes; names it.
    """
    if is_picture(path):
        picture = read_picture(path)
        yield from repeat(ReadSegment(np.repeat(picture[None], num_frames, axis=0)), len(spans))
        return
    for segment in decode_segments(path, lambda n: frame_indices(n, num_frames, copy.deepcopy(rng)), spans):
        wanted = frame_indices(segment.count, num_frames, rng)
        yield ReadSegment(segment.pixels[np.searchsorted(segment.indices, wanted)], segment.beyond)


def is_picture(path: Path) -> bool:
    """Whether a file is a photo, by its name: a video of one frame."""
    return split_name(path.name)[1].lower() in PICTURE_EXTENSIONS


def read_picture(path: Path) -> np.ndarray:
    """A photo, upright, RGB uint8 (H, W, 3), at most about ENOUGH pixels high or wide on its shorter side.

    :raises InputError: it cannot be read; names it.
    """
    try:
        picture = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    except (OSError, cv2.error) as error:
        raise InputError(f"picture {shown(path)} cannot be read: {getattr(error, 'strerror', 'damaged')}") from error
    if picture is None:
        raise InputError(f"picture {shown(path)} does not decode")
    share = ENOUGH / min(picture.shape[:2])
    if share < 1:  # it stands for many frames, which are resized one by one
        picture = cv2.resize(picture, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def decode_segment(
    path: Path, choose: Callable[[int], np.ndarray], start: float | None = None, end: float | None = None
) -> SegmentFrames:
    """`decode_segments` of one segment."""
    return next(decode_segments(path, choose, [(start, end)]))


def decode_segments(path: Path, choose: Callable[[int], np.ndarray], spans: Sequence[Times]) -> Iterator[SegmentFrames]:
    """Decode chosen frames of segments of one film, one segment after the other, with as few other frames as possible.

    A frame is reached by decoding on or by a seek to a key frame before it, whichever is cheaper, and is known by its
    time stamp. Where a film does not keep to what its packets promise it is decoded from its beginning and its frames
    are counted, once for all segments that follow each other.

    :param choose: n -> numbers in [0, n) of the wanted frames of a segment of n frames.
    :raises InputError: the file does not open or no frame of it decodes; names it.
    """
    reader = _Reader(path, timeline(path), choose, spans)
    try:
        for row in range(len(spans)):
            segment = reader.segment(row)
            if segment is None and not reader.clock.counted:
                reader.close()
                reader = _Reader(path, timeline(path, decoded=True), choose, spans)
                segment = reader.segment(row)
            if segment is None:
                raise InputError(f"video {shown(path)} does not decode: no frame can be read")
            yield segment
    finally:
        reader.close()


class _Reader:
    """Frames of a film by their numbers, for segments whose frames are known beforehand."""

    def __init__(
        self, path: Path, clock: Timeline, choose: Callable[[int], np.ndarray], spans: Sequence[Times]
    ) -> None:
        self.path, self.clock, self.spans = path, clock, spans
        self.bounds = [clock.between(*span) for span in spans]
        self.chosen = [np.unique(choose(high - low)) for low, high in self.bounds]
        numbers = [low + chosen for (low, _), chosen in zip(self.bounds, self.chosen, strict=True)]
        self.wanted = set(clock.pts[np.concatenate(numbers)].tolist())
        in_main = multiprocessing.parent_process() is None
        self.threads = 0 if in_main and len(clock.pts) >= LONG else 1  # 0: as many as there are cores
        self.converter = VideoReformatter()
        self.film: Film | None = None
        self.last: tuple[int, np.ndarray] | None = None  # number and pixels of the last frame
        self._from_the_beginning()

    def segment(self, row: int) -> SegmentFrames | None:
        """The chosen frames of a segment; None when one of them is not where its time stamp says."""
        (low, high), chosen = self.bounds[row], self.chosen[row]
        frames = []
        for number in (low + chosen).tolist():
            frame = self.frame(number)
            if frame is None:
                return None
            frames.append(frame)
        return SegmentFrames(high - low, chosen, _alike(frames), self.clock.beyond(*self.spans[row]))

    def frame(self, number: int) -> np.ndarray | None:
        """A frame in RGB; None when it is not where its time stamp says."""
        if self.last and self.last[0] == number:
            return self.last[1]
        self._come_near(number)
        for found, frame in self.decoded:
            if found is None or found > number:
                return None
            self.next = found + 1
            if found == number:
                try:
                    self.last = number, _pixels(frame, self.converter, self.film.pixel_aspect)
                except av.FFmpegError as error:  # damage may look like pixels of another kind
                    raise InputError(f"video {shown(self.path)} does not decode: damaged at frame {number}") from error
                return self.last[1]
        return None

    def _come_near(self, number: int) -> None:
        """Bring the decoder to a place from which it comes to a frame."""
        if self.clock.counted:
            if number < self.next:
                self._from_the_beginning()
            return
        key = self.clock.key_before(number)
        begins = int(np.searchsorted(self.clock.pts, self.clock.key_pts[key]))  # first frame that it gives
        if self.next <= number and begins - SEEK_COST < self.next:
            return
        packets = self.film.go_to(self.clock.key_pts, self.clock.key_dts, key)
        if packets is None:  # from the beginning, passing over what is not needed
            self._open()
            packets = self.film.packets_from(self.clock.key_pts[key]) or iter(())
        self.next = begins
        self.decoded = self._numbered(packets, begins)

    def _from_the_beginning(self) -> None:
        self._open()
        self.next = 0
        self.decoded = self._numbered(self.film.packets(), 0)

    def _open(self) -> None:
        self.close()
        self.film = Film(self.path, self.threads)

    def _numbered(self, packets: Iterator[av.Packet], first: int) -> Iterator[tuple[int | None, av.VideoFrame]]:
        """The frames from frame `first` on with their numbers, None for one that has no place in the timeline."""
        count = 0
        skips = not self.clock.counted and self.film.tells_references
        for packet in packets:
            if skips:  # what no other frame refers to need not be decoded
                self.film.decode_all(packet.pts is None or packet.pts in self.wanted)
            for frame in self.film.decode(packet):
                number = count if self.clock.counted else self.clock.number_of(frame.pts)
                count += 1
                if number is None or number >= first:  # what a key frame leads, but does not give, is left out
                    yield number, frame

    def close(self) -> None:
        """Close the file."""
        if self.film is not None:
            self.film.close()


def _pixels(frame: av.VideoFrame, converter: VideoReformatter, pixel_aspect: float) -> np.ndarray:
    """RGB uint8 (H, W, 3) of a decoded frame, upright and with square pixels."""
    width = max(1, round(frame.width * pixel_aspect))
    picture = converter.reformat(
        frame, format="rgb24", width=width, interpolation=Interpolation.BICUBIC, threads=1
    ).to_ndarray()
    matrix = frame.side_data.get(SideData.DISPLAYMATRIX)
    return picture if matrix is None else _upright(picture, np.frombuffer(bytes(matrix), "<i4"))


def _upright(picture: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Turn and mirror a picture (H, W, 3) as its display matrix (9,) says, by quarters of a turn.

    By FFmpeg's display.h a point (x, y) is shown at (a x + c y, b x + d y) with a, b = matrix[0:2] and
    c, d = matrix[3:5].
    """
    a, b, c, d = (int(value) for value in (*matrix[0:2], *matrix[3:5]))
    across, down = a, d  # what tells the direction of either axis
    if abs(b) > abs(a):
        picture = picture.swapaxes(0, 1)
        across, down = c, b
    return np.ascontiguousarray(picture[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])


def _alike(frames: list[np.ndarray]) -> np.ndarray:
    """Frames (k, H, W, 3); one of another size, as a stream may change, takes that of the first."""
    height, width = frames[0].shape[:2]
    return np.stack([f if f.shape[:2] == (height, width) else cv2.resize(f, (width, height)) for f in frames])
