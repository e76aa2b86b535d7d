"""The database of an index: which videos there are under which names, and what is encoded of each.

A video is its content, told by size and a hash of samples. Its files are names for it, as paths below named folders
(roots), so that what is renamed, moved, copied or linked is the same video. A file whose content has changed shows the
`former` video until the new one is whole. Everything is in one SQLite file in write-ahead mode: readers see what was
committed before they began, a process may die at any moment, and nothing that was committed is lost.
"""

import os
import sqlite3
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.errors import InputError
from video_index.database import DATABASE, connect, create, damaged, speaking
from video_index.head import Head, head_rows, read_head
from video_index.lock import only_writer


@dataclass(frozen=True)
class IndexedSegment:
    """A segment of a video, or all of it, with the names under which it is found."""

    id: int
    video: int
    file: str  # absolute
    part: int = 0  # the number of the segment, of so many of the video
    parts: int = 1
    start: float | None = None  # seconds; None: of the whole video, whose length is not known
    end: float | None = None
    mtime_ns: int = 0  # of the file
    others: tuple[str, ...] = ()  # further names of the same video, absolute


class Root(NamedTuple):
    """A folder whose videos are in the index."""

    id: int | None  # None before it is written down
    name: str
    folder: str  # absolute
    exclude: str  # patterns of what is left out, with commas between them


class Span(NamedTuple):
    """Where in its video a segment lies."""

    part: int  # its number, from 0
    parts: int  # segments of the video
    start: float | None  # seconds
    end: float | None


class Features(NamedTuple):
    """What is kept of a segment, as the bytes of rows in the order of the machine."""

    mean: bytes  # over the frames (D,), float32
    frames: bytes  # (F, D), float32
    tokens: bytes | None  # (S, W), bfloat16; None where the model has none


class Store:
    """An index that is there.

    :param folder: of the index.
    :param writing: whether this process is the one that writes, inside `only_writer`.
    :raises InputError: it is no index, of another version, or damaged.
    """

    def __init__(self, folder: Path, writing: bool = False) -> None:
        self.folder, self.writing = Path(folder), writing
        self.moved: dict[str, str] = {}  # folders to take for roots, by name, instead of those that the index knows
        self.path = self.folder / DATABASE
        head = read_head(self.folder)
        if head is None:
            raise InputError(f"--index={folder} is no index: make one with `python search.py index`")
        self.head: Head = head
        self._open()

    @classmethod
    def create(cls, folder: Path, head: Head) -> "Store":
        """A new index, for writing.

        :raises InputError: the folder holds something else, or cannot be written.
        """
        check_free(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            create(folder / DATABASE, head_rows(head))
        except OSError as error:
            raise InputError(f"--index={folder} cannot be written: {error.strerror}") from error
        return cls(folder, writing=True)

    def _open(self) -> None:
        self.database = connect(self.path, self.writing)
        self.opened, self.version = os.stat(self.path).st_ino, -1

    def map_folders(self, given: str | None) -> None:
        """Take another folder for a root, without writing it down: NAME=DIR, or DIR for the only one or that of the
        same name.

        :raises InputError: there are several roots.
        """
        if given is None:
            return
        names = [root.name for root in self.roots()]
        name, folder = named_folder(given, names)
        name = name or (names[0] if len(names) == 1 else os.path.basename(folder))
        if name not in names:
            raise InputError(f"--videos_dir={given} may be for any of {', '.join(names)}: give NAME=DIR")
        self.moved[name] = folder

    def close(self) -> None:
        """Let go of the file; a writer puts everything into it."""
        self.database.close()

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple]:
        """All rows of a query.

        :raises InputError: the database is damaged or cannot be written.
        """
        return self.execute(query, values).fetchall()

    def execute(self, query: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """The same, with what SQLite tells of it."""
        with speaking(self.folder):
            return self.database.execute(query, values)

    # -- reading ------------------------------------------------------------------------------------------------------

    @contextmanager
    def snapshot(self) -> Iterator[bool]:
        """Inside, everything is read as it was at the beginning. Yields whether that is another state than in the
        snapshot before, another process having written since."""
        if os.stat(self.path).st_ino != self.opened:  # `verify` has put a new file in its place
            self.close()
            self._open()
        self.rows("BEGIN")
        try:
            self.rows("SELECT count(*) FROM about")  # only now does it begin
            version = self.rows("PRAGMA data_version")[0][0]
            changed, self.version = version != self.version, version
            yield changed
        finally:
            self.database.rollback()

    def roots(self) -> list[Root]:
        """The folders, by name."""
        return [
            Root(id, name, self.moved.get(name, os.fsdecode(folder)), exclude)
            for id, name, folder, exclude in self.rows("SELECT * FROM roots ORDER BY name")
        ]

    def gallery(self) -> tuple[list[IndexedSegment], np.ndarray]:
        """All segments that searches find, and the mean of the frames of each (M, D), float32."""
        names = self._names()
        found = self.rows(
            "SELECT s.id, s.video, s.part, v.parts, s.start, s.end, s.mean FROM segments s JOIN videos v"
            " ON v.id = s.video ORDER BY s.id"
        )
        segments, means = [], []
        for id, video, part, parts, start, end, mean in found:
            if video in names:
                (file, mtime_ns), *others = names[video]
                others = tuple(dict.fromkeys(name for name, _ in others if name != file))
                segments.append(IndexedSegment(id, video, file, part, parts, start, end, mtime_ns, others))
                means.append(mean)
        return segments, _array(means, np.float32, self.head.frames[1:])

    def _names(self) -> dict[int, list[tuple[str, int]]]:
        """The absolute names and times of change of the files of each video that searches find, oldest names first."""
        folders = {root.id: root.folder for root in self.roots()}
        names = defaultdict(list)
        shown = "SELECT coalesce(former, video), root, path, mtime_ns FROM files WHERE NOT gone ORDER BY id"
        for video, root, path, mtime_ns in self.rows(shown):
            names[video].append((os.path.join(folders[root], os.fsdecode(path)), mtime_ns))
        return names

    def frames(self, ids: Sequence[int]) -> np.ndarray:
        """Frame features of segments (n, F, D), float32; reads those rows alone."""
        return self._features("frames", ids, np.float32, self.head.frames)

    def tokens(self, ids: Sequence[int]) -> np.ndarray | None:
        """Tokens of segments (n, S, W), the bits of bfloat16 as int16, which NumPy has not; reads those rows alone.
        None where the model has none."""
        return None if self.head.tokens is None else self._features("tokens", ids, np.int16, self.head.tokens)

    def _features(self, table: str, ids: Sequence[int], dtype: type, shape: Sequence[int]) -> np.ndarray:
        found = []
        for id in ids:
            rows = self.rows(f"SELECT data FROM {table} WHERE segment = ?", (id,))
            if not rows:
                raise InputError(damaged(self.folder, f"{table} of a segment are missing"))
            found.append(rows[0][0])
        return _array(found, dtype, shape)

    def video_at(self, file: str, state: os.stat_result) -> int | None:
        """The video of an absolute name, if the file is as it was when that was read."""
        query = (
            "SELECT f.video FROM files f JOIN videos v ON v.id = f.video WHERE f.root = ? AND f.path = ?"
            " AND f.former IS NULL AND f.mtime_ns = ? AND v.size = ?"
        )
        for root in self.roots():
            path = os.fsencode(os.path.relpath(file, root.folder))
            if found := self.rows(query, (root.id, path, state.st_mtime_ns, state.st_size)):
                return found[0][0]
        return None

    def is_whole(self, video: int) -> bool:
        """Whether all segments of a video are encoded."""
        query = "SELECT parts = (SELECT count(*) FROM segments WHERE video = videos.id) FROM videos WHERE id = ?"
        return bool(self.rows(query, (video,))[0][0])

    # -- writing ------------------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Inside, all changes are made, or none. They last as soon as it ends."""
        self.rows("BEGIN IMMEDIATE")
        try:
            yield
            self.rows("COMMIT")
        finally:
            if self.database.in_transaction:
                self.database.rollback()

    def add(self, video: int, span: Span, features: Features) -> None:
        """A segment and its features, inside a transaction. A video that is whole now takes the place of a former."""
        part, parts, start, end = span
        insert = "INSERT INTO segments (video, part, start, end, checksum, mean) VALUES (?, ?, ?, ?, ?, ?)"
        id = self.execute(insert, (video, part, start, end, checksum(*features), features.mean)).lastrowid
        self.rows("INSERT INTO frames VALUES (?, ?)", (id, features.frames))
        if features.tokens is not None:
            self.rows("INSERT INTO tokens VALUES (?, ?)", (id, features.tokens))
        self.rows("UPDATE videos SET parts = ?, seconds = max(seconds, ?) WHERE id = ?", (parts, end or 0, video))
        if self.is_whole(video):
            self.rows("UPDATE videos SET error = NULL WHERE id = ?", (video,))
            if self.execute("UPDATE files SET former = NULL WHERE video = ? AND former", (video,)).rowcount:
                self.drop_unnamed()

    def keep_flags(self, head: Head) -> None:
        """Build the model by other flags from now on, as where its checkpoint has moved."""
        self.head = head
        with self.transaction():
            for row in head_rows(head):
                self.rows("INSERT OR REPLACE INTO about VALUES (?, ?)", row)

    def drop_unnamed(self) -> None:
        """Delete what no file and no former file is a name of; and roots without files."""
        self.rows(
            "DELETE FROM videos WHERE NOT EXISTS (SELECT 1 FROM files WHERE video = videos.id)"
            " AND NOT EXISTS (SELECT 1 FROM files WHERE former = videos.id)"
        )
        self.rows("DELETE FROM roots WHERE NOT EXISTS (SELECT 1 FROM files WHERE root = roots.id)")


@contextmanager
def writable(folder: Path) -> Iterator[Store]:
    """An index that this process may change, and no other.

    :raises InputError: it is none, or another process changes it.
    """
    Store(folder).close()  # before a lock is left in a folder that is none
    with only_writer(folder):
        store = Store(folder, writing=True)
        try:
            yield store
        finally:
            store.close()


def named_folder(given: str, known: Collection[str]) -> tuple[str, str]:
    """The name, empty where there is none, and the absolute folder of DIR or NAME=DIR."""
    name, equals, folder = given.partition("=")
    if equals and name in known and not os.path.isdir(given):
        return name, os.path.abspath(folder)
    return "", os.path.abspath(given)


def check_free(folder: Path) -> None:
    """:raises InputError: a folder holds something, so that no index can be made there."""
    if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise InputError(f"--index={folder} holds files that are no index: give an empty folder")


def checksum(mean: bytes, frames: bytes, tokens: bytes | None) -> int:
    """Of all that is kept of a segment."""
    return zlib.crc32(tokens or b"", zlib.crc32(frames, zlib.crc32(mean)))


def _array(rows: Sequence[bytes], dtype: type, shape: Sequence[int]) -> np.ndarray:
    """Rows of bytes as an array (n, *shape) that may be written to."""
    return np.frombuffer(bytearray(b"".join(rows)), dtype).reshape(len(rows), *shape)
