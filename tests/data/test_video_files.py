"""Which file of a folder is the video of a name."""

import json
import os
import time

import pytest

from datasets.annotations import load_split
from datasets.files import find_videos, walk
from tests.annotation_files import touch_videos
from utils.errors import InputError


def found(folder, *names):
    """Which files below a folder videos of these names are, where all of them are there, and what is said."""
    path = folder.parent / "found.jsonl"
    path.write_text("".join(json.dumps({"video": name, "caption": "a"}) + "\n" for name in names))
    return [
        segment.path.relative_to(folder).as_posix() for segment in load_split("custom", "test", path, folder).segments
    ]


@pytest.mark.parametrize(
    ("files", "name", "taken", "doubtful"),
    [
        # the path itself, and never the same name elsewhere
        (["a/b.mp4", "b.mp4", "other/a/b.mp4", "z/b.mp4"], "a/b.mp4", "a/b.mp4", False),
        (["b.mp4", "sub/b.mp4", "z/b.mp4"], "b.mp4", "b.mp4", False),
        (["b.avi", "b.mp4"], "b.avi", "b.avi", False),
        (["b", "b.mp4"], "b", "b", False),
        (["b.v1.mp4", "b.mp4"], "b.v1.mp4", "b.v1.mp4", False),
        (["a/b.mp4"], "./a//b.mp4", "a/b.mp4", False),
        # the path without the extension, or with another
        (["a/b.webm", "b.webm"], "a/b", "a/b.webm", False),
        (["sub/beach.mp4", "other/beach.mp4"], "sub/beach.avi", "sub/beach.mp4", False),
        (["b.v1.mp4", "b.mp4"], "b.v1", "b.v1.mp4", False),
        (["a/b.srt", "a/b.mkv"], "a/b.avi", "a/b.mkv", False),
        (["b.mkv", "b.mp4"], "b.avi", "b.mkv", True),
        # the same in subfolders, where no folder is named
        (["z/b.mp4", "a/b.avi"], "b.mp4", "z/b.mp4", True),
        (["z/b.mp4", "a/deep/b.mp4"], "b.mp4", "z/b.mp4", True),
        (["z/b.mp4", "a/b.mp4"], "b", "a/b.mp4", True),
        (["z/b.mp4", "a/b.txt"], "b", "z/b.mp4", False),
        # hidden ones are none
        (["a/b.mp4", "a/._b.mp4", ".trash/b.mp4"], "b", "a/b.mp4", False),
    ],
)
def test_which_file_is_taken(tmp_path, caplog, files, name, taken, doubtful):
    touch_videos(tmp_path / "videos", files, "")
    assert found(tmp_path / "videos", name) == [taken]
    assert ("more than once" in caplog.text) == doubtful


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (["other/a/b.mp4", "b.mp4"], "a/b.mp4"),  # another folder is another video
        (["b.txt"], "b.avi"),
        (["_b.mp4", "._b.mp4", ".b.mp4", ".a/b.mp4"], "b.mp4"),
        ([".a/b.mp4"], ".a/b.mp4"),
        (["film_00.23.28.mp4"], "film_00.23.28.886"),  # 886 is no extension
    ],
)
def test_which_file_is_not_taken(tmp_path, files, name):
    touch_videos(tmp_path / "videos", files, "")
    with pytest.raises(InputError, match="1 of 1 test videos of custom are not in"):
        found(tmp_path / "videos", name)


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(("written", "stored"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_composed_and_decomposed_names_are_one(tmp_path, written, stored):
    videos = touch_videos(tmp_path / "videos", [f"{stored}/{stored}"])
    for name in (f"{written}/{written}.mp4", f"{written}/{written}", f"{written}/{written}.avi", written):
        assert found(videos, name) == [f"{stored}/{stored}.mp4"]
    (tmp_path / "captions_msvd.json").write_text(json.dumps({written: ["a cup"]}))
    (tmp_path / "test_list.txt").write_text(written)
    (segment,) = load_split("MSVD", "test", tmp_path, videos).segments
    assert segment.path == videos / stored / f"{stored}.mp4"


def test_of_composed_and_decomposed_names_the_same_bytes_win(tmp_path, caplog):
    videos = touch_videos(tmp_path / "videos", [COMPOSED, DECOMPOSED, f"{DECOMPOSED}/a", f"{COMPOSED}/a"])
    names = [f"{COMPOSED}.mp4", f"{DECOMPOSED}.mp4", f"{DECOMPOSED}/a.mp4", f"{COMPOSED}/a.mp4", DECOMPOSED]
    assert found(videos, *names) == [*names[:4], f"{DECOMPOSED}.mp4"]


def test_links_are_followed_without_loops(tmp_path, caplog):
    """Links to folders on another disk, to the same folder twice, and to folders above; to files; and broken ones."""
    disk, videos = tmp_path / "disk", tmp_path / "videos"
    touch_videos(disk, ["movie/a", "movie/deep/b"])
    touch_videos(videos, ["c"])
    for link, target in {
        "first": disk / "movie", "second": disk / "movie", "up": tmp_path, "here": videos, "itself": videos / "itself",
        "d.mp4": disk / "movie" / "a.mp4", "gone.mp4": disk / "gone.mp4",
    }.items():  # fmt: skip
        (videos / link).symlink_to(target)
    (disk / "movie" / "deep" / "back").symlink_to(disk)
    assert [path.relative_to(videos).as_posix() for path in walk(videos)] == [
        "c.mp4", "d.mp4", "first/a.mp4", "first/deep/b.mp4", "second/a.mp4", "second/deep/b.mp4",
    ]  # fmt: skip
    names = ["first/a.mp4", "second/a.mp4", "second/deep/b", "b", "d", "a"]
    taken = ["first/a.mp4", "second/a.mp4", "second/deep/b.mp4", "first/deep/b.mp4", "d.mp4", "first/a.mp4"]
    assert found(videos, *names) == taken
    assert "more than once" not in caplog.text  # it is one file by either link


def test_a_walk_goes_through_a_large_folder_once(tmp_path, monkeypatch):
    """A folder is listed once, in order, whatever is looked for; no file is asked for more."""
    names = [f"v{i:05d}" for i in range(20_000)]
    videos = touch_videos(tmp_path / "videos", names)
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: listed.append(str(folder)) or scandir(folder))
    started = time.process_time()
    taken, doubtful = find_videos(videos, names)
    assert time.process_time() - started < 5
    assert listed == [str(videos)] and not doubtful
    assert taken == {name: videos / f"{name}.mp4" for name in names}
