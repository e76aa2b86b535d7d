"""Made-up indexes, and what must be in them."""

import json
import os

import torch

from datasets.moving_shapes import render, scene_of
from datasets.transforms import test_transform as evaluation_transform
from datasets.video import read_frames
from model.clip import EncodedVideos
from model.retrieval import split_rows
from modules.frame_pooling import mean_of_frames
from tests.made_up import write_video
from video_index.encoding import features_of
from video_index.head import Head
from video_index.names import root_at
from video_index.store import Span, Store

FRAMES, WIDTH, VIDEOS = 5, 128, 6
SENTENCES = ["a red circle moves left", "a green star", "two blue squares", "a man plays a guitar"]


def draw(path, number):
    """A MovingShapes video."""
    write_video(path, render(scene_of(3, "test", number)))


def checkpoint(runs, name="one"):
    return [f"--output_dir={runs.folder}", f"--datetime={name}", "--gpu=cpu", "--num_workers=0"]


def answers(done):
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


def refused(done, *parts):
    """Exit code 2 and one line that says so."""
    assert done.code == 2
    lines = [line for line in done.err.splitlines() if line.startswith("search.py: error: ")]
    assert len(lines) == 1
    assert "Traceback" not in done.err
    for part in parts:
        assert part in lines[0]


def new_store(folder, names=(), frames=None, tokens=None, window=30.0):
    """An index of videos of one part below /videos that hold nothing but their features."""
    shape = None if tokens is None else tuple(tokens.shape[1:])
    size = (2, 4) if frames is None else tuple(frames.shape[1:])
    store = Store.create(folder, Head("a test", {}, {}, window, size, shape))
    add(store, names, frames, tokens)
    return store


def add(store, names, frames, tokens=None):
    if not names:
        return
    root = root_at(store, "/videos", None)
    with store.transaction():
        for name, video in zip(names, split_rows(EncodedVideos(frames, tokens), 1), strict=True):
            values = (1, os.fsencode(name))
            id = store.execute("INSERT INTO videos (size, hash, seconds) VALUES (?, ?, 0)", values).lastrowid
            values = (root.id, os.fsencode(name), id)
            store.rows("INSERT INTO files (root, path, mtime_ns, video) VALUES (?, ?, 1, ?)", values)
            store.add(id, Span(0, 1, None, None), features_of(video))


def add_film(store, name, frames, seconds=30.0, mtime_ns=1):
    """A video whose parts, of so many seconds, have these frame features (parts, F, D), below the root of `add`."""
    root = root_at(store, "/videos", None)
    with store.transaction():
        values = (2, os.fsencode(name))
        id = store.execute("INSERT INTO videos (size, hash, seconds) VALUES (?, ?, 0)", values).lastrowid
        values = (root.id, os.fsencode(name), mtime_ns, id)
        store.rows("INSERT INTO files (root, path, mtime_ns, video) VALUES (?, ?, ?, ?)", values)
        for part, video in enumerate(split_rows(EncodedVideos(frames), 1)):
            store.add(id, Span(part, len(frames), seconds * part, seconds * (part + 1)), features_of(video))


def held(folder):
    """Frame features of each segment, by name of the file below its root and part."""
    store = Store(folder)
    segments, means = store.gallery()
    frames = torch.from_numpy(store.frames([segment.id for segment in segments]))
    torch.testing.assert_close(mean_of_frames(frames), torch.from_numpy(means))
    store.close()
    return {(os.path.basename(segment.file), segment.part): row for segment, row in zip(segments, frames, strict=True)}


def inserted(folder):
    """How many segments have ever been put into an index, those that have left it again included."""
    store = Store(folder)
    ((count,),) = store.rows("SELECT seq FROM sqlite_sequence WHERE name = 'segments'")
    store.close()
    return count


@torch.no_grad()
def slow_encoded(model, path, start=None, end=None):
    """What is encoded of a video (1, ...), on its own."""
    frames = torch.from_numpy(read_frames(path, FRAMES, start=start, end=end)).permute(0, 3, 1, 2)
    return in_halves(model.encode_videos(evaluation_transform(64)(frames)[None]))


def slow_features(*video):
    """Its frame features (F, D)."""
    return slow_encoded(*video).frames[0]


def in_halves(encoded):
    """Tokens as an index and an evaluation keep them."""
    return encoded if encoded.tokens is None else encoded._replace(tokens=encoded.tokens.bfloat16())
