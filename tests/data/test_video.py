"""Which frames are read, what is in them, and what training makes of them."""

import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from datasets import moving_shapes
from datasets.annotations import Segment, Split, load_split
from datasets.failures import TimesBeyond
from datasets.loading import (
    FilmSegments,
    Sample,
    TestVideos,
    TrainPairs,
    batches,
    film_loader,
    test_loader,
    train_loader,
)  # fmt: skip
from datasets.transforms import apply_seeded, train_transform
from datasets.transforms import test_transform as evaluation_transform
from datasets.video import frame_indices, read_frames
from tests.films import CONTAINERS, numbered
from tests.made_up import ROOT
from utils.errors import InputError

FPS, WIDTH, HEIGHT = 12, 64, 48
GREY = 10 + 8 * np.arange(30)  # grey level of frame 0, 1, ...; codecs lose far less than a step


def write_frames(path: Path, frames: np.ndarray, codec: str = "mp4v") -> Path:
    """Encode RGB uint8 frames (n, H, W, 3)."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), FPS, (frames.shape[2], frames.shape[1]))
    assert writer.isOpened()
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return path


def write_numbered(path: Path, n: int, codec: str = "mp4v") -> Path:
    """A video whose frames tell their number by their grey level."""
    levels = GREY[:n].astype(np.uint8)
    return write_frames(path, np.broadcast_to(levels[:, None, None, None], (n, HEIGHT, WIDTH, 3)), codec)


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers of frames (F, H, W, 3) that `write_numbered` wrote."""
    return np.round((frames.mean(axis=(1, 2, 3)) - GREY[0]) / 8).astype(int).tolist()


# which frames


def slow_parts(n, num_frames):
    """DESIGN section 2: [0, n) cut into min(F, n) parts at linspace(0, n, parts + 1), rounded down."""
    parts = min(num_frames, n)
    bounds = [n * i // parts for i in range(parts + 1)]
    return [range(low, high) for low, high in pairwise(bounds)]


@pytest.mark.parametrize("num_frames", [1, 2, 3, 8, 12, 16])
def test_uniform_takes_the_middle_of_each_part(num_frames):
    for n in range(1, 150):
        expected = [(part[0] + part[-1]) // 2 for part in slow_parts(n, num_frames)]
        expected += expected[-1:] * (num_frames - len(expected))
        assert frame_indices(n, num_frames).tolist() == expected, n


def test_known_indices():
    assert frame_indices(24, 12).tolist() == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22]
    assert frame_indices(36, 12).tolist() == [1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 34]
    assert frame_indices(12, 12).tolist() == list(range(12))
    assert frame_indices(5, 8).tolist() == [0, 1, 2, 3, 4, 4, 4, 4]
    assert frame_indices(1, 3).tolist() == [0, 0, 0]
    assert frame_indices(300, 1).tolist() == [149]


@pytest.mark.parametrize(("n", "num_frames"), [(30, 4), (31, 4), (50, 12), (7, 12), (13, 12), (1, 3)])
def test_rand_takes_any_frame_of_each_part(n, num_frames):
    parts = slow_parts(n, num_frames)
    rng = np.random.default_rng(0)
    draws = np.array([frame_indices(n, num_frames, rng) for _ in range(400)])
    for column, part in zip(draws.T, parts, strict=False):
        assert set(column.tolist()) == set(part)
    for row in draws:
        assert set(row[len(parts) :].tolist()) <= {row[len(parts) - 1]}


# what is in them


@pytest.fixture(scope="module")
def thirty(tmp_path_factory):
    return write_numbered(tmp_path_factory.mktemp("videos") / "thirty.mp4", 30)


@pytest.mark.parametrize("num_frames", [1, 5, 12, 30, 40])
def test_the_right_frames_are_read(thirty, num_frames):
    frames = read_frames(thirty, num_frames)
    assert frames.shape == (num_frames, HEIGHT, WIDTH, 3)
    assert frames.dtype == np.uint8
    assert numbers(frames) == frame_indices(30, num_frames).tolist()


def test_random_frames_are_those_of_the_generator(thirty):
    for seed in range(5):
        expected = frame_indices(30, 6, np.random.default_rng(seed)).tolist()
        assert numbers(read_frames(thirty, 6, np.random.default_rng(seed))) == expected


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (None, None, range(30)),
        (0, 1, range(12)),
        (1, 2, range(12, 24)),
        (1.5, None, range(18, 30)),
        (None, 0.5, range(6)),
        (1, 100, range(12, 30)),  # longer than the video
        (2.4, 2.5, [29]),
        (50, 60, [29]),  # behind the end: its last frame
        (1, 1, [12]),  # no length: one frame
        (-3, 1, range(12)),
    ],
)
def test_clip_bounds_in_seconds(thirty, start, end, expected):
    expected = list(expected)
    wanted = [expected[i] for i in frame_indices(len(expected), 6)]
    assert numbers(read_frames(thirty, 6, start=start, end=end)) == wanted


@pytest.mark.parametrize("n", [1, 2, 5])
def test_short_videos_repeat_their_last_frame(tmp_path, n):
    path = write_numbered(tmp_path / "short.mp4", n)
    assert numbers(read_frames(path, 8)) == [*range(n), *[n - 1] * (8 - n)]


@pytest.mark.parametrize("rng", [None, 3])
def test_a_header_that_promises_too_much(tmp_path, rng):
    """A file that lost its end still says 30 frames: those that are there are cut into parts."""
    path = write_numbered(tmp_path / "cut.mkv", 30)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT) == 30
    every = numbers(read_frames(path, 30))
    there = len(set(every))
    assert 5 < there < 30
    assert every == [*range(there), *[there - 1] * (30 - there)]
    generators = [None if rng is None else np.random.default_rng(rng) for _ in range(2)]
    assert numbers(read_frames(path, 4, generators[0])) == frame_indices(there, 4, generators[1]).tolist()


def bad_file(path: Path, kind: str) -> Path:
    """A file that is no video."""
    if kind == "cut short":
        data = write_numbered(path, 30).read_bytes()
        path.write_bytes(data[: len(data) // 2])
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("this is a caption, not a video\n" * 30)
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        ("cut short", ".mp4"),
        *((k, s) for k in ("empty", "text", "folder", "missing") for s in (".mp4", ".avi", ".mkv")),
    ],
)
def test_files_that_do_not_decode_are_named(tmp_path, kind, suffix):
    path = bad_file(tmp_path / f"broken%02d{suffix}", kind)  # a name that OpenCV would take for a numbered sequence
    with pytest.raises(InputError) as caught:
        read_frames(path, 12)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_decoders_do_not_write_to_standard_error(tmp_path):
    """Their complaints would stand beside the one line that the programs promise."""
    kinds = [("cut short", ".mp4"), ("text", ".mp4"), ("text", ".avi"), ("empty", ".mkv")]
    paths = [bad_file(tmp_path / f"{i}{suffix}", kind) for i, (kind, suffix) in enumerate(kinds)]
    program = (
        "import sys; from pathlib import Path; from datasets.annotations import Segment\n"
        "from datasets.video import read_frames; from utils.errors import InputError\n"
        "for path in sys.argv[1:]:\n"
        "    try: read_frames(Path(path), 3)\n"
        "    except InputError: print('named')\n"
    )
    command = [sys.executable, "-c", program, *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout == "named\n" * 4
    assert done.stderr == ""


# transforms


def ramp(height=60, width=90):
    """A frame (3, H, W) that grows brighter to the right, so that a mirrored one is known."""
    return torch.linspace(0, 255, width).to(torch.uint8).expand(3, height, width)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (20, 300), (64, 64), (500, 333)])
def test_test_transform_resizes_the_shorter_side_and_crops_the_centre(height, width):
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(80, 170, (3, 3, height, width), generator=generator, dtype=torch.uint8)
    out = evaluation_transform(32)(frames)
    assert out.shape == (3, 3, 32, 32)
    assert out.dtype == torch.uint8
    side = min(height, width)
    size = (32 * height // side, 32 * width // side)
    resized = interpolate(frames.float(), size, mode="bicubic", antialias=True)
    top, left = (round((length - 32) / 2) for length in size)
    assert (out.float() - resized[..., top : top + 32, left : left + 32]).abs().max() <= 2  # integer arithmetic


def test_test_transform_is_the_picture_itself_at_its_own_size():
    frames = torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(evaluation_transform(32)(frames), frames)
    wide = torch.cat([torch.zeros(2, 3, 32, 10), frames, torch.zeros(2, 3, 32, 10)], dim=-1).to(torch.uint8)
    assert torch.equal(evaluation_transform(32)(wide), frames)


def test_training_crops_all_frames_alike():
    frame = torch.randint(256, (3, 60, 90), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    seen = set()
    for seed in range(20):
        out = apply_seeded(train_transform(32), frame.expand(6, -1, -1, -1), seed)
        assert out.shape == (6, 3, 32, 32)
        assert all(torch.equal(out[0], other) for other in out[1:])
        seen.add(out[0].numpy().tobytes())
    assert len(seen) == 20


def test_training_crops_between_half_and_all_of_the_picture():
    """The share of the area is read off the range of two ramps, one from left to right and one from top to bottom."""
    across = torch.linspace(0, 250, 100).expand(100, 100)
    frames = torch.stack([across, across.t(), torch.zeros(100, 100)]).to(torch.uint8)[None]
    shares = []
    for seed in range(200):
        out = apply_seeded(train_transform(100, flip=False), frames, seed)[0].float()
        width, height = (float(out[c].max() - out[c].min()) / 250 for c in (0, 1))
        shares.append(width * height)
    assert 0.42 < min(shares) < 0.6
    assert 0.9 < max(shares) <= 1.01


@pytest.mark.parametrize("flip", [True, False])
def test_flip(flip):
    outs = [apply_seeded(train_transform(32, flip), ramp()[None], seed)[0].float() for seed in range(60)]
    mirrored = sum(bool(out[..., 0].mean() > out[..., -1].mean()) for out in outs)
    assert 15 < mirrored < 45 if flip else mirrored == 0


def test_seeded_transforms_leave_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    apply_seeded(train_transform(32), ramp()[None], 9)
    assert torch.equal(torch.rand(2), expected)


def test_moving_shapes_is_never_mirrored(tmp_path, monkeypatch):
    """Its captions say left and right."""
    (tmp_path / "videos").mkdir()
    write_numbered(tmp_path / "videos" / "train0.mp4", 5)
    (tmp_path / "annotations.json").write_text('{"train": [{"video_id": "train0", "captions": ["it moves left"]}]}')
    monkeypatch.setattr(moving_shapes, "ensure", lambda folder, *_: None)
    split = load_split("MovingShapes", "train", tmp_path, None)
    assert split.flip is False
    path = write_frames(tmp_path / "ramp.mp4", ramp().permute(1, 2, 0).numpy()[None].repeat(4, 0))
    segments = (Segment("ramp", path, ("it moves left",)),)
    for flip in (True, False):
        pairs = TrainPairs(Split("any", "train", segments, flip=flip), 2, 32, "uniform", 0)
        mirrored = sum(
            bool(frames[..., 0].float().mean() > frames[..., -1].float().mean())
            for frames, *_ in (pairs[epoch, 0] for epoch in range(30))
        )
        assert 5 < mirrored < 25 if flip else mirrored == 0


# loaders


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Five videos of 20 frames with one to three captions each."""
    folder = tmp_path_factory.mktemp("split")
    rng = np.random.default_rng(0)
    segments = []
    for i in range(5):
        small = (45 * i + rng.integers(0, 60, (20, 6, 8, 3))).astype(np.uint8)  # the mean grey tells the video
        path = write_frames(folder / f"{i}.mp4", small.repeat(8, 1).repeat(8, 2))
        segments.append(Segment(str(i), path, tuple(f"caption {i} {k}" for k in range(1 + i % 3))))
    return Split("any", "train", tuple(segments))


def epoch_of(split, workers, seed=24, epoch=1, sample_type="rand", batch_size=2):
    pairs = TrainPairs(split, 4, 32, sample_type, seed)
    loader = train_loader(pairs, batch_size, workers, seed, pin_memory=False)
    loader.sampler.set_epoch(epoch)
    return [(frames.clone(), index.clone()) for frames, index in batches(loader)]


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(x[0], y[0]) and torch.equal(x[1], y[1]) for x, y in zip(a, b, strict=True)
    )


def test_training_samples_do_not_depend_on_the_workers(split):
    alone = epoch_of(split, 0)
    torch.manual_seed(99)  # nor on what else draws numbers
    np.random.seed(99)
    assert same(epoch_of(split, 2), alone)
    assert same(epoch_of(split, 0), alone)


def test_training_samples_depend_on_seed_and_epoch(split):
    """The same pair looks different in another epoch."""

    def by_caption(**options):
        batched = epoch_of(split, 0, batch_size=1, **options)
        return {index.item(): frames for frames, index in batched}

    first, other_epoch, other_seed = by_caption(), by_caption(epoch=2), by_caption(seed=25)
    assert list(first) != list(other_epoch)
    for caption in first:
        assert not torch.equal(first[caption], other_epoch[caption])
        assert not torch.equal(first[caption], other_seed[caption])


def test_an_epoch_has_every_pair_once(split):
    index = torch.cat([index for _, index in epoch_of(split, 0, batch_size=3)]).tolist()
    assert len(split.captions) == 9
    assert sorted(index) == list(range(9))
    index = torch.cat([index for _, index in epoch_of(split, 0, batch_size=4)]).tolist()
    assert len(set(index)) == 8  # the rest of one pair is dropped


def test_pairs_show_the_video_of_their_caption(split):
    pairs = TrainPairs(split, 20, 32, "uniform", 0)
    for index, caption in enumerate(split.captions):
        frames, returned = pairs[1, index][:2]
        assert returned == index
        video = round((frames.float().mean().item() - 30) / 45)
        assert caption.startswith(f"caption {video} ")


def test_test_videos_come_in_order(split):
    videos = TestVideos(split, 4, 32)
    batched = list(batches(test_loader(videos, 2, 0, pin_memory=False)))
    assert [len(frames) for frames, _ in batched] == [2, 2, 1]
    assert torch.cat([index for _, index in batched]).tolist() == [0, 1, 2, 3, 4]
    frames = torch.cat([frames for frames, _ in batched])
    for segment, shown in zip(split.segments, frames, strict=True):
        expected = evaluation_transform(32)(torch.from_numpy(read_frames(segment.path, 4)).permute(0, 3, 1, 2))
        assert torch.equal(shown, expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_clips_of_films_are_those_that_are_read_one_by_one(tmp_path, workers):
    """Long films are shared by workers where these can seek, and read by one where they cannot."""
    names = ("mpeg4.avi", "mpeg2.mpg", "b-frames.mp4")
    paths = [numbered(tmp_path / name, 500, *CONTAINERS[name]) for name in names]
    broken = bad_file(tmp_path / "broken.mp4", "text")
    spans = [(start / 2, start / 2 + 0.5) for start in range(40)]
    segments = [Segment(path.name, path, (), *span) for path in (*paths, broken) for span in spans]
    loaded = [sample for batch in film_loader(FilmSegments(segments, 3, 32), 7, workers, False) for sample in batch]
    good = {sample.index: sample.frames for sample in loaded if isinstance(sample, Sample)}
    bad = [index for index, _ in (sample for sample in loaded if not isinstance(sample, Sample))]
    assert sorted(good) == list(range(120))
    assert sorted(bad) == list(range(120, 160))
    for index in range(0, 120, 7):
        segment = segments[index]
        frames = read_frames(segment.path, 3, start=segment.start, end=segment.end)
        assert torch.equal(good[index], evaluation_transform(32)(torch.from_numpy(frames).permute(0, 3, 1, 2)))


@pytest.mark.parametrize("workers", [0, 2])
def test_clips_whose_times_are_not_in_their_videos_are_counted(split, workers):
    segments = [replace(segment, start=start, end=end) for segment, (start, end) in zip(
        split.segments, [(None, None), (0, 1), (60, 90), (500, 900), (1, 99)], strict=True
    )]  # fmt: skip
    timed = Split("any", "test", tuple(segments))
    beyond = TimesBeyond(timed)
    list(batches(test_loader(TestVideos(timed, 4, 32), 2, workers, pin_memory=False), beyond=beyond.of_segment))
    assert sorted(beyond.reasons) == [2, 3, 4]
    assert beyond.summary().startswith("3 of 5 segments of the test split have times that are not in their videos")
    pairs = TrainPairs(timed, 4, 32, "uniform", 0)
    list(batches(train_loader(pairs, 2, workers, 0, pin_memory=False), beyond=(seen := TimesBeyond(timed)).of_caption))
    assert set(seen.reasons) <= {2, 3, 4} and len(seen.reasons) >= 2  # one pair of nine is dropped
    assert "2 (a segment from 60 to 90 s, of a film of 1.7 s)" in beyond.summary()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_video_is_named_whoever_decodes_it(split, tmp_path, workers):
    broken = Segment("broken", bad_file(tmp_path / "broken.mp4", "text"), ("a caption",))
    damaged = Split("any", "test", (*split.segments, broken))
    with pytest.raises(InputError, match=r"broken\.mp4"):
        list(batches(test_loader(TestVideos(damaged, 4, 32), 2, workers, pin_memory=False)))
    with pytest.raises(InputError, match=r"broken\.mp4"):
        epoch_of(damaged, workers)


def test_fewer_pairs_than_a_batch_is_an_error(split):
    with pytest.raises(InputError, match="--batch_size=10 is more than the 9 training pairs"):
        epoch_of(split, 0, batch_size=10)


def test_fewer_videos_than_a_batch_is_an_error(split):
    """No batch can hold six different videos of five."""
    with pytest.raises(InputError, match=r"a batch of 6 holds each video once, and there are 5 training videos"):
        epoch_of(split, 0, batch_size=6)


def test_pairs_that_no_batch_can_take_are_told(split, caplog):
    """Of 1, 2, 3, 1 and 2 captions a batch of five videos is made once."""
    with caplog.at_level(logging.WARNING):
        (batch,) = epoch_of(split, 0, batch_size=5)
        assert not caplog.records  # 9 pairs make no second batch of 5 anyway
        segments = [
            replace(segment, captions=segment.captions * (9 if len(segment.captions) == 3 else 1))
            for segment in split.segments
        ]
        many = Split("any", "train", tuple(segments))
        assert len(epoch_of(many, 0, batch_size=3)) == 3
    assert len(batch[1]) == 5
    assert "24 of the 33 training pairs are left out of each epoch" in caplog.text


def test_workers_start_after_opencv_was_used(split):
    """Workers that are forked from a process in which OpenCV has threads of its own hang."""
    path = split.segments[0].path
    program = (
        "import sys; from pathlib import Path; import cv2, numpy as np\n"
        "from datasets.annotations import Segment, Split\n"
        "from datasets.loading import TestVideos, batches, test_loader\n"
        "cv2.resize(np.zeros((2000, 2000, 3), np.uint8), (500, 500), interpolation=cv2.INTER_AREA)\n"
        "cv2.cvtColor(np.zeros((2000, 2000, 3), np.uint8), cv2.COLOR_BGR2RGB)\n"
        "split = Split('any', 'test', (Segment('0', Path(sys.argv[1]), ('x',)),) * 8)\n"
        "print(sum(len(frames) for frames, _ in batches(test_loader(TestVideos(split, 4, 32), 2, 2, False))))\n"
    )
    command = [sys.executable, "-c", program, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "8\n", done.stderr


def test_workers_end_when_their_process_says_so_and_only_then(split):
    """A signal of somebody else, as schedulers send it to all processes, leaves them at work."""
    children_of_others = set(multiprocessing.active_children())  # loaders of other tests may not be collected yet
    threads = [threading.Thread(target=time.sleep, args=(60,), daemon=True)]  # as libraries start some in a worker
    os.register_at_fork(after_in_child=lambda: [thread.start() for thread in threads])
    loader = train_loader(TrainPairs(split, 3, 16, "uniform", 1), 1, 1, 1, pin_memory=False)
    stream = iter(batches(loader))
    next(stream)
    (worker,) = set(multiprocessing.active_children()) - children_of_others
    threads.clear()  # what is registered stays so
    for _ in range(5):
        subprocess.run(["sh", "-c", f"kill -TERM {worker.pid}"], check=True)
    for _ in stream:
        continue
    assert worker.is_alive()
    worker.terminate()  # what the exit of a process does to its workers, before it waits for them
    worker.join(20)
    assert worker.exitcode == 0
