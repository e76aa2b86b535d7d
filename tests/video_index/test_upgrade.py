"""An index of the version before is brought up to date in its place."""

import json
import sqlite3
from contextlib import closing

import numpy as np
import torch

from modules.frame_pooling import mean_of_frames
from tests.video_index.made_up import SENTENCES, answers, refused
from video_index.database import SCHEMA
from video_index.store import Store, checksum
from video_index.upgrade import BEFORE


def downgraded(index):
    """Give an index the names and means of the version before."""
    head = Store(index).head
    with closing(sqlite3.connect(index / "index.sqlite", isolation_level=None)) as database:
        database.execute("ALTER TABLE tokens RENAME COLUMN segment TO clip")
        database.execute("ALTER TABLE frames RENAME COLUMN segment TO clip")
        database.execute("ALTER TABLE segments RENAME TO clips")
        rows = database.execute(
            "SELECT c.id, f.data, t.data FROM clips c JOIN frames f ON f.clip = c.id"
            " LEFT JOIN tokens t ON t.clip = c.id"
        ).fetchall()
        for id, frames, tokens in rows:
            mean = np.frombuffer(frames, np.float32).reshape(head.frames).mean(0).tobytes()
            values = (mean, checksum(mean, frames, tokens), id)
            database.execute("UPDATE clips SET mean = ?, checksum = ? WHERE id = ?", values)
        database.execute("UPDATE about SET value = ? WHERE name = 'version'", (json.dumps(BEFORE),))


def test_it_becomes_what_this_version_makes(made, search, videos, tmp_path):
    index = tmp_path / "index"
    made(videos)
    query = ("query", SENTENCES[0], f"--index={index}", "--format=json", "--rerank_topk=1", "--pool_topk=1")
    before, (expected,) = Store(index).gallery(), answers(search(*query))
    downgraded(index)
    done = search(*query)
    (now,) = answers(done)
    assert f"{index} was made by an earlier version of this program and is brought up to date" in done.err
    assert now["hits"] == expected["hits"]
    store = Store(index)
    segments, means = store.gallery()
    assert segments == before[0]
    assert np.array_equal(means, before[1])
    frames = torch.from_numpy(store.frames([segment.id for segment in segments]))
    assert torch.equal(mean_of_frames(frames), torch.from_numpy(means))
    schema = "SELECT sql FROM sqlite_schema WHERE sql NOT NULL AND name NOT LIKE 'sqlite_%'"
    created = [sql for (sql,) in store.rows(schema)]
    assert sorted(_names(sql) for sql in created) == sorted(_names(sql) for sql in SCHEMA.split(";") if sql.strip())
    assert "earlier version" not in search(*query).err
    assert "0 segments are to be encoded" in search("verify", f"--index={index}").out
    assert "0 new, 0 changed, 0 gone" in made(videos)


def test_what_is_damaged_stays_so_until_it_is_looked_for(made, search, videos, tmp_path):
    index = tmp_path / "index"
    made(videos)
    downgraded(index)
    with closing(sqlite3.connect(index / "index.sqlite")) as database, database:
        database.execute("UPDATE frames SET data = zeroblob(length(data)) WHERE clip = 2")
        database.execute("DELETE FROM frames WHERE clip = 3")
    assert "2 segments are to be encoded" in search("verify", f"--index={index}").out


def test_where_it_cannot_be_changed_it_says_what_to_do(made, search, videos, tmp_path):
    index = tmp_path / "index"
    made(videos)
    downgraded(index)
    (index / ".lock").unlink()
    (index / ".lock").mkdir()  # nothing can be written there, whoever asks
    before = (index / "index.sqlite").read_bytes()
    refused(
        search("query", "a", f"--index={index}"), "was made by an earlier version of this program", "cannot be written",
        f"or make it anew with `python search.py index --videos_dir=VIDEOS --index={index}-new`",
    )  # fmt: skip
    assert (index / "index.sqlite").read_bytes() == before
    (index / ".lock").rmdir()
    assert "a red circle" in search("query", "a red circle", f"--index={index}").out


def _names(sql):
    """A table or an index without what renaming adds and spaces."""
    return sql.replace('"', "").split()
