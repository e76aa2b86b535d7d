"""What a search asks for, and among which segments: the same for the command line and for the page."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from utils.errors import InputError
from video_index.store import IndexedSegment, Root

NANOSECONDS = 10**9
DATES = ("%Y", "%Y-%m", "%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M")


@dataclass(frozen=True)
class Filters:
    """Which segments are searched: those of files below one of the folders, not older and not newer than two times.

    :param folders: absolute, relative to here, or below a root of the index, the name of the root in front or not.
    :param since_ns: of the file's last change, nanoseconds since 1970; `until_ns` is the first moment that is too late.
    """

    folders: tuple[str, ...] = ()
    since_ns: int | None = None
    until_ns: int | None = None

    def passing(self, segments: Sequence[IndexedSegment], roots: Sequence[Root]) -> Iterable[int]:
        """Indices of the segments that are searched.

        :raises InputError: an index has no folder of that name.
        """
        if self == Filters():
            return range(len(segments))
        places = [_places(folder, roots) for folder in self.folders]
        for folder, below in zip(self.folders, places, strict=True):
            if not any(_lies_in(segment, below) for segment in segments):
                raise InputError(f"--in={folder}: the index holds nothing there; `search.py list` shows what it holds")
        return [
            index for index, segment in enumerate(segments)
            if self._in_time(segment.mtime_ns) and (not places or any(_lies_in(segment, below) for below in places))
        ]  # fmt: skip

    def _in_time(self, mtime_ns: int) -> bool:
        return (self.since_ns is None or mtime_ns >= self.since_ns) and (
            self.until_ns is None or mtime_ns < self.until_ns
        )


@dataclass(frozen=True)
class Query:
    """What is searched for. `texts`, `minus` and `like` are one vector together, see `ranking.combined`.

    :param texts: what a segment should show; the words of the first are those that the third stage reads.
    :param minus: what it should not show.
    :param like: a video file, or the id of a segment of the index, whose video is no hit then.
    :param per_video: one hit for each video, its best segment with the neighbours that fit nearly as well.
    :param min_score: least share of the library's segments that score less than a hit, in percent.
    :param topk: hits at most; None: those of the settings.
    """

    texts: tuple[str, ...] = ()
    minus: tuple[str, ...] = ()
    like: str | int | None = None
    filters: Filters = Filters()
    per_video: bool = False
    min_score: float = 0.0
    topk: int | None = None


def _places(folder: str, roots: Sequence[Root]) -> tuple[str, ...]:
    """How the names of files begin that lie in a folder, wherever it may be meant."""
    below = os.path.normpath(folder)
    found = [os.path.abspath(folder)]
    for root in roots:
        found.append(os.path.normpath(os.path.join(root.folder, below)))
        if below == root.name or below.startswith(root.name + os.sep):
            found.append(os.path.normpath(os.path.join(root.folder, below[len(root.name) :].lstrip(os.sep))))
    return tuple(os.path.join(place, "") for place in found)


def _lies_in(segment: IndexedSegment, places: tuple[str, ...]) -> bool:
    """Whether one of the names of a segment lies there."""
    return any(name.startswith(places) for name in (segment.file, *segment.others))


def time_ns(flag: str, text: str, after: bool = False) -> int:
    """A time as nanoseconds since 1970: a year, a month, a day or a minute, of this machine's clock.

    :param flag: that gives it, for the message.
    :param after: its end, not its beginning.
    :raises InputError: it is none of these.
    """
    for form in DATES:
        try:
            begins = datetime.strptime(text.strip(), form)
            ends = _end(begins, form)
            return int((ends if after else begins).timestamp()) * NANOSECONDS
        except (ValueError, OverflowError):  # of another form, or a year beyond those that clocks know
            continue
    raise InputError(f"--{flag}={text} is no date: give 2024, 2024-05, 2024-05-31 or 2024-05-31T18:30")


def _end(begins: datetime, form: str) -> datetime:
    """The end of the year, month, day or minute that a form names."""
    if form == "%Y":
        return begins.replace(year=begins.year + 1)
    if form == "%Y-%m":
        return begins.replace(year=begins.year + begins.month // 12, month=begins.month % 12 + 1)
    return begins + (timedelta(days=1) if form == "%Y-%m-%d" else timedelta(minutes=1))
