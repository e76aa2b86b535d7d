"""The SQLite database of an index: its tables, and opening it for reading or writing."""

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import InputError

DATABASE = "index.sqlite"
SCHEMA = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE roots (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, folder BLOB NOT NULL,
    exclude TEXT NOT NULL DEFAULT '');
CREATE TABLE videos (id INTEGER PRIMARY KEY, size INTEGER NOT NULL, hash BLOB NOT NULL, seconds REAL NOT NULL,
    parts INTEGER, error TEXT, tries INTEGER NOT NULL DEFAULT 0, UNIQUE (size, hash));
CREATE TABLE files (id INTEGER PRIMARY KEY, root INTEGER NOT NULL REFERENCES roots ON DELETE CASCADE,
    path BLOB NOT NULL, mtime_ns INTEGER NOT NULL, video INTEGER NOT NULL REFERENCES videos,
    former INTEGER REFERENCES videos, gone INTEGER NOT NULL DEFAULT 0, UNIQUE (root, path));
CREATE TABLE segments (id INTEGER PRIMARY KEY AUTOINCREMENT, video INTEGER NOT NULL REFERENCES videos ON DELETE CASCADE,
    part INTEGER NOT NULL, start REAL, end REAL, checksum INTEGER NOT NULL, mean BLOB NOT NULL, UNIQUE (video, part));
CREATE TABLE frames (segment INTEGER PRIMARY KEY REFERENCES segments ON DELETE CASCADE, data BLOB NOT NULL);
CREATE TABLE tokens (segment INTEGER PRIMARY KEY REFERENCES segments ON DELETE CASCADE, data BLOB NOT NULL);
CREATE INDEX files_of_video ON files (video);
CREATE INDEX files_of_former ON files (former);
"""
PAGE_BYTES = 16384  # features are longer than SQLite's usual page
WAIT_SECONDS = 30.0  # for another process that writes a line


def create(path: Path, about: Iterable[tuple[str, str]]) -> None:
    """A database without videos; it is there whole or not at all.

    :param about: rows of the table of that name.
    :raises InputError: it cannot be written.
    """
    for left in path.parent.glob(f".{path.name}.*.tmp"):  # by a process that was killed
        left.unlink(missing_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with speaking(path.parent):
            database = sqlite3.connect(unfinished)
            database.executescript(f"PRAGMA page_size = {PAGE_BYTES}; {SCHEMA}")
            with database:
                database.executemany("INSERT INTO about VALUES (?, ?)", about)
            database.close()
            os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def connect(path: Path, writing: bool) -> sqlite3.Connection:
    """An open database, for reading also in a folder that cannot be written.

    :raises InputError: it cannot be opened.
    """
    file = path.absolute().as_uri()
    names = [f"{file}?mode=rw"]
    if not writing:
        names.append(f"{file}?mode=ro&immutable=1")  # where SQLite cannot make the file that readers and writers share
    for name in names:
        with speaking(path.parent):
            database = sqlite3.connect(
                name, uri=True, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                if writing:
                    database.execute("PRAGMA journal_mode = WAL")
                    database.execute("PRAGMA synchronous = NORMAL")
                    database.execute("PRAGMA foreign_keys = ON")
                else:
                    database.execute("PRAGMA query_only = ON")
                database.execute("SELECT count(*) FROM about")
                return database
            except sqlite3.DatabaseError as error:
                database.close()
                if name == names[-1] or not isinstance(error, sqlite3.OperationalError):
                    raise


@contextmanager
def speaking(folder: Path) -> Iterator[None]:
    """:raises InputError: the database cannot be read or written; says what to do."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and "no such table" not in str(error):
            raise InputError(f"--index={folder} cannot be read or written: {error}") from error
        raise InputError(damaged(folder, str(error))) from error


def damaged(folder: Path, how: str) -> str:
    """What is said of an index that is not whole."""
    return f"--index={folder} is damaged ({how}): `python search.py verify --index={folder}` heals it"
