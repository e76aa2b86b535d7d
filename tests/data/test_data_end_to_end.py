"""Missing videos, one's own videos and the frame cache, in the real programs."""

import json
import os
import shutil

import pytest

from evaluation import results
from evaluation.results import format_table
from preprocess.compress_video import Job, compress
from tests.films import H264, numbered
from tests.made_up import call, call_program
from tests.programs.test_end_to_end import Place


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("data"))


def test_a_reduced_test_set_says_n_of_n(place, tmp_path, monkeypatch, capfd):
    videos = tmp_path / "videos"
    shutil.copytree(place.root / "videos", videos)
    (videos / "video9001.mp4").unlink()
    arguments = [*place.test_arguments("none", *place.small, place.teacher, f"--videos_dir={videos}"),
                 f"--output_json={tmp_path / 'results.json'}"]  # fmt: skip
    code, err = call_program("test.py", arguments, monkeypatch, capfd)
    assert code == 2
    assert "1 of 6 test videos" in err and "video9001" in err
    tables = []
    monkeypatch.setattr(results, "format_table", lambda *args: tables.append(format_table(*args)) or tables[-1])
    kept = tmp_path / "embeddings.safetensors"
    saved = [*arguments, "--allow_missing", f"--save_embeddings={kept}"]
    assert call_program("test.py", saved, monkeypatch, capfd)[0] == 0
    assert tables[0].splitlines()[-1].startswith("5 of 6 test videos")
    report = json.loads((tmp_path / "results.json").read_text())
    assert report["test_videos"] == {"evaluated": 5, "annotated": 6, "times_not_in_file": 0}
    assert {row["gallery"] for row in report["results"]} == {5}
    loaded = [*arguments, f"--load_embeddings={kept}"]
    code, err = call_program("test.py", loaded, monkeypatch, capfd)
    assert code == 2 and "differs in captions and videos" in err
    assert call_program("test.py", [*loaded, "--allow_missing"], monkeypatch, capfd)[0] == 0
    again = json.loads((tmp_path / "results.json").read_text())
    assert [again[name] for name in ("results", "test_videos")] == [report[name] for name in ("results", "test_videos")]


def test_a_warm_cache_trains_without_decoding(place, tmp_path, monkeypatch, capfd):
    """The videos are replaced by rubbish of the same size and time: whatever decodes one fails."""
    videos = tmp_path / "videos"
    shutil.copytree(place.root / "videos", videos)
    more = [f"--videos_dir={videos}", f"--frame_cache={tmp_path / 'cache'}", "--video_sample_type=rand"]
    flags = ["--num_epochs=2", "--num_workers=2", "--log_step=1", "--num_frames=6", *more]  # parts of 4 to 6 frames
    losses = []
    for name, cached in (("plain", False), ("filling", True), ("warm", True)):
        if name == "warm":
            for path in videos.iterdir():
                stat = path.stat()
                path.write_bytes(b"x" * stat.st_size)
                os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        chosen = [flag for flag in flags if cached or not flag.startswith("--frame_cache")]
        code, err = call_program("train.py", [*place.train_arguments(name), *chosen], monkeypatch, capfd)
        assert code == 0, err
        lines = (place.folder(name) / "metrics.jsonl").read_text().splitlines()
        losses.append([record["train/loss"] for record in map(json.loads, lines) if "train/loss" in record])
    assert len(losses[0]) == 12
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # the last bit is that of where memory lies
    assert losses[1] == pytest.approx(losses[2], rel=1e-6)


def test_own_videos(place, tmp_path, monkeypatch, capfd):
    pairs = [(f"video{i}.mp4", f"thing {i} moves {k} times") for i in range(6) for k in range(20)]
    rows = [{"video": video, "caption": caption, "split": "train"} for video, caption in pairs]
    rows += [{"video": f"video{i}", "caption": f"thing {i}", "split": "test"} for i in (9000, 9001)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ["--dataset_name=custom", f"--annotations={tmp_path / 'own.jsonl'}"]
    teacher = tmp_path / "teacher"
    small = ["--denoiser=tiny", "--text_len=20", "--steps=2", "--held_out=0.2", f"--output_dir={teacher}", "--gpu=cpu"]
    code, err = call_program("Diffusion-LM/train.py", [*own, *small], monkeypatch, capfd)
    assert code == 0, err
    arguments = [*place.train_arguments("own", *own), f"--diffusion_lm={teacher}", "--num_epochs=1", "--batch_size=40"]
    code, err = call_program("train.py", arguments, monkeypatch, capfd)
    assert code == 0, err
    assert "120 training pairs of 6 videos" in (place.folder("own") / "log.txt").read_text()
    report = json.loads((place.folder("own") / "results.json").read_text())
    assert (report["dataset"], report["results"][0]["gallery"]) == ("custom", 2)


def test_a_model_that_is_tested_on_videos_of_another_kind(tmp_path, monkeypatch, capfd):
    """Originals against 3 fps copies: test.py tells, and is silent where videos are of the same kind."""
    originals, copies = tmp_path / "originals", tmp_path / "copies"
    originals.mkdir()
    rows = ["video,caption,split"]
    for index, split in enumerate(("train", "train", "train", "val", "test", "test")):
        path = numbered(originals / f"{index}.mp4", 60 + index, *H264)
        assert compress(Job(path, copies / path.name, 3, 48)) == ""
        rows.append(f"{path.name},film number {index},{split}")
    (tmp_path / "a.csv").write_text("\n".join(rows) + "\n")
    flags = ["--dataset_name=custom", f"--annotations={tmp_path / 'a.csv'}", "--arch=clip_baseline", "--clip_arch=tiny",
             f"--output_dir={tmp_path / 'out'}", "--exp_name=x", "--datetime=r", "--batch_size=2", "--num_workers=0",
             "--gpu=cpu", "--precision=fp32"]  # fmt: skip
    training = [*flags, f"--videos_dir={originals}", "--num_epochs=1", "--no_tensorboard"]
    assert call("train.py", training, monkeypatch, capfd)[0] == 0
    told = (
        "trained on videos of 96 pixels high or wide at 25 frames a second, these are of 48 pixels high or wide at 3 "
    )
    for videos, warned in ((originals, False), (copies, True)):
        code, out, _ = call("test.py", [*flags, f"--videos_dir={videos}", "--load_epoch=0"], monkeypatch, capfd)
        assert code == 0
        assert (told in out) == warned
