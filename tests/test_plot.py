"""scripts/plot.py: curves of runs from metrics.jsonl."""

import json

import pytest
from torchvision.io import read_image

from report.charts import losses, overlay, training_recall
from report.history import read_history
from tests.made_up import call_program
from trainer.run_folder import MetricsWriter
from utils.errors import InputError

STEPS_OF_EPOCH = 4


def make_run(folder, epochs=2, offset=0.0):
    """A run as train.py writes it: a loss every second step, an evaluation at the end of each epoch."""
    folder.mkdir(parents=True)
    writer = MetricsWriter(folder, None)
    for step in range(2, epochs * STEPS_OF_EPOCH + 1, 2):
        epoch = (step - 1) // STEPS_OF_EPOCH + 1
        terms = {"train/retrieval": 1 / step + offset, "train/teacher_student": 0.01 / step}
        writer.write(step, epoch, terms | {"train/loss": sum(terms.values()), "train/lr_max": 1e-3})
        if step % STEPS_OF_EPOCH == 0:
            writer.write(step, epoch, {"eval/t2v_strict/R1": 10.0 * step, "eval/v2t_strict/R1": 11.0 * step})
    writer.close()
    return folder


@pytest.fixture
def plot(monkeypatch, capfd):
    def run(*arguments):
        return call_program("scripts/plot.py", [str(argument) for argument in arguments], monkeypatch, capfd)

    return run


def test_history_is_what_was_written(tmp_path):
    history = read_history(make_run(tmp_path / "run"))
    assert history.series["train/retrieval"].steps == [2, 4, 6, 8]
    assert history.series["train/retrieval"].values == [1 / 2, 1 / 4, 1 / 6, 1 / 8]
    assert history.series["eval/t2v_strict/R1"].steps == [4, 8]
    assert set(history.losses()) == {"train/retrieval", "train/teacher_student", "train/loss"}
    assert history.steps_of_epoch == STEPS_OF_EPOCH


def test_a_killed_run_has_the_history_until_then(tmp_path):
    folder = make_run(tmp_path / "run", epochs=3)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["step"] <= 10]
    bad = '{"step": 10, "epoch": 3, "train/loss": NaN}'
    (folder / "metrics.jsonl").write_text("\n".join([*kept, bad, '{"step": 12, "epo']))
    history = read_history(folder)
    assert history.series["train/loss"].steps == [2, 4, 6, 8, 10]
    assert history.steps_of_epoch == STEPS_OF_EPOCH  # of the two whole epochs


@pytest.mark.parametrize("by_epoch", [False, True])
def test_overlay_draws_every_run_in_every_panel(tmp_path, by_epoch):
    """One run has fewer epochs, the other no such evaluation; labels mean nothing to the plot."""
    histories = {
        "_a$b$": read_history(make_run(tmp_path / "a")),
        "b": read_history(make_run(tmp_path / "b", epochs=1, offset=1.0)),
    }
    del histories["b"].series["eval/t2v_strict/R1"]
    figure = overlay(histories, ["train/retrieval", "eval/t2v_strict/R1"], by_epoch)
    scale = STEPS_OF_EPOCH if by_epoch else 1
    drawn = {
        axes.get_title(): [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
        for axes in figure.axes
    }
    assert drawn["train/retrieval"] == [
        ([2 / scale, 4 / scale, 6 / scale, 8 / scale], [1 / 2, 1 / 4, 1 / 6, 1 / 8]),
        ([2 / scale, 4 / scale], [1 / 2 + 1, 1 / 4 + 1]),
    ]
    assert drawn["eval/t2v_strict/R1"] == [([4 / scale, 8 / scale], [40, 80])]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["_a$b$", "b"]


def test_charts_of_the_report_draw_the_history(tmp_path):
    history = read_history(make_run(tmp_path / "run"))
    (axes,) = losses(history).axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert drawn["retrieval"] == history.series["train/retrieval"].values
    assert drawn["teacher-student"] == history.series["train/teacher_student"].values
    ends = [line.get_xdata()[0] for line in axes.lines if len(line.get_ydata()) == 2]
    assert ends == [4, 8]  # of the epochs
    (axes,) = training_recall(history).axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert (drawn["t2v R@1"], drawn["v2t R@1"]) == ([40, 80], [44, 88])


def test_program(tmp_path, plot, monkeypatch):
    """Runs of one name in two experiments are told apart; one more has a label of its own."""
    runs = [make_run(tmp_path / "first" / "run"), make_run(tmp_path / "second" / "run", offset=1.0)]
    monkeypatch.chdir(tmp_path)
    assert plot(*runs, f"third={make_run(tmp_path / 'x=y', epochs=1)}") == (0, "")
    assert read_image("curves.png").float().std() > 1
    output = tmp_path / "new" / "r1.png"
    code, _ = plot(runs[0], "--names", "eval/*/R1", "train/lr_max", "--x", "epoch", "--output", output)
    assert code == 0 and read_image(output).shape[1] < read_image("curves.png").shape[1]  # one row of panels, not two


def test_bad_folders_and_names_are_told_in_one_line(tmp_path, plot):
    run, empty, foreign, blank = (tmp_path / name for name in ("run", "empty", "foreign", "blank"))
    make_run(run)
    for folder in (empty, foreign, blank):
        folder.mkdir()
    (foreign / "metrics.jsonl").write_text('{"step": 1, "train": {"total": 2.0}}\n{"step": 2}\n')
    (blank / "metrics.jsonl").touch()
    cases = [
        ([run, tmp_path / "missing"], "missing is not a folder of a run"),
        ([run, empty], "empty holds no training history: metrics.jsonl cannot be read: No such file"),
        ([foreign], "metrics.jsonl, line 1: not a record of a training run"),
        ([blank], "blank holds no training history: metrics.jsonl has no records"),
        ([run, "--names", "eval/nothing"], "--names: no run has eval/nothing; there are train/retrieval"),
        ([f"a={run}", f"a={run}"], "two runs are called a: name them with LABEL=RUN"),
        ([run, "--output", blank], "blank cannot be written"),
    ]
    for arguments, said in cases:
        code, err = plot(*arguments)
        assert (code, err.count("\n")) == (2, 1) and said in err, err
    with pytest.raises(InputError, match="not a folder"):
        read_history(tmp_path / "missing")
