"""The programs as people start them, on a small made-up MSR-VTT folder."""

import json
import os
import re
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from config import Config
from datasets.annotations import load_captions
from tests import precision
from tests.made_up import call_program, make_diffusion_lm, make_msrvtt, run_program
from tests.training_runs import run_forked
from utils.files import written_whole

KEYS = {"metric", "protocol", "dsl", "R1", "R5", "R10", "R50", "R100", "MedR", "MeanR", "queries", "gallery"}


class Place:
    """The made-up data, and the commands of seed-readme.md on it."""

    def __init__(self, root: Path):
        self.root = root
        make_msrvtt(root)
        make_diffusion_lm(root / "teacher", load_captions("MSRVTT", root / "data" / "MSRVTT"))
        # the MSR-VTT-9k commands; only paths, sizes and the device are those of the test
        self.common = [
            "--arch=clip_stochastic", "--exp_name=MSR-VTT-9k", f"--videos_dir={root / 'videos'}", "--batch_size=4",
            "--noclip_lr=1e-7", "--transformer_dropout=0.3", "--dataset_name=MSRVTT", "--msrvtt_train_file=9k",
            "--gpu=cpu", "--diffusion_steps=10", f"--data_dir={root / 'data'}", f"--output_dir={root / 'outputs'}",
            "--num_workers=0", precision.stated(),
        ]  # fmt: skip
        self.small = ["--clip_arch=tiny", "--num_frames=3", "--diffusion_text_len=20"]
        self.teacher = f"--diffusion_lm={root / 'teacher'}"

    def train_arguments(self, name: str, *more: str) -> list[str]:
        return [
            *self.common,
            *self.small,
            self.teacher,
            "--num_epochs=2",
            "--select_on=test",
            f"--datetime={name}",
            *more,
        ]

    def test_arguments(self, name: str, *more: str) -> list[str]:
        return [*self.common, f"--datetime={name}", *more]

    def folder(self, name: str) -> Path:
        return self.root / "outputs" / "MSR-VTT-9k" / name


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("end_to_end"))


@pytest.fixture(scope="module")
def trained(place):
    """A finished training run."""
    done = run_forked("train.py", *place.train_arguments("run", "--log_step=1", "--evals_per_epoch=2"))
    assert done.returncode == 0, done.stderr
    return place.folder("run")


def results(path: Path) -> dict:
    return json.loads(path.read_text())


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_training_leaves_what_people_expect(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"model_best.pth", "checkpoint-epoch1.pth", "checkpoint-epoch2.pth", "config.json"} <= names
    assert {"log.txt", "metrics.jsonl", "results.json", "tensorboard"} <= names
    assert any((trained / "tensorboard").iterdir())
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert sum("train/loss" in record for record in records) == 12  # 24 pairs, batch 4, 2 epochs, every step
    assert sum("eval/seconds" in record for record in records) == 4  # twice an epoch
    checkpoint = torch.load(trained / "model_best.pth", weights_only=True)
    assert {"epoch", "state_dict", "optimizer"} <= checkpoint.keys()
    report = results(trained / "results.json")
    assert {"dataset", "checkpoint", "arch", "recipe", "seconds", "results"} <= report.keys()
    assert all(row.keys() == KEYS for row in report["results"])
    found = {(row["metric"], row["protocol"], row["dsl"]) for row in report["results"]}
    assert len(found) == len(report["results"]) == 8


@pytest.mark.slow
def test_the_configuration_and_the_log_tell_what_was_run(place, trained):
    config = Config.load(trained / "config.json")
    assert (config.batch_size, config.noclip_lr, config.clip_arch, config.num_frames) == (4, 1e-7, "tiny", 3)
    assert (config.videos_dir, config.seed) == (str(place.root / "videos"), 24)
    log = (trained / "log.txt").read_text()
    for told in ("24 training pairs of 12 videos", "epoch 2, step 6 of 6", "t2v strict", "average of the last 4"):
        assert told in log


@pytest.mark.slow
def test_training_selects_by_strict_recall(trained):
    """results.json is that of the best evaluation, and the first one of equals."""
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    evaluations = [record for record in records if "eval/seconds" in record]
    best = max(evaluations, key=lambda record: record["eval/t2v_strict/R1"])
    (row,) = (
        row
        for row in results(trained / "results.json")["results"]
        if (row["metric"], row["protocol"], row["dsl"]) == ("t2v", "strict", False)
    )
    assert all(row[name] == best[f"eval/t2v_strict/{name}"] for name in ("R1", "R5", "R10", "MedR", "MeanR"))
    checkpoint = torch.load(trained / "model_best.pth", weights_only=True)
    assert (checkpoint["epoch"], checkpoint["step"]) == (best["epoch"], best["step"])
    assert [record["step"] for record in evaluations] == [3, 6, 9, 12]


@pytest.mark.slow
def test_evaluation_from_the_shell(place, trained):
    done = run_program("test.py", *place.test_arguments("run", "--load_epoch=0", "--metric=v2t", "--DSL"))
    assert done.returncode == 0, done.stderr
    assert "v2t strict DSL" in done.stdout and "t2v" not in done.stdout
    report = results(trained / "results.json")
    assert report["checkpoint"].endswith("model_best.pth")
    assert all(row["queries"] == row["gallery"] == 6 for row in report["results"])


@pytest.mark.slow
def test_several_captions_a_video(place, trained, tmp_path, monkeypatch, capfd):
    """All captions are queries of t2v, videos are those of v2t; the published protocol is not defined."""
    folder = tmp_path / "data" / "MSVD"
    folder.mkdir(parents=True)
    captions = {f"video{i}": [f"caption {k} of video {i}" for k in range(1 + i % 3)] for i in range(7)}
    (folder / "captions_msvd.json").write_text(json.dumps(captions))
    (folder / "test_list.txt").write_text("\n".join(captions))
    output = tmp_path / "results.json"
    more = ["--dataset_name=MSVD", f"--data_dir={tmp_path / 'data'}", "--load_epoch=0", f"--output_json={output}"]
    code, err = call_program("test.py", place.test_arguments("run", *more), monkeypatch, capfd)
    assert code == 0, err
    sizes = {(row["metric"], row["protocol"], row["queries"], row["gallery"]) for row in results(output)["results"]}
    assert sizes == {("t2v", "strict", 13, 7), ("v2t", "strict", 7, 7)}


@pytest.mark.slow
def test_evaluation_depends_on_the_checkpoint_alone(place, trained, tmp_path, monkeypatch, capfd):
    """--load_epoch 0 and -1 are the same file; batch size, block size and workers change nothing."""
    variants = {
        "best": ["--load_epoch=0"],
        "minus_one": ["--load_epoch=-1"],
        "batch": ["--load_epoch=0", "--batch_size=1"],
        "block": ["--load_epoch=0", "--batch_size_split=5"],
        "memory": ["--load_epoch=0", "--save_memory_mode"],
        "workers": ["--load_epoch=0", "--num_workers=2"],
    }
    found = {}
    for name, more in variants.items():
        output = tmp_path / f"{name}.json"
        code, err = call_program(
            "test.py", place.test_arguments("run", *more, f"--output_json={output}"), monkeypatch, capfd
        )
        assert code == 0, err
        found[name] = results(output)["results"]
    assert all(rows == found["best"] for rows in found.values())
    assert found["best"] == results(trained / "results.json")["results"]  # what training wrote of the same weights


@pytest.mark.slow
def test_same_seed_same_run(place, trained, monkeypatch, capfd):
    """The same command gives the same losses, the same table and the same weights."""
    arguments = place.train_arguments("again", "--log_step=1", "--evals_per_epoch=2")
    done = run_forked("train.py", *arguments)
    assert done.returncode == 0, done.stderr

    def figures(folder: Path) -> list[dict]:
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{n: v for n, v in r.items() if n != "eval/seconds" and not n.startswith("speed/")} for r in records]

    again = place.folder("again")
    assert figures(again) == figures(trained)
    assert results(again / "results.json")["results"] == results(trained / "results.json")["results"]
    first, second = (torch.load(f / "checkpoint-epoch2.pth", weights_only=True)["state_dict"] for f in (trained, again))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [["--arch=clip_transformer"], ["--arch=clip_tmass", "--stochastic_trials=3", "--grad_accum=2", "--batch_size=2"],
     ["--arch=clip_wti", "--grad_accum=2", "--batch_size=2"],
     ["--arch=clip_baseline"], ["--arch=clip_baseline", "--pooling_type=topk", "--k=2"],
     ["--arch=clip_baseline", "--pooling_type=attention"], ["--recipe=published"],
     ["--recipe=published", "--sampler=ddim", "--sampling_steps=4"],
     ["--hard_negatives=1", "--grad_accum=2", "--batch_size=2"],
     ["--precision=bf16", "--video_sample_type=rand", "--msrvtt_train_file=7k"]],
)  # fmt: skip
def test_other_models_train_and_load(place, tmp_path, monkeypatch, capfd, more):
    name = "".join(more[:2]).strip("-").replace("=", "_")
    code, err = call_program(
        "train.py", place.train_arguments(name, *more, "--num_epochs=1", "--skip_eval"), monkeypatch, capfd
    )
    assert code == 0, err
    output = tmp_path / "results.json"
    plain = [a for a in place.test_arguments(name, "--load_epoch=0", f"--output_json={output}") if "--arch" not in a]
    code, err = call_program("test.py", plain, monkeypatch, capfd)
    assert code == 0, err
    if more[0].startswith("--arch"):
        assert more[0] == f"--arch={results(output)['arch']}"
    if more[0].startswith("--recipe"):
        assert results(output)["recipe"] == "published"


@pytest.mark.slow
def test_flags_of_the_output(place, tmp_path, monkeypatch, capfd):
    """A run without a name is named by the clock; files that nobody wants are not written."""
    more = ["--num_epochs=2", "--skip_eval", "--save_every=2", "--no_tensorboard", "--exp_name=by_the_clock"]
    arguments = [a for a in place.train_arguments("-", *more) if not a.startswith("--datetime")]
    code, err = call_program("train.py", arguments, monkeypatch, capfd)
    assert code == 0, err
    (folder,) = (place.root / "outputs" / "by_the_clock").iterdir()
    assert datetime.now() - datetime.strptime(folder.name, "%Y-%m-%d_%H-%M-%S") < timedelta(minutes=10)
    names = {path.name for path in folder.iterdir()}
    assert names == {"checkpoint-epoch2.pth", "model_best.pth", "config.json", "log.txt", "metrics.jsonl", "README.md"}
    best, last = (torch.load(folder / name, weights_only=True) for name in ("model_best.pth", "checkpoint-epoch2.pth"))
    assert best["epoch"] == last["epoch"] == 2
    assert all(torch.equal(best["state_dict"][name], tensor) for name, tensor in last["state_dict"].items())


@pytest.mark.slow
def test_tensorboard_folder_and_direction(place, tmp_path, monkeypatch, capfd):
    output = tmp_path / "results.json"
    more = ["--num_epochs=1", "--metric=v2t", "--noloss_record", f"--tb_log_dir={tmp_path / 'board'}"]
    arguments = place.train_arguments("board", *more, f"--output_json={output}")
    code, err = call_program("train.py", arguments, monkeypatch, capfd)
    assert code == 0, err
    assert not (place.folder("board") / "tensorboard").exists()
    assert not (place.folder("board") / "results.json").exists()
    board = EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    tags = board.Tags()["scalars"]
    assert "eval/v2t_strict/R1" in tags
    assert not any(tag.startswith("train/") for tag in tags)
    found = {(row["metric"], row["protocol"], row["dsl"]): row["R1"] for row in results(output)["results"]}
    assert board.Scalars("eval/v2t_strict/R1")[0].value == pytest.approx(found["v2t", "strict", False])


def test_untrained_model_is_evaluated_without_load_epoch(place, tmp_path, monkeypatch, capfd):
    output = tmp_path / "results.json"
    arguments = [*place.common, *place.small, place.teacher, f"--output_json={output}"]
    assert call_program("test.py", arguments, monkeypatch, capfd)[0] == 0
    assert results(output)["checkpoint"] is None


# bad input: one line, exit code 2, nothing written

BAD_TRAINING = {
    "unknown data set": (["--dataset_name=MSRVT"], "MSRVT"),
    "no videos": (["--videos_dir=/nonexistent/videos"], "/nonexistent/videos"),
    "no annotations": (["--data_dir=/nonexistent/data"], "/nonexistent/data"),
    "batch size": (["--batch_size=0"], "batch_size"),
    "no frames": (["--num_frames=0"], "num_frames"),
    "large batch": (["--batch_size=64"], "24 training pairs"),
    "unknown flag": (["--num_epoch=3"], "--num_epoch"),
    "no such teacher": (["--diffusion_lm=/nonexistent/teacher"], "/nonexistent/teacher"),
    "embedding width": (["--embed_dim=512"], "128"),
    "heads": (["--num_mha_heads=3"], "num_mha_heads"),
}


def one_line(err: str) -> str:
    """What the whole of standard error says, decoders and other libraries included."""
    assert err.count("\n") == 1 and err.endswith("\n"), err
    return err


BAD_EVALUATION = {
    "unknown data set": (["--dataset_name=MSRVT"], "MSRVT"),
    "no videos": (["--videos_dir=/nonexistent/videos"], "/nonexistent/videos"),
    "no annotations": (["--data_dir=/nonexistent/data"], "MSRVTT_JSFUSION_test.csv"),
    "batch size": (["--batch_size=0"], "batch_size"),
    "no frames": (["--num_frames=0"], "num_frames"),
    "block": (["--batch_size_split=0"], "batch_size_split"),
    "no such epoch": (["--load_epoch=-2"], "load_epoch"),
    "more steps than trained": (["--sampling_steps=11"], "sampling_steps"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD_EVALUATION)
def test_bad_evaluation_input(place, trained, monkeypatch, capfd, case):
    more, named = BAD_EVALUATION[case]
    before = snapshot(trained)
    code, err = call_program("test.py", place.test_arguments("run", "--load_epoch=0", *more), monkeypatch, capfd)
    assert code == 2
    assert named in one_line(err)
    assert snapshot(trained) == before


@pytest.mark.parametrize("case", BAD_TRAINING)
def test_bad_training_input(place, monkeypatch, capfd, case):
    more, named = BAD_TRAINING[case]
    name = f"bad-{case.replace(' ', '-')}"
    code, err = call_program("train.py", place.train_arguments(name, *more), monkeypatch, capfd)
    assert code == 2
    assert named in one_line(err)
    assert not place.folder(name).exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_gpu_without_cuda(place, monkeypatch, capfd):
    code, err = call_program("train.py", place.train_arguments("gpu", "--gpu=0"), monkeypatch, capfd)
    assert code == 2 and "--gpu=cpu" in one_line(err)


@pytest.mark.parametrize("flag", ["--output_dir", "--tb_log_dir"])
def test_folders_that_cannot_be_made(place, tmp_path, monkeypatch, capfd, flag):
    (tmp_path / "file").write_text("in the way")
    arguments = place.train_arguments("in-the-way", f"{flag}={tmp_path / 'file' / 'folder'}")
    code, err = call_program("train.py", arguments, monkeypatch, capfd)
    assert code == 2 and str(tmp_path / "file" / "folder") in one_line(err)
    assert not place.folder("in-the-way").exists()
    assert (tmp_path / "file").read_text() == "in the way"


def test_missing_teacher_names_the_command(place, monkeypatch, capfd, tmp_path):
    from model import factory

    monkeypatch.setattr(factory, "DIFFUSION_MODELS", tmp_path)
    arguments = [a for a in place.train_arguments("no-teacher") if a != place.teacher]
    code, err = call_program("train.py", arguments, monkeypatch, capfd)
    assert code == 2 and "python Diffusion-LM/train.py --dataset_name=MSRVTT" in one_line(err)


def test_a_teacher_of_other_captions_is_told_of(place, trained, tmp_path, monkeypatch, capfd):
    assert "does not know" not in (trained / "log.txt").read_text()
    make_diffusion_lm(tmp_path / "other-teacher", ["a man plays a guitar on the beach"])
    arguments = place.train_arguments("other-teacher", f"--diffusion_lm={tmp_path / 'other-teacher'}")
    code, err = call_program("train.py", arguments, monkeypatch, capfd)
    assert code == 0, err
    log = (place.folder("other-teacher") / "log.txt").read_text()
    assert re.search(r"the Diffusion-LM does not know \d\d % of the words of the training captions", log)


def test_broken_video(place, tmp_path, monkeypatch, capfd):
    videos = tmp_path / "videos"
    shutil.copytree(place.root / "videos", videos)
    (videos / "video3.mp4").write_bytes((videos / "video3.mp4").read_bytes()[:500])
    arguments = place.train_arguments("broken", f"--videos_dir={videos}")
    code, err = call_program("train.py", arguments, monkeypatch, capfd)
    assert code == 2 and "video3.mp4" in one_line(err)
    folder = place.folder("broken")
    (checkpoint,) = folder.glob("*.pth")  # of the step before the one that needs the video
    assert torch.load(checkpoint, weights_only=True)["step"] > 0
    assert err.endswith(f"the run is kept up to {checkpoint.name}; once that is mended, go on with: python train.py "
                        f"--resume={folder}\n")  # fmt: skip


def test_nothing_is_left_where_nothing_was_trained(place, tmp_path, monkeypatch, capfd):
    videos = tmp_path / "videos"
    shutil.copytree(place.root / "videos", videos)
    for video in videos.glob("video?.mp4"):
        video.write_bytes(video.read_bytes()[:500])
    arguments = place.train_arguments("untrained", f"--videos_dir={videos}")
    code, err = call_program("train.py", arguments, monkeypatch, capfd)
    assert code == 2 and ".mp4" in one_line(err) and "resume" not in err
    assert not place.folder("untrained").exists()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_broken_test_video(place, trained, tmp_path, monkeypatch, capfd, workers):
    """The results that were there stay."""
    videos = tmp_path / "videos"
    shutil.copytree(place.root / "videos", videos)
    (videos / "video9004.mp4").write_text("this is no video\n" * 50)
    before = snapshot(trained)
    more = ["--load_epoch=0", f"--videos_dir={videos}", f"--num_workers={workers}"]
    code, err = call_program("test.py", place.test_arguments("run", *more), monkeypatch, capfd)
    assert code == 2 and "video9004.mp4" in one_line(err)
    assert snapshot(trained) == before


@pytest.mark.slow
def test_bad_input_from_the_shell(place, tmp_path):
    """The same as people see it: exit code, one line, and what was trained before is kept."""
    videos = tmp_path / "videos"
    shutil.copytree(place.root / "videos", videos)
    (videos / "video3.mp4").write_bytes((videos / "video3.mp4").read_bytes()[:-200])
    done = run_program("train.py", *place.train_arguments("shell", f"--videos_dir={videos}", "--num_workers=2"))
    assert done.returncode == 2
    assert one_line(done.stderr).startswith("train.py: error: ")
    assert "video3.mp4" in done.stderr
    assert len([*place.folder("shell").glob("*.pth")]) == 1


@pytest.mark.slow
def test_existing_run_is_not_overwritten(place, trained, monkeypatch, capfd):
    before = snapshot(trained)
    code, err = call_program("train.py", place.train_arguments("run"), monkeypatch, capfd)
    assert code == 2 and "holds a run already" in one_line(err)
    assert snapshot(trained) == before


@pytest.mark.slow
def test_bad_checkpoints(place, trained, tmp_path, monkeypatch, capfd):
    best = trained / "model_best.pth"
    cut, text, other = (place.folder(name) for name in ("cut", "text", "other"))
    for folder in (cut, text, other):
        folder.mkdir()
    (cut / best.name).write_bytes(best.read_bytes()[: best.stat().st_size // 2])
    (text / best.name).write_text("not a checkpoint")
    checkpoint = torch.load(best, weights_only=True)
    checkpoint["model_config"]["num_frames"] = 5
    torch.save(checkpoint, other / best.name)
    output = tmp_path / "results.json"
    cases = [
        (place.test_arguments("nowhere", "--load_epoch=0"), "nowhere"),
        (place.test_arguments("run", "--load_epoch=9"), "checkpoint-epoch9.pth"),
        (place.test_arguments("cut", "--load_epoch=0"), "cut short"),
        (place.test_arguments("text", "--load_epoch=0"), "model_best.pth"),
        (place.test_arguments("other", "--load_epoch=0"), "another model"),
        (place.test_arguments("run", "--load_epoch=0", "--arch=clip_transformer"), "clip_transformer"),
        (place.test_arguments("run", "--load_epoch=0", "--num_frames=8"), "--num_frames=3"),
        (place.test_arguments("run", "--load_epoch=0", "--clip_arch=ViT-B/32"), "--clip_arch=tiny"),
        ([*place.common, "--load_epoch=0"], "--datetime"),
    ]
    for arguments, named in cases:
        code, err = call_program("test.py", [*arguments, f"--output_json={output}"], monkeypatch, capfd)
        assert code == 2, arguments
        assert named in one_line(err)
        assert not output.exists()


def test_what_cannot_be_written_is_told_before_the_work(place, tmp_path, monkeypatch, capfd):
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "below"
    monkeypatch.setattr("cv2.VideoCapture", None)  # no video can be opened
    arguments = place.test_arguments("run", *place.small, place.teacher)
    for flag in ("output_json", "save_embeddings", "save_sims"):
        code, err = call_program("test.py", [*arguments, f"--{flag}={output}"], monkeypatch, capfd)
        assert code == 2 and f"{output} cannot be written" in one_line(err)
    arguments = [*place.train_arguments("unwritable"), f"--output_json={output}"]
    code, err = call_program("train.py", arguments, monkeypatch, capfd)
    assert code == 2 and f"{output} cannot be written" in one_line(err)
    assert not place.folder("unwritable").exists()


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    """As --output_json=/dev/stdout is."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with written_whole(pipe) as place:
        place.write_text("results")
    assert os.read(reader, 100) == b"results" and pipe.is_fifo()
    os.close(reader)
