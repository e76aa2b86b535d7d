"""What a checkpoint knows of the data of its run, and what is said when a run is to go on with other data."""

import shutil
from dataclasses import replace

import pytest
import torch

from datasets.annotations import Segment, Split
from datasets.data_record import content_digest, same_data
from utils.errors import InputError

VIDEOS = 20


@pytest.fixture
def splits(tmp_path):
    """20 training segments, of which v3 and v4 are two parts of each video, and 5 test segments."""
    segments = []
    for i in range(VIDEOS + 5):
        path = tmp_path / "videos" / f"v{i}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * (100 + i))
        segments.append(
            Segment(f"v{i}", path, (f"caption {i}", "the same"), None if i % 2 else 0.0, 1.5 + i if i else None)
        )
    segments[3:5] = [replace(segments[3], start=1.0, end=2.0), replace(segments[3], start=2.0, end=3.0)]
    return Split("custom", "train", tuple(segments[:VIDEOS])), Split("custom", "test", tuple(segments[VIDEOS:]))


def kept(splits, folder):
    """A checkpoint as it comes back from its file."""
    torch.save({"data": same_data(None, None, *splits)}, folder / "checkpoint.pth")
    return torch.load(folder / "checkpoint.pth", weights_only=True)


def said(splits, changed, folder):
    """The one line that is said of changed splits."""
    with pytest.raises(InputError) as caught:
        same_data(kept(splits, folder), folder / "checkpoint.pth", *changed)
    assert str(caught.value).startswith(f"--resume: the run of {folder / 'checkpoint.pth'} had other data, ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_segments(split, **changes):
    """The split with other segments at these places: v7=None leaves out, a dictionary changes."""
    segments = [(segment, changes.get(segment.video_id, {})) for segment in split.segments]
    return replace(
        split, segments=tuple(replace(segment, **change) for segment, change in segments if change is not None)
    )


def test_the_same_data_in_another_place_are_the_same(splits, tmp_path):
    shutil.move(tmp_path / "videos", tmp_path / "moved")
    moved = [
        replace(s, segments=tuple(replace(c, path=tmp_path / "moved" / c.path.name) for c in s.segments))
        for s in splits
    ]
    shutil.copytree(tmp_path / "moved", tmp_path / "videos", copy_function=shutil.copyfile)  # with other times
    for there in (splits, moved):
        assert same_data(kept(splits, tmp_path), tmp_path, *there).keys() == {"train", "test"}
    train_only = [splits[0], None]  # --skip_eval
    assert same_data(kept(train_only, tmp_path), tmp_path, *train_only).keys() == {"train"}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"v7": {"captions": ("caption 8", "the same")}, "v8": {"captions": ("caption 7", "the same")}},
            "train videos: 2 with other captions (v7, v8)",
        ),
        ({"v7": {"captions": ("the same", "caption 7")}}, "train videos: 1 with other captions (v7)"),
        ({"v7": {"captions": ("caption 7",)}}, "train videos: 1 with other captions (v7)"),
        ({f"v{i}": None for i in (6, 7, 8, 9)}, "train videos: 4 gone (v6, v7, v8, ...)"),
        ({"v7": {"end": 8.25}}, "train videos: 1 with other times (v7)"),
        ({"v7": {"video_id": "new"}}, "train videos: 1 gone (v7), 1 new (new)"),
        ({"v6": None, "v3": {"start": 0.5}}, "train videos: 1 with other times (v3), 1 gone (v6)"),
    ],
)
def test_other_clips_are_named(splits, tmp_path, changes, text):
    assert text in said(splits, (with_segments(splits[0], **changes), splits[1]), tmp_path)


def test_clips_that_come_while_a_download_goes_on_are_named(splits, tmp_path):
    fewer = with_segments(splits[1], v22=None)
    assert "test videos: 1 new (v22)" in said((splits[0], fewer), splits, tmp_path)


def test_another_order_and_a_clip_that_is_there_twice(splits, tmp_path):
    turned = replace(splits[0], segments=splits[0].segments[::-1])
    assert "train videos: in another order" in said(splits, (turned, splits[1]), tmp_path)
    twice = replace(splits[0], segments=(*splits[0].segments, splits[0].segments[5]))
    assert "train videos: 1 new (v5)" in said(splits, (twice, splits[1]), tmp_path)
    same_data(kept((twice, splits[1]), tmp_path), tmp_path, twice, splits[1])


def test_copies_of_fewer_frames_are_other_videos(splits, tmp_path):
    """Their names and captions are the same, but not what a model sees."""
    checkpoint = kept(splits, tmp_path)
    for segment in splits[1].segments:
        segment.path.write_bytes(b"smaller")
    with pytest.raises(InputError, match=r"test videos: 5 with files of another size \(v20, v21, v22, ...\)"):
        same_data(checkpoint, tmp_path, *splits)


def test_a_video_that_was_mended_does_not_stop_the_run(splits, tmp_path, caplog):
    checkpoint = kept(splits, tmp_path)
    splits[1].segments[2].path.write_bytes(b"a whole one now")
    same_data(checkpoint, tmp_path, *splits)
    assert "test videos: 1 with files of another size (v22), taken for mended ones" in caplog.text
    turned = replace(splits[1], segments=splits[1].segments[::-1])
    with pytest.raises(InputError, match="test videos: in another order"):
        same_data(checkpoint, tmp_path, splits[0], turned)


def test_a_run_that_was_chosen_on_another_split(splits, tmp_path):
    text = said(splits, (splits[0], replace(splits[1], name="val")), tmp_path)
    assert "its splits were train, test, here they are train, val" in text


def test_a_checkpoint_without_a_record_goes_on_with_a_warning(splits, tmp_path, caplog):
    assert same_data({}, tmp_path / "old.pth", *splits).keys() == {"train", "test"}
    assert f"{tmp_path / 'old.pth'} does not say on which data the run was" in caplog.text


def test_a_record_is_small(tmp_path):
    """Of 100,000 segments 32 bytes each and their names, in the checkpoint of a CLIP of hundreds of MB."""
    segments = tuple(Segment(f"movie_{i % 100}_clip_{i:06d}", tmp_path, (f"caption {i}",)) for i in range(100_000))
    torch.save(same_data(None, None, Split("LSMDC", "train", segments)), tmp_path / "record.pth")
    assert (tmp_path / "record.pth").stat().st_size < 4.5e6


def test_the_digest_of_contents_has_no_part_in_places(splits, tmp_path):
    train, _ = splits
    moved = replace(train, segments=tuple(replace(segment, path=tmp_path) for segment in train.segments))
    assert content_digest(moved) == content_digest(train)
    changes = ({"captions": ("x",)}, {"end": 1.0}, {"video_id": "x"}, None)
    others = [with_segments(train, v7=change) for change in changes]
    others.append(replace(train, segments=train.segments[::-1]))
    assert len({content_digest(split) for split in (train, *others)}) == 6
