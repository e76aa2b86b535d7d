"""Whatever an annotation file holds, a loader gives segments inside videos_dir or one line that names file and line."""

import csv
import io
import json
import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from datasets.annotations import DATASETS, load_captions, load_split
from utils.errors import InputError

# the files of each data set: the first is the one that is damaged
FILES = {
    ("MSRVTT", "train"): ["MSRVTT_data.json", "MSRVTT_train.9k.csv"],
    ("MSRVTT", "test"): ["MSRVTT_JSFUSION_test.csv"],
    ("MSVD", "train"): ["captions_msvd.json", "train_list.txt"],
    ("MSVD", "test"): ["captions_msvd.json", "test_list.txt"],
    ("LSMDC", "train"): ["LSMDC16_annos_training.csv"],
    ("LSMDC", "test"): ["LSMDC16_challenge_1000_publictect.csv"],
    ("DiDeMo", "train"): ["didemo_train_label.csv"],
    ("DiDeMo", "test"): ["didemo_test_label.csv"],
    ("ActivityNet", "train"): ["train.json", "train_ids.json"],
    ("ActivityNet", "test"): ["val_1.json", "val_ids.json"],
    ("custom", "train"): ["own.csv"],
    ("custom", "test"): ["own.jsonl"],
}
GOOD = {
    "MSRVTT_data.json": '{"sentences": [{"caption": "a dog", "video_id": "v1", "sen_id": 0}]}',
    "MSRVTT_train.9k.csv": "video_id\nv1\n",
    "MSRVTT_JSFUSION_test.csv": "key,vid_key,video_id,sentence\nret0,msr1,v1,a dog\n",
    "captions_msvd.json": '{"v1": ["a dog", "a brown dog"]}',
    "train_list.txt": "v1\n",
    "test_list.txt": "v1\n",
    "LSMDC16_annos_training.csv": "v1\t0\t1\t0\t1\tA dog.\n",
    "LSMDC16_challenge_1000_publictect.csv": "v1\t0\t1\t0\t1\tA dog.\n",
    "didemo_train_label.csv": "video_path,starts,ends,text\n/a/v1.avi,tensor([[0]]),tensor([[31]]),a dog\n",
    "didemo_test_label.csv": "video_path,starts,ends,text\n/a/v1.avi,tensor([[0]]),tensor([[31]]),a dog\n",
    "train.json": '{"v1": {"duration": 8.5, "timestamps": [[0, 8]], "sentences": ["a dog"]}}',
    "train_ids.json": '["v1"]',
    "val_1.json": '{"v1": {"duration": 8.5, "timestamps": [[0, 8]], "sentences": ["a dog"]}}',
    "val_ids.json": '["v1"]',
    "own.csv": "video,caption,split\nv1,a dog,train\n",
    "own.jsonl": '{"video": "v1", "caption": "a dog", "start": 1, "end": 2, "split": "test"}\n',
}
CASES = [(dataset, split, name) for (dataset, split), names in FILES.items() for name in names]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(annotations, videos): beside the folder of the videos lie others that nobody may reach."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("annotations", "videos", "videos/sub"):
        (folder / name).mkdir()
    for name in ("videos/v1.mp4", "videos/sub/v2.mp4", "videos/é ☃.webm", "secret.mp4", "v3.mp4"):
        (folder / name).touch()
    for name, text in GOOD.items():
        (folder / "annotations" / name).write_text(text, encoding="utf-8")
    return folder / "annotations", folder / "videos"


def load(place, dataset, split, name):
    """What a loader makes of the files: segments, or its one line."""
    annotations, videos = place
    try:
        loaded = load_split(dataset, split, annotations / name if dataset == "custom" else annotations, videos)
    except InputError as error:
        assert "\n" not in str(error)
        return str(error)
    assert loaded.segments
    for segment in loaded.segments:
        assert segment.path.resolve().is_relative_to(videos.resolve())
        assert segment.path.is_file()
        assert segment.captions and all(caption.strip() and caption.encode() for caption in segment.captions)
        assert segment.end is None or 0 <= (segment.start or 0) < segment.end < 1e9
    return loaded


def check(place, dataset, split, name, content):
    """Damage one file; the line must name it and a line, unless videos are missing or there are no pairs."""
    (place[0] / name).write_bytes(content)
    try:
        outcome = load(place, dataset, split, name)
    finally:
        (place[0] / name).write_text(GOOD[name], encoding="utf-8")
    if isinstance(outcome, str) and "are not in" not in outcome and "holds no" not in outcome:
        folder = re.escape(str(place[0]))
        assert re.search(rf"annotation file {folder}/\S+, line [1-9]\d*: ", outcome), outcome
    return outcome


def fuzz(examples):
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.mark.parametrize(("dataset", "split", "name"), CASES)
def test_the_good_files_are_good(place, dataset, split, name):
    assert not isinstance(check(place, dataset, split, name, GOOD[name].encode()), str)


@pytest.mark.parametrize(("dataset", "split", "name"), CASES)
@fuzz(15)
@given(data=st.data())
def test_any_bytes(place, dataset, split, name, data):
    check(place, dataset, split, name, data.draw(st.binary(max_size=80) | st.text(max_size=80).map(_encoded)))


@pytest.mark.parametrize(("dataset", "split", "name"), CASES)
@fuzz(25)
@given(data=st.data())
def test_a_good_file_with_a_damaged_place(place, dataset, split, name, data):
    """Something is cut out and something else put in: what bad downloads and editors do."""
    good = GOOD[name].encode()
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, len(good)))
    odd = [
        b"",
        b"\0",
        b"\xff",
        b'"',
        b"\n",
        b"\r\n",
        b"\t",
        b",",
        b"{",
        b"]",
        b"NaN",
        b"1e999",
        b"null",
        b"\xe2\x80\xa8",
    ]
    check(place, dataset, split, name, good[:start] + data.draw(st.sampled_from(odd)) + good[end:])


def _encoded(text):
    return text.encode("utf-8", "surrogatepass")


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["v1", "\ud800"])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def shapes(name):
    """JSON that has the outline of a file and something else in one of its places."""
    entry = st.fixed_dictionaries(
        {}, optional={"duration": values, "sentences": values | st.lists(values, max_size=2), "timestamps": values}
    )
    return {
        "MSRVTT_data.json": st.fixed_dictionaries(
            {"sentences": values | st.lists(
                values | st.fixed_dictionaries({}, optional={"video_id": scalars, "caption": values}), max_size=3)}
        ),
        "captions_msvd.json": st.fixed_dictionaries({"v1": values | st.lists(values, max_size=3)}),
        "train_ids.json": values | st.lists(values, max_size=3),
        "val_ids.json": values | st.lists(values, max_size=3),
    }.get(name, st.fixed_dictionaries({"v1": values | entry}))  # fmt: skip


@pytest.mark.parametrize(("dataset", "split", "name"), [case for case in CASES if case[2].endswith(".json")])
@fuzz(40)
@given(data=st.data())
def test_json_of_another_shape(place, dataset, split, name, data):
    check(place, dataset, split, name, json.dumps(data.draw(values | shapes(name))).encode())


@fuzz(120)
@given(
    rows=st.lists(
        values
        | st.fixed_dictionaries(
            {"video": st.sampled_from(["v1", "sub/v2", "v2.mp4"]) | scalars, "caption": st.just("a dog") | values},
            optional={"start": values, "end": values, "split": st.sampled_from(["train", "test", "val", ""]) | values},
        ),
        max_size=4,
    )
)
@example(rows=[{"video": "v1", "caption": "a", "start": "7", "end": float("nan")}])
def test_custom_json_lines(place, rows):
    check(place, "custom", "test", "own.jsonl", "\n".join(map(json.dumps, rows)).encode())


cells = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(
    ["v1", "sub/v2.mp4", "1.5", "-1", "nan", "9e99", "x,y"]
)
tables = {
    "own.csv": ["video", "caption", "start", "end", "split"],
    "MSRVTT_JSFUSION_test.csv": ["key", "vid_key", "video_id", "sentence"],
    "MSRVTT_train.9k.csv": ["video_id"],
    "didemo_train_label.csv": ["video_path", "starts", "ends", "text"],
}  # fmt: skip


@pytest.mark.parametrize(("dataset", "split", "name"), [case for case in CASES if case[2] in tables])
@fuzz(40)
@given(rows=st.lists(st.lists(cells, max_size=6), max_size=4))
def test_csv_cells(place, dataset, split, name, rows):
    text = io.StringIO()
    csv.writer(text).writerows([tables[name], *rows])
    check(place, dataset, split, name, text.getvalue().encode("utf-8", "surrogatepass"))


OUTSIDE = [
    "../secret",
    "../secret.mp4",
    "/etc/passwd",
    "sub/../../secret.mp4",
    "..\\secret.mp4",
    "C:\\x.mp4",
    "..",
    "v1\0",
]


@pytest.mark.parametrize("video", OUTSIDE)
def test_a_custom_path_outside_the_folder_is_named_with_its_line(place, video):
    rows = [{"video": "v1", "caption": "a"}, {"video": video, "caption": "a"}]
    outcome = check(place, "custom", "test", "own.jsonl", "\n".join(map(json.dumps, rows)).encode())
    assert "line 2: " in outcome and "below --videos_dir" in outcome


@fuzz(40)
@given(
    name=st.lists(st.sampled_from(["..", ".", "/", "\\", "secret", "v3", "v1", ".mp4", "*", "%", "videos"]), min_size=1)
)
def test_no_name_leads_outside(place, name):
    video = "".join(name)
    for dataset, split, file, content in (
        ("custom", "test", "own.jsonl", json.dumps({"video": video, "caption": "a"})),
        ("LSMDC", "test", FILES["LSMDC", "test"][0], f"{video}\t0\t1\t0\t1\tA dog."),
        ("MSVD", "train", "train_list.txt", video),
        ("ActivityNet", "train", "train_ids.json", json.dumps([video])),
    ):
        check(place, dataset, split, file, content.encode())  # load() looks where the segments lie


def test_names_of_any_kind_are_found(place, tmp_path):
    for video in ("é ☃", "é ☃.webm", "sub/v2", "sub/v2.mp4", "v2", "v2.mp4"):
        content = json.dumps({"video": video, "caption": "a"})
        (segment,) = check(place, "custom", "test", "own.jsonl", content.encode()).segments
        assert segment.path.name in ("é ☃.webm", "v2.mp4")


def test_a_json_that_is_nested_too_deeply(place):
    for name, content in (("own.jsonl", "[" * 100_000), ("captions_msvd.json", '{"v1": ' * 100_000)):
        dataset = "custom" if name == "own.jsonl" else "MSVD"
        assert "line 1" in check(place, dataset, "test", name, content.encode())


def test_a_csv_cell_that_is_too_long(place):
    head = "v" * 200_000 + ",caption\n"
    assert "line 1" in check(place, "custom", "train", "own.csv", f"video,{head}".encode())
    outcome = check(place, "custom", "train", "own.csv", f"video,caption\nv1,{head}".encode())
    assert re.search("line [12]: field larger", outcome)


@pytest.mark.parametrize("dataset", [name for name in DATASETS if name not in ("MovingShapes", "custom")])
def test_captions_are_read_as_carefully(place, dataset):
    assert "a dog" in [caption.lower().strip(".") for caption in load_captions(dataset, place[0])]
    name = FILES[dataset, "train"][0]
    (place[0] / name).write_bytes(b"\xff")
    try:
        with pytest.raises(InputError, match="line 1"):
            load_captions(dataset, place[0])
    finally:
        (place[0] / name).write_text(GOOD[name], encoding="utf-8")
