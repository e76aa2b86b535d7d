"""A video file as a player takes it: which stream is its picture, what lies in it, and whether it is whole.

What headers say of rates and counts is only a promise, and is used nowhere but to tell a file that was cut short, and
of what kind it is. Files are read with PyAV, the libraries of FFmpeg.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.stream import Disposition

from datasets.files import shown
from utils.errors import InputError

MOST_ASPECT = 4  # of pixels; those of DVDs are 0.9 to 1.5 times as wide as high
SLACK = 0.2  # seconds by which headers are mistaken, as where they count in a delay of the first frame
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

    def go_to(self, key_pts: np.ndarray, key_dts: np.ndarray, key: int) -> Iterator[av.Packet] | None:
        """The packets from a key packet on, a row of the time stamps (k,) of all of them; None when it is not found.

        Formats seek to the place itself, near it, or not at all. Packets before it are passed over undecoded.
        """
        pts, dts = key_pts[key], key_dts[key]
        for earlier in (0, 1, 8):
            try:
                self.container.seek(int(key_dts[max(0, key - earlier)]), stream=self.stream)
            except av.FFmpegError:
                break
            if (packets := self.packets_from(pts, dts)) is not None:
                return packets
        return None

    def packets_from(self, pts: int, dts: int | None = None) -> Iterator[av.Packet] | None:
        """The packets from a key packet on, found by passing over all that lies between here and it.

        :param dts: when it is decoded: what is decoded later tells that it lies before here; None looks at all packets.
        """
        packets = self.packets()
        for packet in packets:
            if packet.pts == pts and packet.is_keyframe:
                return chain((packet,), packets)
            if dts is not None and packet.dts is not None and packet.dts > dts:
                break
        return None

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


def rate_of(stream: av.VideoStream) -> float:
    """Frames a second, as the header says."""
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
                counted = film.stream.frames / rate_of(film.stream) if "avi" in film.formats else 0.0
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
        return min(context.width * film.pixel_aspect, context.height), rate_of(film.stream)


def about_seconds(path: Path) -> float:
    """How long a film is as its header says, without reading more; 0 where that says nothing.

    :raises InputError: it does not open.
    """
    with Film(path) as film:
        return min((film.container.duration or 0) / av.time_base, UNTOLD)
