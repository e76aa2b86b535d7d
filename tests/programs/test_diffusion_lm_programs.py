"""Diffusion-LM/train.py and Diffusion-LM/sample.py."""

import json
import runpy
import sys
from dataclasses import replace

import pytest
import torch

from config import Config
from datasets.moving_shapes import render, scene_of
from diffusion_lm import weights
from diffusion_lm.denoiser import DENOISERS
from model.factory import create_model
from tests import precision
from tests.made_up import CAPTIONS, ROOT, make_diffusion_lm, write_video
from tests.small_diffusion_lm import randn, small_denoiser, write_folder
from tests.training_runs import run_forked
from trainer.checkpoints import save_checkpoint


@pytest.fixture
def denoiser():
    return small_denoiser()


@pytest.fixture
def folder(denoiser, tmp_path):
    return write_folder(tmp_path, denoiser)


def program(name, *arguments, cwd):
    return run_forked(f"Diffusion-LM/{name}", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def captions_file(tmp_path_factory):
    """216 different captions of eighteen words."""
    path = tmp_path_factory.mktemp("captions") / "toys.txt"
    lines = [
        f"a {size} {colour} {thing} {verb} slowly"
        for size in ("big", "small", "tiny")
        for colour in ("red", "blue", "green", "white")
        for thing in ("ball", "car", "dog", "bird", "boat", "kite")
        for verb in ("rolls", "stops", "moves")
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def trained(captions_file, tmp_path_factory):
    """Two runs of the same command line."""
    folder = tmp_path_factory.mktemp("runs")
    runs = []
    for name in ("first", "second"):
        arguments = ["--captions", captions_file, "--denoiser=tiny", "--text_len=10", "--steps=60", "--log_step=10"]
        arguments += ["--eval_every=30", "--gpu=cpu", "--samples=2", precision.stated(), f"--output_dir={name}"]
        run = program("train.py", *arguments, cwd=folder)
        assert run.returncode == 0, run.stderr
        runs.append((folder / name, run))
    return runs


@pytest.mark.slow
def test_training_writes_the_files_of_the_published_folder(trained):
    folder, _ = trained[0]
    assert {path.name for path in folder.iterdir()} == {
        "ema_0.9999_000060.pt",
        "random_emb.torch",
        "training_args.json",
        "vocab.json",
        "log.txt",
        "metrics.jsonl",
    }
    model = weights.load(folder)
    args = model.training_args
    assert len(model.vocabulary) == args["vocab_size"] == 22
    assert (args["steps"], args["ema_rate"], args["diffusion_steps"], args["text_len"]) == (60, 0.9999, 10, 10)
    assert (args["noise_schedule"], args["predict_xstart"], args["in_channel"]) == ("sqrt", True, 64)
    assert model.denoiser_config == replace(DENOISERS["tiny"], dropout=args["dropout"])
    assert args["held_out"]["captions"] == 50 and 0 < args["held_out"]["accuracy"] <= args["held_out"]["accuracy_all"]


@pytest.mark.slow
def test_loss_falls(trained):
    lines = [json.loads(line) for line in (trained[0][0] / "metrics.jsonl").read_text().splitlines()]
    totals = [line["train"]["total"] for line in lines if "train" in line]
    held_out = [line["held_out"]["loss"] for line in lines if "held_out" in line]
    assert len(totals) == 6 and totals[-1] < 0.7 * totals[0]
    assert len(held_out) == 2 and held_out[1] < held_out[0]


@pytest.mark.slow
def test_same_seed_gives_the_same_weights(trained):
    first, second = (weights.load(folder) for folder, _ in trained)
    assert all(torch.equal(tensor, second.state_dict[name]) for name, tensor in first.state_dict.items())
    assert torch.equal(first.random_table, second.random_table)
    assert first.training_args["held_out"] == second.training_args["held_out"]


@pytest.mark.slow
def test_sample_prints_captions(trained):
    folder, run = trained[0]
    shown = program("sample.py", folder, "--num=5", "--gpu=cpu", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert len(lines) == 5
    words = weights.load(folder).vocabulary.token_to_id
    assert all(word in words for line in lines for word in line.split())
    assert lines[:2] == run.stdout.splitlines()[-2:]  # what train.py --samples printed


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run a program in this process, in tmp_path: exit code, standard output, standard error."""

    def run(name, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "Diffusion-LM" / name), run_name="__main__")
        return end.value.code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--captions=absent.txt"], "absent.txt"),
        (["--captions=few.txt"], "distinct captions"),
        (["--captions=binary.txt"], "binary.txt"),
        (["--dataset_name=Nothing"], "Nothing"),
        (["--dataset_name=MSVD", "--data_dir=nowhere"], "nowhere"),
        ([], "--captions"),
        (["--captions=good.txt", "--batch_size=0"], "batch_size"),
        (["--captions=good.txt", "--steps=0"], "steps"),
        (["--captions=good.txt", "--text_len=513"], "512"),
        (["--captions=good.txt", "--min_count=9999"], "min_count"),
        (["--captions=good.txt", "--lr=nan"], "lr"),
        (["--captions=good.txt", "--gpu=99"], "--gpu=cpu"),
        (["--captions=good.txt", "--unheard_of"], "--unheard_of"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(arguments, complaint, call, captions_file, tmp_path):
    (tmp_path / "good.txt").write_text(captions_file.read_text())
    (tmp_path / "few.txt").write_text("a cat\na dog\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00caption")
    before = set(tmp_path.iterdir())
    code, out, err = call("train.py", *arguments, "--denoiser=tiny", "--output_dir=out")
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("train.py: error: ") and complaint in line
    assert set(tmp_path.iterdir()) == before


def test_output_dir_that_is_a_file_is_named(call, captions_file, tmp_path):
    (tmp_path / "out").write_text("in the way")
    code, _, err = call("train.py", "--captions", captions_file, "--denoiser=tiny", "--output_dir=out")
    assert code == 2 and err.count("\n") == 1 and "run folder out cannot be written" in err
    assert (tmp_path / "out").read_text() == "in the way"


@pytest.mark.parametrize(
    ("arguments", "complaint"), [(["nowhere"], "nowhere"), (["--num=0"], "--num"), (["--sampling_steps=11"], "11")]
)
def test_sample_refuses_bad_input_in_one_line(arguments, complaint, call, folder):
    code, out, err = call("sample.py", *([] if arguments == ["nowhere"] else [folder]), *arguments)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("sample.py: error: ") and complaint in line


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Checkpoints by name of TextDiffs before training, of the published recipe and of X-Pool, on the tiny CLIP."""
    folder = tmp_path_factory.mktemp("checkpoints")
    make_diffusion_lm(folder / "teacher", CAPTIONS)
    flags = ["--clip_arch=tiny", "--num_frames=2", "--diffusion_text_len=9", f"--diffusion_lm={folder / 'teacher'}"]
    more = {"textdiffs": [], "published": ["--recipe=published"], "xpool": ["--arch=clip_transformer"]}
    for name, given in more.items():
        torch.manual_seed(0)
        config = Config.parse([*flags, *given])
        save_checkpoint(folder / f"{name}.pth", create_model(config), config, 1, 1)
    write_video(folder / "film.mp4", render(scene_of(5, "test", 0)))
    return folder


def test_sample_reads_a_video(call, runs):
    """Before training the cross-attention adds nothing: whatever the video, a ratio is 0."""
    video, checkpoint = f"--video={runs / 'film.mp4'}", f"--checkpoint={runs / 'textdiffs.pth'}"
    code, out, err = call("sample.py", video, checkpoint, "--num=4", "--gpu=cpu", "--sampling_steps=3")
    assert (code, err) == (0, "")
    known = {word for caption in CAPTIONS for word in caption.split()}
    for line in out.splitlines():
        ratio, *words = line.split()
        assert float(ratio) == pytest.approx(0, abs=0.01) and set(words) <= known
    assert len(out.splitlines()) == 4
    assert call("sample.py", video, checkpoint, "--num=4", "--gpu=cpu", "--sampling_steps=3")[1] == out


def test_what_the_video_explains_best_comes_first(call, runs):
    """Of a student that was moved at random."""
    checkpoint = torch.load(runs / "textdiffs.pth", weights_only=True)
    for name, tensor in checkpoint["state_dict"].items():
        if ".video_attention." in name and ".out." in name:
            tensor.copy_(randn(*tensor.shape))
    torch.save(checkpoint, runs / "moved.pth")
    _, out, _ = call("sample.py", f"--video={runs / 'film.mp4'}", f"--checkpoint={runs / 'moved.pth'}", "--gpu=cpu")
    ratios = [float(line.split()[0]) for line in out.splitlines()]
    assert len(ratios) == 10 and ratios == sorted(ratios, reverse=True) and ratios[0] != 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--video=film.mp4"], "--checkpoint"),
        (["--checkpoint=textdiffs.pth"], "--video"),
        (["teacher", "--video=film.mp4", "--checkpoint=textdiffs.pth"], "two models"),
        (["--video=textdiffs.pth", "--checkpoint=textdiffs.pth"], "textdiffs.pth does not open"),
        (["--video=absent.mp4", "--checkpoint=textdiffs.pth"], "absent.mp4"),
        (["--video=film.mp4", "--checkpoint=absent.pth"], "absent.pth"),
        (["--video=film.mp4", "--checkpoint=film.mp4"], "film.mp4"),
        (["--video=film.mp4", "--checkpoint=published.pth"], "--recipe=published"),
        (["--video=film.mp4", "--checkpoint=xpool.pth"], "--arch=clip_transformer"),
    ],
)
def test_sample_names_what_cannot_read_a_video(arguments, complaint, call, runs):
    paths = [argument.replace("=", f"={runs}/") for argument in arguments]
    code, out, err = call("sample.py", *paths, "--gpu=cpu")
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("sample.py: error: ") and complaint in line
