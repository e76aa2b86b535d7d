"""An index follows folders of videos: names come and go, what is encoded stays."""

import os
import re
import shutil

import cv2
import numpy as np
import pytest
import torch

from tests.precision import PRECISIONS, assert_near
from tests.video_index.made_up import VIDEOS, answers, draw, held, inserted, slow_features
from video_index import encoding, files
from video_index.encoding import spans_of


@pytest.fixture
def index(tmp_path):
    return tmp_path / "index"


@pytest.fixture
def found(search, index):
    """The names of all files that a search finds, the further ones of each in brackets."""

    def query(*flags):
        (answer,) = answers(search("query", "a red circle", f"--index={index}", "--format=json", "--topk=99", *flags))
        return {hit["file"]: hit.get("others", []) for hit in answer["hits"]}

    return query


@pytest.fixture
def read(monkeypatch):
    """The files that were decoded."""
    files = []
    monkeypatch.setattr(
        encoding, "_as_read", lambda part, original=encoding._as_read: files.append(part.file) or original(part)
    )
    return files


@pytest.mark.parametrize("precision", PRECISIONS)
def test_features_are_those_of_an_evaluation(made, runs, videos, index, precision):
    assert f"{VIDEOS} segments encoded" in made(videos, f"--precision={precision}")
    features = held(index)
    assert len(features) == VIDEOS
    for path in videos.rglob("*.mp4"):
        assert_near(features[path.name, 0], slow_features(runs.one, path), precision)


def test_only_what_is_new_or_has_changed_is_encoded(made, runs, videos, index, read):
    made(videos, "--precision=fp32")
    before = held(index)
    assert "encoded" not in made(videos, "--precision=fp32")

    read.clear()
    draw(videos / "new.mp4", 20)
    draw(videos / "clip1.mp4", 21)  # another one under the same name
    (videos / "clip2.mp4").unlink()
    os.utime(videos / "clip3.mp4")  # as a restore does
    (videos / "notes.txt").write_text("no video")
    printed = made(videos, "--precision=fp32")
    assert "1 new, 1 changed, 1 gone" in printed
    assert "left out by extension: 1 .txt" in printed
    assert sorted(read) == [str(videos / "clip1.mp4"), str(videos / "new.mp4")]
    after = held(index)
    assert after.keys() == before.keys() - {("clip2.mp4", 0)} | {("new.mp4", 0)}
    for name in ("new.mp4", "clip1.mp4"):
        assert_near(after[name, 0], slow_features(runs.one, videos / name), "fp32")
    for key in before.keys() & after.keys() - {("clip1.mp4", 0)}:
        assert torch.equal(after[key], before[key])


def test_what_is_renamed_moved_or_copied_is_not_encoded_again(made, videos, index, found, tmp_path, read):
    made(videos)
    (videos / "clip1.mp4").rename(videos / "deeper" / "other.mp4")
    made(videos)
    assert str(videos / "deeper" / "other.mp4") in found()
    assert str(videos / "clip1.mp4") not in found()
    videos.rename(tmp_path / "elsewhere")
    made(tmp_path / "elsewhere")
    assert len(found()) == VIDEOS
    assert all(file.startswith(str(tmp_path / "elsewhere")) for file in found())
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "copy")
    made(tmp_path / "copy")
    assert all(len(others) == 1 for others in found().values())
    assert len(read) == VIDEOS == inserted(index)


def test_another_folder_may_stand_for_a_root(made, search, videos, index, found, tmp_path):
    made(videos)
    videos.rename(tmp_path / "mount")
    assert all(file.startswith(str(videos)) for file in found())
    assert all(os.path.isfile(file) for file in found(f"--videos_dir={tmp_path / 'mount'}"))
    moved = search("index", f"--index={index}", f"--videos_dir=videos={tmp_path / 'mount'}")  # from now on
    assert moved.code == 0, moved.err
    assert all(os.path.isfile(file) for file in found())
    (tmp_path / "second").mkdir()
    draw(tmp_path / "second" / "a.mp4", 31)
    made(tmp_path / "second")
    done = search("query", "a", f"--index={index}", f"--videos_dir={tmp_path / 'third'}")
    assert done.code == 2
    assert "may be for any of second, videos: give NAME=DIR" in done.err


def test_absence_is_no_deletion(made, search, videos, index, found, read, tmp_path):
    disk = videos / "disk"
    shutil.move(videos / "deeper", disk)
    shutil.move(videos / "clip1.mp4", disk)
    made(videos)
    before = found()
    shutil.move(disk, tmp_path / "unmounted")
    disk.mkdir()
    done = made(videos, code=1)  # so that a scheduler can tell
    assert "2 more are in folders that are empty, gone or cannot be read: they stay" in done
    assert found() == before
    disk.rmdir()
    made(videos, code=1)
    assert found() == before
    videos.rename(tmp_path / "gone")
    gone = search("index", f"--index={index}")
    assert gone.code == 1
    assert f"{VIDEOS} more are in folders" in gone.out
    (tmp_path / "gone").rename(videos)
    shutil.move(tmp_path / "unmounted", disk)
    made(videos)
    assert found() == before
    shutil.rmtree(disk)
    assert "2 files have left" in search("prune", f"--index={index}").out
    assert len(found()) == VIDEOS - 2
    made(videos)
    assert len(read) == VIDEOS


def test_folders_that_cannot_be_read_are_named_and_kept(made, videos, found, monkeypatch):
    made(videos)

    def forbidden(place, scandir=os.scandir):
        if place == os.fsencode(videos / "deeper"):
            raise PermissionError(13, "Permission denied")
        return scandir(place)

    monkeypatch.setattr(files.os, "scandir", forbidden)
    assert f"folder {videos / 'deeper'} cannot be read: Permission denied" in made(videos, code=1)
    assert len(found()) == VIDEOS


def test_what_cannot_be_read_now_is_tried_again(made, videos, monkeypatch):
    from video_index import names

    def fails(file, size):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(names, "content_of", fails)
        printed = made(videos, code=1)
    assert f"{videos / 'clip1.mp4'} cannot be read: Input/output error; the next run tries again" in printed
    assert f"{VIDEOS} segments encoded" in made(videos)


def test_broken_videos_are_told_tried_twice_and_read_again_when_they_change(made, search, videos, index, read):
    (videos / "clip1.mp4").write_text("no video")
    (videos / "empty.webm").touch()
    printed = made(videos, code=1)
    assert f"{VIDEOS - 1} segments encoded" in printed
    assert f"skipped: video {videos / 'clip1.mp4'} does not open" in printed
    assert "the next run tries once more" in printed
    assert "skipped" in made(videos, code=1)
    read.clear()
    again = made(videos)
    assert read == []
    assert "skipped" not in again
    assert "2 videos did not decode before and have not changed" in again
    listed = search("list", f"--index={index}").out
    assert re.search(f"^does not decode +{videos / 'clip1.mp4'}  \\(video ", listed, re.MULTILINE)
    draw(videos / "clip1.mp4", 1)
    assert "1 segments encoded" in made(videos)
    assert read == [str(videos / "clip1.mp4")]
    assert ("clip1.mp4", 0) in held(index)


def test_old_features_stay_until_there_are_new_ones(made, videos, index, found):
    made(videos)
    before = held(index)
    (videos / "clip1.mp4").write_text("half of it is still being copied")
    made(videos, code=1)
    made(videos, code=1)
    assert torch.equal(held(index)["clip1.mp4", 0], before["clip1.mp4", 0])
    draw(videos / "clip1.mp4", 21)
    made(videos)
    assert not torch.equal(held(index)["clip1.mp4", 0], before["clip1.mp4", 0])
    assert len(found()) == VIDEOS


def test_a_file_that_changes_while_it_is_read_waits_for_the_next_run(made, videos, index, monkeypatch):
    features = encoding.Encoder._encode
    monkeypatch.setattr(
        encoding.Encoder, "_encode", lambda self, batch: draw(videos / "clip1.mp4", 21) or features(self, batch)
    )
    printed = made(videos, code=1)
    assert f"{videos / 'clip1.mp4'} changed while it was read; the next run reads it" in printed
    assert ("clip1.mp4", 0) not in held(index)


def test_files_as_they_are(made, videos, found, drawn, tmp_path):
    """Pipes, links, hidden and housekeeping folders, equal files, photos, patterns."""
    os.mkfifo(videos / "pipe.mp4")
    shutil.copy(videos / "clip1.mp4", videos / "equal.mp4")
    (videos / "link.mp4").symlink_to(videos / "clip2.mp4")
    (videos / "loop").symlink_to(videos)
    (tmp_path / "outside").mkdir()
    draw(tmp_path / "outside" / "other.mp4", 30)
    (videos / "out").symlink_to(tmp_path / "outside")
    (videos / "out.mp4").symlink_to(tmp_path / "outside" / "other.mp4")
    for name in (".hidden", "@eaDir", "Trash"):
        (videos / name).mkdir()
        draw(videos / name / "not.mp4", 31)
    (videos / "notes").touch()
    (videos / "a.srt").touch()
    photo = np.full((300, 200, 3), (0, 0, 255), np.uint8)
    cv2.imwrite(str(videos / "photo.jpg"), photo)
    printed = made(videos, "--exclude=Trash,*.tmp")
    assert f"left out: {videos / 'pipe.mp4'} is no file" in printed
    for name in ("out", "out.mp4"):
        assert f"left out: {videos / name} is a link that leads out of the folder" in printed
    assert "left out by extension: 1 .srt, 1 without one" in printed
    names = {os.path.relpath(file, videos): others for file, others in found().items()}
    assert names.keys() == {
        "clip1.mp4", "clip2.mp4", "clip3.mp4", "clip4.mp4", "clip5.mp4", "deeper/clip0.mp4", "photo.jpg"
    }  # fmt: skip
    assert names["clip1.mp4"] == [str(videos / "equal.mp4")]
    assert names["clip2.mp4"] == [str(videos / "link.mp4")]
    assert "0 new" in made(videos)  # the patterns are kept
    made(videos, "--exclude=deeper")
    assert {str(videos / "Trash" / "not.mp4"), str(videos / "clip1.mp4")} < found().keys()
    assert str(videos / "deeper" / "clip0.mp4") not in found()


def test_names_with_control_characters_are_quoted(made, search, videos, index, found):
    name = videos / "red\x1b[31m\nnew.mp4"
    (videos / "clip1.mp4").rename(name)
    os.mkfifo(videos / "pipe\n.mp4")
    printed = made(videos)
    assert "pipe\\n.mp4 is no file" in printed
    table = search("query", "a", f"--index={index}").out
    assert "red\\x1b[31m\\nnew.mp4" in table
    assert "\x1b" not in table + search("list", f"--index={index}").out
    assert str(name) in found()


def test_forget_and_status(made, search, videos, index, found):
    made(videos)
    assert f"root videos: {videos}, {VIDEOS} files" in search("status", f"--index={index}").out
    assert "1 files have left" in search("forget", str(videos / "clip1.mp4"), f"--index={index}").out
    assert "1 files have left" in search("forget", "deeper", f"--index={index}").out
    assert len(found()) == VIDEOS - 2
    refused = search("forget", "clip1.mp4", f"--index={index}")
    assert refused.code == 2
    assert "holds no clip1.mp4: `list` shows what it holds" in refused.err
    assert "2 new" in made(videos)
    assert len(found()) == VIDEOS


def test_a_folder_does_not_push_another_one_out(made, search, drawn, tmp_path, index):
    for number in range(2):
        (tmp_path / f"f{number}").mkdir()
        shutil.copy(drawn / f"clip{number}.mp4", tmp_path / f"f{number}")
        made(tmp_path / f"f{number}")
    assert {name for name, _ in held(index)} == {"clip0.mp4", "clip1.mp4"}
    draw(tmp_path / "f0" / "new.mp4", 20)
    done = search("index", f"--index={index}")  # both folders, with the model of the index
    assert done.code == 0, done.err
    assert {name for name, _ in held(index)} == {"clip0.mp4", "clip1.mp4", "new.mp4"}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_long_video_is_searched_in_segments(made, search, runs, three_colours, tmp_path, index, precision):
    (tmp_path / "videos").mkdir()
    shutil.copy(three_colours / "long.mp4", tmp_path / "videos")
    assert "3 segments encoded" in made(tmp_path / "videos", "--window=2", f"--precision={precision}")
    features = held(index)
    for part in range(3):
        expected = slow_features(runs.one, three_colours / "long.mp4", 2 * part, 2 * part + 2)
        assert_near(features["long.mp4", part], expected, precision)
    done = search("query", f"--index={index}", f"--like={three_colours / 'green.mp4'}", "--format=json")
    best = answers(done)[0]["hits"][0]
    assert (best["start"], best["end"]) == (2, 4)
    refused = search("index", f"--videos_dir={tmp_path / 'videos'}", f"--index={index}", "--window=3")
    assert refused.code == 2
    assert "segments of --window=2 seconds, not 3" in refused.err


def test_parts_are_of_about_the_window(three_colours):
    path = str(three_colours / "long.mp4")  # 6 seconds
    for window, ends in ((30, [6]), (6, [6]), (4.1, [6]), (3.9, [3.9, 6]), (2.5, [2.5, 6]), (1.7, [1.7, 3.4, 5.1, 6])):
        spans = spans_of(path, window)
        assert [span.end for span in spans] == pytest.approx(ends)
        assert [span.start for span in spans] == pytest.approx([0, *ends[:-1]])
        assert {span.parts for span in spans} == {len(ends)}
