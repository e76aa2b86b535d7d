"""Annotations as they are distributed, and what is said when they are not as they should be."""

import csv
import json
import os
import re
import shutil
import time

import pytest

from datasets.annotations import load_captions, load_split
from datasets.files import find_videos, walk
from tests.data.test_annotations_properties import FILES, GOOD
from tests.made_up import make_msrvtt
from utils.errors import InputError

# a made-up MSR-VTT folder: 12 training videos of two captions (the first 8 in the 7k split), 6 test videos


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("msrvtt")
    make_msrvtt(folder)
    return folder


@pytest.fixture
def msrvtt(original, tmp_path):
    """A copy that a test may damage: (annotations, videos)."""
    shutil.copytree(original, tmp_path / "copy")
    return tmp_path / "copy" / "data" / "MSRVTT", tmp_path / "copy" / "videos"


def failure(dataset, split, data_dir, videos_dir, **options):
    """The one line that load_split says."""
    with pytest.raises(InputError) as caught:
        load_split(dataset, split, data_dir, videos_dir, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("train_file", "videos"), [("9k", 12), ("7k", 8)])
def test_msrvtt_training_split(msrvtt, train_file, videos):
    data_dir, videos_dir = msrvtt
    split = load_split("MSRVTT", "train", data_dir, videos_dir, train_file)
    sentences = json.loads((data_dir / "MSRVTT_data.json").read_text())["sentences"]
    assert [clip.video_id for clip in split.clips] == [f"video{i}" for i in range(videos)]
    for clip in split.clips:
        assert clip.path == videos_dir / f"{clip.video_id}.mp4"
        assert list(clip.captions) == [s["caption"] for s in sentences if s["video_id"] == clip.video_id]
        assert (clip.start, clip.end) == (None, None)
    assert len(split.captions) == 2 * videos
    assert split.clip_of_caption == [i for i in range(videos) for _ in range(2)]
    assert split.flip


def test_msrvtt_test_split(msrvtt):
    data_dir, videos_dir = msrvtt
    split = load_split("MSRVTT", "test", data_dir, videos_dir)
    with open(data_dir / "MSRVTT_JSFUSION_test.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(clip.video_id, clip.captions) for clip in split.clips] == [(r["video_id"], (r["sentence"],)) for r in rows]
    assert split.clip_of_caption == list(range(6))


def test_training_captions_need_no_videos(msrvtt):
    data_dir, videos_dir = msrvtt
    expected = load_split("MSRVTT", "train", data_dir, videos_dir, "7k").captions
    shutil.rmtree(videos_dir)
    assert load_captions("MSRVTT", data_dir, "7k") == expected


def test_caption_without_extra_blanks_and_csv_with_quotes(msrvtt):
    data_dir, videos_dir = msrvtt
    (data_dir / "MSRVTT_JSFUSION_test.csv").write_bytes(
        b'\xef\xbb\xbfkey,vid_key,video_id,sentence\r\nret0,msr9000,video9000,"  two  men,\r\none ""dog"" "\r\n'
    )
    (clip,) = load_split("MSRVTT", "test", data_dir, videos_dir).clips
    assert clip.captions == ('two men, one "dog"',)


@pytest.mark.parametrize("suffix", [".avi", ".webm", ".MP4", ".m2ts", "."])
def test_videos_are_found_by_stem_at_any_depth(msrvtt, suffix):
    data_dir, videos_dir = msrvtt
    target = videos_dir / "deep" / "er" / f"video3{suffix}"
    target.parent.mkdir(parents=True)
    (videos_dir / "video3.mp4").rename(target)
    assert load_split("MSRVTT", "train", data_dir, videos_dir).clips[3].path == target


@pytest.mark.parametrize("other", [".ass", ".txt"])
def test_subtitles_beside_a_video_are_not_taken_for_it(msrvtt, other):
    data_dir, videos_dir = msrvtt
    (videos_dir / f"video3{other}").write_text("subtitles")
    assert load_split("MSRVTT", "train", data_dir, videos_dir).clips[3].path == videos_dir / "video3.mp4"


# what is said


def test_missing_videos_are_counted_and_listed(msrvtt):
    data_dir, videos_dir = msrvtt
    (videos_dir / "video3.mp4").unlink()
    message = failure("MSRVTT", "train", data_dir, videos_dir)
    assert "1 of 12 train videos" in message
    assert "video3" in message
    assert str(videos_dir) in message
    for i in range(2, 12):
        (videos_dir / f"video{i}.mp4").unlink(missing_ok=True)
    message = failure("MSRVTT", "train", data_dir, videos_dir)
    assert "10 of 12" in message
    assert "video2, video3, video4, video5, video6, ..." in message
    assert "video11" not in message
    assert len(load_split("MSRVTT", "test", data_dir, videos_dir).clips) == 6


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", ["MSRVTT_data.json", "MSRVTT_train.9k.csv", "MSRVTT_JSFUSION_test.csv"])
def test_missing_annotation_file_is_named(msrvtt, split, name):
    data_dir, videos_dir = msrvtt
    (data_dir / name).unlink()
    if (split == "test") == name.endswith("test.csv"):
        message = failure("MSRVTT", split, data_dir, videos_dir)
        assert str(data_dir / name) in message
        assert "No such file" in message
    else:
        assert load_split("MSRVTT", split, data_dir, videos_dir).clips


def test_broken_json_is_named_with_its_line(msrvtt):
    data_dir, videos_dir = msrvtt
    path = data_dir / "MSRVTT_data.json"
    lines = json.dumps(json.loads(path.read_text()), indent=1).splitlines()
    lines[4] = lines[4].replace(":", "")  # line 5, as an editor counts
    path.write_text("\n".join(lines))
    message = failure("MSRVTT", "train", data_dir, videos_dir)
    assert f"{path}, line 5" in message
    path.write_text(path.read_text()[:50])  # a download that was cut short
    assert str(path) in failure("MSRVTT", "train", data_dir, videos_dir)


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", "3", '{"sentences": 3}', '{"sentences": [3]}', '{"sentences": [{"video_id": "video0"}]}',
     '{"sentences": [{"video_id": "video0", "caption": 5}]}'],
)  # fmt: skip
def test_json_of_another_shape_is_named(msrvtt, content):
    data_dir, videos_dir = msrvtt
    (data_dir / "MSRVTT_data.json").write_text(content)
    message = failure("MSRVTT", "train", data_dir, videos_dir)
    assert str(data_dir / "MSRVTT_data.json") in message
    assert "sentences" in message


@pytest.mark.parametrize(
    ("name", "split", "column"),
    [("MSRVTT_JSFUSION_test.csv", "test", "sentence"), ("MSRVTT_JSFUSION_test.csv", "test", "video_id"),
     ("MSRVTT_train.9k.csv", "train", "video_id")],
)  # fmt: skip
def test_missing_column_is_named(msrvtt, name, split, column):
    data_dir, videos_dir = msrvtt
    text = (data_dir / name).read_text()
    (data_dir / name).write_text(text.replace(column, "other", 1))
    message = failure("MSRVTT", split, data_dir, videos_dir)
    assert f"{data_dir / name}, line 1" in message
    assert f"column {column} is missing" in message


def test_row_without_a_sentence_is_named_with_its_line(msrvtt):
    data_dir, videos_dir = msrvtt
    path = data_dir / "MSRVTT_JSFUSION_test.csv"
    lines = path.read_text().splitlines()
    for bad in ("ret2,msr9002,video9002", "ret2,msr9002,video9002,", "ret2,msr9002,,a man"):
        path.write_text("\n".join([*lines[:3], bad, *lines[4:]]) + "\n")
        assert f"{path}, line 4" in failure("MSRVTT", "test", data_dir, videos_dir)


def test_video_without_caption_is_named(msrvtt):
    data_dir, videos_dir = msrvtt
    path = data_dir / "MSRVTT_data.json"
    content = json.loads(path.read_text())
    content["sentences"] = [s for s in content["sentences"] if s["video_id"] != "video4"]
    path.write_text(json.dumps(content))
    message = failure("MSRVTT", "train", data_dir, videos_dir)
    assert "video4" in message
    assert str(path) in message


def test_text_that_is_not_utf8_is_named(msrvtt):
    data_dir, videos_dir = msrvtt
    path = data_dir / "MSRVTT_JSFUSION_test.csv"
    path.write_bytes(path.read_bytes() + "ret9,msr9000,video9000,un café".encode("latin-1"))
    message = failure("MSRVTT", "test", data_dir, videos_dir)
    assert str(path) in message
    assert "UTF-8" in message


@pytest.mark.parametrize("content", ["", "video_id\n", "key,vid_key,video_id,sentence\n"])
def test_empty_annotation_file_is_named(msrvtt, content):
    data_dir, videos_dir = msrvtt
    for name in ("MSRVTT_train.9k.csv", "MSRVTT_JSFUSION_test.csv"):
        (data_dir / name).write_text(content)
    for split in ("train", "test"):
        assert str(data_dir) in failure("MSRVTT", split, data_dir, videos_dir)


def test_unknown_data_set_lists_the_known_ones(msrvtt):
    message = failure("MSR-VTT", "train", *msrvtt)
    for name in ("MSR-VTT", "MSRVTT", "MSVD", "LSMDC", "DiDeMo", "ActivityNet", "MovingShapes"):
        assert name in message
    with pytest.raises(InputError, match="MSR-VTT"):
        load_captions("MSR-VTT", msrvtt[0])


def test_videos_dir_must_be_there(msrvtt, tmp_path):
    assert "--videos_dir" in failure("MSRVTT", "train", msrvtt[0], None)
    nowhere = tmp_path / "nowhere"
    message = failure("MSRVTT", "train", msrvtt[0], nowhere)
    assert f"--videos_dir={nowhere}" in message
    assert str(nowhere / "MSRVTT_data.json") in failure("MSRVTT", "train", nowhere, msrvtt[1])


# the real files


def touch_videos(folder, names, suffix=".mp4"):
    """Files with the names of videos: reading annotations opens none."""
    for name in names:
        path = folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_real_msrvtt_test_split(annotations_dir, tmp_path):
    with open(annotations_dir / "MSRVTT" / "MSRVTT_JSFUSION_test.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    videos = touch_videos(tmp_path, [row["video_id"] for row in rows])
    split = load_split("MSRVTT", "test", annotations_dir / "MSRVTT", videos)
    assert len(split.clips) == len(split.captions) == len({clip.path for clip in split.clips}) == 1000
    assert split.clips[0].video_id == "video9770"
    assert split.captions[0] == "a person is connecting something to system"
    assert split.captions == [" ".join(row["sentence"].split()) for row in rows]


def test_real_msvd_captions(annotations_dir):
    captions = load_captions("MSVD", annotations_dir / "MSVD")
    assert len(captions) == 48774
    assert captions[0] == "a squirrel is eating a peanut in it s shell"
    assert all(captions)


@pytest.mark.parametrize(("split", "videos", "captions"), [("train", 1200, 48774), ("test", 670, 27763)])
def test_real_msvd_splits(annotations_dir, tmp_path, split, videos, captions):
    names = (annotations_dir / "MSVD" / f"{split}_list.txt").read_text().split()
    loaded = load_split("MSVD", split, annotations_dir / "MSVD", touch_videos(tmp_path, names, ".avi"))
    assert [clip.video_id for clip in loaded.clips] == names
    assert (len(loaded.clips), len(loaded.captions)) == (videos, captions)
    reference = json.loads((annotations_dir / "MSVD" / "captions_msvd.json").read_text())
    assert all(len(clip.captions) == len(reference[clip.video_id]) for clip in loaded.clips)
    assert loaded.clip_of_caption[-1] == videos - 1


def test_real_lsmdc_test_split(annotations_dir, tmp_path):
    lines = (annotations_dir / "LSMDC" / "LSMDC16_challenge_1000_publictect.csv").read_text().splitlines()
    names = [line.split("\t")[0] for line in lines]
    folders = [f"{name.rsplit('_', 1)[0]}/{name}" for name in names]
    assert "3086_UGLY_TRUTH/3086_UGLY_TRUTH_00.23.23.000-00.23.28.886" in folders
    split = load_split("LSMDC", "test", annotations_dir / "LSMDC", touch_videos(tmp_path, folders, ".avi"))
    assert len(split.clips) == len(split.captions) == 1000
    assert split.clips[0].path == (
        tmp_path / "3086_UGLY_TRUTH" / "3086_UGLY_TRUTH_00.23.23.000-00.23.28.886.avi"
    )  # the name has dots
    assert split.captions[0] == "SOMEONE stands below, hands on her hips."
    assert split.captions == [" ".join(line.split("\t")[5].split()) for line in lines]


@pytest.mark.parametrize("kept", [True, False])
def test_real_didemo_test_split(annotations_dir, tmp_path, kept):
    """Videos under the names of the annotations, or all of them converted to mp4."""
    with open(annotations_dir / "DiDeMo" / "didemo_test_label.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    files = [row["video_path"].rsplit("/", 1)[1] for row in rows]
    assert sum(name.endswith(".") for name in files) == 27  # these have no extension
    names = files if kept else [f"{name.rsplit('.', 1)[0]}.mp4" for name in files]
    split = load_split("DiDeMo", "test", annotations_dir / "DiDeMo", touch_videos(tmp_path, names, ""))
    assert len(split.clips) == len(split.captions) == len({clip.path for clip in split.clips}) == 1004
    first = split.clips[0]
    assert (first.video_id, first.start, first.end) == ("26292851@N04_4253489686_265c3c8051", 0, 31)
    assert split.captions[0].startswith("someone kicks the bug towards some rocks. a man in a red shirt stomps")
    assert all(0 <= clip.start < clip.end for clip in split.clips)


def test_real_activitynet_test_split(annotations_dir, tmp_path):
    annotations = json.loads((annotations_dir / "ActivityNet" / "val_1.json").read_text())
    ids = json.loads((annotations_dir / "ActivityNet" / "val_ids.json").read_text())
    expected = [video_id for video_id in ids if video_id in annotations]
    split = load_split("ActivityNet", "test", annotations_dir / "ActivityNet", touch_videos(tmp_path, expected, ".mkv"))
    assert [clip.video_id for clip in split.clips] == expected
    assert len(split.clips) == len(split.captions) == 4917
    for clip in split.clips[::100]:
        entry = annotations[clip.video_id]
        assert clip.captions == (" ".join(" ".join(entry["sentences"]).split()),)
        assert (clip.start or 0, clip.end) == (0, entry["duration"])


@pytest.mark.parametrize(("split", "ids", "annotated"), [("train", 10024, 10009), ("test", 4926, 4917)])
def test_real_activitynet_videos_without_annotation_are_reported(
    annotations_dir, tmp_path, caplog, split, ids, annotated
):
    file, listed = ("train.json", "train_ids.json") if split == "train" else ("val_1.json", "val_ids.json")
    names = json.loads((annotations_dir / "ActivityNet" / listed).read_text())
    known = json.loads((annotations_dir / "ActivityNet" / file).read_text())
    loaded = load_split("ActivityNet", split, annotations_dir / "ActivityNet", touch_videos(tmp_path, names))
    assert (len(loaded.clips), len(loaded.captions), len(names)) == (annotated, annotated, ids)
    assert set(loaded.unannotated) == set(names) - set(known)
    assert f"{ids - annotated} of {ids} {split} videos of ActivityNet have no annotation" in caplog.text


def test_real_didemo_training_split(annotations_dir, tmp_path):
    with open(annotations_dir / "DiDeMo" / "didemo_train_label.csv", newline="") as file:
        files = [row["video_path"].rsplit("/", 1)[1] for row in csv.DictReader(file)]
    split = load_split("DiDeMo", "train", annotations_dir / "DiDeMo", touch_videos(tmp_path, files, ""))
    assert len(split.clips) == len(split.captions) == len(files) == 8362


# videos that are not there


def test_allow_missing_leaves_them_out_and_says_so(msrvtt, caplog):
    data_dir, videos_dir = msrvtt
    for name in ("video3", "video9001"):
        (videos_dir / f"{name}.mp4").unlink()
    assert "--allow_missing" in failure("MSRVTT", "train", data_dir, videos_dir)
    for split, videos, gone in (("train", 12, "video3"), ("test", 6, "video9001")):
        loaded = load_split("MSRVTT", split, data_dir, videos_dir, allow_missing=True)
        assert len(loaded.clips) == videos - 1
        assert loaded.missing == (gone,)
        assert gone not in {clip.video_id for clip in loaded.clips}
        assert f"1 of {videos} {split} videos of MSRVTT are not in {videos_dir}: {gone}" in caplog.text


def test_nothing_there_is_an_error_even_so(msrvtt):
    data_dir, videos_dir = msrvtt
    for path in videos_dir.iterdir():
        path.unlink()
    assert "12 of 12" in failure("MSRVTT", "train", data_dir, videos_dir, allow_missing=True)


def test_a_video_that_is_there_twice_is_said(msrvtt, caplog):
    """The one in fewer folders is taken, then the first by name."""
    data_dir, videos_dir = msrvtt
    for copy in ("copy/video3.avi", "copy/video4.avi", "back/video4.mp4"):
        (videos_dir / copy).parent.mkdir(exist_ok=True)
        (videos_dir / copy).touch()
    (videos_dir / "video4.mp4").unlink()
    clips = load_split("MSRVTT", "train", data_dir, videos_dir).clips
    assert [clip.path for clip in clips[3:5]] == [videos_dir / "video3.mp4", videos_dir / "back" / "video4.mp4"]
    assert "2 videos of MSRVTT are in" in caplog.text
    assert "video3.mp4, back/video4.mp4" in caplog.text


def test_names_without_a_dot_are_found_in_every_data_set(tmp_path):
    """The first video of each has neither extension nor dot."""
    videos = touch_videos(tmp_path / "videos", ["deep/v1"], "")
    (tmp_path / "deep").mkdir()
    for (dataset, split), names in FILES.items():
        for name in names:
            (tmp_path / name).write_text(GOOD[name].replace("/a/v1.avi", "/a/v1"), encoding="utf-8")
        place = tmp_path / names[0] if dataset == "custom" else tmp_path
        (clip,) = load_split(dataset, split, place, videos).clips
        assert (clip.video_id, clip.path) == ("v1", videos / "deep" / "v1")


# videos of one's own


@pytest.fixture
def own(tmp_path):
    touch_videos(tmp_path / "videos", ["dog", "deep/er/cat", "bird"])
    return tmp_path / "videos"


def write_rows(path, rows):
    if path.suffix == ".csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, ["video", "caption", "start", "end", "split"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["own.csv", "own.jsonl"])
def test_custom_annotations(own, tmp_path, name):
    rows = [
        {"video": "dog.mp4", "caption": "a  dog, running", "split": "train"},
        {"video": "dog.mp4", "caption": "it runs", "split": "train"},
        {"video": "deep/er/cat.mp4", "caption": "a cat", "start": 1.5, "end": 4, "split": "train"},
        {"video": "cat", "caption": "another part", "start": 4, "split": "train"},
        {"video": "bird", "caption": "a bird", "split": "test"},
        {"video": "bird", "caption": "not read", "split": "val"},
    ]
    path = write_rows(tmp_path / name, rows)
    train, test = (load_split("custom", split, path, own) for split in ("train", "test"))
    assert [(c.path.relative_to(own).as_posix(), c.captions, c.start, c.end) for c in train.clips] == [
        ("dog.mp4", ("a dog, running", "it runs"), None, None),
        ("deep/er/cat.mp4", ("a cat",), 1.5, 4),
        ("deep/er/cat.mp4", ("another part",), 4, None),
    ]
    assert test.captions == ["a bird"]
    assert load_captions("custom", path) == train.captions


def test_custom_annotations_without_a_split_serve_for_both_and_say_so(own, tmp_path, caplog):
    path = write_rows(tmp_path / "own.jsonl", [{"video": "dog", "caption": "a dog"}])
    for split in ("train", "test"):
        assert load_split("custom", split, path, own).captions == ["a dog"]
        assert f"no column split: all of it is used for the {split} split" in caplog.text


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"video": "dog"}, "no caption|no video and caption"),
        ({"video": "dog", "caption": "x", "start": "soon"}, "soon"),
        ({"video": "dog", "caption": "x", "start": 4, "end": 3}, "end 3 is not behind start 4"),
        ({"video": "dog", "caption": "x", "split": "dev"}, "'dev' is none of train, val, test"),
        ({"video": "../dog.mp4", "caption": "x"}, "below --videos_dir"),
        ({"video": "dog", "caption": "x\0y"}, "null character"),
        ({"video": "dog", "caption": "x", "split": 0}, "split '?0'? is none of train, val, test"),
        ({"video": "dog", "caption": "x", "end": 10**400}, "not a time in seconds"),
    ],
)
@pytest.mark.parametrize("name", ["own.csv", "own.jsonl"])
def test_custom_rows_that_are_wrong_are_named_with_their_line(own, tmp_path, name, row, said):
    path = write_rows(tmp_path / name, [{"video": "bird", "caption": "a bird"}, row])
    message = failure("custom", "train", path, own)
    assert f"{path}, line {3 if name == 'own.csv' else 2}: " in message
    assert re.search(said, message)


def test_custom_annotations_of_another_kind(own, tmp_path):
    path = tmp_path / "own.xlsx"
    path.touch()
    assert str(path) in failure("custom", "train", path, own)


TABLES = {  # a CSV file, the line that must be named, and what is said
    "a comma": ("video,caption\ndog,a dog, running\n", 2, "3 cells in a row, but 2 in the header"),
    "a comma before other cells": ("video,caption,split\nbird,a bird,test\ndog,one, two,test\n", 3, "4 cells"),
    "an empty cell too many": ("video,caption\ndog,a dog,\n", 2, "3 cells"),
    "a row that ends early": ("video,caption,split\nbird,a bird,test\ndog,a d", 3, "2 cells in a row, but 3"),
    "a row without its caption": ("video,caption,split\ndog\n", 2, "1 cells"),
    "a quote that stays open": ('video,caption\nbird,a bird\ndog,"a dog\nbird,it\nbird,flies\n', 3, "not closed"),
    "a quote that another closes": ('video,caption\n\nbird,"a bird\ndog,"a dog, running"\n', 3, "not closed"),
    "an open quote behind a long row": ('video,caption\nbird,"a\nbird"\ndog,"a dog\n', 4, "not closed"),
    "a row within a cell": ('video,caption\ndog,"a dog\nbird,it flies"\nbird,it sings\n', 2, "the row of bird is"),
    "a row of another video": ('caption,video\nit sings,bird\na dog,"dog\nit flies,b.mp4"\n', 3, "the row of b.mp4 is"),
    "a quote within a cell": ('video,caption\ndog,"a "big" dog"\n', 2, "not doubled"),
    "a blank before a quote": ('video,caption\ndog, "a dog"\n', 2, "a blank before a quote"),
    "capital letters": ("video,caption,Start,End\ndog,a dog,1,2\n", 1, "'Start' (start?), 'End' (end?) is not known"),
    "other names": ("video,caption,start_time,end_s\ndog,a,1,2\n", 1, "'start_time' (start?), 'end_s' (end?)"),
    "milliseconds": ("video,caption,start_ms\ndog,a,100\n", 1, "times are in seconds"),
    "a blank in a name": ("video,caption, start\ndog,a,1\n", 1, "' start' (start?)"),
    "another word": ("video,caption,subset\ndog,a,test\n", 1, "'subset' (split?)"),
    "something else": ("video,caption,views\ndog,a,7\n", 1, "'views' is not known; known are video, caption, start"),
    "a column without a name": (",video,caption\n0,dog,a\n", 1, "without a name"),
    "a column twice": ("video,caption,caption\ndog,a,b\n", 1, "caption is there more than once"),
    "needed names in other words": ("Video,text\ndog,a\n", 1, "there is 'Video' (video?), 'text' (caption?)"),
    "semicolons": ("video;caption\ndog;a dog, running\n", 1, "semicolons between the cells"),
    "tabs": ("\nvideo\tcaption\ndog\ta dog\n", 2, "tabs between the cells"),
    "no header": ("dog,a dog\n", 1, "column video, caption is missing"),
    "minutes": ("video,caption,start\ndog,a dog,0:01\n", 2, "0:01"),
    "a time with an underscore": ("video,caption,start\ndog,a dog,1_30\n", 2, "1_30"),
}  # fmt: skip


@pytest.mark.parametrize("table", TABLES)
def test_a_table_that_is_not_understood_is_refused(own, tmp_path, table):
    text, line, said = TABLES[table]
    (tmp_path / "own.csv").write_text(text)
    for ends in (text, text.replace("\n", "\r\n")):
        (tmp_path / "own.csv").write_bytes(ends.encode())
        message = failure("custom", "train", tmp_path / "own.csv", own)
        assert f"{tmp_path / 'own.csv'}, line {line}: " in message
        assert said in message


def test_captions_with_commas_quotes_and_line_breaks(own, tmp_path, caplog):
    """In quotes all of them are read as they are. Rows of several lines are mentioned: a quote may be open."""
    path = tmp_path / "own.csv"
    path.write_text('video,caption\ndog,"two dogs run, bark"\nbird,"a ""bird""\nflies"\ndog,a 5" dog\n')
    assert load_split("custom", "train", path, own).captions == ["two dogs run, bark", 'a 5" dog', 'a "bird" flies']
    assert f"{path}: 1 rows go over several lines" in caplog.text and "from line: 3" in caplog.text


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ('{"video": "dog", "caption": "a", "Start": 1}', "key 'Start' (start?) is not known"),
        ('{"video": "dog", "caption": "a", "start_ms": 1}', "times are in seconds"),
        ('{"video": "dog", "caption": "a", "caption": "b"}', "key 'caption' is there more than once"),
    ],
)
def test_a_record_that_is_not_understood_is_refused(own, tmp_path, record, said):
    path = tmp_path / "own.jsonl"
    path.write_text('{"video": "bird", "caption": "a"}\n' + record)
    message = failure("custom", "train", path, own)
    assert f"{path}, line 2: " in message and said in message


def test_rows_without_a_split_beside_others_are_said(own, tmp_path, caplog):
    path = tmp_path / "own.csv"
    path.write_text("video,caption,split\ndog,a dog,\nbird,a bird,test\n")
    assert load_split("custom", "train", path, own).captions == ["a dog"]
    assert f"{path}: 1 rows have no split and are for training, from line: 2" in caplog.text


def test_published_tables_may_have_more_columns_but_not_more_cells(msrvtt):
    data_dir, videos_dir = msrvtt
    path = data_dir / "MSRVTT_JSFUSION_test.csv"
    path.write_text(",Key,video_id,sentence\n0,ret0,video9000,a man\n")
    assert load_split("MSRVTT", "test", data_dir, videos_dir).captions == ["a man"]
    path.write_text("key,video_id,sentence\nret0,video9000,a man, running\n")
    assert f"{path}, line 2: 4 cells" in failure("MSRVTT", "test", data_dir, videos_dir)
    path.write_text('key,video_id,sentence\nret0,video9000,"a man\nret1,video9001,two men\n')
    assert f"{path}, line 2: a quote" in failure("MSRVTT", "test", data_dir, videos_dir)


def found(folder, *names):
    """Which files below a folder videos of these names are, where all of them are there, and what is said."""
    path = folder.parent / "found.jsonl"
    path.write_text("".join(json.dumps({"video": name, "caption": "a"}) + "\n" for name in names))
    return [clip.path.relative_to(folder).as_posix() for clip in load_split("custom", "test", path, folder).clips]


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
    (clip,) = load_split("MSVD", "test", tmp_path, videos).clips
    assert clip.path == videos / stored / f"{stored}.mp4"


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
