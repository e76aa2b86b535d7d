"""scripts/compare.py, on a small made-up data set."""

import csv
import json
import os
import statistics

import pytest
import torch

from scripts.compare import Method, markdown, parse_seeds
from tests import precision
from tests.made_up import call, make_msrvtt
from utils.errors import InputError

SHARED = ("--dataset_name=MSRVTT --clip_arch=tiny --num_frames=2 --batch_size=8 --num_epochs=1 --num_workers=0 "
          "--gpu=cpu --no_tensorboard --diffusion_text_len=8 --exp_name=compared")  # fmt: skip
METHODS = [
    "--method",
    "Mean: --arch=clip_baseline",
    "--method",
    "Text diffs, K=1: --hard_negatives=1",
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    make_msrvtt(folder)
    return folder


@pytest.fixture
def run(workplace, teacher, monkeypatch, capfd):
    """A program in the workplace: exit code, standard output and error."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def start(program, *arguments):
        places = [f"--{n}_dir={workplace / p}" for n, p in (("data", "data"), ("videos", "videos"), ("output", "out"))]
        arguments = [*arguments, *SHARED.split(), *places, f"--diffusion_lm={teacher}", precision.stated()]
        return call(f"scripts/{program}", arguments, monkeypatch, capfd)

    return start


@pytest.mark.slow
def test_the_table_holds_the_results_of_every_run(run, workplace):
    code, _, err = run("compare.py", *METHODS, "--seeds=3")
    assert code == 0, err
    folder = workplace / "out" / "compared"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/model_best.pth")}
    assert len(before) == 2
    os.remove(folder / "mean-seed3" / "comparison.json")  # as if killed between training and evaluation
    code, _, err = run("compare.py", *METHODS[:2], "--seeds=3,4")
    assert code == 0, err
    assert {path: path.stat().st_mtime_ns for path in before} == before  # nothing was trained again
    check_tables(folder, ["Mean"], seeds=2)
    seconds = [
        json.loads((folder / f"mean-seed{n}" / "comparison.json").read_text())[0]["train_seconds"] for n in (3, 4)
    ]
    assert seconds[0] is None and seconds[1] > 1  # those of the interrupted run are not known
    code, _, err = run("compare.py", *METHODS, "--seeds=3")
    assert code == 0, err
    check_tables(folder, ["Mean", "Text diffs, K=1"], seeds=1)


def check_tables(folder, methods, seeds):
    """The files of a comparison against the results of its runs."""
    with open(folder / "comparison.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(methods) * seeds * 2 * 2  # directions, protocols
    found = {}
    for row in rows:
        slug = {"Mean": "mean", "Text diffs, K=1": "text_diffs__k_1"}[row["method"]]
        report = json.loads((folder / f"{slug}-seed{row['seed']}" / "results.json").read_text())
        (same,) = [
            r for r in report["results"]
            if (r["metric"], r["protocol"], r["dsl"]) == (row["metric"], row["protocol"], False)
        ]  # fmt: skip
        assert float(row["R1"]) == same["R1"] and int(row["gallery"]) == same["gallery"] == 6
        found.setdefault((row["method"], row["metric"], row["protocol"]), []).append(same["R1"])
        state = torch.load(folder / f"{slug}-seed{row['seed']}" / "model_best.pth", weights_only=True)["state_dict"]
        frozen = sum(tensor.numel() for name, tensor in state.items() if name == "potential.word_table")
        assert int(row["parameters"]) == sum(tensor.numel() for tensor in state.values()) - frozen
    table = (folder / "comparison.md").read_text()
    for method in methods:
        (line,) = [line for line in table.splitlines() if line.startswith(f"| {method} |")]
        ones = found[method, "t2v", "strict"]
        assert len(ones) == seeds
        spread = f" ± {statistics.stdev(ones):.1f}" if seeds > 1 else ""
        assert line.split(" | ")[1] == f"{statistics.mean(ones):.1f}{spread}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "X-Pool --arch=clip_transformer"], "NAME: FLAGS"),
        (["--method", "a: --arch=nonsense"], "nonsense"),
        (["--method", "a: --arch=clip_tmass", "--seeds=1,b"], "--seeds=1,b"),
        (["--method", "a: ", "--method", "A: --arch=clip_tmass"], "alike"),
        (["--method", "a: --seed=3"], "--seed is set by compare.py"),
        (["--method", "a: ", "--method", "b: --exp_name=other"], "outside of --method"),
        ([], "--method"),
    ],
)
def test_bad_input_is_one_line_before_any_run(run, workplace, arguments, said):
    before = sorted(workplace.rglob("*"))
    code, _, err = run("compare.py", *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert said in err
    assert sorted(workplace.rglob("*")) == before


def test_a_run_that_fails_ends_the_comparison_and_keeps_what_is_done(run, workplace):
    code, _, err = run("compare.py", "--method", "fails: --clip_path=nowhere", "--seeds=9")
    assert code == 2
    assert "train.py" in err.splitlines()[-1] and "exit code 2" in err.splitlines()[-1]
    assert not (workplace / "out" / "compared" / "fails-seed9").exists()


def test_one_seed_has_no_deviation_and_many_captions_no_published_score():
    row = {"method": "m", "seed": 1, "metric": "t2v", "protocol": "strict", "R1": 12.34, "R5": 50.0, "R10": 75.0,
           "MedR": 3.0, "queries": 9, "gallery": 3, "parameters": 2_500_000, "train_seconds": 10.4,
           "test_seconds": 1.6}  # fmt: skip
    line = markdown([row, row | {"metric": "v2t"}], "any").splitlines()[2]
    assert line == "| m | 12.3 | 50.0 | 75.0 | 3.0 | 12.3 | 50.0 | 75.0 | 3.0 | - | - | 2.50 M | 10 | 2 | 1 |"


def test_methods_and_seeds():
    method = Method.parse("T-MASS, normal: --arch=clip_tmass --stochastic_prior=normal")
    assert method == Method("T-MASS, normal", ("--arch=clip_tmass", "--stochastic_prior=normal"))
    assert Method.parse("c: a/b.py --k=2") == Method("c", ("--k=2",), "a/b.py")
    assert parse_seeds("1,22") == [1, 22]
    with pytest.raises(InputError):
        parse_seeds("")
