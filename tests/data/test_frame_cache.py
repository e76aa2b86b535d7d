"""Frames that come from the cache, and the samples of training that fail."""

import logging
import multiprocessing
import os
import resource
import time

import numpy as np
import pytest
import torch

from config import Config
from datasets import frame_cache
from datasets.annotations import Segment, Split
from datasets.failures import FailedVideos
from datasets.frame_cache import CANDIDATES, CacheSettings, FrameCache
from datasets.loading import TestVideos, TrainPairs, batches, train_loader
from datasets.video import frame_indices, part_bounds, read_frames
from tests.data.test_video import numbers, write_frames, write_numbered
from utils.errors import InputError


@pytest.fixture
def segment(tmp_path):
    return Segment("thirty", write_numbered(tmp_path / "thirty.mp4", 30), ("a caption",))


@pytest.fixture
def settings(tmp_path):
    return CacheSettings(tmp_path / "cache")


def entries(settings):
    return sorted(file for file in settings.folder.glob("*/*") if file.is_file())


def break_video(path):
    """Replace a video by rubbish of the same size and time: whoever decodes it fails."""
    stat = path.stat()
    path.write_bytes(b"x" * stat.st_size)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("sample_type", ["uniform", "rand"])
def test_a_warm_cache_gives_the_same_frames_and_decodes_nothing(segment, settings, sample_type):
    def generator(seed):
        return None if sample_type == "uniform" else np.random.default_rng(seed)

    expected = [read_frames(segment.path, 6, generator(seed)) for seed in range(8)]
    assert np.array_equal(FrameCache(settings, 6, sample_type).read(segment, generator(0)).frames, expected[0])
    break_video(segment.path)
    cache = FrameCache(settings, 6, sample_type)
    assert cache.holds(segment)
    for seed in range(8):
        rng, again = generator(seed), generator(seed)
        assert np.array_equal(cache.read(segment, rng).frames, expected[seed])
        if rng is not None:
            frame_indices(30, 6, again)
            assert rng.integers(2**62) == again.integers(2**62)  # crops do not change with a cache
    assert len(entries(settings)) == 1


@pytest.mark.parametrize("warm", [False, True])
def test_training_samples_are_the_same_with_and_without_a_cache(segment, settings, warm):
    split = Split("any", "train", (segment,))
    plain, cached = (TrainPairs(split, 6, 32, "rand", 24, cache) for cache in (None, settings))
    for epoch in range(1, 5):
        if not warm:
            for entry in entries(settings):
                entry.unlink()
        assert torch.equal(plain[epoch, 0].frames, cached[epoch, 0].frames)
    assert torch.equal(TestVideos(split, 6, 32)[0].frames, TestVideos(split, 6, 32, settings)[0].frames)


def test_long_parts_keep_a_few_frames_each_and_draw_them_alike(segment, settings):
    """30 frames in 2 parts of 15: CANDIDATES of each are drawn once, and each draw takes any of these."""
    cache = FrameCache(settings, 2, "rand")
    rng = np.random.default_rng(0)
    drawn = np.array([numbers(cache.read(segment, rng).frames) for _ in range(400)])
    for column, low, high in ((0, 0, 15), (1, 15, 30)):
        values, counts = np.unique(drawn[:, column], return_counts=True)
        assert len(values) == CANDIDATES
        assert low <= values[0] and values[-1] < high
        assert counts.min() > 400 / CANDIDATES / 2
    assert entries(settings)[0].stat().st_size < (2 * CANDIDATES + 1) * 64 * 48 * 3


def test_what_is_kept_of_long_parts_is_a_random_choice():
    """Over segments, every frame of a part is kept equally often: no place in a part is left out."""
    kept = np.concatenate([frame_cache.candidates(60, 3, np.random.default_rng(seed)) for seed in range(2000)])
    counts = np.bincount(kept, minlength=60)
    expected = 2000 * CANDIDATES / 20
    assert abs(counts - expected).max() < 5 * np.sqrt(expected)
    assert frame_cache.candidates(18, 3, np.random.default_rng(0)).tolist() == list(range(18))
    assert part_bounds(60, 3).tolist() == [0, 20, 40, 60]


def test_the_key_is_file_size_time_clip_and_sampling(segment, settings, tmp_path):
    other = CacheSettings(settings.folder, short_side=40)
    parts = [Segment("thirty", segment.path, ("x",), start, end) for start, end in ((0.0, 1.0), (1.0, 2.0))]
    for number, (cache, what) in enumerate([
        (FrameCache(settings, 6, "uniform"), segment),
        (FrameCache(settings, 5, "uniform"), segment),
        (FrameCache(settings, 6, "rand"), segment),
        (FrameCache(other, 6, "uniform"), segment),
        (FrameCache(settings, 6, "uniform"), parts[0]),
        (FrameCache(settings, 6, "uniform"), parts[1]),
    ], start=1):  # fmt: skip
        assert not cache.holds(what)
        cache.read(what, np.random.default_rng(0) if cache.sample_type == "rand" else None)
        assert cache.holds(what)
        assert len(entries(settings)) == number
    cache = FrameCache(settings, 6, "uniform")
    os.utime(segment.path, (1, 1))
    assert not cache.holds(segment)
    write_numbered(segment.path, 12)
    assert numbers(cache.read(segment, None).frames) == frame_indices(12, 6).tolist()


def test_large_frames_are_scaled_down_and_small_ones_kept(tmp_path):
    frames = np.tile(np.linspace(0, 250, 128).astype(np.uint8)[None, None, :, None], (4, 64, 1, 3))
    segment = Segment("wide", write_frames(tmp_path / "wide.mp4", frames), ("x",))
    half = FrameCache(CacheSettings(tmp_path / "cache", short_side=32), 4, "uniform").read(segment, None).frames
    whole = read_frames(segment.path, 4)
    assert half.shape == (4, 32, 64, 3)
    means = whole.reshape(4, 32, 2, 64, 2, 3).astype(float).mean(axis=(2, 4))
    assert np.abs(half - means).max() <= 1
    kept = FrameCache(CacheSettings(tmp_path / "cache"), 4, "uniform").read(segment, None).frames
    assert np.array_equal(kept, whole)


@pytest.mark.parametrize("left", [0, 7, 40, 5000, -1])
def test_an_entry_that_was_cut_short_is_made_again(segment, settings, left):
    cache = FrameCache(settings, 6, "uniform")
    expected = cache.read(segment, None).frames
    (entry,) = entries(settings)
    whole = entry.read_bytes()
    entry.write_bytes(whole[:left])
    assert not cache.holds(segment)
    assert np.array_equal(cache.read(segment, None).frames, expected)
    assert entry.read_bytes() == whole


def test_an_entry_that_is_something_else_is_made_again(segment, settings):
    cache = FrameCache(settings, 6, "uniform")
    expected = cache.read(segment, None).frames
    (entry,) = entries(settings)
    for rubbish in (b"", b"\0" * 20000, b"TDframes" + b"\xff" * 9000):
        entry.write_bytes(rubbish)
        assert np.array_equal(cache.read(segment, None).frames, expected)


def test_entries_of_an_older_version_are_told_once_and_made_again(segment, settings, caplog):
    older = settings.folder / "ab" / "cdef"
    older.parent.mkdir(parents=True)
    older.write_bytes(b"TDframes" + bytes(9000))
    for _ in range(2):
        frames = FrameCache(settings, 6, "uniform").read(segment, None).frames
        assert numbers(frames) == frame_indices(30, 6).tolist()
    assert sum("older version" in record.message for record in caplog.records) == 1
    assert older in entries(settings) and len(entries(settings)) == 2


@pytest.mark.parametrize(("input_res", "side"), [(None, 256), (224, 256), (336, 336)])
def test_kept_frames_are_as_large_as_the_input(tmp_path, input_res, side):
    config = Config(frame_cache=str(tmp_path), input_res=input_res)
    assert CacheSettings.of(config).short_side == side


def fill(settings, segments, seed):
    cache = FrameCache(settings, 6, "uniform")
    for index in np.random.default_rng(seed).permutation(len(segments)):
        cache.read(segments[index], None)


def test_many_processes_may_fill_it_at_once(tmp_path, settings):
    segments = [Segment(str(i), write_numbered(tmp_path / f"{i}.mp4", 6 + i), ("x",)) for i in range(8)]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=fill, args=(settings, segments, seed)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(entries(settings)) == 8  # and nothing unfinished
    cache = FrameCache(settings, 6, "uniform")
    for segment in segments:
        expected = read_frames(segment.path, 6)
        break_video(segment.path)
        assert np.array_equal(cache.read(segment, None).frames, expected)


def test_the_size_limit(tmp_path, settings, caplog):
    segments = [Segment(str(i), write_numbered(tmp_path / f"{i}.mp4", 30), ("x",)) for i in range(6)]
    entry_bytes = 6 * 64 * 48 * 3 + 320
    limited = CacheSettings(settings.folder, limit_gb=3.5 * entry_bytes / 1e9)
    cache = FrameCache(limited, 6, "uniform")
    with caplog.at_level(logging.WARNING):
        for segment in segments:
            assert numbers(cache.read(segment, None).frames) == frame_indices(30, 6).tolist()
    assert len(entries(settings)) == 3
    assert [r.message for r in caplog.records if "takes no more" in r.message] == [
        f"frame cache {settings.folder} takes no more frames: --frame_cache_gb={limited.limit_gb:g} is reached"
    ]
    break_video(segments[0].path)  # what is there still serves
    assert numbers(FrameCache(limited, 6, "uniform").read(segments[0], None).frames) == frame_indices(30, 6).tolist()


def test_a_full_disk_ends_the_adding(segment, settings, caplog):
    cache = FrameCache(settings, 6, "uniform")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))  # no file grows beyond
    try:
        assert numbers(cache.read(segment, None).frames) == frame_indices(30, 6).tolist()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert cache.full and "takes no more frames" in caplog.text
    assert not list(settings.folder.glob("*/*")) and not list(settings.folder.glob("*/.*"))


@pytest.mark.parametrize("what", ["gone", "cut short", "empty"])
def test_an_entry_that_changes_while_it_is_read(segment, settings, what):
    FrameCache(settings, 6, "uniform").read(segment, None)
    (path,) = entries(settings)
    entry = frame_cache.Entry.open(path)
    path.unlink()
    if what != "gone":
        path.write_bytes(b"x" * (10_000 if what == "cut short" else 0))
    with pytest.raises(InputError, match=path.name):
        entry.read(np.arange(6))


def test_a_full_cache_draws_as_one_with_room(segment, settings, tmp_path):
    """Whether there was room must not change what is trained on."""
    full = FrameCache(CacheSettings(tmp_path / "full", limit_gb=0.0), 2, "rand")
    roomy = FrameCache(settings, 2, "rand")
    for seed in range(6):
        generators = [np.random.default_rng(seed) for _ in range(2)]
        assert np.array_equal(full.read(segment, generators[0]).frames, roomy.read(segment, generators[1]).frames)
        assert generators[0].integers(2**62) == generators[1].integers(2**62)
    assert full.full and not roomy.full


def test_unfinished_files_of_processes_that_died_are_removed(segment, settings):
    FrameCache(settings, 6, "uniform").read(segment, None)
    folder = entries(settings)[0].parent
    for name, age in ((".old-host-1-2", 2 * frame_cache.ABANDONED), (".new-host-1-2", 0)):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (time.time() - age,) * 2)
    FrameCache(settings, 6, "uniform")
    assert {file.name for file in folder.iterdir()} == {entries(settings)[-1].name, ".new-host-1-2"}


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="--frame_cache="):
        FrameCache(CacheSettings(tmp_path / "file"), 6, "uniform")


def test_a_video_that_does_not_decode_leaves_no_entry(segment, settings):
    break_video(segment.path)
    with pytest.raises(InputError, match=r"thirty\.mp4"):
        FrameCache(settings, 6, "uniform").read(segment, None)
    segment.path.unlink()
    with pytest.raises(InputError, match=r"thirty\.mp4"):
        FrameCache(settings, 6, "uniform").read(segment, None)
    assert not entries(settings)


# videos that fail in training


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """200 captions of 20 videos; one more caption of a video that is none."""
    folder = tmp_path_factory.mktemp("damaged")
    segments = [
        Segment(str(i), write_numbered(folder / f"{i}.mp4", 6 + i), tuple(f"{i} {k}" for k in range(10)))
        for i in range(20)
    ]
    (folder / "broken.mp4").write_text("no video")
    return Split("any", "train", (*segments[:7], Segment("broken", folder / "broken.mp4", ("broken",)), *segments[7:]))


def epoch_of(split, workers, epoch=1, failed=None, batch_size=1):
    loader = train_loader(TrainPairs(split, 3, 32, "rand", 24), batch_size, workers, 24, pin_memory=False)
    loader.sampler.set_epoch(epoch)
    return [(frames.clone(), index.tolist()) for frames, index in batches(loader, failed)]


def test_a_failing_video_is_replaced_said_and_counted(damaged, caplog):
    failed = FailedVideos(201)
    with caplog.at_level(logging.WARNING):
        seen = sorted(index for _, indices in epoch_of(damaged, 0, failed=failed) for index in indices)
    assert failed.replaced == 1
    assert len(seen) == 201
    assert 70 not in seen  # the broken one; another caption comes twice
    assert len(set(seen)) == 200
    assert sum("broken.mp4" in record.message for record in caplog.records) == 1
    assert "1 of 201" in failed.summary() and "broken.mp4" in failed.summary()


def test_a_replacement_follows_seed_epoch_and_index(damaged):
    loader = train_loader(TrainPairs(damaged, 3, 32, "rand", 24), 1, 0, 24, pin_memory=False)
    chosen = []
    for epoch in range(1, 9):
        loader.sampler.set_epoch(epoch)
        (key,) = (key for key in loader.sampler if key.index == 70)
        chosen.append((key, loader.dataset[key]))
    assert len({sample.index for _, sample in chosen}) > 4
    for key, sample in chosen:
        assert sample.index == key.spare[0]
        again = loader.dataset[key]
        assert again.index == sample.index and torch.equal(again.frames, sample.frames)
        assert [str(e) for e in sample.failed] == [str(e) for e in again.failed] != []
    alone, together = (epoch_of(damaged, workers, batch_size=3) for workers in (0, 2))
    for a, b in zip(alone, together, strict=True):
        assert a[1] == b[1] and torch.equal(a[0], b[0])


def test_where_a_batch_has_all_videos_none_can_replace_another(damaged):
    with pytest.raises(InputError, match=r"broken\.mp4.*no video can take its place.*lower --batch_size"):
        epoch_of(damaged, 0, batch_size=21)


@pytest.mark.parametrize(("broken", "captions", "stops"), [(1, 1, False), (1, 2, False), (1, 3, True), (3, 1, True)])
def test_more_than_one_percent_stops_with_the_list(damaged, tmp_path, broken, captions, stops):
    good = [segment for segment in damaged.segments if segment.video_id != "broken"]
    bad = []
    for i in range(broken):
        (tmp_path / f"bad{i}.mp4").write_text("no video")
        bad.append(Segment(f"bad{i}", tmp_path / f"bad{i}.mp4", tuple(map(str, range(captions)))))
    split = Split("any", "train", (*good, *bad))  # 200 good samples
    if not stops:
        assert len(epoch_of(split, 0)) == 200 + broken * captions
        return
    with pytest.raises(InputError) as caught:
        epoch_of(split, 0)
    assert "3 of 203" in str(caught.value) and "\n" not in str(caught.value)
    assert all(f"bad{i}.mp4" in str(caught.value) for i in range(broken))


def test_nothing_but_broken_videos_is_an_error(tmp_path):
    (tmp_path / "a.mp4").write_text("no video")
    split = Split("any", "train", (Segment("a", tmp_path / "a.mp4", ("a", "b")),))
    with pytest.raises(InputError, match=r"a\.mp4"):
        epoch_of(split, 0)


def test_a_clip_whose_times_are_not_in_its_video_is_not_kept(tmp_path):
    """So that every epoch tells of it."""
    path = write_numbered(tmp_path / "video.mp4", 24)  # 2 s
    cache = FrameCache(CacheSettings(tmp_path / "cache"), 4, "uniform")
    wrong = Segment("video", path, ("a caption",), 2000.0, 3000.0)
    for _ in range(2):
        read = cache.read(wrong, None)
        assert read.beyond == "a segment from 2000 to 3000 s, of a film of 2.0 s"
        assert numbers(read.frames) == [23] * 4
    assert cache.store(wrong) == read.beyond
    assert not cache.holds(wrong)
    right = Segment("video", path, ("a caption",), 1.0, 3.0)
    assert cache.store(right) == "" and cache.holds(right)
    assert cache.read(right, None).beyond == ""
