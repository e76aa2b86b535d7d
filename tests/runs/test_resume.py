"""A run that is killed, stopped or short of disk goes on as if nothing had happened."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from tests.programs.test_end_to_end import Place
from tests.training_runs import Run, as_others, final_state, kill_at_random, losses, small_files
from trainer.checkpoints import newest_first

EPOCHS, STEPS = 7, 6  # of 24 pairs in batches of 4
LAST = f"checkpoint-epoch{EPOCHS}.pth"


class Training:
    """Runs on the made-up data with dropout, random frames and evaluations: all that draws random numbers."""

    def __init__(self, root: Path):
        self.place = Place(root)
        self.logs = root / "logs"
        self.counter = 0

    def run(self, name: str, *more: str, size: int = 1, **options) -> Run:
        self.counter += 1
        arguments = self.place.train_arguments(
            name, f"--num_epochs={EPOCHS}", f"--batch_size={4 // size}", "--log_step=2", "--save_steps=1",
            "--keep_last=3", "--no_tensorboard", "--noclip_lr=1e-3", "--clip_lr=1e-4", "--video_sample_type=rand",
            *more,
        )  # fmt: skip
        return Run(arguments, self.logs / str(self.counter), size, **options)

    def go_on(self, folder: Path, size: int = 1) -> None:
        """Resume a run as it says, until it ends."""
        self.counter += 1
        run = Run([f"--resume={folder}"], self.logs / str(self.counter), size)
        assert run.wait() == [0] * size, run.errors()

    def finished(self, name: str, *more: str, size: int = 1) -> Path:
        run = self.run(name, *more, size=size)
        assert run.wait() == [0] * size, run.errors()
        return self.place.folder(name)


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    return Training(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def uninterrupted(training):
    return training.finished("uninterrupted")


def assert_same_run(folder: Path, other: Path) -> None:
    first, second = final_state(folder, LAST), final_state(other, LAST)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert losses(folder) == losses(other)


def newest(folder: Path) -> str:
    """The newest checkpoint of a run, by name."""
    return next((path.name for path in newest_first(folder)), "")


def kill(training, name: str, kills: int, size: int, seed: int) -> int:
    folder = training.place.folder(name)
    return kill_at_random(
        lambda: training.run(name, "--resume", size=size), folder, lambda: newest(folder), kills, size, seed
    )


@pytest.mark.slow
def test_twenty_kills_leave_no_trace(training, uninterrupted):
    assert kill(training, "killed", kills=20, size=1, seed=1) >= 3
    assert_same_run(training.place.folder("killed"), uninterrupted)


@pytest.mark.slow
def test_kills_of_two_processes_leave_no_trace(training):
    expected = training.finished("two", size=2)
    kill(training, "two-killed", kills=3, size=2, seed=2)
    assert_same_run(training.place.folder("two-killed"), expected)


@pytest.mark.parametrize(("number", "size"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_signals_save_and_say_how_to_go_on(training, uninterrupted, number, size):
    name = f"{number.name}-{size}"
    folder = training.place.folder(name)
    run = training.run(name, "--save_steps=1000", "--num_workers=1", size=size, hold="step 2 of")
    assert run.held()
    run.signal(number, size - 1)  # of two processes the one that is not the main one; then all, as launchers do
    run.signal(number)
    run.let_go()
    assert run.wait() == [128 + number] * size
    (line,) = run.errors().splitlines()
    assert f"stopped by {number.name} after step" in line
    assert line.endswith(f"go on with: python train.py --resume={folder}")
    assert len(list(folder.glob("checkpoint-epoch1-step*.pth"))) == 1
    if size == 1:
        assert Run([f"--resume={folder}"], training.logs / name).wait() == [0]
        assert_same_run(folder, uninterrupted)


def test_another_number_of_processes_goes_on(training, uninterrupted):
    """The same batches and noise; only dropout differs. A batch of another size is refused."""
    folder = training.place.folder("other-size")
    shutil.copytree(uninterrupted, folder)
    (folder / LAST).unlink()
    run = training.run("other-size", "--resume", "--batch_size=4", size=2)
    assert run.wait() == [2, 2]
    assert "--batch_size=4" in run.errors() and run.errors().count("\n") == 1
    run = training.run("other-size", "--resume", size=2)
    assert run.wait() == [0, 0], run.errors()
    assert "the run had 1 processes" in run.output()
    expected, found = losses(uninterrupted), losses(folder)
    assert [r["step"] for r in found] == [r["step"] for r in expected]


def test_damaged_checkpoints_are_set_aside(training, uninterrupted):
    """One cut short, and one with a single wrong bit in a weight, which torch would load."""
    folder = training.place.folder("damaged")
    shutil.copytree(uninterrupted, folder)
    newest, second, _ = sorted(folder.glob("checkpoint-epoch*.pth"), key=lambda p: p.stat().st_mtime_ns)[::-1]
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    data = bytearray(second.read_bytes())
    data[len(data) // 2] ^= 16
    second.write_bytes(data)
    torch.load(second, weights_only=True)  # nothing is noticed
    run = training.run("damaged", "--resume")
    assert run.wait() == [0], run.errors()
    for path in (newest, second):
        assert path.with_name(path.name + ".damaged").exists()
        assert f"{path.name}.damaged" in run.output()
    assert_same_run(folder, uninterrupted)


def test_a_full_disk_leaves_the_last_checkpoint(training, uninterrupted):
    folder = training.place.folder("full")
    shutil.copytree(uninterrupted, folder)
    (folder / LAST).unlink()
    before = {path.name: path.read_bytes() for path in folder.glob("*.pth")}
    run = training.run("full", "--resume", "--skip_eval", first=small_files(1_000_000))
    assert run.wait() == [2]
    assert "contradicts" in run.errors()  # another way to train is no resumption
    run = training.run("full", "--resume", first=small_files(1_000_000))
    assert run.wait() == [2]
    (line,) = run.errors().splitlines()
    assert "cannot be written" in line and str(folder) in line
    assert {path.name: path.read_bytes() for path in folder.glob("*.pth")} == before
    assert not list(folder.glob(".*.tmp"))
    assert training.run("full", "--resume").wait() == [0]
    assert_same_run(folder, uninterrupted)


# what comes after the first step deletes nothing: the run goes on, and ends as one to which nothing happened

SHORT = ("--num_epochs=2", "--evals_per_epoch=2", "--save_every=2", "--save_steps=1000", "--keep_last=1")


@pytest.fixture(scope="module")
def short(training):
    """An uninterrupted run with three of its four evaluations where no checkpoint is kept."""
    folder = training.finished("short", *SHORT)
    assert {path.name for path in folder.glob("*.pth")} == {"model_best.pth", "checkpoint-epoch2.pth"}
    return folder


def assert_same_end(folder: Path, other: Path) -> None:
    """Weights, optimizer, metrics, the best model and its results."""
    name = "checkpoint-epoch2.pth"
    first, second = final_state(folder, name), final_state(other, name)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert losses(folder) == losses(other)
    states = [torch.load(each / name, weights_only=True) for each in (folder, other)]
    assert states[0]["best"] == states[1]["best"] and states[0]["window"] == states[1]["window"]
    best = [torch.load(each / "model_best.pth", weights_only=True) for each in (folder, other)]
    assert best[0]["step"] == best[1]["step"] and best[0]["metrics"] == best[1]["metrics"]
    assert all(torch.equal(best[0]["state_dict"][name], tensor) for name, tensor in best[1]["state_dict"].items())
    results = [json.loads((each / "results.json").read_text())["results"] for each in (folder, other)]
    assert results[0] == results[1]


@pytest.mark.parametrize("size", [1, 2])
def test_a_test_video_that_does_not_decode(training, short, tmp_path, size):
    videos = shutil.copytree(training.place.root / "videos", tmp_path / "videos")
    whole = (videos / "video9004.mp4").read_bytes()
    (videos / "video9004.mp4").write_bytes(whole[:500])
    name = f"broken-{size}"
    folder = training.place.folder(name)
    run = training.run(name, *SHORT, f"--videos_dir={videos}", size=size)
    assert run.wait() == [2] * size
    (line,) = run.errors().splitlines()
    assert "video9004.mp4" in line
    assert line.endswith(f"the run is kept up to checkpoint-epoch1-step3.pth; once that is mended, go on with: python "
                         f"train.py --resume={folder}")  # fmt: skip
    assert [record["step"] for record in losses(folder)] == [2]
    assert "step 2 of 6" in (folder / "log.txt").read_text()
    (videos / "video9004.mp4").write_bytes(whole)
    training.go_on(folder, size)
    assert_same_end(folder, short if size == 1 else training.finished("short-2", *SHORT, size=2))


def test_too_many_broken_training_videos_late_in_an_epoch(training, tmp_path):
    """In two processes, of which one meets them."""
    expected = training.finished("mended", *SHORT, "--skip_eval", size=2)
    videos = shutil.copytree(training.place.root / "videos", tmp_path / "videos")
    whole = (videos / "video3.mp4").read_bytes()
    (videos / "video3.mp4").write_bytes(whole[:500])
    folder = training.place.folder("late")
    run = training.run("late", *SHORT, "--skip_eval", f"--videos_dir={videos}", size=2)
    assert run.wait() == [2, 2]
    (line,) = run.errors().splitlines()
    (checkpoint,) = folder.glob("*.pth")
    assert "video3.mp4" in line and f"the run is kept up to {checkpoint.name}; once that is mended" in line
    (videos / "video3.mp4").write_bytes(whole)
    training.go_on(folder, size=2)
    first, second = (final_state(each, "checkpoint-epoch2.pth") for each in (folder, expected))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_a_full_disk_at_the_first_checkpoint(training, short):
    folder = training.place.folder("full-at-first")
    run = training.run("full-at-first", *SHORT, first=small_files(1_000_000))
    assert run.wait() == [2]
    (line,) = run.errors().splitlines()
    assert "checkpoint-epoch1-step3.pth cannot be written" in line and "had no checkpoint yet" in line
    assert f"stay in {folder}" in line and line.endswith("--datetime=full-at-first --resume")
    assert [record["step"] for record in losses(folder)] == [2]
    assert training.run("full-at-first", *SHORT, "--resume").wait() == [0]
    assert_same_end(folder, short)


def test_a_disk_that_is_full_before_the_first_step_leaves_nothing(training):
    folder = training.place.folder("full-before")
    run = training.run("full-before", *SHORT, first=small_files(500))
    assert run.wait() == [2]
    (line,) = run.errors().splitlines()
    assert f"run folder {folder} cannot be written: " in line and not folder.exists()


def test_a_run_folder_that_somebody_deletes_is_told(training):
    folder = training.place.folder("deleted")
    run = training.run("deleted", "--log_step=1", "--evals_per_epoch=1", hold="step 1 of")
    assert run.held()
    folder.rename(folder.with_name("elsewhere"))
    run.let_go()
    assert run.wait() == [2]
    (line,) = run.errors().splitlines()
    assert line.endswith(f"{folder} is gone: somebody has deleted or moved it")


@pytest.mark.parametrize(("number", "size"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_a_signal_interrupts_an_evaluation(training, number, size):
    """Of two processes the one that is not the main one gets it. The checkpoint before the evaluation stays."""
    name = f"evaluating-{number.name}-{size}"
    folder = training.place.folder(name)
    options = ("--num_epochs=1", "--save_every=2", "--save_steps=1000")
    run = training.run(name, *options, size=size, hold="scoring")
    assert run.held(size)
    run.signal(number, size - 1)
    if size > 1:
        run.let_go()
    assert run.wait() == [128 + number] * size
    (line,) = run.errors().splitlines()
    assert f"stopped by {number.name} after step 6 of epoch 1, which is saved" in line
    assert [path.name for path in folder.glob("*.pth")] == ["checkpoint-epoch1-step6.pth"]
    assert not any("eval/seconds" in line for line in (folder / "metrics.jsonl").read_text().splitlines())
    training.go_on(folder, size)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "eval/seconds" in record] == [6]
    assert (folder / "model_best.pth").exists() and (folder / "results.json").exists()


def test_a_kill_in_an_evaluation_leaves_no_trace(training, short):
    """One with metrics that were written, but no checkpoint that knows of them."""
    folder = training.place.folder("killed-evaluating")
    run = training.run("killed-evaluating", *SHORT, hold=("scoring", 2))
    assert run.held()
    run.signal(signal.SIGKILL)
    run.wait()
    (checkpoint,) = folder.glob("checkpoint*.pth")
    state = torch.load(checkpoint, weights_only=True)
    assert (checkpoint.name, state["evaluated"]) == ("checkpoint-epoch1-step6.pth", False)
    record = {"step": 6, "epoch": 1, "eval/seconds": 1.0, "eval/t2v_strict/R1": 1.0}
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")
    training.go_on(folder)
    assert_same_end(folder, short)


def test_a_read_only_folder_is_a_clear_error(training, uninterrupted):
    folder = training.place.folder("read-only")
    shutil.copytree(uninterrupted, folder)
    (folder / LAST).unlink()
    os.chmod(folder, 0o555)
    before = {path.name: path.read_bytes() for path in folder.glob("*.pth")}
    run = training.run("read-only", "--resume", first=as_others)
    assert run.wait() == [2]
    (line,) = run.errors().splitlines()
    assert "cannot be written" in line and str(folder) in line
    assert {path.name: path.read_bytes() for path in folder.glob("*.pth")} == before
    os.chmod(folder, 0o755)


def test_a_finished_run_stays(training, uninterrupted):
    before = final_state(uninterrupted, LAST)
    run = Run([f"--resume={uninterrupted / LAST}"], training.logs / "finished")
    assert run.wait() == [0], run.errors()
    assert all(torch.equal(tensor, before[name]) for name, tensor in final_state(uninterrupted, LAST).items())


@pytest.mark.parametrize(
    ("more", "named"),
    [(["--resume", "--noclip_lr=5"], "--noclip_lr=5.0"), (["--resume=nowhere.pth"], "nowhere.pth"), ([], "--resume")],
)
def test_what_contradicts_a_run_is_named(training, uninterrupted, more, named):
    run = training.run("uninterrupted", *more)
    assert run.wait() == [2]
    (line,) = run.errors().splitlines()
    assert named in line


def test_other_data_are_refused_and_the_same_elsewhere_are_not(training, uninterrupted):
    """The captions of two videos have changed places, in one process or two; then all is right but lies elsewhere."""
    folder, other = training.place.folder("other-data"), training.place.root / "other"
    shutil.copytree(uninterrupted, folder)
    (folder / LAST).unlink()
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    shutil.copytree(training.place.root / "data", other / "data")
    shutil.copytree(training.place.root / "videos", other / "videos")
    file = other / "data" / "MSRVTT" / "MSRVTT_data.json"
    right = file.read_text()
    file.write_text(right.replace('"video3"', '"?"').replace('"video5"', '"video3"').replace('"?"', '"video5"'))
    places = [f"--data_dir={other / 'data'}", f"--videos_dir={other / 'videos'}"]
    for size in (1, 2):
        run = training.run("other-data", "--resume", *places, size=size)
        assert run.wait() == [2] * size
        (line,) = run.errors().splitlines()
        assert "had other data, train videos: 2 with other captions (video3, video5): " in line
        assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    file.write_text(right)
    assert training.run("other-data", "--resume", *places).wait() == [0]
    assert_same_run(folder, uninterrupted)


def test_a_checkpoint_that_does_not_know_its_data_goes_on(training, uninterrupted):
    folder = training.place.folder("no-record")
    shutil.copytree(uninterrupted, folder)
    (folder / LAST).unlink()
    path = folder / newest(folder)
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint.pop("data").keys() == {"train", "test"}
    torch.save(checkpoint, path)
    run = training.run("no-record", "--resume")
    assert run.wait() == [0], run.errors()
    assert f"{path} does not say on which data the run was" in run.output()
    assert torch.load(folder / LAST, weights_only=True)["data"].keys() == {"train", "test"}


def test_old_checkpoints_are_deleted(uninterrupted):
    assert {path.name for path in uninterrupted.glob("*.pth")} == {
        "model_best.pth", LAST, f"checkpoint-epoch{EPOCHS}-step{STEPS - 1}.pth", f"checkpoint-epoch{EPOCHS}-step4.pth",
    }  # fmt: skip


def test_a_loss_that_is_not_finite_stops_the_run(training):
    """With its step, its pairs and the last finite checkpoint; no checkpoint after it."""
    run = training.run("not-finite", "--noclip_lr=1e30", "--log_step=5", "--warmup_proportion=0")
    assert run.wait() == [1]
    line = run.errors().splitlines()[-1]
    folder = training.place.folder("not-finite")
    assert "at epoch 1, step 2 (2 of the run)" in line
    assert f"last finite checkpoint: {folder / 'checkpoint-epoch1-step1.pth'}" in line
    assert line.count("(caption") == 4
    assert [path.name for path in folder.glob("*.pth")] == ["checkpoint-epoch1-step1.pth"]
    state = torch.load(folder / "checkpoint-epoch1-step1.pth", weights_only=True)["state_dict"]
    assert all(tensor.isfinite().all() for tensor in state.values())


@pytest.mark.parametrize("more", [["--precision=fp16"], ["--gradient_checkpointing", "--grad_accum=2"]])
def test_other_ways_to_train(training, more):
    folder = training.finished(f"other{more[0]}", *more, "--num_epochs=1")
    first = losses(folder)[0]
    assert 0 < first["train/retrieval"] < 10 and 0 < first["train/words"] < 200  # nats of a caption
