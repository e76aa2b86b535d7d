"""Bringing an index of the version before up to date, in its place."""

import json
import logging
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import torch

from modules.frame_pooling import mean_of_frames
from utils.errors import InputError
from video_index.database import DATABASE, connect, speaking
from video_index.lock import only_writer
from video_index.store import checksum

logger = logging.getLogger(__name__)

BEFORE = 4  # whose means are of features of any length
RENAMED = (
    "ALTER TABLE clips RENAME TO segments",
    "ALTER TABLE frames RENAME COLUMN clip TO segment",
    "ALTER TABLE tokens RENAME COLUMN clip TO segment",
)


def upgrade(folder: Path, version: int, frames: Sequence[int]) -> None:
    """Give an index of the version before the names and means of this one: all of it, or nothing.

    :param version: that it has then.
    :param frames: F, D of the features of a segment.
    :raises InputError: it cannot be changed; says what to do.
    """
    logger.info("%s was made by an earlier version of this program and is brought up to date", folder)
    try:
        with only_writer(folder), speaking(folder):
            database = connect(folder / DATABASE, writing=True)
            try:
                database.execute("BEGIN IMMEDIATE")
                if _version(database) == BEFORE:  # no other process was first
                    for statement in RENAMED:
                        database.execute(statement)
                    for (id,) in database.execute("SELECT id FROM segments").fetchall():
                        _renew_mean(database, id, frames)
                    database.execute("UPDATE about SET value = ? WHERE name = 'version'", (json.dumps(version),))
                database.execute("COMMIT")
            finally:
                database.close()
    except InputError as error:
        raise InputError(
            f"--index={folder} was made by an earlier version of this program and cannot be brought up to date: "
            f"{error}; or make it anew with `python search.py index --videos_dir=VIDEOS --index={folder}-new`"
        ) from error


def _version(database: sqlite3.Connection) -> int:
    return json.loads(database.execute("SELECT value FROM about WHERE name = 'version'").fetchone()[0])


def _renew_mean(database: sqlite3.Connection, id: int, shape: Sequence[int]) -> None:
    """Of a segment that is not damaged: a damaged one stays so, and `verify` finds it."""
    query = (
        "SELECT s.checksum, s.mean, f.data, t.data FROM segments s LEFT JOIN frames f ON f.segment = s.id"
        " LEFT JOIN tokens t ON t.segment = s.id WHERE s.id = ?"
    )
    told, mean, frames, tokens = database.execute(query, (id,)).fetchone()
    if frames is None or checksum(mean, frames, tokens) != told:
        return
    features = torch.frombuffer(bytearray(frames), dtype=torch.float32).view(1, *shape)
    mean = mean_of_frames(features).numpy().tobytes()
    database.execute(
        "UPDATE segments SET mean = ?, checksum = ? WHERE id = ?", (mean, checksum(mean, frames, tokens), id)
    )
