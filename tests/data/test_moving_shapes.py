"""The MovingShapes data set: its files repeat from the seed."""

import json
import multiprocessing
import shutil
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets import moving_shapes
from datasets.annotations import load_split
from datasets.moving_shapes import captions_of, ensure, generate, render, scene_of
from datasets.video import read_frames
from utils.errors import InputError


def read_video(path: Path) -> np.ndarray:
    """All frames, (frames, H, W, 3) uint8 RGB."""
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (read := capture.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    return np.stack(frames)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "MovingShapes"
    generate(folder, seed=24, train_videos=6, test_videos=8, workers=1)
    return folder


def test_another_run_with_two_workers_gives_the_same_files(root, tmp_path):
    generate(tmp_path / "again", seed=24, train_videos=6, test_videos=8, workers=2)
    assert (tmp_path / "again" / "annotations.json").read_bytes() == (root / "annotations.json").read_bytes()
    videos = sorted(path.name for path in (root / "videos").iterdir())
    assert len(videos) == 14
    for name in videos:
        np.testing.assert_array_equal(read_video(root / "videos" / name), read_video(tmp_path / "again/videos" / name))


def test_another_seed_gives_another_set():
    assert [c.text for v in captions_of(24, "test", 8) for c in v] != [
        c.text for v in captions_of(25, "test", 8) for c in v
    ]
    pairs = [(render(scene_of(24, "test", i)), render(scene_of(25, "test", i))) for i in range(8)]
    assert all(a.shape != b.shape or (a != b).any() for a, b in pairs)


def test_splits_do_not_share_scenes():
    train = {render(scene_of(24, "train", index)).tobytes() for index in range(100)}
    assert len(train) == 100
    assert train.isdisjoint(render(scene_of(24, "test", index)).tobytes() for index in range(50))


def test_more_train_videos_change_nothing_else(root, tmp_path):
    generate(tmp_path / "larger", seed=24, train_videos=9, test_videos=8, workers=1)
    small, large = (json.loads((f / "annotations.json").read_text()) for f in (root, tmp_path / "larger"))
    assert len(large["train"]) == 9
    assert large["train"][:6] == small["train"]
    assert large["test"] == small["test"]
    for name in ("train0005.mp4", "test0007.mp4"):
        np.testing.assert_array_equal(read_video(root / "videos" / name), read_video(tmp_path / "larger/videos" / name))


def test_files_hold_what_is_rendered_for_two_to_three_seconds(root):
    annotations = json.loads((root / "annotations.json").read_text())
    assert {split: len(annotations[split]) for split in ("train", "test")} == {"train": 6, "test": 8}
    for split, captions in (("train", 5), ("test", 1)):
        for index, entry in enumerate(annotations[split]):
            assert len(set(entry["captions"])) == captions
            path = root / "videos" / f"{entry['video_id']}.mp4"
            video, drawn = read_video(path), render(scene_of(24, split, index))
            assert 2 <= len(video) / cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS) <= 3
            assert video.shape == drawn.shape
            assert np.abs(video.astype(int) - drawn).mean() < 8  # what the codec loses


def test_a_failed_generation_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(moving_shapes, "captions_of", fail)
    with pytest.raises(OSError, match="disk full"):
        generate(tmp_path / "MovingShapes", train_videos=2, test_videos=2, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_generation_leaves_no_root_and_does_not_block_the_next(tmp_path):
    root = tmp_path / "MovingShapes"
    victim = multiprocessing.get_context("spawn").Process(target=generate, args=(root, 24, 3000, 100, 1))
    victim.start()
    deadline = time.monotonic() + 60
    while not any(tmp_path.glob(".MovingShapes-*/MovingShapes/videos/*.mp4")) and time.monotonic() < deadline:
        time.sleep(0.05)
    victim.kill()
    victim.join()
    assert any(tmp_path.glob(".MovingShapes-*/MovingShapes/videos/*.mp4"))
    assert not root.exists()
    generate(root, 24, 2, 2, 1)
    assert len(list((root / "videos").iterdir())) == 4


def test_two_processes_at_once_both_end_well(tmp_path):
    root = tmp_path / "MovingShapes"
    spawn = multiprocessing.get_context("spawn")
    pair = [spawn.Process(target=generate, args=(root, 24, 4, 4, 1)) for _ in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join()
    assert [process.exitcode for process in pair] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["MovingShapes"]
    assert len(list((root / "videos").iterdir())) == 8
    ensure(root, seed=24)


def test_ensure_leaves_a_complete_set_alone(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    ensure(root, seed=24)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_the_large_test_split_begins_with_the_usual_one_and_changes_nothing(root, tmp_path):
    folder = tmp_path / "MovingShapes"
    shutil.copytree(root, folder)
    before = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder / ".large-killed").mkdir()  # what a killed process leaves
    for _ in range(2):
        moving_shapes.ensure_large(folder, 24, test_videos=11, workers=1)
        large = json.loads((folder / "large.json").read_text())["test"]
        assert large[:8] == json.loads((folder / "annotations.json").read_text())["test"]
        assert [entry["video_id"] for entry in large] == [f"test{index:04d}" for index in range(11)]
    assert len({entry["captions"][0] for entry in large}) == 11
    assert before == {path: (folder / path).read_bytes() for path in before}
    np.testing.assert_array_equal(
        read_video(folder / "videos/test0010.mp4").shape, render(scene_of(24, "test", 10)).shape
    )
    splits = [load_split("MovingShapes", name, folder, None) for name in ("test", "test-large")]
    assert [len(split.segments) for split in splits] == [8, 11]
    assert splits[1].segments[:8] == splits[0].segments


def test_twins_are_added_and_change_nothing(root, tmp_path):
    folder = tmp_path / "MovingShapes"
    shutil.copytree(root, folder)
    before = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for _ in range(2):
        moving_shapes.ensure_motion(folder, 24, pairs=3, workers=1)
    assert before == {path: (folder / path).read_bytes() for path in before}
    listed = json.loads((folder / "motion.json").read_text())["motion"]
    split = load_split("MovingShapes", "test-motion", folder, None)
    assert [segment.video_id for segment in split.segments] == [f"motion{index:04d}" for index in range(6)]
    assert split.captions == [caption.text for (caption,) in captions_of(24, "motion", 6)]
    assert split.captions == [caption for entry in listed for caption in entry["captions"]]
    for index, segment in enumerate(split.segments):
        drawn = render(scene_of(24, "motion", index))
        assert np.abs(read_video(segment.path).astype(int) - drawn).mean() < 8
    forwards, backwards = (
        read_frames(segment.path, 12).astype(int) for segment in split.segments[:2]
    )  # left and right
    assert np.abs(forwards - backwards[::-1]).mean() < 4 < np.abs(forwards - backwards).mean()


@pytest.mark.parametrize(
    "content",
    ["not json", "[]", "{}", '{"version": 0, "seed": 24}', '{"version": 1, "seed": 24}', '{"version": 2, "seed": 25}'],
)
def test_ensure_names_the_file_that_does_not_fit(tmp_path, content):
    (tmp_path / "annotations.json").write_text(content)
    with pytest.raises(InputError, match=r"annotations\.json .*delete"):
        ensure(tmp_path, seed=24)


def test_other_files_are_not_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="move it away"):
        ensure(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_video_that_cannot_be_opened_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match=r"could not open .*test0000\.mp4"):
        moving_shapes._write_video((tmp_path / "absent", 24, "test", 0))
