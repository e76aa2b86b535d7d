"""The annotation files of the five data sets as they are distributed."""

import csv
import json

import pytest

from datasets.annotations import load_captions, load_split
from tests.annotation_files import touch_videos


def test_real_msrvtt_test_split(annotations_dir, tmp_path):
    with open(annotations_dir / "MSRVTT" / "MSRVTT_JSFUSION_test.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    videos = touch_videos(tmp_path, [row["video_id"] for row in rows])
    split = load_split("MSRVTT", "test", annotations_dir / "MSRVTT", videos)
    assert len(split.segments) == len(split.captions) == len({segment.path for segment in split.segments}) == 1000
    assert split.segments[0].video_id == "video9770"
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
    assert [segment.video_id for segment in loaded.segments] == names
    assert (len(loaded.segments), len(loaded.captions)) == (videos, captions)
    reference = json.loads((annotations_dir / "MSVD" / "captions_msvd.json").read_text())
    assert all(len(segment.captions) == len(reference[segment.video_id]) for segment in loaded.segments)
    assert loaded.segment_of_caption[-1] == videos - 1


def test_real_lsmdc_test_split(annotations_dir, tmp_path):
    lines = (annotations_dir / "LSMDC" / "LSMDC16_challenge_1000_publictect.csv").read_text().splitlines()
    names = [line.split("\t")[0] for line in lines]
    folders = [f"{name.rsplit('_', 1)[0]}/{name}" for name in names]
    assert "3086_UGLY_TRUTH/3086_UGLY_TRUTH_00.23.23.000-00.23.28.886" in folders
    split = load_split("LSMDC", "test", annotations_dir / "LSMDC", touch_videos(tmp_path, folders, ".avi"))
    assert len(split.segments) == len(split.captions) == 1000
    assert split.segments[0].path == (
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
    assert len(split.segments) == len(split.captions) == len({segment.path for segment in split.segments}) == 1004
    first = split.segments[0]
    assert (first.video_id, first.start, first.end) == ("26292851@N04_4253489686_265c3c8051", 0, 31)
    assert split.captions[0].startswith("someone kicks the bug towards some rocks. a man in a red shirt stomps")
    assert all(0 <= segment.start < segment.end for segment in split.segments)


def test_real_activitynet_test_split(annotations_dir, tmp_path):
    annotations = json.loads((annotations_dir / "ActivityNet" / "val_1.json").read_text())
    ids = json.loads((annotations_dir / "ActivityNet" / "val_ids.json").read_text())
    expected = [video_id for video_id in ids if video_id in annotations]
    split = load_split("ActivityNet", "test", annotations_dir / "ActivityNet", touch_videos(tmp_path, expected, ".mkv"))
    assert [segment.video_id for segment in split.segments] == expected
    assert len(split.segments) == len(split.captions) == 4917
    for segment in split.segments[::100]:
        entry = annotations[segment.video_id]
        assert segment.captions == (" ".join(" ".join(entry["sentences"]).split()),)
        assert (segment.start or 0, segment.end) == (0, entry["duration"])


@pytest.mark.parametrize(("split", "ids", "annotated"), [("train", 10024, 10009), ("test", 4926, 4917)])
def test_real_activitynet_videos_without_annotation_are_reported(
    annotations_dir, tmp_path, caplog, split, ids, annotated
):
    file, listed = ("train.json", "train_ids.json") if split == "train" else ("val_1.json", "val_ids.json")
    names = json.loads((annotations_dir / "ActivityNet" / listed).read_text())
    known = json.loads((annotations_dir / "ActivityNet" / file).read_text())
    loaded = load_split("ActivityNet", split, annotations_dir / "ActivityNet", touch_videos(tmp_path, names))
    assert (len(loaded.segments), len(loaded.captions), len(names)) == (annotated, annotated, ids)
    assert set(loaded.unannotated) == set(names) - set(known)
    assert f"{ids - annotated} of {ids} {split} videos of ActivityNet have no annotation" in caplog.text


def test_real_didemo_training_split(annotations_dir, tmp_path):
    with open(annotations_dir / "DiDeMo" / "didemo_train_label.csv", newline="") as file:
        files = [row["video_path"].rsplit("/", 1)[1] for row in csv.DictReader(file)]
    split = load_split("DiDeMo", "train", annotations_dir / "DiDeMo", touch_videos(tmp_path, files, ""))
    assert len(split.segments) == len(split.captions) == len(files) == 8362
