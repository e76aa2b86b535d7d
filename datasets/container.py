"""A video file as a player takes it: which stream is its picture, and when each frame of it is shown.

One clock holds everywhere: seconds from the beginning of the file, where the first of its streams begins, by the time
stamps of the frames. What headers say of rates and counts is only a promise and is used nowhere but to tell a file that
was cut short. Files are read with PyAV, the libraries of FFmpeg.
"""

import gc
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.stream import Disposition

from diffusion_lm.errors import InputError

TOLERANCE = 0.5e-3  # seconds; time stamps of some containers are whole milliseconds
STANDS = 1.0  # seconds that a picture must still stand to belong to a clip that begins while it is shown
FAR = 60.0  # seconds; a clip that ends as far behind twice the length of its film is not timed in seconds of this film
MOST_ASPECT = 4  # of pixels; those of DVDs are 0.9 to 1.5 times as wide as high
REMEMBERED_FRAMES = 4_000_000  # of each process, at 8 bytes
DISORDER = 0.1  # share of the frames that may have no time stamp, or one out of order
MOMENT = 1.0  # seconds; what goes farther back is the beginning of another recording
NEAR = 8  # frames at either side of such a place
SLACK = 0.2  # seconds by which headers are mistaken, as where they count a delay of the first frame in
# formats whose headers say how long the film is; of others FFmpeg works it out from what is there
PROMISING = {"mov", "mp4", "matroska", "webm", "avi", "flv", "asf"}
OWN_LENGTH = {"mov", "mp4", "avi"}  # formats whose headers say it of every stream
STAMPLESS = {"avi", "mpegvideo", "h264", "hevc", "m4v"}  # formats without time stamps of showing
LEAST_HELD_BACK, MOST_HELD_BACK = 2, 16  # frames, as FFmpeg takes it for the codecs of such formats
WRAPPING = {"mpegts", "mpeg"}  # formats whose time stamps have 33 bits
# formats with one for every packet, and codecs that tell which frames no other one refers to
STAMPED = {"mov", "mp4", "matroska", "webm", "flv", "mpegts"}
REFERRING = {"h264", "hevc"}
UNTOLD = 1e6  # seconds that no film lasts; what programs write that do not know the length yet
DECODED = 0.9  # share of the packets that must decode
WHOLE = 0.98  # share of the promised length from which on a film counts as whole


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
        """Frames [low, high) of a clip, at least one: those that begin in [start, end) seconds.

        The picture that is on screen when the clip begins belongs to it where it stands for STANDS of it, or no other
        one begins in it. Behind the last frame it is the last.
        """
        times = self.times
        low = 0 if start is None else int(np.searchsorted(times, start - TOLERANCE))
        high = len(times) if end is None else int(np.searchsorted(times, end - TOLERANCE))
        if start is not None and self.number_at(start) < low:
            following = times[low] if low < len(times) else np.inf
            low -= high <= low or following - start >= STANDS
        low = min(low, len(times) - 1)
        return low, max(high, low + 1)

    def beyond(self, start: float | None, end: float | None) -> str:
        """Why times cannot be those of a clip of this film: it begins behind the end, or ends far behind it; else
        empty. Times in another unit than seconds show here."""
        behind = start is not None and start > self.end - TOLERANCE
        if not behind and (end is None or end <= 2 * self.end + FAR):
            return ""
        until = "its end" if end is None else f"{end:g}"
        return f"a clip from {start or 0:g} to {until} s, of a film of {self.end:.1f} s"

    def number_at(self, time: float) -> int:
        """The frame on screen at a time in seconds; before the first one that is shown, that."""
        return max(0, int(np.searchsorted(self.times, time + TOLERANCE, side="right")) - 1)

    def key_before(self, number: int) -> int:
        """The last key packet from which frame `number` can be decoded, as a row of `key_pts`."""
        return max(0, int(np.searchsorted(self.key_pts, self.pts[number], side="right")) - 1)

    def number_of(self, pts: int | None) -> int | None:
        """The frame with a time stamp; None when there is none."""
        if pts is None:
            return None
        number = int(np.searchsorted(self.pts, pts))
        return number if number < len(self.pts) and self.pts[number] == pts else None


class Film:
    """An open video file and the stream that a player shows.

    :param threads: of the decoder. One is best in a worker, as the workers are the parallelism.
    :raises InputError: it is no file, or no video, or holds no moving picture; names it.
    """

    used_threads = False  # since garbage was collected

    def __init__(self, path: Path, threads: int = 1) -> None:
        self.path = path
        if not os.path.isfile(path):  # a pipe would wait for ever
            raise InputError(f"video {shown(path)} does not exist" if not os.path.exists(path) else
                             f"video {shown(path)} is no file")  # fmt: skip
        try:
            # as a file: a name may look like a protocol, and a playlist must not lead elsewhere
            self.container = av.open(f"file:{os.fspath(path)}", options={"protocol_whitelist": "file"})
        except (av.FFmpegError, OSError, ValueError) as error:
            if not os.access(path, os.R_OK):
                raise InputError(f"video {shown(path)} does not open: no permission to read it") from error
            raise InputError(f"video {shown(path)} does not open: not a video, or cut short") from error
        self.formats = set(self.container.format.name.split(","))
        stream = self.container.streams.best("video")
        if stream is None or stream.disposition & Disposition.attached_pic:
            self.container.close()
            what = "no video" if stream is None else "no video but a picture of a cover"
            raise InputError(f"video {shown(path)} holds {what}")
        if stream.codec_context is None:
            self.container.close()
            raise InputError(
                f"video {shown(path)} has a codec that cannot be decoded here: make a copy of another codec, H.264 say"
            )
        stream.thread_type = "NONE" if threads == 1 else "AUTO"
        stream.codec_context.thread_count = threads
        Film.used_threads |= threads != 1
        self.stream = stream
        self.tells_references = stream.codec_context.name in REFERRING and not self.formats.isdisjoint(
            STAMPED
        )  # to which frames none refers, and when each is shown
        self.unit = float(stream.time_base)
        self.held_back, self.gave_frames = 0, False  # packets that the decoder took before it gave a frame
        self.origin = (self.container.start_time or 0) / av.time_base
        # time stamps of 33 bits begin anew, so a recording that goes back in time looks like one 26 hours later
        self.longest_step = 2**32 if self.formats & WRAPPING else 2**62
        self.pixel_aspect = _plausible(stream.sample_aspect_ratio)

    def origin_with(self, pts: np.ndarray) -> float:
        """Where the file begins, in seconds on the clock of the stream, if its frames have these time stamps (n,).

        Some formats tell only when packets are decoded: FFmpeg's stamps of showing are late there by the delay of the
        decoder, which the first frame does not wait for.
        """
        delay = 0.0
        if not self.formats.isdisjoint(STAMPLESS):
            delay = float(pts[0]) - (self.stream.start_time or 0)
            if len(pts) > 1:  # more than that: the picture begins late
                held_back = min(max(self.held_back, LEAST_HELD_BACK), MOST_HELD_BACK)
                delay = min(delay, held_back * float(np.median(np.diff(pts))))
        return min(self.origin + delay * self.unit, pts[0] * self.unit)

    def packets(self) -> Iterator[av.Packet]:
        """The packets of the picture as they lie in the file, from where it is; an empty one last. Damage ends it."""
        return self.all_packets(self.stream)

    def all_packets(self, *streams: av.VideoStream) -> Iterator[av.Packet]:
        """The same of some streams, or of all."""
        # IndexError: at its end PyAV stumbles over streams that turned up on the way
        with suppress(av.FFmpegError, IndexError):
            yield from self.container.demux(*streams)

    def decode_all(self, every: bool) -> None:
        """Whether what comes next is decoded even if no other frame refers to it."""
        self.stream.codec_context.skip_frame = "DEFAULT" if every else "NONREF"

    def decode(self, packet: av.Packet) -> list[av.VideoFrame]:
        """The frames that a packet completes; none where it is damaged."""
        try:
            frames = packet.decode()
        except av.FFmpegError:
            return []
        self.gave_frames |= bool(frames)
        self.held_back += bool(packet.size) and not self.gave_frames
        return frames

    def frames(self) -> Iterator[av.VideoFrame]:
        """All frames from where it is."""
        for packet in self.packets():
            yield from self.decode(packet)

    def go_to(self, timeline: Timeline, key: int) -> Iterator[av.Packet] | None:
        """The packets from a key packet on, a row of `key_pts`; None when it is not found.

        Formats seek to the place itself, near it, or not at all. Packets before it are passed over undecoded.
        """
        pts, dts = timeline.key_pts[key], timeline.key_dts[key]
        for earlier in (0, 1, 8):
            try:
                self.container.seek(int(timeline.key_dts[max(0, key - earlier)]), stream=self.stream)
            except av.FFmpegError:
                break
            packets = self.packets()
            for packet in packets:
                if packet.pts == pts and packet.is_keyframe:
                    return _with_first(packet, packets)
                if packet.dts is not None and packet.dts > dts:
                    break  # it lies before the place that the seek has found
        return None

    def packets_from(self, pts: int) -> Iterator[av.Packet]:
        """The packets from a key packet on, found by passing over all that lies before it."""
        packets = self.packets()
        for packet in packets:
            if packet.pts == pts and packet.is_keyframe:
                yield packet
                yield from packets

    def close(self) -> None:
        """Close the file."""
        self.container.close()

    def __enter__(self) -> "Film":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _free_decoders() -> None:
    """Decoders that are closed are freed by the garbage collector, as PyAV's objects refer to each other in circles. In
    a process that was forked meanwhile it would wait for ever for their threads, which only its parent has."""
    if Film.used_threads:
        gc.collect()
        Film.used_threads = False


os.register_at_fork(before=_free_decoders)


def _plausible(aspect: Fraction | None) -> float:
    """Width of a pixel by its height; 1 where the file says nothing or what cannot be."""
    return float(aspect) if aspect and 1 / MOST_ASPECT <= aspect <= MOST_ASPECT else 1.0


def _with_first(packet: av.Packet, packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
    yield packet
    yield from packets


def shown(path: str | Path) -> str:
    """The name of a file as text that can be written anywhere."""
    return os.fsencode(path).decode("utf-8", "replace")


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
    """None where frames cannot be told by their packets: some have no time stamp or the same, time goes back, or the
    first frame that decodes is not the first that is promised."""
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
    return Timeline(pts, film.unit, origin, end * film.unit - origin, key_pts, key_dts)


class PacketTimes(NamedTuple):
    """What a packet says, in units of the stream."""

    pts: int | None  # when its frame is shown
    dts: int | None  # when it is decoded; None: when it is shown
    is_key: bool
    hidden: bool  # by an edit list: decoded, but not shown
    length: int  # 0: not told


def packet_times(film: Film) -> tuple[list[PacketTimes], int | None]:
    """The packets of the picture as they lie in the file, and the time stamp of the first frame that decodes."""
    packets, first = [], None
    for packet in film.packets():
        if packet.size:  # the last one is empty
            length = int(packet.duration or 0)
            packets.append(PacketTimes(packet.pts, packet.dts, packet.is_keyframe, packet.is_discard, length))
        if first is None:
            first = next((frame.pts for frame in film.decode(packet)), None)
    return packets, first


def _by_frames(film: Film) -> Timeline:
    """By decoding all of it. Where the stamps of showing are out of order those of decoding serve, as in FFmpeg, and
    where there are none the rate that the header says."""
    frames = [(frame.pts, frame.dts, frame.duration or 0) for frame in film.frames()]
    if not frames:
        raise InputError(f"video {shown(film.path)} does not decode: no frame can be read")
    shown_at, decoded_at, lengths = zip(*frames, strict=True)
    candidates = (_increasing(stamps, film) for stamps in (shown_at, decoded_at))
    pts = next((stamps for stamps in candidates if stamps is not None), None)
    none = np.empty(0, dtype=np.int64)
    if pts is None:
        unit = 1 / _rate(film.stream)
        return Timeline(np.arange(len(frames)), unit, 0.0, len(frames) * unit, none, none, counted=True)
    origin, end = film.origin_with(pts), _end(pts, lengths[-1])
    return Timeline(pts, film.unit, origin, end * film.unit - origin, none, none, counted=True)


def _increasing(stamps: Sequence[int | None], film: Film) -> np.ndarray | None:
    """The time stamps of frames that follow each other, int64 (n,), made to increase; None where too many do not.

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


def _rate(stream: av.VideoStream) -> float:
    return float(stream.average_rate or stream.guessed_rate or 25)


@dataclass(frozen=True)
class Condition:
    """What reading all of a film shows."""

    decoded: int  # frames
    visible: int  # packets whose frame should have been shown
    there: float  # seconds that the file holds
    promised: float  # seconds that its header promises; 0 where it promises nothing

    @property
    def cut_short(self) -> str:
        """What is missing of a film that has lost its end, else empty."""
        if self.decoded < DECODED * self.visible:
            return f"{self.decoded} of {self.visible} frames decode"
        if self.there < WHOLE * self.promised - SLACK:
            return f"{self.there:.1f} of {self.promised:.1f} s are there"
        return ""


def condition_of(path: Path, decode: bool = True) -> Condition:
    """Read all of a film.

    A header may speak of the picture itself, or only of the whole file, whose sound may be longer.

    :param decode: else every frame of a packet is taken to decode.
    :raises InputError: it does not open, or no frame of it decodes; names it.
    """
    with Film(path) as film:
        own = film.stream.duration
        decoded = visible = 0
        begun = False
        ends: dict[int, float] = {}  # of each stream, seconds on its clock
        for packet in film.all_packets():
            if packet.size and packet.pts is not None:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                ends[packet.stream_index] = max(end, ends.get(packet.stream_index, end))
            if packet.stream == film.stream:  # the index of the last, empty packet of a stream is not to be trusted
                begun |= packet.is_keyframe  # what lies before the first key frame of a recording does not decode
                visible += bool(begun and packet.size and not packet.is_discard)
                if decode:
                    decoded += len(film.decode(packet))
        if not decode:
            decoded = visible
        elif not decoded:
            raise InputError(f"video {shown(path)} does not decode: no frame can be read")
        there = max(ends.values(), default=0.0) - film.origin
        promised = 0.0
        if not film.formats.isdisjoint(PROMISING):
            if own and not film.formats.isdisjoint(OWN_LENGTH):
                there = ends.get(film.stream.index, 0.0) - (film.stream.start_time or 0) * film.unit
                # FFmpeg takes what a file that was cut still holds for the length of an AVI, but not for its frames
                counted = film.stream.frames / _rate(film.stream) if "avi" in film.formats else 0.0
                promised = max(own * film.unit, counted)
            elif film.container.duration:
                promised = film.container.duration / av.time_base
                there += max(0.0, film.origin)  # some count from the time 0
        return Condition(decoded, visible, there, promised if promised < UNTOLD else 0.0)


def picture_of(path: Path) -> tuple[float, float]:
    """Shorter side in square pixels and frames a second, as the header of a film says.

    :raises InputError: it does not open.
    """
    with Film(path) as film:
        context = film.stream.codec_context
        return min(context.width * film.pixel_aspect, context.height), _rate(film.stream)
