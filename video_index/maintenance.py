"""What people ask of an index beside searching: what is in it, what shall leave it, and whether it is whole."""

import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from datasets.files import shown
from utils.errors import InputError
from video_index.answers import clock
from video_index.database import DATABASE, connect, create, speaking
from video_index.head import head_rows, read_head
from video_index.store import Store, checksum

logger = logging.getLogger(__name__)

TABLES = ("roots", "videos", "files", "segments", "frames", "tokens")
STATES = ("searched", "partly encoded", "not encoded", "does not decode", "gone")


def files_of(store: Store) -> Iterator[tuple[str, str, float, str | None]]:
    """Absolute name, state (one of STATES), seconds and error of each file of an index, by name."""
    query = (
        "SELECT r.name, f.path, v.seconds, v.error, v.parts, f.gone, f.former,"
        " (SELECT count(*) FROM segments WHERE video = v.id) FROM files f JOIN roots r ON r.id = f.root"
        " JOIN videos v ON v.id = f.video ORDER BY r.folder, f.path"
    )
    folders = {root.name: root.folder for root in store.roots()}
    for name, path, seconds, error, parts, gone, former, segments in store.rows(query):
        if gone:
            state = "gone"
        elif error:
            state = "does not decode"
        elif segments and segments == parts:
            state = "searched"
        else:
            state = "partly encoded" if segments or former else "not encoded"
        yield os.path.join(folders[name], os.fsdecode(path)), state, seconds, error


def status(store: Store) -> list[str]:
    """What is in an index, in lines."""
    files = list(files_of(store))
    ((videos, seconds),) = store.rows("SELECT count(*), coalesce(sum(seconds), 0) FROM videos WHERE parts IS NOT NULL")
    ((segments,),) = store.rows("SELECT count(*) FROM segments")
    counts = {state: sum(file[1] == state for file in files) for state in STATES}
    megabytes = sum(path.stat().st_size for path in store.folder.glob(f"{DATABASE}*")) / 1e6
    lines = [
        f"{videos} videos of {seconds / 60:.1f} minutes in {segments} segments, {megabytes:.1f} MB",
        f"model: {store.head.made_with}; segments of about {store.head.window:g} s",
        "files: " + ", ".join(f"{count} {state}" for state, count in counts.items() if count),
    ]
    for root in store.roots():
        below = [file for file, *_ in files if file.startswith(os.path.join(root.folder, ""))]
        there = "" if os.path.isdir(root.folder) else ", is not there now"
        left_out = f", without {root.exclude}" if root.exclude else ""
        lines.append(f"root {root.name}: {shown(root.folder)}, {len(below)} files{left_out}{there}")
    return lines


def listed(store: Store) -> list[str]:
    """A line for each file: its state, its name, and why it does not decode."""
    return [
        f"{state:<16}{clock(seconds) if seconds else '':>9}  {shown(file)}{f'  ({error})' if error else ''}"
        for file, state, seconds, error in files_of(store)
    ]


def forget(store: Store, names: Sequence[str]) -> int:
    """Take files, or all below folders, out of an index.

    :param names: absolute, relative to here, or below a root.
    :return: how many names have gone.
    :raises InputError: the index holds none of a name.
    """
    count = 0
    with store.transaction():
        for name in names:
            found = _named(store, name)
            if not found:
                raise InputError(f"--index={store.folder} holds no {shown(name)}: `list` shows what it holds")
            store.database.executemany("DELETE FROM files WHERE id = ?", [(id,) for id in found])
            count += len(found)
        store.drop_unnamed()
    return count


def _named(store: Store, name: str) -> list[int]:
    """The ids of a file, or of those below a folder."""
    found = []
    for root in store.roots():
        places = {os.path.relpath(os.path.abspath(name), root.folder), os.path.normpath(name)}
        for id, path in store.rows("SELECT id, path FROM files WHERE root = ?", (root.id,)):
            below = os.fsdecode(path)
            if any(place == "." or below == place or below.startswith(place + "/") for place in places):
                found.append(id)
    return found


def prune(store: Store) -> list[str]:
    """Take out all files that are not there now, those of disks that are not mounted among them; their names."""
    absent = []
    with store.transaction():
        for root in store.roots():
            for id, path in store.rows("SELECT id, path FROM files WHERE root = ?", (root.id,)):
                file = os.path.join(root.folder, os.fsdecode(path))
                if not os.path.lexists(file):
                    store.rows("DELETE FROM files WHERE id = ?", (id,))
                    absent.append(file)
        store.drop_unnamed()
    store.rows("VACUUM")
    return absent


def verify(folder: Path) -> int:
    """Read all of an index. Segments that are damaged leave it, so that the next `index` encodes them anew.

    :return: how many segments of known videos it does not hold.
    :raises InputError: nothing tells which model it belongs to.
    """
    if _is_torn(folder):
        _rescue(folder)
    store = Store(folder, writing=True)
    query = (
        "SELECT s.id, s.checksum, s.mean, f.data, t.data FROM segments s LEFT JOIN frames f ON f.segment = s.id"
        " LEFT JOIN tokens t ON t.segment = s.id"
    )
    with speaking(folder):
        bad = [id for id, told, *data in store.database.execute(query) if data[1] is None or checksum(*data) != told]
    with store.transaction():
        for id in bad:
            store.rows("DELETE FROM segments WHERE id = ?", (id,))
        store.rows("UPDATE videos SET tries = 0")
    ((lacking,),) = store.rows(
        "SELECT coalesce(sum(parts - (SELECT count(*) FROM segments WHERE video = videos.id)), 0) FROM videos"
    )
    store.close()
    return lacking


def _is_torn(folder: Path) -> bool:
    """Whether the file is damaged below the tables."""
    try:
        database = connect(folder / DATABASE, writing=True)
        try:
            return database.execute("PRAGMA integrity_check").fetchall() != [("ok",)]
        finally:
            database.close()
    except (sqlite3.DatabaseError, InputError):
        return True


def _rescue(folder: Path) -> None:
    """Put what can be read of a damaged database into a new one, in its place."""
    unfinished = folder / f".{DATABASE}.new"
    unfinished.unlink(missing_ok=True)
    try:
        _lengthen(folder / DATABASE)
        head = read_head(folder)
        create(unfinished, head_rows(head))
        old = connect(folder / DATABASE, writing=False)
    except InputError as error:
        raise InputError(f"--index={folder} cannot be healed: index the videos into another folder") from error
    new = sqlite3.connect(unfinished)
    last = max(_last_row(old, table) for table in TABLES)
    for table in TABLES:
        columns = len(new.execute(f"PRAGMA table_info({table})").fetchall())
        places = ", ".join("?" * columns)
        new.executemany(f"INSERT OR IGNORE INTO {table} VALUES ({places})", _readable(old, table, last))
    new.executescript(
        "DELETE FROM files WHERE video NOT IN (SELECT id FROM videos) OR root NOT IN (SELECT id FROM roots);"
        "UPDATE files SET former = NULL WHERE former NOT IN (SELECT id FROM videos);"
        "DELETE FROM segments WHERE video NOT IN (SELECT id FROM videos);"
        "DELETE FROM frames WHERE segment NOT IN (SELECT id FROM segments);"
        "DELETE FROM tokens WHERE segment NOT IN (SELECT id FROM segments)"
    )
    new.close()
    old.close()
    for path in folder.glob(f"{DATABASE}-*"):  # what belongs to the damaged file
        path.unlink()
    os.replace(unfinished, folder / DATABASE)


def _lengthen(path: Path) -> None:
    """Give a file that was cut its length again, by its header, as SQLite reads nothing of a shorter one."""
    with open(path, "r+b") as file:
        header = file.read(32)
        length = int.from_bytes(header[16:18], "big") * int.from_bytes(header[28:32], "big")
        if header.startswith(b"SQLite format 3") and os.path.getsize(path) < length:
            file.truncate(length)


def _last_row(database: sqlite3.Connection, table: str) -> int:
    try:
        return database.execute(f"SELECT max(rowid) FROM {table}").fetchone()[0] or 0
    except sqlite3.DatabaseError:
        return 0


def _readable(database: sqlite3.Connection, table: str, last: int) -> Iterator[tuple]:
    """The rows of a table up to a number that can be read, looked for one by one."""
    for number in range(1, last + 1):
        try:
            yield from database.execute(f"SELECT * FROM {table} WHERE rowid = ?", (number,))
        except sqlite3.DatabaseError:
            continue
