"""Moments as files: copied without loss from the key frame before where their format allows it, else encoded anew."""

import logging
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
from av.container import OutputContainer
from av.stream import Stream

from datasets.container import Film
from datasets.files import shown, split_name
from datasets.timeline import timeline
from datasets.video import is_picture
from utils.errors import InputError
from utils.files import written_whole
from video_index.answers import clock
from video_index.searching import Hit

logger = logging.getLogger(__name__)

# what a copy is written as; of other formats as OTHERWISE, which holds most
COPIED, OTHERWISE = {"mp4", "m4v", "mov", "mkv", "webm", "ts"}, "mkv"
NAME_BYTES = 120  # of the name of the video in that of the moment; file systems take 255 in all
SLACK = 1e-6  # seconds
LEAST = 0.04  # seconds that are encoded
LATER = 1.0  # by which sound may lie behind its picture in a file
KEYS_EARLIER = 2  # where reading begins: formats seek past a place, or know times of decoding a few packets later alone


def cut(folder: Path, number: int, hit: Hit) -> str:
    """Write the moment of a hit as a file.

    :param number: with which its name begins.
    :return: what was written: its name, and from when to when it truly goes.
    :raises InputError: the video does not open, or nothing can be written there.
    """
    source = Path(hit.segment.file)
    stem, extension = split_name(source.name)
    name = f"{number:03} {shown(stem).encode()[:NAME_BYTES].decode(errors='ignore')}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if is_picture(source):
            target = folder / f"{name}.{extension}"
            with written_whole(target) as unfinished:
                shutil.copyfile(source, unfinished)
            return shown(target)
        start, end = hit.start or 0.0, hit.end if hit.end is not None else timeline(source).end
        times = f"{clock(start)}-{clock(end)}".replace(":", ".")
        extension = extension.lower() if extension.lower() in COPIED else OTHERWISE
        target = folder / f"{name} {times}.{extension}"
        return _film(source, target, start, end)
    except OSError as error:
        raise InputError(f"{shown(source)} cannot be cut into --cut={folder}: {error.strerror or error}") from error


def _film(source: Path, target: Path, start: float, end: float) -> str:
    """Write a moment of a film; what was written."""
    try:
        with written_whole(target) as unfinished:
            begins, ends = _copy(source, unfinished, _format_of(target), start, end)
        return f"{shown(target)}: {clock(begins)} - {clock(ends)}, copied"
    except InputError:  # a ValueError, too
        raise
    except (av.FFmpegError, ValueError, TypeError) as error:
        logger.debug("%s is encoded anew: %s", shown(source), error)
    target = target.with_suffix(".mp4")
    with written_whole(target) as unfinished:
        _encode(source, unfinished, start, end)
    return f"{shown(target)}: {clock(start)} - {clock(end)}, encoded anew"


def _format_of(target: Path) -> str:
    return {"mkv": "matroska", "m4v": "mp4", "ts": "mpegts"}.get(target.suffix[1:], target.suffix[1:])


def _copy(source: Path, target: Path, format: str, start: float, end: float) -> tuple[float, float]:
    """Copy picture and sound from the key frame before the start until all frames before the end are there.

    :return: true start and end, seconds.
    """
    times = timeline(source)
    if times.counted:
        raise ValueError("its frames are told by their order, not by time stamps")
    row = times.key_before(times.between(start, end)[0])
    key, before = int(times.key_pts[row]), int(times.key_dts[max(0, row - KEYS_EARLIER)])
    begins = key * times.unit - times.origin
    with Film(source) as film, av.open(f"file:{target}", "w", format=format) as copy:
        streams = _streams(film, copy)
        ends = begins
        film.container.seek(before, stream=film.stream)
        for packet in _wanted(film, list(streams), key, end + times.origin):
            if packet.stream == film.stream:
                ends = max(ends, float((packet.pts + (packet.duration or 0)) * packet.time_base) - times.origin)
            shift = round(key * times.unit / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = streams[packet.stream]
            copy.mux(packet)
    if ends == begins:
        raise ValueError("its key frame is not found")
    return begins, ends


def _streams(film: Film, copy: OutputContainer) -> dict[Stream, Stream]:
    """A stream of the copy for the picture and for each of the sound."""
    wanted = [film.stream, *film.container.streams.audio]
    return {stream: copy.add_stream_from_template(stream) for stream in wanted}


def _wanted(film: Film, streams: Sequence[Stream], key: int, end: float) -> Iterator[av.Packet]:
    """The packets of a moment in their order; of the picture those, too, that are shown later and come before one that
    is not, which may need them.

    :param key: time stamp of the first of the picture; `end` in seconds on the clock of the streams.
    """
    begins, found, held = key * film.unit, False, []
    for packet in film.all_packets(*streams):
        if packet.pts is None:
            continue  # the end of a stream
        is_picture = packet.stream == film.stream
        found |= is_picture and packet.pts == key and packet.is_keyframe
        shown_at = float(packet.pts * packet.time_base)
        if shown_at < begins - SLACK or (is_picture and not found):
            continue
        if packet.dts is None:
            raise ValueError("a packet has no time of decoding")
        if float(packet.dts * packet.time_base) >= end + LATER:
            return
        if shown_at < end - SLACK:
            yield from held if is_picture else ()
            held = [] if is_picture else held
            yield packet
        elif is_picture:
            held.append(packet)


def _encode(source: Path, target: Path, start: float, end: float) -> None:
    """Encode a moment anew, as H.264 and AAC, by FFmpeg of the system or of the imageio-ffmpeg wheel.

    :raises InputError: it fails.
    """
    import imageio_ffmpeg

    program = shutil.which("ffmpeg") or imageio_ffmpeg.get_ffmpeg_exe()
    quiet = ["-nostdin", "-hide_banner", "-loglevel", "error", "-y"]
    film, seek = ["-i", f"file:{source}"], ["-ss", f"{start:.3f}"]
    film_from = film + seek if timeline(source).counted else seek + film  # where seeking misses, all is decoded
    span = [*film_from, "-t", f"{max(end - start, LEAST):.3f}"]
    even = "scale=2*ceil(iw*sar/2):2*ceil(ih/2),setsar=1"
    encoding = ["-map", "0:v:0", "-map", "0:a?", "-vf", even, "-c:v", "libx264", "-pix_fmt", "yuv420p", "-c:a", "aac"]
    command = [program, *quiet, *span, *encoding, "-movflags", "+faststart", "-f", "mp4", f"file:{target}"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    if done.returncode or not _holds_pictures(target):
        said = (done.stderr.strip().splitlines() or ["nothing of it decodes"])[-1]
        raise InputError(f"{shown(source)} cannot be cut: {said}")


def _holds_pictures(path: Path) -> bool:
    try:
        Film(path).close()
    except InputError:
        return False
    return True
