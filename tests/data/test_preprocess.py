"""The programs that are run before training, as people run them, and what training says about missing videos."""

import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.annotations import load_split
from datasets.frame_cache import CacheSettings, FrameCache
from datasets.timeline import timeline
from datasets.video import decode_segment
from preprocess.check_data import check_video
from preprocess.compress_video import Job, compress
from tests.data.test_video import write_numbered
from tests.films import CONTAINERS, H264, VARIABLE, at_times, every, ffmpeg, make, numbered, numbers
from tests.made_up import make_msrvtt, run_program


@pytest.fixture
def msrvtt(tmp_path):
    make_msrvtt(tmp_path / "msrvtt")
    return tmp_path / "msrvtt"


def places(folder):
    return ["--dataset_name=MSRVTT", f"--data_dir={folder / 'data'}", f"--videos_dir={folder / 'videos'}"]


def cut(path, share=0.6):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def test_names_that_are_no_text(msrvtt, tmp_path):
    """Folders and films whose names are not UTF-8 are read and copied like others."""
    folder = os.fsencode(msrvtt / "videos") + b"\xe9"  # Latin-1
    os.rename(msrvtt / "videos", folder)
    videos = Path(os.fsdecode(folder))
    next(videos.iterdir()).write_text("no video")
    flags = [*places(msrvtt)[:-1], f"--videos_dir={videos}", f"--output_dir={tmp_path}"]
    done = run_program("preprocess/check_data.py", *flags)
    assert done.returncode == 1
    assert "error: 1 unreadable" in done.stderr.splitlines()[-1]
    (line,) = (tmp_path / "check_data_MSRVTT.txt").read_text(encoding="utf-8").splitlines()
    assert "videos\ufffd" in line
    good = next(path for path in videos.iterdir() if path.stat().st_size > 100)
    name = os.fsdecode(b"copy\xe9.mp4")
    assert compress(Job(good, tmp_path / "copies" / name, 3, 224)) == ""
    assert check_video(tmp_path / "copies" / name) == ("whole", "")


def test_check_data_tells_what_is_in_order(msrvtt, tmp_path):
    videos = msrvtt / "videos"
    done = run_program("preprocess/check_data.py", *places(msrvtt), f"--output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "train: 12 of 12 videos are in order" in done.stdout
    assert "test: 6 of 6 videos are in order" in done.stdout

    (videos / "video2.mp4").unlink()
    cut(videos / "video3.mp4")  # its index is at the end: it does not open
    cut(write_numbered(videos / "video4.mkv", 30))
    (videos / "video4.mp4").unlink()
    (videos / "video9001.mp4").write_text("no video")
    done = run_program("preprocess/check_data.py", *places(msrvtt), f"--output_dir={tmp_path}")
    assert done.returncode == 1
    assert "train: 9 of 12 videos are in order, 1 missing, 1 unreadable, 1 cut short" in done.stdout
    assert "test: 5 of 6 videos are in order, 0 missing, 1 unreadable, 0 cut short" in done.stdout
    assert "check_data.py: error: 1 missing, 2 unreadable, 1 cut short" in done.stderr
    assert "Traceback" not in done.stderr
    lines = (tmp_path / "check_data_MSRVTT.txt").read_text().splitlines()
    assert [line.split("\t")[:3] for line in lines] == [
        ["train", "missing", "video2"],
        ["train", "unreadable", str(videos / "video3.mp4")],
        ["train", "cut short", str(videos / "video4.mkv")],
        ["test", "unreadable", str(videos / "video9001.mp4")],
    ]


def test_odd_but_whole_videos_are_not_called_cut_short(tmp_path):
    whole = make(tmp_path / "whole.mp4", *H264, "-g", "24", "-movflags", "+faststart")
    ffmpeg("-ss", "1.3", "-i", whole, "-c", "copy", tmp_path / "trimmed.mp4")
    make(tmp_path / "variable.mkv", *VARIABLE, *H264, "-g", "12")
    make(tmp_path / "one.mp4", *H264, "-frames:v", "1")
    make(tmp_path / "program.mpg", "-c:v", "mpeg2video")
    make(tmp_path / "b-frames.avi", "-c:v", "mpeg4", "-bf", "2")
    for cut_at in (1, 5, 9):
        ffmpeg("-ss", cut_at, "-i", whole, "-t", "6", "-c", "copy", tmp_path / f"cut{cut_at}.mp4")
    sound = ["-f", "lavfi", "-i", "sine=duration=15"]
    streams = ["-map", "1:v", "-map", "0:a"]
    for name, codec in (("l.mkv", "aac"), ("l.webm", "libopus"), ("l.mp4", "aac"), ("l.flv", "aac"), ("l.avi", "mp2")):
        video = CONTAINERS["vp9.webm"] if name == "l.webm" else H264
        numbered(tmp_path / name, 100, *streams, *video, "-c:a", codec, inputs=sound)
    numbered(tmp_path / "late.mkv", 100, *streams, *at_times("8+N/25"), *H264, "-c:a", "aac", inputs=sound)
    for name in ("mpeg4.avi", "h264.flv", "mpeg2.mpg", "dvd.vob", "no-times.h264", "theora.ogv", "animation.gif"):
        numbered(tmp_path / name, 60, *CONTAINERS[name])
    for path in sorted(tmp_path.iterdir()):
        assert check_video(path) == ("whole", ""), path


@pytest.mark.parametrize("name", ["b-frames.mp4", "matroska.mkv", "mpeg4.avi", "h264.flv", "vp9.webm"])
def test_films_that_lost_their_end_are_called_cut_short(tmp_path, name):
    moved = ["-movflags", "+faststart"] if name.endswith("mp4") else []
    path = numbered(tmp_path / name, 400, *CONTAINERS[name], *moved)
    cut(path)
    state, reason = check_video(path)
    assert state == "cut short"
    assert re.fullmatch(r"[\d.]+ of 16\.[01] s are there|\d+ of \d+ frames decode", reason)


def test_check_data_lists_times_that_are_not_in_the_films(tmp_path):
    for name in ("beach", "cake"):
        numbered(tmp_path / f"{name}.mp4", 75, *H264)
    rows = "video,caption,start,end\nbeach,dogs,100,120\ncake,baking,4000,6000\ncake,a cake,1,3\nbeach,sand,0,3.2\n"
    (tmp_path / "a.csv").write_text(rows)
    flags = ["--dataset_name=custom", f"--annotations={tmp_path / 'a.csv'}", f"--videos_dir={tmp_path}"]
    done = run_program("preprocess/check_data.py", *flags, f"--output_dir={tmp_path}")
    assert done.returncode == 1
    assert "test: 0 of 2 videos are in order" in done.stdout
    lines = (tmp_path / "check_data_custom.txt").read_text().splitlines()
    assert [line.split("\t")[3] for line in lines if line.startswith("test")] == [
        "a segment from 100 to 120 s, of a film of 3.0 s", "a segment from 4000 to 6000 s, of a film of 3.0 s"
    ]  # fmt: skip


def test_a_film_cut_short_is_found(tmp_path):
    whole = make(tmp_path / "whole.mp4", *H264, "-g", "24", "-movflags", "+faststart")
    cut(whole)
    assert check_video(whole)[0] == "cut short"


def test_cache_frames_fills_what_training_reads(msrvtt, tmp_path):
    cache = tmp_path / "cache"
    flags = [
        *places(msrvtt),
        "--select_on=test",
        f"--frame_cache={cache}",
        "--num_frames=4",
        "--video_sample_type=rand",
    ]
    (msrvtt / "videos" / "video3.mp4").write_text("no video")
    done = run_program("preprocess/cache_frames.py", *flags)
    assert done.returncode == 1
    assert "train: 11 of 12 segments" in done.stdout and "test: 6 of 6 segments" in done.stdout
    assert done.stdout.count("video3.mp4") == 1
    for split, sample_type in (("train", "rand"), ("test", "uniform")):
        segments = load_split("MSRVTT", split, msrvtt / "data" / "MSRVTT", msrvtt / "videos").segments
        held = [FrameCache(CacheSettings(cache), 4, sample_type).holds(segment) for segment in segments]
        assert held == [segment.video_id != "video3" for segment in segments]
    files = {path: path.stat().st_mtime_ns for path in cache.glob("*/*")}
    assert run_program("preprocess/cache_frames.py", *flags).returncode == 1  # video3 is as broken as before
    assert {path: path.stat().st_mtime_ns for path in cache.glob("*/*")} == files
    small = tmp_path / "small"
    limited = [
        *places(msrvtt),
        "--select_on=test",
        f"--frame_cache={small}",
        "--num_frames=4",
        "--frame_cache_gb=0.0004",
    ]
    done = run_program("preprocess/cache_frames.py", *limited)
    entry = 4096 + 4 * 96 * 96 * 3
    assert 2 * entry <= sum(path.stat().st_size for path in small.glob("*/*")) <= 400_000 + os.cpu_count() * entry
    assert "takes no more frames: --frame_cache_gb=0.0004 is reached" in done.stdout + done.stderr
    assert "--frame_cache is missing" in run_program("preprocess/cache_frames.py", *places(msrvtt)).stderr


def facts(path):
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    return [capture.get(p) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FPS,
                                     cv2.CAP_PROP_FRAME_COUNT)]  # fmt: skip


def test_compress_video(tmp_path):
    videos, copies = tmp_path / "videos", tmp_path / "copies"
    (videos / "sub").mkdir(parents=True)
    make(videos / "wide.avi", "-c:v", "mpeg4", seconds=4, size="640x360")
    make(videos / "sub" / "tall.mp4", *H264, seconds=4, size="360x640")
    make(videos / "small.mkv", *H264, "-pix_fmt", "yuv444p", seconds=4, size="97x63")
    shutil.copy(videos / "wide.avi", videos / "a name; with $odd 'signs'.")  # as DiDeMo has, without extension
    (videos / "broken.mp4").write_text("no video")
    shutil.copy(videos / "sub" / "tall.mp4", videos / "cut.mp4")
    cut(make(videos / "cut.mp4", *H264, "-movflags", "+faststart", seconds=8))
    (videos / "notes.txt").write_text("not a video")

    flags = [f"--input_root={videos}", f"--output_root={copies}"]
    done = run_program("preprocess/compress_video.py", *flags)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "compress_video.py: error: 2 of 6 videos could not be copied"
    assert sum("broken.mp4" in line for line in done.stdout.splitlines()) == 1
    assert sum("cut.mp4: cut short" in line for line in done.stdout.splitlines()) == 1
    made = {path.relative_to(copies).as_posix(): facts(path) for path in copies.rglob("*") if path.is_file()}
    assert made == {
        "wide.mp4": [398, 224, 3, 12],
        "sub/tall.mp4": [224, 398, 3, 12],
        "small.mp4": [96, 62, 3, 12],
        "a name; with $odd 'signs'.mp4": [398, 224, 3, 12],
    }

    times = {path: path.stat().st_mtime_ns for path in copies.rglob("*.mp4")}
    cut(copies / "wide.mp4", 0.3)  # what another program left unfinished
    assert run_program("preprocess/compress_video.py", *flags).returncode == 1
    assert facts(copies / "wide.mp4") == [398, 224, 3, 12]
    assert all(path.stat().st_mtime_ns == time for path, time in times.items() if path.name != "wide.mp4")


@pytest.mark.parametrize("kind", ["variable", "late", "late in a .ts", "cut", "b-frames in a .avi"])
def test_copies_keep_the_clock(tmp_path, kind):
    """A segment of the copy shows what the same segment of the film shows, to half a frame of the copy."""
    sound = ["-f", "lavfi", "-i", "sine=duration=14"]
    streams = ["-map", "1:v", "-map", "0:a", "-c:a", "aac", *at_times("4+N/25")]
    if kind == "variable":
        path = numbered(tmp_path / "v.mp4", 300, *at_times("if(lt(N,150),N/30,5+(N-150)/15)"), *H264)
    elif kind.startswith("late"):
        path = numbered(tmp_path / f"v.{kind[-2:] if '.' in kind else 'mkv'}", 250, *streams, *H264, inputs=sound)
    elif kind == "cut":
        path = tmp_path / "v.mp4"
        ffmpeg("-ss", 3.4, "-i", numbered(tmp_path / "w.mp4", 400, *H264, "-g", "90"), "-c", "copy", path)
    else:
        path = numbered(tmp_path / "v.avi", 400, *CONTAINERS["b-frames.avi"])
    copy = tmp_path / "copies" / "v.mp4"
    assert compress(Job(path, copy, 3, 96)) == ""
    clock, small = timeline(path), timeline(copy)
    assert small.end == pytest.approx(clock.end, abs=0.34)
    film = numbers(decode_segment(path, every).pixels)
    for time, shown in zip(small.times, numbers(decode_segment(copy, every).pixels), strict=True):
        near = [clock.number_at(time + late) for late in (-0.18, 0.18)]
        assert film[near[0]] <= shown <= film[near[1]], time


@pytest.mark.parametrize("frames", range(1, 7))
def test_copies_of_the_shortest_films(tmp_path, frames):
    path = numbered(tmp_path / "short.mp4", frames, *H264)
    assert compress(Job(path, tmp_path / "copy.mp4", 3, 96)) == ""
    (only,) = numbers(decode_segment(tmp_path / "copy.mp4", every).pixels)
    assert only < frames


def test_copies_have_square_pixels_and_the_picture_that_players_show(tmp_path):
    path = make(tmp_path / "wide.mpg", "-vf", "setsar=4/3", "-c:v", "mpeg2video", seconds=1, size="120x90")
    assert compress(Job(path, tmp_path / "a.mp4", 3, 224)) == ""
    assert facts(tmp_path / "a.mp4")[:2] == [160, 90]
    make(tmp_path / "small.mp4", *H264, seconds=4, size="32x32")
    numbered(tmp_path / "main.mp4", 100, *H264)
    maps = ["-map", "0", "-map", "1", "-c", "copy", "-disposition:v:0", "0", "-disposition:v:1", "default"]
    ffmpeg("-i", tmp_path / "small.mp4", "-i", tmp_path / "main.mp4", *maps, tmp_path / "both.mkv")
    assert compress(Job(tmp_path / "both.mkv", tmp_path / "b.mp4", 3, 96)) == ""
    assert facts(tmp_path / "b.mp4")[:2] == [160, 96]


def test_copies_of_films_in_which_the_clock_or_the_size_changes(tmp_path):
    """FFmpeg would begin its clock anew, or take away what stands: no copy, or one that is too short."""
    parts = []
    for name, filters in (("a.mkv", "null"), ("b.mkv", "scale=320:96,setsar=1/2"), ("c.mkv", "scale=96:160")):
        parts.append(numbered(tmp_path / name, 50, "-vf", filters, "-c:v", "mpeg2video", "-b:v", "2M"))
    (tmp_path / "list").write_text("".join(f"file '{part}'\n" for part in parts))
    ffmpeg("-f", "concat", "-safe", "0", "-i", tmp_path / "list", "-c", "copy", tmp_path / "sizes.mkv")
    numbered(tmp_path / "stands.ts", 100, *at_times("if(lt(N,50),N/25,30+N/25)"), *H264)
    half = numbered(tmp_path / "half.flv", 100, *H264).read_bytes()
    (tmp_path / "both.flv").write_bytes(half + half[13:])  # without its second head
    for name, end in (("sizes.mkv", 6), ("stands.ts", 34), ("both.flv", 8)):
        copy = tmp_path / "copies" / f"{name}.mp4"
        assert compress(Job(tmp_path / name, copy, 3, 96)) == ""
        assert timeline(copy).end == pytest.approx(end, abs=0.34)
        last = numbers(decode_segment(copy, every, end - 1).pixels)
        assert last == sorted(last)
        assert last[0] >= {6: 20, 34: 70, 8: 70}[end]


def test_a_copy_may_have_the_longest_name(tmp_path):
    name = "n" * 251 + ".mp4"
    numbered(tmp_path / name, 30, *H264)
    assert compress(Job(tmp_path / name, tmp_path / "copies" / name, 3, 96)) == ""
    assert [path.name for path in (tmp_path / "copies").iterdir()] == [name]


def test_copies_below_the_films_and_hidden_files_are_no_films(tmp_path):
    numbered(tmp_path / "a.mp4", 30, *H264)
    for name in ("._a.mp4", ".hidden.mp4", ".trash/a.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("not a film")
    for _ in range(2):
        done = run_program(
            "preprocess/compress_video.py", f"--input_root={tmp_path}", f"--output_root={tmp_path / 'small'}"
        )
        assert done.returncode == 0, done.stderr
        assert "1 of 1 videos are in" in done.stdout
    assert [path.name for path in (tmp_path / "small").rglob("*")] == ["a.mp4"]


def test_a_good_copy_is_never_replaced_by_a_bad_one(tmp_path):
    source = make(tmp_path / "video.mp4", *H264, "-movflags", "+faststart", seconds=8)
    job = Job(source, tmp_path / "copy.mp4", 3, 32)
    assert compress(job) == ""
    good = job.target.read_bytes()
    cut(source)  # newer than the copy, and worse
    assert compress(job).startswith("cut short: ")
    assert job.target.read_bytes() == good
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.mp4", "video.mp4"]


def test_compress_video_refuses_what_would_destroy(tmp_path):
    make(tmp_path / "a.mp4", *H264, seconds=1)
    for other in ("same place", "same copy"):
        output = tmp_path if other == "same place" else tmp_path / "copies"
        if other == "same copy":
            shutil.copy(tmp_path / "a.mp4", tmp_path / "a.avi")
        done = run_program("preprocess/compress_video.py", f"--input_root={tmp_path}", f"--output_root={output}")
        assert done.returncode == 2
        assert "would replace it" in done.stderr or "would have the same copy" in done.stderr
        assert not np.any([path.is_dir() for path in tmp_path.iterdir()])


def test_folders_of_copies(tmp_path):
    """Beside, around or below the films; not a file, nor below one."""
    (tmp_path / "in").mkdir()
    numbered(tmp_path / "in" / "a.mp4", 30, *H264)
    (tmp_path / "file").touch()
    root = f"--input_root={tmp_path / 'in'}"
    for output, code, said in (
        (tmp_path, 0, "1 of 1 videos are in"),
        (tmp_path / "file", 2, "file is not a folder"),
        (tmp_path / "file" / "below", 1, "the copy cannot be written"),
    ):
        done = run_program("preprocess/compress_video.py", root, f"--output_root={output}")
        assert done.returncode == code, done.stderr
        assert said in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "a.mp4").is_file()
