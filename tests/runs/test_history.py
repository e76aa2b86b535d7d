"""Training curves from metrics.jsonl, as the report draws them."""

import json

import pytest

from report.charts import losses, training_recall
from report.history import read_history
from trainer.run_folder import MetricsWriter
from utils.errors import InputError

STEPS_OF_EPOCH = 4


def make_run(folder, epochs=2):
    """A run as train.py writes it: a loss every second step, an evaluation at the end of each epoch."""
    folder.mkdir(parents=True)
    writer = MetricsWriter(folder, None)
    for step in range(2, epochs * STEPS_OF_EPOCH + 1, 2):
        epoch = (step - 1) // STEPS_OF_EPOCH + 1
        terms = {"train/retrieval": 1 / step, "train/teacher_student": 0.01 / step}
        writer.write(step, epoch, terms | {"train/loss": sum(terms.values()), "train/lr_max": 1e-3})
        if step % STEPS_OF_EPOCH == 0:
            writer.write(step, epoch, {"eval/t2v_strict/R1": 10.0 * step, "eval/v2t_strict/R1": 11.0 * step})
    writer.close()
    return folder


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


def test_folders_without_a_history_are_told(tmp_path):
    empty, foreign, blank = (tmp_path / name for name in ("empty", "foreign", "blank"))
    for folder in (empty, foreign, blank):
        folder.mkdir()
    (foreign / "metrics.jsonl").write_text('{"step": 1, "train": {"total": 2.0}}\n{"step": 2}\n')
    (blank / "metrics.jsonl").touch()
    for folder, said in (
        (tmp_path / "missing", "missing is not a folder of a run"),
        (empty, "empty holds no training history: metrics.jsonl cannot be read: No such file"),
        (foreign, "metrics.jsonl, line 1: not a record of a training run"),
        (blank, "blank holds no training history: metrics.jsonl has no records"),
    ):
        with pytest.raises(InputError, match=said):
            read_history(folder)
