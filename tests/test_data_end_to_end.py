"""Missing videos, one's own videos and the frame cache, in the real programs."""

import json
import os
import shutil

import pytest

from tests.made_up import run_program
from tests.test_end_to_end import Place


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("data"))


def test_a_reduced_test_set_says_n_of_n(place, tmp_path):
    videos = tmp_path / "videos"
    shutil.copytree(place.root / "videos", videos)
    (videos / "video9001.mp4").unlink()
    arguments = [*place.test_arguments("none", *place.small, place.teacher, f"--videos_dir={videos}"),
                 f"--output_json={tmp_path / 'results.json'}"]  # fmt: skip
    done = run_program("test.py", *arguments)
    assert done.returncode == 2
    assert "1 of 6 test videos" in done.stderr and "video9001" in done.stderr
    done = run_program("test.py", *arguments, "--allow_missing")
    assert done.returncode == 0, done.stderr
    assert "5 of 6 test videos" in done.stdout
    report = json.loads((tmp_path / "results.json").read_text())
    assert report["test_videos"] == {"evaluated": 5, "annotated": 6}
    assert {row["gallery"] for row in report["results"]} == {5}


def test_a_warm_cache_trains_without_decoding(place, tmp_path):
    """The videos are replaced by rubbish of the same size and time: whatever decodes one fails."""
    videos = tmp_path / "videos"
    shutil.copytree(place.root / "videos", videos)
    more = [f"--videos_dir={videos}", f"--frame_cache={tmp_path / 'cache'}", "--video_sample_type=rand"]
    flags = ["--num_epochs=2", "--num_workers=2", "--log_step=1", *more]
    losses = []
    for name, cached in (("plain", False), ("filling", True), ("warm", True)):
        if name == "warm":
            for path in videos.iterdir():
                stat = path.stat()
                path.write_bytes(b"x" * stat.st_size)
                os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        chosen = [flag for flag in flags if cached or not flag.startswith("--frame_cache")]
        done = run_program("train.py", *place.train_arguments(name), *chosen)
        assert done.returncode == 0, done.stderr
        lines = (place.folder(name) / "metrics.jsonl").read_text().splitlines()
        losses.append([record["train/loss"] for record in map(json.loads, lines) if "train/loss" in record])
    assert len(losses[0]) == 12
    assert losses[0] == losses[1] == losses[2]


def test_own_videos(place, tmp_path):
    rows = [{"video": f"video{i}.mp4", "caption": f"thing {i} moves", "split": "train"} for i in range(6)]
    rows += [{"video": f"video{i}", "caption": f"thing {i}", "split": "test"} for i in (9000, 9001)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ["--dataset_name=custom", f"--annotations={tmp_path / 'own.jsonl'}"]
    teacher = tmp_path / "teacher"
    small = ["--denoiser=tiny", "--text_len=20", "--steps=2", "--held_out=1", f"--output_dir={teacher}", "--gpu=cpu"]
    done = run_program("Diffusion-LM/train.py", *own, *small)
    assert done.returncode == 0, done.stderr
    done = run_program("train.py", *place.train_arguments("own", *own), f"--diffusion_lm={teacher}", "--num_epochs=1")
    assert done.returncode == 0, done.stderr
    assert "6 training pairs of 6 videos" in done.stdout
    report = json.loads((place.folder("own") / "results.json").read_text())
    assert (report["dataset"], report["results"][0]["gallery"]) == ("custom", 2)
