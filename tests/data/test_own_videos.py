"""Annotations of one's own videos, --dataset_name=custom."""

import csv
import json
import re

import pytest

from datasets.annotations import load_captions, load_split
from tests.annotation_files import failure, touch_videos


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
    assert [(c.path.relative_to(own).as_posix(), c.captions, c.start, c.end) for c in train.segments] == [
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
