"""The MovingShapes data set: the files repeat from the seed, and the captions are true of the pixels."""

import json
import multiprocessing
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets import moving_shapes
from datasets.annotations import load_split
from datasets.moving_shapes import MovingObject, Scene, captions_of, describe, ensure, generate, holds, render, scene_of
from diffusion_lm.errors import InputError


def read_video(path: Path) -> np.ndarray:
    """All frames, (frames, H, W, 3) uint8 RGB."""
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (read := capture.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    return np.stack(frames)


def coloured(video: np.ndarray) -> np.ndarray:
    """Where an object other than a white one is: backgrounds are grey. (frames, H, W) bool."""
    return video.max(axis=3).astype(int) - video.min(axis=3) > 90


def centroid(mask: np.ndarray) -> np.ndarray:
    """Mean (x, y) of a mask."""
    rows, columns = np.nonzero(mask)
    return np.array([columns.mean(), rows.mean()])


@pytest.fixture(scope="module")
def lone_objects() -> list[tuple[MovingObject, np.ndarray, list[str]]]:
    """(object, frames, captions) of scenes that show nothing but one object, never a white one."""
    found, rng = [], np.random.default_rng(0)
    for index in range(800):
        scene = scene_of(24, "train", index)
        if len(scene.objects) == 1 and "white" not in (scene.objects[0].colour, scene.objects[0].then):
            found.append((scene.objects[0], render(scene), [describe(scene, rng).text for _ in range(15)]))
    return found


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


def test_captions_are_short_plain_and_in_the_test_split_unique():
    test = [caption.text for captions in captions_of(24, "test", 100) for caption in captions]
    train = [caption.text for captions in captions_of(24, "train", 200) for caption in captions]
    assert len(set(test)) == 100
    for text in test + train:
        assert re.fullmatch(r"[a-z]+( [a-z]+){5,17}", text)
    words = {word for text in train for word in text.split()}
    assert 80 <= len(words) <= 150
    assert {word for text in test for word in text.split()} <= words


def test_facts_hold_for_the_own_scene_and_single_out_most_test_videos():
    scenes = [scene_of(24, "test", index) for index in range(100)]
    captions = [own[0] for own in captions_of(24, "test", 100)]
    true = np.array([[holds(caption, scene) for scene in scenes] for caption in captions])
    assert true.diagonal().all()
    assert 0 < np.mean(true.sum(axis=1) > 1) <= 0.15  # told in part, so not always enough; mostly it is


def test_facts_cover_the_words_of_the_caption():
    """A colour, shape or size that is named is claimed, for an object that has it."""
    names = {word: name for attribute in ("colour", "shape", "size") for name, words in
             moving_shapes.WORDS[attribute].items() for word in words}  # fmt: skip
    for index, captions in enumerate(captions_of(24, "train", 200)):
        shown = set().union(*(shown.facts() for shown in scene_of(24, "train", index).objects))
        for caption in captions:
            claimed = {value for mention in caption.mentions for _, value in mention}
            named = {names[word] for word in caption.text.replace("plus sign", "cross").split() if word in names}
            assert named <= claimed
            assert named <= {value for _, value in shown}
            assert len(caption.mentions) <= len(scene_of(24, "train", index).objects)


def test_false_claims_do_not_hold():
    orders = 0
    for index, captions in enumerate(captions_of(24, "train", 200)):
        scene = scene_of(24, "train", index)
        absent = next(c for c in moving_shapes.COLOURS if all(("colour", c) not in o.facts() for o in scene.objects))
        for caption in captions:
            first, *others = caption.mentions
            assert not holds(replace(caption, mentions=(first | {("colour", absent)}, *others)), scene)
            assert not holds(replace(caption, mentions=caption.mentions * 4), scene)
            if caption.in_order and all("colour" in dict(mention) for mention in caption.mentions):
                assert not holds(replace(caption, mentions=caption.mentions[::-1]), scene)
                orders += 1
    assert orders > 20


WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "top": (0, -1), "down": (0, 1), "bottom": (0, 1)}


def test_named_directions_are_those_of_the_pixels(lone_objects):
    seen = set()
    for shown, video, captions in lone_objects:
        if shown.change:
            continue
        mask = coloured(video)
        start, end = centroid(mask[0]), centroid(mask[-1])
        for text in captions:
            goal = re.sub(r"from \w+ to|up and down| (on|over) .*", "", text.replace("wards", ""))
            for word in set(goal.split()) & set(WAYS):
                if "on the spot" not in text:
                    seen.add(word)
                    assert np.dot(end - start, WAYS[word]) > 30, text
            if re.search("stays|does not move|spin|spot", text):
                assert np.abs(end - start).max() < 10, text
    assert seen == set(WAYS)


def test_named_changes_are_those_of_the_pixels(lone_objects):
    seen = []
    rgb = {"red": (1, 0, 0), "green": (0, 0.6, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0), "orange": (1, 0.5, 0),
           "purple": (0.6, 0, 0.8), "cyan": (0, 0.8, 1)}  # fmt: skip
    for _, video, captions in lone_objects:
        mask = coloured(video)
        area = mask.sum(axis=(1, 2))
        for text in captions:
            if change := re.search(rf"(?:turns|becomes|changes to) ({'|'.join(rgb)})\b", text):
                mean = video[-1][mask[-1]].mean(axis=0) / 255
                assert min(rgb, key=lambda name: np.abs(mean - rgb[name]).sum()) == change[1], text
            elif change := re.search("grows|gets bigger|becomes larger", text):
                assert area[-1] > 1.8 * area[0], text
            elif change := re.search("shrinks|gets smaller|becomes smaller", text):
                assert area[-1] < 0.55 * area[0], text
            elif change := re.search("disappears|vanishes|leaves|goes out", text):
                assert area[0] > 0 and area[-1] == 0, text
            elif change := re.search(r"\bappears|shows up|pops up", text):
                assert area[0] == 0 and area[-1] > 0, text
            elif change := re.search("comes in|enters", text):
                assert area[0] < 0.2 * area[-1], text
            elif change := re.search("stops|comes to a halt", text):
                np.testing.assert_array_equal(video[-1], video[-8], err_msg=text)
                assert (video[0] != video[6]).any(), text
            if change:
                seen.append(change[0])
    assert len(set(seen)) > 18


@pytest.mark.parametrize("path", ["left", "right", "up", "down"])
def test_named_edges_and_turns_are_those_of_the_pixels(path):
    edges = {"left": np.s_[:, 0], "right": np.s_[:, -1], "top": np.s_[0], "bottom": np.s_[-1]}
    rng = np.random.default_rng(0)
    changes = [("enter", None, 0.0), ("leave", None, 0.9)]
    changes += [("turn", way, 0.5) for way in ("left", "right", "up", "down") if way != path]
    for change, then, change_at in changes:
        shown = MovingObject("circle", "red", "small", path, change, then, change_at)
        scene = Scene("dots", (shown,), moving_shapes._track(rng, shown, 30)[None])
        mask = coloured(render(scene))
        visible = mask[mask.any(axis=(1, 2))]
        named = set()
        for text in (describe(scene, rng).text for _ in range(60)):
            if match := re.search(r"(?:comes in|enters) from the (\w+)", text):
                assert visible[0][edges[match[1]]].any() and not visible[-1][edges[match[1]]].any(), text
            elif match := re.search(r"(?:leaves|goes out) at the (\w+)", text):
                assert visible[-1][edges[match[1]]].any() and not visible[0][edges[match[1]]].any(), text
            elif match := re.search(r"(?:turns|direction and goes) (left|right|up|down)", text):
                assert np.dot(centroid(mask[-1]) - centroid(mask[-6]), WAYS[match[1]]) > 4, text
            if match:
                named.add(match[1])
        assert len(named) == 1


def test_both_directions_pass_the_same_places(lone_objects):
    """Mean pooling must not read the direction off the places where an object was."""
    seen = set()
    for shown, video, _ in lone_objects:
        if shown.path in ("left", "right") and not shown.change:
            seen.add(shown.path)
            assert abs(np.mean([centroid(frame)[0] for frame in coloured(video)]) - video.shape[2] / 2) < 5
    assert seen == {"left", "right"}


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
    assert [len(split.clips) for split in splits] == [8, 11]
    assert splits[1].clips[:8] == splits[0].clips


@pytest.mark.parametrize(
    "content", ["not json", "[]", "{}", '{"version": 0, "seed": 24}', '{"version": 1, "seed": 25}']
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
