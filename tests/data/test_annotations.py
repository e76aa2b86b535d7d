"""Annotations of the data sets: what is read of them, and what is said when they are not as they should be."""

import csv
import json
import shutil

import pytest

from datasets.annotations import load_captions, load_split
from tests.annotation_files import failure, touch_videos
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


@pytest.mark.parametrize(("train_file", "videos"), [("9k", 12), ("7k", 8)])
def test_msrvtt_training_split(msrvtt, train_file, videos):
    data_dir, videos_dir = msrvtt
    split = load_split("MSRVTT", "train", data_dir, videos_dir, train_file)
    sentences = json.loads((data_dir / "MSRVTT_data.json").read_text())["sentences"]
    assert [segment.video_id for segment in split.segments] == [f"video{i}" for i in range(videos)]
    for segment in split.segments:
        assert segment.path == videos_dir / f"{segment.video_id}.mp4"
        assert list(segment.captions) == [s["caption"] for s in sentences if s["video_id"] == segment.video_id]
        assert (segment.start, segment.end) == (None, None)
    assert len(split.captions) == 2 * videos
    assert split.segment_of_caption == [i for i in range(videos) for _ in range(2)]
    assert split.flip


def test_msrvtt_test_split(msrvtt):
    data_dir, videos_dir = msrvtt
    split = load_split("MSRVTT", "test", data_dir, videos_dir)
    with open(data_dir / "MSRVTT_JSFUSION_test.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(segment.video_id, segment.captions) for segment in split.segments] == [
        (r["video_id"], (r["sentence"],)) for r in rows
    ]
    assert split.segment_of_caption == list(range(6))


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
    (segment,) = load_split("MSRVTT", "test", data_dir, videos_dir).segments
    assert segment.captions == ('two men, one "dog"',)


@pytest.mark.parametrize("suffix", [".avi", ".webm", ".MP4", ".m2ts", "."])
def test_videos_are_found_by_stem_at_any_depth(msrvtt, suffix):
    data_dir, videos_dir = msrvtt
    target = videos_dir / "deep" / "er" / f"video3{suffix}"
    target.parent.mkdir(parents=True)
    (videos_dir / "video3.mp4").rename(target)
    assert load_split("MSRVTT", "train", data_dir, videos_dir).segments[3].path == target


@pytest.mark.parametrize("other", [".ass", ".txt"])
def test_subtitles_beside_a_video_are_not_taken_for_it(msrvtt, other):
    data_dir, videos_dir = msrvtt
    (videos_dir / f"video3{other}").write_text("subtitles")
    assert load_split("MSRVTT", "train", data_dir, videos_dir).segments[3].path == videos_dir / "video3.mp4"


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
    assert len(load_split("MSRVTT", "test", data_dir, videos_dir).segments) == 6


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
        assert load_split("MSRVTT", split, data_dir, videos_dir).segments


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


# videos that are not there


def test_allow_missing_leaves_them_out_and_says_so(msrvtt, caplog):
    data_dir, videos_dir = msrvtt
    for name in ("video3", "video9001"):
        (videos_dir / f"{name}.mp4").unlink()
    assert "--allow_missing" in failure("MSRVTT", "train", data_dir, videos_dir)
    for split, videos, gone in (("train", 12, "video3"), ("test", 6, "video9001")):
        loaded = load_split("MSRVTT", split, data_dir, videos_dir, allow_missing=True)
        assert len(loaded.segments) == videos - 1
        assert loaded.missing == (gone,)
        assert gone not in {segment.video_id for segment in loaded.segments}
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
    segments = load_split("MSRVTT", "train", data_dir, videos_dir).segments
    found = [segment.path for segment in segments[3:5]]
    assert found == [videos_dir / "video3.mp4", videos_dir / "back" / "video4.mp4"]
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
        (segment,) = load_split(dataset, split, place, videos).segments
        assert (segment.video_id, segment.path) == ("v1", videos / "deep" / "v1")


def test_published_tables_may_have_more_columns_but_not_more_cells(msrvtt):
    data_dir, videos_dir = msrvtt
    path = data_dir / "MSRVTT_JSFUSION_test.csv"
    path.write_text(",Key,video_id,sentence\n0,ret0,video9000,a man\n")
    assert load_split("MSRVTT", "test", data_dir, videos_dir).captions == ["a man"]
    path.write_text("key,video_id,sentence\nret0,video9000,a man, running\n")
    assert f"{path}, line 2: 4 cells" in failure("MSRVTT", "test", data_dir, videos_dir)
    path.write_text('key,video_id,sentence\nret0,video9000,"a man\nret1,video9001,two men\n')
    assert f"{path}, line 2: a quote" in failure("MSRVTT", "test", data_dir, videos_dir)
