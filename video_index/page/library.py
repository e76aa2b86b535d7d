"""What the page may show of an index: answers to queries, and the segments that it holds, by their numbers."""

import math
import os
import stat
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any, BinaryIO

from datasets.files import PICTURE_EXTENSIONS, shown, split_name
from datasets.video import read_frames
from utils.errors import InputError
from utils.machine import cores
from utils.pictures import jpeg_strip
from video_index.answers import time_of
from video_index.page.asked import asked
from video_index.searching import Hit, Searcher
from video_index.store import IndexedSegment

PLAYED = {  # by browsers, and as what
    "m4v": "video/mp4", "mov": "video/mp4", "mp4": "video/mp4", "ogv": "video/ogg", "webm": "video/webm",
    "jpe": "image/jpeg", "jpeg": "image/jpeg", "jpg": "image/jpeg", "png": "image/png", "webp": "image/webp",
}  # fmt: skip
HEIGHT = 180  # pixels of a thumbnail
FRAMES = 8  # that stand for a video which a browser does not play
PICTURES_KEPT = 2000
GONE = "its file is not there now"


class NotThere(Exception):
    """The index has no such segment, or its file cannot be shown."""


class Library:
    """An index that is searched by many threads at once.

    All searches run in one thread, so that they share its threads of PyTorch and one state of the index.
    """

    def __init__(self, searcher: Searcher) -> None:
        self.searcher = searcher
        self.worker = ThreadPoolExecutor(1, "search")
        self.decoders = BoundedSemaphore(cores())
        self.picture_of = lru_cache(PICTURES_KEPT)(self._picture_of)
        self.segments: list[IndexedSegment] = []
        self.worker.submit(self._look).result()

    def search(self, fields: Mapping[str, str]) -> dict[str, Any]:
        """What the page is told of the answer to its fields.

        :raises InputError: a field cannot be, or the index holds nothing.
        """
        return self.worker.submit(self._search, fields).result()

    def about(self) -> dict[str, Any]:
        """How many segments there are now, and the folders in which they lie.

        :raises InputError: there are none.
        """
        return self.worker.submit(self._about).result()

    def picture(self, id: int, several: bool) -> bytes:
        """The middle frame of a segment, or FRAMES of it side by side, as a JPEG.

        :raises NotThere:
        """
        segment = self._segment(id)
        if self._place(segment) is None:
            raise NotThere(GONE)
        try:
            return self.picture_of(segment, FRAMES if several else 1)
        except InputError as error:
            raise NotThere("no frame of it decodes") from error

    @contextmanager
    def opened(self, id: int) -> Iterator[tuple[BinaryIO, str, os.stat_result]]:
        """The file of a segment, its media type and its state.

        :raises NotThere: there is none now, or browsers do not play it.
        """
        segment = self._segment(id)
        place, kind = self._place(segment), PLAYED.get(_suffix(segment.file))
        if place is None or kind is None:
            raise NotThere(GONE if place is None else "browsers do not play it")
        try:
            descriptor = _open_plain(place)
        except OSError as error:
            raise NotThere(f"its file cannot be read: {error.strerror}") from error
        with os.fdopen(descriptor, "rb") as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise NotThere(GONE)
            yield file, kind, state

    def _about(self) -> dict[str, Any]:
        with self.searcher.current():
            self._look()
        return {"segments": len(self.segments), "folders": list(self.folders)}

    def _look(self) -> None:
        """Take over the segments and folders of the index as the searcher has them."""
        if self.segments is self.searcher.segments:
            return
        self.segments = self.searcher.segments
        self.roots = self.searcher.store.roots()
        self.by_id = {segment.id: segment for segment in self.segments}
        self.folders = dict(sorted(self._folders()))

    def _folders(self) -> Iterator[tuple[str, str]]:
        """The name and absolute path of each folder in which segments lie, and of the folders above it."""
        for folder in {os.path.dirname(segment.file) for segment in self.segments}:
            for root in self.roots:
                if folder == root.folder or folder.startswith(os.path.join(root.folder, "")):
                    while len(folder) > len(root.folder):
                        yield shown(self._below(folder)), folder
                        folder = os.path.dirname(folder)
                    yield shown(root.name), root.folder

    def _below(self, path: str) -> str:
        """A path below its root, after the root's name."""
        for root in self.roots:
            if path.startswith(os.path.join(root.folder, "")):
                return os.path.join(root.name, os.path.relpath(path, root.folder))
        return path

    def _search(self, fields: Mapping[str, str]) -> dict[str, Any]:
        started = time.perf_counter()
        query = asked(fields, self.folders)
        hits = self.searcher.search(query)
        self._look()
        seconds = round(time.perf_counter() - started, 3)
        notes = [said for text in (*query.texts, *query.minus) for said in self.searcher.model.cut_off(text)]
        return {
            "segments": len(self.segments), "seconds": seconds, "notes": notes, "hits": list(map(self._told, hits)),
        }  # fmt: skip

    def _told(self, hit: Hit) -> dict[str, Any]:
        """A hit as the page shows it."""
        segment, suffix = hit.segment, _suffix(hit.segment.file)
        share = "" if hit.share is None else f"better than {math.floor(10 * hit.share) / 10:.1f}\u00a0% of all"
        others = f"and {len(segment.others)} more of the same" if segment.others else ""
        is_picture = suffix in PICTURE_EXTENSIONS
        how = "show" if is_picture else "play"
        unplayed = f"Browsers do not {how} .{suffix} files: you see {'a copy' if is_picture else 'frames'} of it."
        facts = [shown(os.path.dirname(self._below(segment.file))), time_of(hit), share, others]
        return {
            "id": segment.id, "name": shown(os.path.basename(segment.file)), "when": time_of(hit), "start": hit.start,
            "end": hit.end, "facts": " · ".join(filter(None, facts)), "plays": suffix in PLAYED,
            "kind": "picture" if is_picture else "video", "note": "" if suffix in PLAYED else unplayed,
        }  # fmt: skip

    def _segment(self, id: int) -> IndexedSegment:
        if id not in self.by_id:
            raise NotThere("the index holds no such segment now")
        return self.by_id[id]

    def _place(self, segment: IndexedSegment) -> str | None:
        """Where the file of a segment lies; None where it is not there, or a link leads out of the index's folders."""
        place = os.path.realpath(segment.file)
        inside = any(place.startswith(os.path.join(os.path.realpath(root.folder), "")) for root in self.roots)
        return place if inside and os.path.isfile(place) else None

    def _picture_of(self, segment: IndexedSegment, count: int) -> bytes:
        with self.decoders:
            return jpeg_strip(read_frames(Path(segment.file), count, start=segment.start, end=segment.end), HEIGHT)


def _suffix(file: str) -> str:
    return split_name(file)[1].lower()


def _open_plain(path: str) -> int:
    """Open what is a file: no link that has just been put there, and no pipe that would have to be waited for."""
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
