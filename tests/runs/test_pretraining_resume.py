"""A pre-training that is killed, stopped or short of disk goes on as if nothing had happened."""

import json
import os
import re
import shlex
import shutil
import signal
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch

from diffusion_lm import weights
from diffusion_lm.denoiser import DENOISERS
from diffusion_lm.vocabulary import Vocabulary
from tests import precision
from tests.made_up import SMALL
from tests.training_runs import Run, as_others, kill_at_random, small_files

PROGRAM = "Diffusion-LM/train.py"
STEPS, BATCH = 30, 8
CAPTIONS = [
    f"a {size} {colour} {thing} {verb}"
    for size, colour, thing, verb in product(
        ("big", "small"), ("red", "blue", "green"), ("ball", "car", "dog", "kite"), ("rolls", "stops", "flies", "hops",
        "falls"),
    )
]  # fmt: skip


class Place:
    """Runs in a folder, with dropout, and with batches that do not divide the captions or what is logged."""

    def __init__(self, root: Path):
        self.root, self.logs = root, root / "logs"
        self.captions = root / "captions.txt"
        self.captions.write_text("".join(f"{caption}\n" for caption in CAPTIONS))
        self.counter = 0

    def run(self, name: str, *more: str, size: int = 1, **options) -> Run:
        """In `size` processes with the same batch in all."""
        return self.start([
            f"--captions={self.captions}", f"--output_dir={self.root / name}", "--denoiser=tiny", "--text_len=8",
            "--dropout=0.2", "--min_count=1", "--gpu=cpu", f"--steps={STEPS}", f"--batch_size={BATCH // size}",
            "--log_step=7", "--eval_every=20", "--save_steps=2", precision.stated(), *more,
        ], size, **options)  # fmt: skip

    def start(self, arguments: list[str], size: int = 1, **options) -> Run:
        self.counter += 1
        return Run(arguments, self.logs / str(self.counter), size, program=PROGRAM, **options)

    def finished(self, name: str, *more: str, size: int = 1) -> Path:
        run = self.run(name, *more, size=size)
        assert run.wait() == [0] * size, run.errors()
        return self.root / name

    def stopped(self, name: str, *more: str, number: int = signal.SIGTERM, size: int = 1) -> Path:
        """A run that a signal has ended in its middle, each process for its own."""
        run = self.run(name, *more, size=size, hold='step": 14')
        assert run.held(), run.errors()
        run.signal(number)
        run.let_go()
        assert run.wait() == [128 + number] * size, run.errors()
        return self.root / name


def checkpoints(folder: Path) -> list[str]:
    """Names of the checkpoints in a folder, the newest first."""
    return sorted((path.name for path in folder.glob("checkpoint-*")), key=step_of, reverse=True)


def step_of(name: str) -> int:
    return int(re.fullmatch(r"checkpoint-step(\d+)\.pth", name)[1])


def assert_same_run(folder: Path, other: Path) -> None:
    """Every published file is that of the other run, bit for bit but for seconds; nothing else is left."""
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in other.iterdir()} and not checkpoints(folder)
    for name in names - {"log.txt", "training_args.json"}:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    first, second = (json.loads((each / "training_args.json").read_text()) for each in (folder, other))
    assert first.pop("seconds") > 0 and second.pop("seconds") > 0
    assert first == second


def one_line(run: Run, code: int, size: int = 1) -> str:
    """What the run said when it ended with this exit code."""
    assert run.wait() == [code] * size, run.errors()
    (line,) = run.errors().splitlines()
    return line


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DENOISERS, "tiny", SMALL)  # in the programs too, which are forks
        yield Place(tmp_path_factory.mktemp("pretraining"))


@pytest.fixture(scope="module")
def uninterrupted(place):
    return place.finished("uninterrupted")


@pytest.fixture(scope="module")
def half(place):
    """A run that was stopped in its middle. Nobody writes to it."""
    return place.stopped("half")


@pytest.fixture
def copy(place, half, request):
    """A copy of that run."""
    return Path(shutil.copytree(half, place.root / request.node.name))


def kill(place: Place, name: str, kills: int, size: int) -> int:
    folder = place.root / name

    def newest() -> str:
        return next(iter(checkpoints(folder)), "")

    def start() -> Run:
        return place.run(name, "--resume", size=size)

    return kill_at_random(start, folder, newest, kills, size, seed=1, seconds=0.03)


def test_kills_leave_no_trace(place, uninterrupted):
    assert kill(place, "killed", kills=5, size=1) >= 1
    folder = place.root / "killed"
    assert_same_run(folder, uninterrupted)
    assert 4 <= (folder / "log.txt").read_text().count("the run goes on after step") <= 5


def stop_and_go_on(place: Place, name: str, number: int, size: int) -> None:
    """By a signal; then by the command that the message gives."""
    run = place.run(name, "--resume", size=size, hold='step": 7')
    assert run.held()
    run.signal(number, size - 1)  # of two processes the one that is not the main one; then all, as launchers do
    run.signal(number)
    run.let_go()
    line = one_line(run, 128 + number, size)
    saved = step_of(checkpoints(place.root / name)[0])
    assert f"stopped by {number.name} after step {saved} of {STEPS}, which is saved; go on" in line
    before, command = line.split(" with: python ")
    assert before.endswith("go on, in 2 processes," if size == 2 else "go on")
    program, *arguments = shlex.split(command)
    assert program == PROGRAM and arguments.count("--resume") == 1
    run = place.start(arguments, size)
    assert run.wait() == [0] * size, run.errors()
    assert f"goes on after step {saved} " in run.output()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_say_how_to_go_on(place, uninterrupted, number):
    stop_and_go_on(place, number.name, number, size=1)
    assert_same_run(place.root / number.name, uninterrupted)


def test_two_processes_are_killed_and_stopped(place):
    run = place.run("two-stopped", size=2, hold='step": 7')
    assert run.held() and checkpoints(place.root / "two-stopped")
    run.signal(signal.SIGKILL)
    assert run.wait() == [-signal.SIGKILL] * 2
    stop_and_go_on(place, "two-stopped", signal.SIGTERM, size=2)
    assert_same_run(place.root / "two-stopped", place.finished("two", size=2))


def while_publishing(happens: Callable[[], None]) -> Callable[[], None]:
    """In a run: let something happen before the first of the published files is written."""
    save = Vocabulary.save

    def happens_first(vocabulary: Vocabulary, path: Path) -> None:
        happens()
        save(vocabulary, path)

    return lambda: setattr(Vocabulary, "save", happens_first)


def test_a_full_disk_and_a_kill_while_the_weights_are_written(place, uninterrupted):
    """The last step is saved, so that only the files are left to write."""
    folder = place.root / "writing"
    line = one_line(place.run("writing", first=while_publishing(small_files(100_000))), 2)
    assert f"{folder} cannot be written: File too large; what was there stays" in line
    run = place.run("writing", "--resume", first=while_publishing(lambda: os.kill(os.getpid(), signal.SIGKILL)))
    assert run.wait() == [-signal.SIGKILL]
    assert checkpoints(folder)[0] == f"checkpoint-step{STEPS}.pth" and weights.find_weights(folder) is None
    assert any(folder.glob(".new-*"))
    place.finished("writing", "--resume")
    assert_same_run(folder, uninterrupted)


def test_an_unfinished_run_is_not_overwritten(place, half):
    before = {path.name: path.read_bytes() for path in half.iterdir()}
    line = one_line(place.run("half"), 2)
    assert f"{half} holds a run that is not finished ({checkpoints(half)[0]})" in line and "--resume" in line
    assert {path.name: path.read_bytes() for path in half.iterdir()} == before
    assert weights.find_weights(half) is None  # a checkpoint is none


def test_a_finished_run_stays(place, uninterrupted):
    before = {path: path.read_bytes() for path in uninterrupted.iterdir()}
    run = place.run("uninterrupted", "--resume")
    assert run.wait() == [0], run.errors()
    assert f"the run is finished, there is nothing to do: {uninterrupted / 'ema_'}" in run.output()
    assert "--steps=99 contradicts the run of" in one_line(place.run("uninterrupted", "--resume", "--steps=99"), 2)
    assert {path: path.read_bytes() for path in uninterrupted.iterdir()} == before


@pytest.mark.parametrize(
    ("flag", "trained"),
    [("--steps=31", STEPS), ("--lr=0.1", 0.003), ("--text_len=9", 8), ("--seed=1", 24), ("--denoiser=small", "tiny"),
     ("--dropout=0.1", 0.2), ("--diffusion_steps=9", 10), ("--held_out=0.4", 0.02)],
)  # fmt: skip
def test_flags_that_contradict_a_run_are_refused(place, half, flag, trained):
    line = one_line(place.run("half", "--resume", flag), 2)
    assert f"{flag} contradicts the run of {half / checkpoints(half)[0]}, which has {trained}: " in line


def test_another_batch_or_other_captions_are_refused(place, half):
    line = one_line(place.run("half", "--resume", "--batch_size=6"), 2)
    assert f"has {BATCH} captions, but 1 processes x --batch_size=6 are 6" in line
    other = place.root / "other.txt"
    other.write_text("".join(f"{caption}\n" for caption in CAPTIONS[1:]))
    line = one_line(place.run("half", "--resume", f"--captions={other}"), 2)
    assert "the captions (119 of other) are not those of the run" in line and "(120 of captions)" in line


def test_settings_come_from_the_run(place, copy, uninterrupted):
    """With no flag but where the captions and the run lie; the file may have moved."""
    moved = place.root / "elsewhere" / "captions.txt"
    moved.parent.mkdir()
    shutil.copy(place.captions, moved)
    run = place.start([f"--captions={moved}", f"--output_dir={copy}", "--resume", "--gpu=cpu"])
    assert run.wait() == [0], run.errors()
    assert_same_run(copy, uninterrupted)


def test_another_number_of_processes_goes_on(place, copy, uninterrupted):
    """The same batches and noise; only dropout differs."""
    run = place.run(copy.name, "--resume", size=2)
    assert run.wait() == [0, 0], run.errors()
    assert "the run had 1 processes" in run.output()
    expected, found = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (uninterrupted, copy)
    )
    assert [r["step"] for r in found] == [r["step"] for r in expected]
    for record, other in zip(found, expected, strict=True):
        if "train" in record:
            assert record["train"]["total"] == pytest.approx(other["train"]["total"], rel=0.1)


def test_damaged_checkpoints_are_set_aside(place, copy, uninterrupted):
    """The newest is cut short: the one before is used. Without a whole one the run begins anew."""
    newest, second = (copy / name for name in checkpoints(copy))
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    run = place.run(copy.name, "--resume", first=small_files(100_000))  # this ends it where it would save
    assert run.wait() == [2]
    assert f"{newest} is damaged" in run.output() and f"set aside as {newest.name}.damaged" in run.output()
    assert f"goes on after step {step_of(second.name)} " in run.output()
    data = bytearray(second.read_bytes())
    data[len(data) // 2] ^= 16  # a wrong bit of a weight
    second.write_bytes(data)
    torch.load(second, weights_only=True)  # nothing is noticed
    run = place.run(copy.name, "--resume")
    assert run.wait() == [0], run.errors()
    assert f"set aside as {second.name}.damaged" in run.output() and "goes on after" not in run.output()
    for path in (newest, second):
        path.with_name(path.name + ".damaged").unlink()
    assert_same_run(copy, uninterrupted)


def test_a_read_only_folder_is_a_clear_error(place):
    """One that becomes read-only in the middle of a run, and is so when the run is to go on."""
    run = place.run("closed", first=as_others, hold='step": 7')
    folder = place.root / "closed"
    assert run.held() and checkpoints(folder)
    os.chmod(folder, 0o555)
    run.let_go()
    line = one_line(run, 2)
    saved = checkpoints(folder)
    assert re.search(r"checkpoint-step\d+\.pth cannot be written: Permission denied; older ones stay as they", line)
    line = one_line(place.run("closed", "--resume", first=as_others), 2)
    assert str(folder) in line and "cannot be written: Permission denied" in line
    assert checkpoints(folder) == saved != []
    os.chmod(folder, 0o755)


def test_a_loss_that_is_not_finite_ends_the_run(place):
    """With its step and the last finite checkpoint, though it is looked at where something is logged or saved only."""
    line = one_line(place.run("not-finite", "--lr=1e30", "--save_steps=1"), 1)
    folder = place.root / "not-finite"
    (saved,) = checkpoints(folder)[:1]
    assert f" at step {step_of(saved) + 1}; last finite checkpoint: {folder / saved}; " in line
    assert re.search(r"error: (loss|gradient_norm) is (nan|inf) at step", line)
    state = torch.load(folder / saved, weights_only=True)["state_dict"]
    assert all(tensor.isfinite().all() for tensor in state.values())
    rare = one_line(place.run("rare", "--lr=1e30", "--save_steps=1000"), 1)
    assert rare.split("last finite")[0] == line.split("last finite")[0] and "none was written yet" in rare
