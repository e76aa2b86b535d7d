"""Bringing the names of an index up to date with its folders: what is new, has changed, has moved or is gone."""

import os
import sys
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple

from datasets.container import about_seconds
from datasets.files import shown
from datasets.video import is_picture
from utils.errors import InputError
from utils.machine import cores
from utils.progress import progress
from video_index.files import Listing, content_of
from video_index.store import Root, Store, named_folder

MOST_TRIES = 2  # to read a video, then it is left until it changes
AT_ONCE = 64  # files that are read before their names are written


@dataclass
class Changes:
    """What has become of the names of a folder."""

    there: int = 0
    new: int = 0  # names that were not there before
    changed: int = 0  # names of another content than before
    gone: int = 0  # in folders that hold other files
    out_of_reach: int = 0  # in folders that are empty, gone or cannot be read: they stay
    unreadable: list[str] = field(default_factory=list)  # what could not be read now, and why


class _Name(NamedTuple):
    """A file as an index holds it."""

    id: int
    size: int
    mtime_ns: int
    video: int
    former: int | None
    gone: bool


class _Content(NamedTuple):
    """What a file holds."""

    size: int
    hash: bytes
    seconds: float  # about


def root_at(store: Store, given: str, exclude: str | None) -> Root:
    """The root that --videos_dir means, written down: DIR, or NAME=DIR for a known one that lies there now.

    :param exclude: patterns from now on; None: those of before.
    """
    known = {root.name: root for root in store.roots()}
    name, folder = named_folder(given, known)
    root = known.get(name) or next((root for root in known.values() if root.folder == folder), None)
    root = root or Root(None, _free_name(os.path.basename(folder) or "root", known), folder, "")
    root = root._replace(folder=folder, exclude=root.exclude if exclude is None else exclude)
    with store.transaction():
        id = store.execute(
            "INSERT INTO roots VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET folder = excluded.folder,"
            " exclude = excluded.exclude",
            (root.id, root.name, os.fsencode(root.folder), root.exclude),
        ).lastrowid
    return root if root.id else root._replace(id=id)


def _free_name(name: str, known: Collection[str]) -> str:
    return next(free for free in chain([name], (f"{name}-{number}" for number in count(2))) if free not in known)


def follow(store: Store, root: Root, found: Listing) -> Changes:
    """Write down what the names below a root are now. What they hold is encoded later.

    :param found: what `listing` found in its folder.
    """
    changes = Changes(there=len(found.files), unreadable=list(found.unreadable))
    held = _held(store, root)
    changes.gone, changes.out_of_reach = _mark_absent(store, held, found)
    unknown = {}
    for path, state in found.files.items():
        name = held.get(path)
        if name is None or (name.size, name.mtime_ns) != (state.st_size, state.st_mtime_ns):
            unknown[path] = state
    folder = os.fsdecode(found.folder)
    for some in _identified(folder, unknown, changes.unreadable):
        with store.transaction():
            for path, content in some.items():
                before = held.get(path)
                changes.new += before is None
                changes.changed += _put(store, root, path, unknown[path].st_mtime_ns, content, before)
                _drop_moved(store, root, path, content)
    return changes


def _held(store: Store, root: Root) -> dict[bytes, _Name]:
    """The names of a root by path."""
    query = (
        "SELECT f.path, f.id, v.size, f.mtime_ns, f.video, f.former, f.gone FROM files f JOIN videos v"
        " ON v.id = f.video WHERE f.root = ?"
    )
    return {path: _Name(*values) for path, *values in store.rows(query, (root.id,))}


def _mark_absent(store: Store, held: dict[bytes, _Name], found: Listing) -> tuple[int, int]:
    """Let searches pass over names that are gone, and find again those that are back.

    :return: how many are gone, and how many are out of reach.
    """
    gone = out_of_reach = 0
    with store.transaction():
        for path, name in held.items():
            misses = found.misses(path)
            gone += misses
            out_of_reach += not misses and path not in found.files
            if misses != bool(name.gone) and (misses or path in found.files):
                store.rows("UPDATE files SET gone = ? WHERE id = ?", (misses, name.id))
    return gone, out_of_reach


def _identified(
    folder: str, unknown: dict[bytes, os.stat_result], unreadable: list[str]
) -> Iterator[dict[bytes, _Content]]:
    """What files hold, some of them at a time. Why others cannot be read now is added to `unreadable`."""

    def identify(path: bytes) -> _Content | str:
        file = os.path.join(folder, os.fsdecode(path))
        return _content(file, unknown[path])

    paths = list(unknown)
    with ThreadPoolExecutor(cores()) as pool, progress(None, "looking", len(paths), "files") as bar:
        for start in range(0, len(paths), AT_ONCE):
            some = paths[start : start + AT_ONCE]
            contents = dict(zip(some, pool.map(identify, some), strict=True))
            bar.update(len(some))
            unreadable += (content for content in contents.values() if isinstance(content, str))
            yield {path: content for path, content in contents.items() if not isinstance(content, str)}


def _content(file: str, state: os.stat_result) -> _Content | str:
    """What a file holds, or why that cannot be told now."""
    try:
        digest = content_of(file, state.st_size)
        after = os.stat(file)
    except OSError as error:
        return f"{shown(file)} cannot be read: {error.strerror}; the next run tries again"
    if (after.st_size, after.st_mtime_ns) != (state.st_size, state.st_mtime_ns):
        return f"{shown(file)} is being written; the next run reads it"
    try:
        seconds = 0.0 if is_picture(Path(file)) else about_seconds(Path(file))
    except InputError:  # reading it tells why
        seconds = 0.0
    return _Content(state.st_size, digest, seconds)


def _put(store: Store, root: Root, path: bytes, mtime_ns: int, content: _Content, before: _Name | None) -> bool:
    """Write down what a file holds now. What searches found under its name stays until the new content is encoded.

    :return: whether it is another content than before.
    """
    known = store.rows("SELECT id FROM videos WHERE size = ? AND hash = ?", content[:2])
    if known:
        video = known[0][0]
        store.rows("UPDATE videos SET tries = 0 WHERE id = ?", (video,))  # somebody has touched it
    else:
        video = store.execute("INSERT INTO videos (size, hash, seconds) VALUES (?, ?, ?)", content).lastrowid
    if before is None:
        values = (root.id, path, mtime_ns, video)
        store.rows("INSERT INTO files (root, path, mtime_ns, video) VALUES (?, ?, ?, ?)", values)
        return False
    former = before.former or before.video
    if former == video or store.is_whole(video):
        former = None
    values = (mtime_ns, video, former, before.id)
    store.rows("UPDATE files SET mtime_ns = ?, video = ?, former = ?, gone = 0 WHERE id = ?", values)
    return video != before.video


def _drop_moved(store: Store, root: Root, path: bytes, content: _Content) -> None:
    """Forget other names of a content under which there is nothing any more."""
    query = (
        "SELECT f.id, r.folder, f.path FROM files f JOIN roots r ON r.id = f.root JOIN videos v ON v.id = f.video"
        " WHERE v.size = ? AND v.hash = ? AND NOT (f.root = ? AND f.path = ?)"
    )
    for id, folder, other in store.rows(query, (*content[:2], root.id, path)):
        if not os.path.lexists(os.path.join(folder, other)):
            store.rows("DELETE FROM files WHERE id = ?", (id,))


@dataclass(frozen=True)
class Unfinished:
    """A video of which segments are not in an index."""

    video: int
    file: str
    size: int
    mtime_ns: int
    seconds: float  # about
    held: frozenset[int]  # the parts that the index has


def missing(store: Store, roots: Sequence[Root], all_of: bool = False) -> list[Unfinished]:
    """The videos below some roots that are not whole in an index, each once.

    :param all_of: those that do not decode, too.
    """
    films = {}
    query = (
        "SELECT v.id, f.path, v.size, f.mtime_ns, v.seconds FROM files f JOIN videos v ON v.id = f.video"
        " WHERE f.root = ? AND NOT f.gone AND v.tries < ?"
        " AND (v.parts IS NULL OR v.parts > (SELECT count(*) FROM segments WHERE video = v.id)) ORDER BY f.path"
    )
    for root in roots:
        for video, path, *rest in store.rows(query, (root.id, sys.maxsize if all_of else MOST_TRIES)):
            file = os.path.join(root.folder, os.fsdecode(path))
            if video not in films and os.path.isfile(file):
                held = (part for (part,) in store.rows("SELECT part FROM segments WHERE video = ?", (video,)))
                films[video] = Unfinished(video, file, *rest, frozenset(held))
    return list(films.values())
