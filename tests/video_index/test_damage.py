"""What an index survives: kills at any moment, readers beside a writer, and damage to its file."""

import multiprocessing
import os
import random
import signal
import sqlite3
import sys
import time

import numpy as np
import pytest
import torch

import search as entry_point
from modules.frame_pooling import mean_of_frames
from tests.made_up import write_video
from tests.video_index.made_up import FRAMES, add, checkpoint, held, inserted, new_store, slow_features
from utils.program import run_program
from video_index.head import read_head
from video_index.store import Store

KILLS = 20
needs_processes = pytest.mark.skipif(sys.platform != "linux", reason="forks, and looks at /proc")


# ---------------------------------------------------------------------------------------------------------------------
# Processes that end


def run_here(arguments):
    """The program, in a forked process."""
    torch.set_num_threads(1)
    sys.argv = ["search.py", *map(str, arguments)]
    os._exit(run_program("search.py", entry_point.main))


def started(arguments):
    child = multiprocessing.get_context("fork").Process(target=run_here, args=(arguments,))
    child.start()
    return child


def children_of(process):
    """Ids of the processes that it has started."""
    found = set()
    for task in os.listdir(f"/proc/{process}/task"):
        with open(f"/proc/{process}/task/{task}/children") as children:
            found |= set(map(int, children.read().split()))
    return found


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def segments_in(index):
    if read_head(index) is None:
        return 0
    store = Store(index)
    ((count,),) = store.rows("SELECT count(*) FROM segments")
    store.close()
    return count


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Twelve films of ten parts."""
    folder = tmp_path_factory.mktemp("films")
    generator = np.random.default_rng(0)
    for number in range(12):
        write_video(folder / f"film{number:02}.mp4", generator.integers(0, 255, (120, 64, 64, 3), dtype=np.uint8))
    return folder


@pytest.fixture
def arguments(films, runs, tmp_path):
    flags = [f"--videos_dir={films}", f"--index={tmp_path / 'index'}", "--window=1", "--precision=fp32"]
    return ["index", *flags, *checkpoint(runs)[:3], "--num_workers=2", "--batch_size=2"]


class Reader:
    """A process that looks again and again at an index that is being written: what it saw stays, whole and the same.

    No thread: one that is in SQLite while this process forks leaves its locks taken in the child.
    """

    def __init__(self, index):
        context = multiprocessing.get_context("fork")
        self.index, self.seen, self.problems, self.looks = index, {}, [], 0
        self.end, self.found = context.Event(), context.SimpleQueue()
        self.process = context.Process(target=self.run, daemon=True)
        self.process.start()

    def run(self):
        torch.set_num_threads(1)
        store = None
        try:
            while not self.end.wait(0.01):
                if store is None:
                    store = None if read_head(self.index) is None else Store(self.index)
                    continue
                self._look(store)
        except Exception as error:
            self.problems.append(repr(error))
        self.found.put((self.looks, self.problems))

    def stop(self):
        """How often it has looked, and what was wrong."""
        self.end.set()
        found = self.found.get()
        self.process.join()
        return found

    def _look(self, store):
        with store.snapshot():
            segments, means = store.gallery()
            frames = store.frames([segment.id for segment in segments])
        self.looks += 1
        now = {(segment.file, segment.part): row for segment, row in zip(segments, frames, strict=True)}
        if not np.allclose(mean_of_frames(torch.from_numpy(frames)), means, atol=1e-6):
            self.problems.append("a mean is not that of its frames")
        for key, before in self.seen.items():
            if not np.array_equal(now.get(key), before):
                self.problems.append(f"{key} was lost or encoded again")
        self.seen = now


@needs_processes
@pytest.mark.slow
def test_killed_at_any_moment_nothing_is_lost_or_encoded_twice(arguments, films, runs, tmp_path):
    index, moments = tmp_path / "index", random.Random(0)
    reader = Reader(index)
    longest, before, kills = 0.2, 0, 0
    while kills < KILLS and before < 120:
        child = started(arguments)
        time.sleep(moments.uniform(0.0, longest))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        longest *= 0.7 if segments_in(index) > before else 1.3  # whatever the speed of this machine
        before, kills = segments_in(index), kills + 1
    child = started(arguments)
    child.join()
    assert child.exitcode == 0
    looks, problems = reader.stop()
    assert problems == [] and looks > 20
    assert before > 0 and kills > 5
    assert segments_in(index) == inserted(index) == 120
    features = held(index)
    for part in (0, 5, 9):
        expected = slow_features(runs.one, films / "film03.mp4", part, part + 1)
        torch.testing.assert_close(features["film03.mp4", part], expected, atol=1e-4, rtol=1e-4)


@needs_processes
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_it_at_once_and_keep_what_is_encoded(arguments, tmp_path, number, code):
    child = started(arguments)
    until(lambda: segments_in(tmp_path / "index") > 2)
    os.kill(child.pid, number)
    asked = time.monotonic()
    child.join()
    assert time.monotonic() - asked < 5
    assert child.exitcode == code
    assert 2 < segments_in(tmp_path / "index") < 120


@needs_processes
def test_the_lock_names_its_process_and_goes_with_it(arguments, search, tmp_path):
    child = started(arguments)
    until(lambda: segments_in(tmp_path / "index") > 0)
    until(lambda: len(children_of(child.pid)) == 2)
    workers = children_of(child.pid)
    other = search(*arguments)
    assert other.code == 2
    assert f"is being written by process {child.pid} of " in other.err
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert search("verify", f"--index={tmp_path / 'index'}").code == 0  # at once, as the workers do not hold the lock
    until(lambda: not any(os.path.exists(f"/proc/{worker}/cwd") for worker in workers), seconds=5)


# ---------------------------------------------------------------------------------------------------------------------
# Damage


def test_damaged_features_are_encoded_anew(made, search, videos, tmp_path):
    made(videos, "--precision=fp32")
    before = held(tmp_path / "index")
    database = sqlite3.connect(tmp_path / "index" / "index.sqlite")
    with database:
        database.execute("UPDATE frames SET data = zeroblob(length(data)) WHERE segment = 2")
        database.execute("DELETE FROM tokens WHERE segment = 3")
    database.close()
    index = f"--index={tmp_path / 'index'}"
    assert "2 segments are to be encoded" in search("verify", index).out
    assert "2 segments encoded" in made(videos, "--precision=fp32")
    assert "0 segments are to be encoded" in search("verify", index).out
    after = held(tmp_path / "index")
    for key, features in before.items():
        torch.testing.assert_close(after[key], features)


@pytest.mark.parametrize("how", ["page", "cut"])
def test_a_damaged_file_is_healed(made, search, videos, tmp_path, how):
    made(videos, "--precision=fp32")
    before = held(tmp_path / "index")
    path, index = tmp_path / "index" / "index.sqlite", f"--index={tmp_path / 'index'}"
    pages = path.stat().st_size // 16384
    with open(path, "r+b") as file:
        if how == "page":
            for page in (pages // 2, pages // 2 + 1, pages - 2):
                file.seek(page * 16384)
                file.write(os.urandom(16384))
        else:
            file.truncate((pages - 12) * 16384)
    healed = search("verify", index)
    assert healed.code == 0, healed.err
    assert " is whole now; " in healed.out
    assert not [name for name in os.listdir(tmp_path / "index") if name not in (".lock", "index.sqlite")]
    assert search("index", index).code == 0
    made(videos, "--precision=fp32")
    after = held(tmp_path / "index")
    assert after.keys() == before.keys()
    for key, features in before.items():
        torch.testing.assert_close(after[key], features, atol=1e-5, rtol=1e-5)


def test_an_open_query_follows_the_index(tmp_path):
    from config import SearchConfig
    from tests.video_index.test_search import MODELS
    from video_index.query import Query
    from video_index.searching import Searcher

    store = new_store(tmp_path / "index", ["a"], torch.randn(1, FRAMES, 128))
    store.close()
    config = SearchConfig.parse(["query", "x", f"--index={tmp_path / 'index'}"], prog="search.py")
    searcher = Searcher(MODELS["mean"](), Store(tmp_path / "index"), config, torch.device("cpu"), torch.float32)
    assert [hit.segment.file for hit in searcher.search(Query(("a",)))] == ["/videos/a"]
    writer = Store(tmp_path / "index", writing=True)
    add(writer, ["b"], torch.randn(1, FRAMES, 128))
    assert {hit.segment.file for hit in searcher.search(Query(("a",)))} == {"/videos/a", "/videos/b"}
    with writer.transaction():
        writer.rows("DELETE FROM files WHERE path = ?", (b"a",))
        writer.drop_unnamed()
    assert [hit.segment.file for hit in searcher.search(Query(("a",)))] == ["/videos/b"]


def test_an_index_in_a_folder_that_cannot_be_written_is_searched(tmp_path):
    store = new_store(tmp_path / "index", ["a"], torch.randn(1, FRAMES, 128))
    store.close()
    (tmp_path / "index").chmod(0o555)
    try:
        segments, _ = Store(tmp_path / "index").gallery()
        assert [segment.file for segment in segments] == ["/videos/a"]
    finally:
        (tmp_path / "index").chmod(0o755)
