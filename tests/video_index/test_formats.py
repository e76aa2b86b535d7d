"""What is printed for other programs, and moments as files."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.timeline import timeline
from datasets.video import read_frames
from tests.films import ffmpeg
from tests.made_up import ROOT
from tests.video_index.made_up import SENTENCES, answers, refused
from video_index.answers import Answer, as_table, printed
from video_index.contact_sheet import contact_sheet
from video_index.cutting import cut
from video_index.searching import Hit
from video_index.store import IndexedSegment

ODD = "/v/a,\n\x1b[31mb.mp4"  # a comma, a new line, a colour


def hit_of(file, start=None, end=None, score=0.5, stage="pooled", moment=None):
    return Hit(score, stage, IndexedSegment(1, 1, file, 0, 1, start, end), share=99.5, moment=moment)


@pytest.fixture
def answer():
    hits = [
        hit_of("/v/film.mp4", 30.0, 60.0, moment=(0.0, 60.0)),
        hit_of(ODD, 0.0, 2.5),
        hit_of("/v/film.mp4", 90, 120),
    ]
    return Answer("query", "a dog", [*hits, hit_of("/v/photo.jpg")], 0.1)


def test_csv_is_read_back(answer):
    text = printed("csv", answer, True) + printed("csv", answer, False)
    rows = list(csv.DictReader(text.decode().splitlines(keepends=True)))
    assert len(rows) == 8 and rows[:4] == rows[4:]
    first, odd, _, photo = rows[:4]
    assert (first["query"], first["rank"], first["share"], first["start"], first["end"]) == (
        "a dog", "1", "99.5000", "0.000", "60.000",
    )  # fmt: skip
    assert odd["file"] == ODD
    assert photo["start"] == photo["end"] == ""


def test_paths_are_the_bytes_of_each_file_once(answer):
    name = os.fsdecode(b"/v/caf\xe9.mp4")
    answer = Answer("query", "a", [*answer.hits, hit_of(name)], 0.1)
    expected = [b"/v/film.mp4", os.fsencode(ODD), b"/v/photo.jpg", b"/v/caf\xe9.mp4"]
    assert printed("paths0", answer, True) == b"".join(name + b"\0" for name in expected)
    assert printed("paths", answer, True) == b"".join(name + b"\n" for name in expected)


def test_playlists(answer):
    lines = printed("m3u", answer, True).decode().split("\n")
    assert lines[:5] == [
        "#EXTM3U", "#EXTINF:60,a dog: film.mp4", "#EXTVLCOPT:start-time=0.000", "#EXTVLCOPT:stop-time=60.000",
        "/v/film.mp4",
    ]  # fmt: skip
    assert lines[-3:] == ["#EXTINF:-1,a dog: photo.jpg", "/v/photo.jpg", ""]
    edl = printed("edl", answer, True).decode()
    assert edl.startswith("# mpv EDL v0\n%11%/v/film.mp4,0.000,60.000\n")
    assert f"%{len(ODD)}%{ODD},0.000,2.500\n" in edl
    assert not printed("edl", answer, False).startswith(b"#")


def test_a_table_says_where_another_stage_begins_and_where_there_is_no_hit(answer):
    hits = [hit_of("/v/1.mp4", stage="rescored"), hit_of("/v/2.mp4", stage="rescored"), hit_of(ODD)]
    lines = as_table(Answer("query", "a dog", hits, 0.1, {"without": ("snow",)})).splitlines()
    assert lines[0] == "a dog  --without snow  (0.100 s)"
    assert [line.strip() for line in lines if line.endswith(":")] == ["by frames pooled for the query:"]
    assert "\\n\\x1b[31mb.mp4" in lines[-1]
    assert as_table(Answer("query", "a dog", [], 0.1)).splitlines()[1:] == ["      no hit"]


def test_every_format_from_the_command_line(made, search, videos, tmp_path):
    made(videos)
    index = f"--index={tmp_path / 'index'}"
    for given, begin in (
        (["--format=csv"], "query,rank,"), (["-0"], str(videos)), (["--format=paths"], str(videos)),
        (["--format=m3u"], "#EXTM3U\n"), (["--format=edl"], "# mpv EDL v0\n"), ([], SENTENCES[0]),
    ):  # fmt: skip
        done = search("query", *SENTENCES[:2], index, "--topk=2", *given)
        assert done.code == 0, done.err
        assert done.out.startswith(begin)
        assert done.out.count(begin) == 1 or given[:1] in (["-0"], ["--format=paths"])
    assert done.out.count("\n") >= 6
    (answer,) = answers(search("query", SENTENCES[0], index, "--format=json", "--plus=a", "--without=b", "--in=deeper"))
    assert (answer["plus"], answer["without"]) == (["a"], ["b"])
    assert [os.path.basename(hit["file"]) for hit in answer["hits"]] == ["clip0.mp4"]
    assert 0 <= answer["hits"][0]["share"] <= 100
    (both,) = answers(search("query", "a", index, "--format=json", f"--like={videos / 'clip1.mp4'}", "--until=2001"))
    assert both["hits"] == [] and both["like"] == [str(videos / "clip1.mp4")]
    refused(search("query", "a", index, "--since=soon"), "--since=soon is no date")
    refused(search("query", "a", index, "--in=nowhere"), "--in=nowhere: the index holds nothing there")


def test_a_query_may_begin_with_a_dash(made, search, videos, tmp_path):
    made(videos)
    index = f"--index={tmp_path / 'index'}"
    for arguments in ([index, "--format=json", "--", "-ring", "--help"], ["-ring", "--help"]):
        if arguments[0] != index:
            arguments = ["query", "--format=json", index, "--", *arguments]
        assert [answer["query"] for answer in answers(search(*arguments))] == ["-ring", "--help"]


def test_what_nobody_reads_of_a_query_is_said(made, search, videos, tmp_path):
    made(videos)  # the diffusion reads 8 words, the first of which is a sign
    done = search("query", "a red circle " * 60, f"--index={tmp_path / 'index'}", "--without=a man plays")
    assert "note: of 'a red circle" in done.err
    assert "CLIP reads the first 75 of 1" in done.err
    assert "the text diffusion reads the first 7 of 180 words" in done.err
    assert done.err.count("note: of") == 2
    assert "note: of" not in search("query", "a red circle", f"--index={tmp_path / 'index'}").err


def test_random_weights_are_said(search, videos, tmp_path):
    index = f"--index={tmp_path / 'plain'}"
    made = search("index", f"--videos_dir={videos}", index, "--clip_arch=tiny", "--gpu=cpu", "--num_workers=0")
    asked = search("query", "a red circle", index)
    for said in (made.out, asked.err):
        assert said.count("--clip_arch=tiny has random weights") == 1


@pytest.mark.parametrize(
    ("redirected", "code", "said"),
    [
        (">&-", 2, "standard output is closed"),
        ("1< /dev/null", 1, "standard output cannot be written: Bad file descriptor"),
    ],
)
def test_nowhere_to_answer(made, videos, tmp_path, redirected, code, said):
    made(videos)
    command = f'"$0" search.py query a --index="$1" --gpu=cpu {redirected}'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, str(tmp_path / "index")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == code
    assert f"search.py: error: {said}" in done.stderr
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# Thumbnails


def test_a_contact_sheet_has_six_in_a_row(drawn, tmp_path):
    hits = [hit_of(str(drawn / "clip0.mp4"))] * 13
    for name, kind in (("sheet.png", b"\x89PNG"), ("sheet.JPG", b"\xff\xd8")):
        contact_sheet(tmp_path / name, [Answer("query", "\u72d7", hits, 0.1), Answer("like", "b", [], 0.1)])
        assert (tmp_path / name).read_bytes().startswith(kind)
        height, width = cv2.imread(str(tmp_path / name)).shape[:2]
        assert 1300 < width < 1340 and 800 < height < 1000  # three rows, and one without hits


def test_a_contact_sheet_of_no_hit(made, search, three_colours, tmp_path):
    (three_colours / "green.mp4").rename(tmp_path / "green.mp4")
    try:
        made(three_colours)
        sheet = f"--contact_sheet={tmp_path / 'sheet.png'}"
        done = search("query", f"--like={three_colours / 'long.mp4'}", f"--index={tmp_path / 'index'}", sheet)
        assert done.code == 0, done.err
        assert "no hit" in done.out
    finally:
        (tmp_path / "green.mp4").rename(three_colours / "green.mp4")


# ---------------------------------------------------------------------------------------------------------------------
# Moments as files


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Twelve seconds at 24 frames a second whose brightness tells the second, with sound and a key frame every 2 s."""
    folder = tmp_path_factory.mktemp("film")
    source = "color=black:size=64x48:rate=24:duration=12,geq=lum='20*floor(T)+10':cb=128:cr=128"
    ffmpeg("-f", "lavfi", "-i", source, "-f", "lavfi", "-i", "sine=frequency=440:duration=12", "-c:v", "libx264",
           "-g", "48", "-bf", "2", "-x264-params", "scenecut=0", "-pix_fmt", "yuv420p", "-c:a", "aac", "-shortest",
           folder / "film.mp4")  # fmt: skip
    return folder / "film.mp4"


def seconds_shown(path, count):
    """The second of the film that is shown in the middle of each of so many parts of a file."""
    frames = read_frames(Path(path), count)
    return [round((float(frame[..., 1].mean()) / 255 * 219 + 16 - 10) / 20) for frame in frames]


@pytest.mark.parametrize("extension", ["mp4", "mkv", "mov", "ts"])
def test_a_moment_is_copied_from_the_key_frame_before(film, tmp_path, extension):
    source = tmp_path / f"film.{extension}"
    ffmpeg("-i", film, "-c", "copy", source)
    told = cut(tmp_path / "moments", 1, hit_of(str(source), 5.0, 7.0))
    begin, end = f"{tmp_path}/moments/001 film 0.05.0-0.07.0.{extension}: 0:04.0 - 0:07.", ", copied"
    assert told.startswith(begin) and told.endswith(end)  # up to the frame that the last ones are made from
    (made,) = (tmp_path / "moments").iterdir()
    assert timeline(made).end == pytest.approx(3.0, abs=0.1)
    assert seconds_shown(made, 3) == seconds_shown(film, 12)[4:7]
    frames = read_frames(made, 72)
    assert np.array_equal(frames[30], read_frames(film, 12 * 24)[4 * 24 + 30])  # without loss
    assert "audio" in {stream for stream in streams_of(made)}


def streams_of(path):
    import av

    with av.open(str(path)) as film:
        return [stream.type for stream in film.streams]


def test_other_films_are_written_where_they_fit(film, tmp_path):
    ffmpeg("-i", film, "-c:v", "mpeg4", "-an", tmp_path / "film.avi")
    told = cut(tmp_path / "moments", 2, hit_of(str(tmp_path / "film.avi"), 5.0, 7.0))
    made = next((tmp_path / "moments").iterdir())
    assert str(made) in told
    assert abs(timeline(made).end - 2) < 1.2
    assert seconds_shown(made, 40)[-2] == seconds_shown(film, 12)[6]


def test_photos_and_short_videos_are_moments_too(drawn, tmp_path):
    cv2.imwrite(str(tmp_path / "photo.jpg"), np.zeros((8, 8, 3), np.uint8))
    assert cut(tmp_path / "m", 1, hit_of(str(tmp_path / "photo.jpg"))) == f"{tmp_path}/m/001 photo.jpg"
    assert (tmp_path / "m" / "001 photo.jpg").read_bytes() == (tmp_path / "photo.jpg").read_bytes()
    cut(tmp_path / "m", 2, hit_of(str(drawn / "clip0.mp4")))
    (made,) = (tmp_path / "m").glob("002*")
    assert timeline(made).end == pytest.approx(timeline(drawn / "clip0.mp4").end, abs=0.05)


def test_a_long_name_is_cut_short(film, tmp_path):
    source = tmp_path / ("\u72d7" * 80 + ".mp4")
    source.write_bytes(film.read_bytes())
    assert "copied" in cut(tmp_path / "m", 1, hit_of(str(source), 5.0, 7.0))


def test_moments_from_the_command_line(made, search, videos, tmp_path):
    made(videos)
    (videos / "clip2.mp4").unlink()
    folder = tmp_path / "moments"
    done = search("query", "a", f"--index={tmp_path / 'index'}", f"--cut={folder}", "--format=json")
    assert done.code == 1
    assert "1 moments could not be cut" in done.err and "not cut: " in done.err
    files = [hit["file"] for hit in json.loads(done.out)["hits"]]
    names = [f"{rank:03} {Path(file).stem}" for rank, file in enumerate(files, 1) if "clip2" not in file]
    assert [path.name[: len(name)] for path, name in zip(sorted(folder.iterdir()), names, strict=True)] == names
