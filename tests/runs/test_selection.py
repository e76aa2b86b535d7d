"""Which split chooses the model: validation videos are apart from training, and the test split is evaluated once."""

import json
import os
import random
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from config import Config
from datasets.annotations import Segment, Split, load_split
from datasets.holdout import FEW, Selection, apart, films_of, hold_out, training_splits
from tests.made_up import call, make_msrvtt
from tests.programs.test_end_to_end import Place
from tests.training_runs import Run, losses
from trainer.checkpoints import selection_of
from utils.errors import InputError


def split_of(dataset: str, *names: str, captions: int = 2, path=Path) -> Split:
    segments = tuple(Segment(name, path(name), tuple(f"{name} {k}" for k in range(captions))) for name in names)
    return Split(dataset, "train", segments)


def ids(split: Split) -> list[str]:
    return [segment.video_id for segment in split.segments]


@pytest.mark.parametrize(("videos", "expected"), [(2, 1), (14, 1), (40, 2), (7010, 350), (9000, 450), (30000, 500)])
def test_five_percent_at_most_500_and_at_least_one(videos, expected):
    train = split_of("MSRVTT", *(f"video{i}" for i in range(videos)))
    rest, val = hold_out(train, seed=24)
    assert (len(val.segments), len(rest.segments)) == (expected, videos - expected)
    assert (rest.name, val.name) == ("train", "val")
    assert sorted(ids(rest) + ids(val)) == sorted(ids(train))
    assert sorted(rest.captions + val.captions) == sorted(train.captions)  # whole videos: all their captions


def test_what_is_held_out_follows_from_seed_and_names_alone():
    names = [f"video{i}" for i in range(400)]
    shuffled = random.Random(0).sample(names, len(names))
    first, second = (hold_out(split_of("MSRVTT", *order), seed=24)[1] for order in (names, shuffled))
    assert set(ids(first)) == set(ids(second)) and ids(first) == sorted(ids(first), key=names.index)
    assert set(ids(hold_out(split_of("MSRVTT", *names), seed=25)[1])) != set(ids(first))
    elsewhere = split_of("custom", *names, path=lambda name: Path("/another/place") / name)
    here = split_of("custom", *names, path=lambda name: Path("/here") / name)
    assert ids(hold_out(elsewhere, seed=24)[1]) == ids(hold_out(here, seed=24)[1])


def test_whole_films_are_held_out():
    """LSMDC names the film before the time; one film may have two numbers."""
    times = [f"_00.{m:02d}.23.000-00.{m:02d}.28.886" for m in range(60)]
    sizes = {"1040_The_Ugly_Truth": 20, "3086_UGLY_TRUTH": 20} | {f"{3000 + i}_FILM_{i}": 10 + i for i in range(20)}
    train = split_of("LSMDC", *(film + time for film, size in sizes.items() for time in times[:size]), captions=1)
    assert len(set(films_of(train))) == 21
    for seed in range(20):
        rest, val = hold_out(train, seed)
        assert not set(films_of(rest)) & set(films_of(val))
        assert 0 < len(val.segments) <= len(train.segments) // 20
        assert sorted(ids(rest) + ids(val)) == sorted(ids(train))


def test_windows_of_a_file_stay_together():
    """Also where it goes by two names; a film that is more than 5 % is held out where all are."""
    segments = [Segment(name, Path("/v") / f"film{i}.mp4", ("a",), start, start + 1.0)
             for i in range(4) for name in (f"film{i}.mp4", f"sub/film{i}") for start in range(3 + i)]  # fmt: skip
    for seed in range(10):
        rest, val = hold_out(Split("custom", "train", tuple(segments)), seed)
        assert {segment.path.name for segment in val.segments} == {"film0.mp4"} and len(val.segments) == 6
        assert len(rest.segments) == len(segments) - 6


def test_links_to_a_file_stay_together(tmp_path):
    for i in range(4):
        (tmp_path / f"film{i}.mp4").touch()
        (tmp_path / f"soft{i}.mp4").symlink_to(tmp_path / f"film{i}.mp4")
        (tmp_path / f"hard{i}.mp4").hardlink_to(tmp_path / f"film{i}.mp4")
    names = [f"{kind}{i}" for kind in ("film", "soft", "hard") for i in range(4)]
    rest, val = hold_out(split_of("custom", *names, path=lambda name: tmp_path / f"{name}.mp4"), seed=24)
    assert {name[4:] for name in ids(val)} & {name[4:] for name in ids(rest)} == set() and len(val.segments) == 3


def test_too_little_to_hold_out_names_the_way_out():
    for train in (split_of("MSRVTT", "video0"), split_of("custom", "a", "b", path=lambda name: Path("film.mp4"))):
        with pytest.raises(InputError, match="--select_on=test"):
            hold_out(train, seed=24)


def test_validation_videos_of_films_in_training_are_left_out(caplog):
    train = split_of("MSVD", "k_Ab-1_10_20", "k_Ab-1_30_40", "other_1_2")
    val = replace(split_of("MSVD", "k_Ab-1_50_60", "third_1_2"), name="val")
    assert ids(apart(val, train)) == ["third_1_2"]
    assert "k_Ab-1_50_60" in caplog.text
    with pytest.raises(InputError, match="--select_on=test"):
        apart(replace(val, segments=val.segments[:1]), train)


def config_for(dataset: str, annotations: Path, videos: Path, *more: str) -> Config:
    return Config.parse([f"--dataset_name={dataset}", f"--data_dir={annotations}", f"--videos_dir={videos}", *more])


def touch(folder: Path, names: list[str], extension: str = ".mp4") -> Path:
    folder.mkdir()
    for name in names:
        (folder / f"{name}{extension}").touch()
    return folder


@pytest.mark.parametrize(("dataset", "expected"), [("MSVD", 99), ("DiDeMo", 1062)])
def test_real_validation_splits(annotations_dir, tmp_path, dataset, expected):
    """One of MSVD's 100 validation videos is of a film that is in training."""
    names = set()
    for part in ("train", "val", "test"):
        if dataset == "MSVD":
            names |= set((annotations_dir / "MSVD" / f"{part}_list.txt").read_text().split())
        else:
            text = (annotations_dir / "DiDeMo" / f"didemo_{part}_label.csv").read_text()
            names |= {path.rpartition("/")[2].rpartition(".")[0] for path in re.findall(r"/home/[^,]*", text)}
    splits = training_splits(config_for(dataset, annotations_dir, touch(tmp_path / "videos", sorted(names))))
    assert len(splits.train.segments) == {"MSVD": 1200, "DiDeMo": 8362}[dataset]
    assert (len(splits.val.segments), splits.val.name) == (expected, "val")
    assert not set(films_of(splits.val)) & (set(films_of(splits.train)))
    assert splits.selection.to_dict() == {
        "split": "val", "how": "the validation split of the data set", "videos": expected,
        "captions": len(splits.val.captions),
    }  # fmt: skip


def test_a_validation_file_that_is_not_there(tmp_path):
    folder = tmp_path / "MSVD"
    folder.mkdir()
    names = [f"v{i}_0_1" for i in range(6)]
    (folder / "captions_msvd.json").write_text(json.dumps({name: ["a dog"] for name in names}))
    (folder / "train_list.txt").write_text("\n".join(names[:4]))
    (folder / "test_list.txt").write_text("\n".join(names[4:]))
    videos = touch(tmp_path / "videos", names)
    with pytest.raises(InputError, match=r"val_list\.txt cannot be read.*--select_on=test"):
        training_splits(config_for("MSVD", tmp_path, videos))
    splits = training_splits(config_for("MSVD", tmp_path, videos, "--select_on=test"))
    assert splits.val is None and splits.selection.split == "test" and len(splits.train.segments) == 4


def test_own_validation_rows(tmp_path):
    videos = touch(tmp_path / "videos", [f"v{i}" for i in range(30)])
    own = tmp_path / "own.csv"

    def read(val: int, *more: str):
        rows = [f"v{i}.mp4,thing {i},{'val' if i < val else 'test' if i == 29 else 'train'}" for i in range(30)]
        own.write_text("\n".join(["video,caption,split", *rows]) + "\n")
        return training_splits(config_for("custom", tmp_path, videos, f"--annotations={own}", *more))

    splits = read(3)
    assert [ids(part) for part in (splits.val, splits.test)] == [["v0.mp4", "v1.mp4", "v2.mp4"], ["v29.mp4"]]
    assert len(splits.train.segments) == 26
    splits = read(0)
    assert (len(splits.train.segments), len(splits.val.segments)) == (28, 1)
    assert splits.selection.how == "held out of the training videos by --seed=24"
    for more in (["--select_on=test"], ["--skip_eval"]):
        splits = read(0, *more)
        assert len(splits.train.segments) == 29 and splits.val is None
    own.write_text("video,caption\n" + "".join(f"v{i}.mp4,thing {i}\n" for i in range(30)))  # without any split
    splits = training_splits(config_for("custom", tmp_path, videos, f"--annotations={own}"))
    assert [len(part.segments) for part in (splits.train, splits.val, splits.test)] == [29, 1, 30]


def test_few_validation_videos_are_told(tmp_path, caplog):
    make_msrvtt(tmp_path)
    splits = training_splits(config_for("MSRVTT", tmp_path / "data", tmp_path / "videos"))
    assert len(splits.val.segments) == 1 < FEW
    assert "only 1 validation video" in caplog.text
    with pytest.raises(InputError, match="MSRVTT has no val split"):
        load_split("MSRVTT", "val", tmp_path / "data" / "MSRVTT", tmp_path / "videos")


# whole runs

CHOSEN_ON_VAL = {"split": "val", "how": "held out of the training videos by --seed=24", "videos": 1, "captions": 2}


class Runs:
    """Trainings whose evaluations choose on the validation split."""

    def __init__(self, root: Path) -> None:
        self.place, self.logs, self.counter = Place(root), root / "logs", 0

    def run(self, name: str, *more: str, size: int = 1, **options) -> Run:
        quick = "--clip_lr=1e-3"  # epochs differ in what they find
        arguments = self.place.train_arguments(name, "--no_tensorboard", "--log_step=2", quick, *more)
        return self.start([*arguments, "--select_on=val", f"--batch_size={4 // size}"], size, **options)

    def start(self, arguments: list[str], size: int = 1, **options) -> Run:
        self.counter += 1
        return Run(arguments, self.logs / str(self.counter), size, **options)

    def finished(self, name: str, *more: str, size: int = 1) -> Path:
        run = self.run(name, *more, size=size)
        assert run.wait() == [0] * size, run.errors()
        return self.place.folder(name)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("selection"))


@pytest.fixture(scope="module")
def chosen(runs):
    return runs.finished("chosen")


def results(folder: Path, name: str = "results.json") -> dict:
    return json.loads((folder / name).read_text())


def records(folder: Path, prefix: str) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if f"{prefix}/seconds" in record]


def test_the_test_split_is_evaluated_once(runs, chosen, monkeypatch, capfd):
    """With the model that the validation split chose; test.py finds the same numbers in the checkpoint."""
    found = results(chosen)
    assert (found["split"], found["selected_on"]) == ("test", CHOSEN_ON_VAL)
    assert {row["gallery"] for row in found["results"]} == {6}  # all test videos
    log = (chosen / "log.txt").read_text()
    assert "22 training pairs of 11 videos" in log and log.count("evaluation on the val split") == 2
    assert "model_best.pth is chosen on the val split (2 texts, 1 videos)" in log
    assert "test split; model chosen on the val split (2 texts, 1 videos): held out of the training videos" in log
    assert [record["step"] for record in records(chosen, "eval")] == [5, 10]
    (test,) = records(chosen, "test")
    for row in found["results"]:
        if not row["dsl"]:
            assert test[f"test/{row['metric']}_{row['protocol']}/R1"] == row["R1"]
    output = chosen.parent / "again.json"
    arguments = runs.place.test_arguments("chosen", "--load_epoch=0", "--report", f"--output_json={output}")
    code, out, err = call("test.py", arguments, monkeypatch, capfd)
    assert code == 0, err
    assert results(output.parent, output.name)["results"] == found["results"]
    assert results(output.parent, output.name)["selected_on"] == CHOSEN_ON_VAL
    told = "est split; model chosen on the val split (2 texts, 1 videos): held out of the training videos by --seed=24"
    page = (output.parent / "report.html").read_text()
    assert f"t{told}" in out and f"T{told}." in page and "Recall on the val split" in page
    arguments = runs.place.test_arguments("chosen", "--load_epoch=2", f"--output_json={output}")
    assert call("test.py", arguments, monkeypatch, capfd)[0] == 0
    last = results(output.parent, output.name)
    assert last["selected_on"]["split"] is None
    assert last["results"] != found["results"]  # the model that was tested is the best one, not the last


def test_what_the_test_split_chose_says_so(runs):
    run = runs.start(runs.place.train_arguments("on-test", "--num_epochs=1", "--no_tensorboard"))  # --select_on=test
    assert run.wait() == [0], run.errors()
    folder = runs.place.folder("on-test")
    assert results(folder)["selected_on"] == {
        "split": "test", "how": "the best of all evaluations on it, as in published code", "videos": 6, "captions": 6,
    }  # fmt: skip
    assert "model_best.pth is chosen on the test split" in (folder / "log.txt").read_text()
    assert records(folder, "test") == []


def test_two_processes_choose_alike(runs, chosen):
    folder = runs.finished("chosen-2", size=2)
    assert results(folder)["selected_on"] == results(chosen)["selected_on"]
    assert [record["step"] for record in records(folder, "eval")] == [5, 10]
    assert len(records(folder, "test")) == 1 and len(results(folder)["results"]) == len(results(chosen)["results"])


@pytest.mark.parametrize("size", [1, 2])
def test_a_test_that_fails_keeps_the_training(runs, chosen, tmp_path, size):
    """The line names the video and the command that evaluates; so does --resume, with the test alone."""
    videos = shutil.copytree(runs.place.root / "videos", tmp_path / "videos")
    whole = (videos / "video9004.mp4").read_bytes()
    (videos / "video9004.mp4").write_bytes(whole[:500])
    name = f"test-fails-{size}"
    folder = runs.place.folder(name)
    run = runs.run(name, f"--videos_dir={videos}", "--save_every=3", size=size)
    assert run.wait() == [2] * size
    (line,) = run.errors().splitlines()
    assert "video9004.mp4" in line and f"{folder / 'model_best.pth'} is kept" in line
    assert [path.name for path in folder.glob("checkpoint*")] == ["checkpoint-epoch2-step5.pth"]
    assert len(records(folder, "eval")) == 2 and not (folder / "results.json").exists()
    (videos / "video9004.mp4").write_bytes(whole)
    command = re.search(r"evaluate it with python test\.py (.*)$", line)[1].split()
    assert Run(command, runs.logs / f"{name}-test", program="test.py").wait() == [0]
    by_hand = results(folder)
    (folder / "results.json").unlink()
    losses_before = losses(folder)
    run = runs.start([f"--resume={folder}"], size)
    assert run.wait() == [0] * size, run.errors()
    assert results(folder)["results"] == by_hand["results"]
    if size == 1:
        assert by_hand["results"] == results(chosen)["results"]
    assert losses(folder)[:-1] == losses_before  # nothing was trained or evaluated again
    assert len(records(folder, "test")) == 1 and not any(folder.glob("checkpoint*"))


def test_a_signal_interrupts_the_test(runs):
    name = "interrupted"
    folder = runs.place.folder(name)
    run = runs.run(name, "--num_epochs=1", hold=("scoring", 2))
    assert run.held()
    run.signal(signal.SIGTERM)
    assert run.wait() == [143]
    assert not (folder / "results.json").exists() and (folder / "model_best.pth").exists()
    run = runs.start([f"--resume={folder}"])
    assert run.wait() == [0], run.errors()
    assert run.output().count("scoring") == 1
    assert (len(records(folder, "eval")), len(records(folder, "test"))) == (1, 1)


def test_a_run_that_has_ended_is_not_tested_again(runs, chosen):
    before = os.stat(chosen / "results.json").st_mtime_ns
    run = runs.start([f"--resume={chosen}"])
    assert run.wait() == [0], run.errors()
    assert "the run has ended before" in run.output() and "scoring" not in run.output()
    assert os.stat(chosen / "results.json").st_mtime_ns == before and len(records(chosen, "test")) == 1
    run = runs.start([f"--resume={chosen}", "--select_on=test"])
    assert run.wait() == [2]
    assert "--select_on=test contradicts the run" in run.errors()


def test_what_older_checkpoints_were_chosen_on(chosen):
    checkpoint = torch.load(chosen / "model_best.pth", weights_only=True)
    assert selection_of(checkpoint, chosen / "model_best.pth") == Selection(**CHOSEN_ON_VAL)
    older = checkpoint | {"config": {n: v for n, v in checkpoint["config"].items() if n != "select_on"}}
    del older["selected_on"]
    assert Config.from_dict(older["config"]).select_on == "test"
    assert selection_of(older, Path("model_best.pth")).split == "test"
    older["config"]["skip_eval"] = True
    assert selection_of(older, Path("model_best.pth")).split is None
    assert selection_of({"state_dict": {}}, Path("model_best.pth")).split == "unknown"


def test_a_run_that_is_older_than_the_flag_goes_on_with_the_test_split(runs):
    folder = runs.finished("older", "--num_epochs=1", "--save_steps=2")
    for path in folder.glob("*.pth"):
        checkpoint = torch.load(path, weights_only=True)
        del checkpoint["config"]["select_on"]
        for name in ("selected_on", "evaluated", "data"):
            del checkpoint[name]
        torch.save(checkpoint, path)
    (folder / "checkpoint-epoch1.pth").unlink()
    run = runs.start([f"--resume={folder}"])
    assert run.wait() == [0], run.errors()
    assert "24 training pairs of 12 videos" in run.output()
    assert results(folder)["selected_on"]["split"] == "test"
