"""Checkpoints: what is written can be read, what cannot be read is named."""

import argparse
import os
import pickle
import random
import time
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch

from config import Config
from model.factory import create_model, restore_model
from model.published_textdiffs import PublishedTextDiffs
from model.textdiffs import TextDiffs
from modules.stochastic_text import Prior
from tests.checkpoint_files import assert_contradiction_is_named, assert_equal_states, failure, saved
from tests.made_up import as_before
from trainer.checkpoints import find_checkpoint, load_checkpoint, save_checkpoint
from trainer.resume import resume
from utils.errors import InputError

ARCHS = ["--arch=clip_stochastic", "--arch=clip_stochastic --recipe=published", "--arch=clip_transformer",
         "--arch=clip_tmass --stochastic_prior=normal --stochastic_prior_std=0.5",
         "--arch=clip_wti", "--arch=clip_baseline --pooling_type=topk --k=2"]  # fmt: skip


# round trip


@pytest.mark.parametrize("line", ARCHS)
def test_round_trip_is_bit_identical(parse, tmp_path, line):
    """The checkpoint alone says what the model is: no flag of its shape is given when it is read."""
    path = tmp_path / "model.pth"
    model = saved(parse, path, f"{line} --num_mha_heads=4")
    checkpoint = load_checkpoint(path)
    assert (checkpoint["epoch"], checkpoint["step"], checkpoint["metrics"]) == (2, 17, {"R1": 12.5})
    restored = restore_model(parse(small=False), checkpoint, path)
    assert type(restored) is type(model)
    assert_equal_states(restored.state_dict(), model.state_dict())
    config = restored.model_config
    assert config == model.model_config
    assert (config.num_frames, config.num_mha_heads, config.input_res) == (3, 4, 64)
    if "tmass" in line:
        assert restored.prior == model.prior == Prior("normal", 0.5)
    if "baseline" in line:
        assert (restored.pool_frames.kind, restored.pool_frames.k) == ("topk", 2)
    published = "published" in line
    if "clip_stochastic" in line:
        assert isinstance(model, PublishedTextDiffs if published else TextDiffs)
        assert restored.vocabulary.token_to_id == model.vocabulary.token_to_id
        diffusion = restored.text_diffusion if published else restored.potential
        assert (diffusion.text_length, diffusion.diffusion.num_steps) == (9, 4)
    if published:
        assert restored.sampling_diffusion.num_steps == 4


# files that are no checkpoints


class Dangerous:
    """Pickled as a call that would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    "kind", ["cut short", "one byte less", "text", "empty", "folder", "missing", "list", "no state"]
)
def test_damaged_files_are_named(parse, tmp_path, kind):
    path = tmp_path / "model.pth"
    if kind in ("cut short", "one byte less"):
        saved(parse, path, "--arch=clip_transformer")
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] if kind == "cut short" else data[:-1])
    elif kind == "text":
        path.write_text("this is no checkpoint\n" * 100)
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "list":
        torch.save([torch.ones(3)], path)
    elif kind == "no state":
        torch.save({"epoch": 3, "model": {}}, path)
    assert str(path) in failure(load_checkpoint, path)


def test_files_with_code_are_refused_unread(tmp_path):
    path, trace = tmp_path / "model.pth", tmp_path / "trace"
    torch.save({"state_dict": {}, "epoch": Dangerous(trace)}, path)
    message = failure(load_checkpoint, path)
    assert str(path) in message
    assert not trace.exists()


class Whole(torch.nn.Linear):
    """A model that was saved as it is."""


STATE = {"a": torch.ones(300, 300)}
SAID = {
    "numpy": ({"R1": np.float64(3)}, "numpy._core.multiarray.scalar"),
    "array": ({"ids": np.zeros(3)}, "more than tensors and plain values"),
    "arguments": ({"args": argparse.Namespace(lr=1)}, "argparse.Namespace"),
    "model": (Whole(2, 2), "Whole"),
    "cut": (STATE, "is damaged or cut short"),
    "bit": (STATE, "is damaged: the checksum of model/data.pkl is wrong"),
    "empty": (b"", "is empty"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is only a pointer of Git LFS"),
    "page": (b"\n<!doctype html><html>", "is a web page"),
    "text": (b"hello", "or neither a file of torch.save nor of safetensors"),
    "pickle": (pickle.dumps({"a": 1}), "or neither a file of torch.save nor of safetensors"),
    "safetensors": (safetensors.torch.save(STATE)[:-1], "is a safetensors file that is damaged or cut short"),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", SAID)
def test_what_is_wrong_with_a_file_is_said(tmp_path, kind, legacy):
    """One true sentence, without torch's advice to read it all the same."""
    content, said = SAID[kind]
    path = tmp_path / "model.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    elif kind == "bit":
        if legacy:
            return  # which has no checksums
        path.write_bytes(path.read_bytes().replace(b"torch._utils", b"korch._utils"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        message = failure(load_checkpoint, path)
    assert said in message and message.startswith(str(path))
    assert "weights_only" not in message and "\x1b" not in message
    if kind not in ("cut", "bit", "text", "pickle", "safetensors"):
        assert "damaged" not in message


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_other_archives_are_named(tmp_path):
    path = tmp_path / "model.pth"
    with open(path, "wb") as file:
        np.savez(file, a=np.zeros(3))
    assert "a zip archive of something else" in failure(load_checkpoint, path)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    assert "TorchScript" in failure(load_checkpoint, path)
    path.write_bytes(safetensors.torch.save(STATE))
    assert "no checkpoint" in failure(load_checkpoint, path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("seed", range(40))
def test_any_bytes_are_an_input_error(tmp_path, seed):
    """Unpicklers fail in many ways on bytes that are no pickle, or one with a few bytes changed."""
    generator = random.Random(seed)
    path = tmp_path / "model.pth"
    torch.save({"state_dict": {"a": torch.ones(2)}, "epoch": 3}, path, _use_new_zipfile_serialization=False)
    data = bytearray(path.read_bytes())
    if seed % 2:
        data = bytearray(generator.choices(b"(lp0.,]}:q\x80\x02aeiou \n", k=200))
    else:
        for _ in range(5):
            data[generator.randrange(len(data))] = generator.randrange(256)
    path.write_bytes(data)
    try:
        load_checkpoint(path)
    except InputError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "content",
    [{"state_dict": {}}, {"state_dict": {"weight": torch.ones(2)}, "config": {}, "clip_config": {}},
     {"state_dict": {}, "config": {"arch": "clip_transformer"}, "clip_config": {}}],
)  # fmt: skip
def test_checkpoints_of_other_projects_are_named(parse, tmp_path, content):
    path = tmp_path / "model.pth"
    torch.save(content, path)
    assert str(path) in failure(restore_model, parse(), load_checkpoint(path), path)


# checkpoints of other models


@pytest.mark.parametrize(
    ("flag", "trained"),
    [
        ("--arch=clip_transformer", "--arch=clip_stochastic"),
        ("--recipe=published", "--recipe=textdiffs"),
        ("--num_frames=12", "--num_frames=3"),
        ("--diffusion_steps=10", "--diffusion_steps=4"),
        ("--diffusion_text_len=64", "--diffusion_text_len=9"),
        ("--num_mha_heads=2", "--num_mha_heads=1"),
        ("--clip_arch=ViT-B/32", "--clip_arch=tiny"),
        ("--input_res=96", "--input_res=64"),
        ("--pooling_type=avg", "--pooling_type=transformer"),
    ],
)
def test_flags_that_contradict_the_checkpoint_are_named(parse, tmp_path, flag, trained):
    path = tmp_path / "model.pth"
    saved(parse, path)
    assert_contradiction_is_named(parse, path, flag, trained)
    restore_model(parse(trained, small=False), load_checkpoint(path), path)  # the same value may be given


# checkpoints of before: TextDiffs moved the text, with flags that are no more

BEFORE = {
    "cond_negatives": 0, "hard_share": 0.5, "undiffused_loss_weight": 0.0, "score_fusion": 0.8, "fused_pooling": "mean",
    "condition": "tokens", "round_last": "no",
}  # fmt: skip
PUBLISHED_BEFORE = BEFORE | {"score_fusion": 0.0, "fused_pooling": "text", "round_last": "yes"}


def of_before(parse, path, line, settings):
    """A checkpoint file as it was written then, and the model in it."""
    model = saved(parse, path, line)
    checkpoint = as_before(load_checkpoint(path))
    for flag in ("hard_negatives", "read_captions", "potential_lr"):
        del checkpoint["config"][flag]
    checkpoint["config"] |= settings
    torch.save(checkpoint, path)
    return model


@pytest.mark.parametrize(
    "settings",
    [BEFORE | {"recipe": "textdiffs"}, {"recipe": "textdiffs"}, PUBLISHED_BEFORE | {"score_fusion": 0.5},
     PUBLISHED_BEFORE | {"condition": "sentence"}, PUBLISHED_BEFORE | {"cond_negatives": 4}],
)  # fmt: skip
def test_checkpoints_of_a_recipe_that_has_changed_are_named(parse, tmp_path, settings):
    """Both to evaluate them and to go on with them, and not by what is missing."""
    path = tmp_path / "model.pth"
    of_before(parse, path, "--recipe=published", settings)
    message = failure(restore_model, parse(small=False), load_checkpoint(path), path)
    assert message == (
        f"{path} was trained with a recipe of TextDiffs that has changed since: train anew, or evaluate it with the "
        f"version of this project that wrote it"
    )
    config, _, checkpoint = resume(parse(f"--resume={path}", small=False))
    assert failure(restore_model, config, checkpoint, path) == message


@pytest.mark.parametrize(
    ("line", "settings"),
    [("--recipe=published", PUBLISHED_BEFORE), ("--recipe=published", {}), ("--arch=clip_transformer", BEFORE),
     ("--arch=clip_tmass", BEFORE)],
)  # fmt: skip
def test_other_checkpoints_of_before_are_what_they_were(parse, tmp_path, line, settings):
    path = tmp_path / "model.pth"
    model = of_before(parse, path, line, settings)
    for config in (parse(small=False), parse(f"--resume={path}", small=False)):
        checkpoint = load_checkpoint(path)
        if config.resume:
            config, _, checkpoint = resume(config)
        restored = restore_model(config, checkpoint, path)
        assert type(restored) is type(model)
        assert_equal_states(restored.state_dict(), model.state_dict())
        assert not config.to_dict().keys() & BEFORE.keys()
    config.save(tmp_path / "config.json")
    assert Config.load(tmp_path / "config.json").to_dict() == config.to_dict()


def test_resume_alone_means_the_newest_run(parse, tmp_path):
    for age, name in ((30, "b"), (10, "c"), (20, "a")):
        folder = tmp_path / "outputs" / "name" / name
        saved(parse, folder / "checkpoint-epoch1.pth")
        parse().save(folder / "config.json")
        then = time.time() - age
        os.utime(folder, (then, then))
    config, path, _ = resume(parse("--resume"))
    assert path.parent.name == config.datetime == "c"
    assert resume(parse("--resume --datetime=b"))[1].parent.name == "b"
    empty = parse("--resume --exp_name=other")
    assert resume(empty) == (empty, None, None)


def test_arch_alias_does_not_contradict(parse, tmp_path):
    path = tmp_path / "model.pth"
    saved(parse, path)
    restore_model(parse("--arch=clip_textdiffs", small=False), load_checkpoint(path), path)


def test_width_that_contradicts_the_checkpoint_is_named(parse, tmp_path):
    path = tmp_path / "model.pth"
    saved(parse, path)
    message = failure(restore_model, parse("--embed_dim=512", small=False), load_checkpoint(path), path)
    assert "--embed_dim=512" in message
    assert "128" in message


@pytest.mark.parametrize("change", ["missing", "left over", "other size"])
def test_weights_that_do_not_fit_are_listed(parse, tmp_path, change):
    path = tmp_path / "model.pth"
    saved(parse, path)
    checkpoint = load_checkpoint(path)
    state = checkpoint["state_dict"]
    name = "pool_frames.linear_proj.bias"
    if change == "missing":
        del state[name]
    elif change == "left over":
        name = "pool_frames.no_such_layer.bias"
        state[name] = torch.ones(2)
    else:
        state[name] = torch.ones(3)
    message = failure(restore_model, parse(small=False), checkpoint, path)
    assert str(path) in message
    assert name in message


# where checkpoints lie


@pytest.mark.parametrize(
    ("load_epoch", "name"), [(0, "model_best.pth"), (-1, "model_best.pth"), (3, "checkpoint-epoch3.pth")]
)
@pytest.mark.parametrize("folder", ["run", "run_1e-07", "run_1e-7"])
def test_checkpoints_are_found(parse, tmp_path, load_epoch, name, folder):
    """In <datetime>, or in <datetime>_<noclip_lr> as published runs are named."""
    path = tmp_path / "outputs" / "name" / folder / name
    path.parent.mkdir(parents=True)
    path.touch()
    assert find_checkpoint(parse(f"--datetime=run --load_epoch={load_epoch} --noclip_lr=1e-7")) == path


@pytest.mark.parametrize("rate", ["1e-5", "3e-5", "0.00001", "0.001", "2.5e-6"])
def test_published_folder_names_follow_the_rate(parse, tmp_path, rate):
    """Their names were made by str() of the number."""
    path = tmp_path / "outputs" / "name" / f"run_{float(rate)}" / "model_best.pth"
    path.parent.mkdir(parents=True)
    path.touch()
    assert find_checkpoint(parse(f"--datetime=run --load_epoch=0 --noclip_lr={rate}")) == path


def test_the_plain_folder_comes_first(parse, tmp_path):
    for folder in ("run_1e-05", "run"):
        path = tmp_path / "outputs" / "name" / folder / "model_best.pth"
        path.parent.mkdir(parents=True)
        path.touch()
    assert find_checkpoint(parse("--datetime=run --load_epoch=0")) == path


def test_missing_checkpoint_is_named_with_what_there_is(parse, tmp_path):
    folder = tmp_path / "outputs" / "name" / "run"
    message = failure(find_checkpoint, parse("--datetime=run --load_epoch=7"))
    assert str(folder / "checkpoint-epoch7.pth") in message
    folder.mkdir(parents=True)
    (folder / "checkpoint-epoch2.pth").touch()
    message = failure(find_checkpoint, parse("--datetime=run --load_epoch=7"))
    assert str(folder / "checkpoint-epoch7.pth") in message
    assert "checkpoint-epoch2.pth" in message


def test_load_epoch_needs_a_run(parse):
    assert "--datetime" in failure(find_checkpoint, parse("--load_epoch=0"))


# writing


def test_a_place_that_cannot_be_written_is_named(parse, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "model.pth", tmp_path / "missing" / "model.pth"):
        config = parse("--arch=clip_transformer")
        assert str(path) in failure(save_checkpoint, path, create_model(config), config, 1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("written", [0, 1000])
def test_a_full_disk_leaves_the_old_checkpoint(parse, tmp_path, monkeypatch, written):
    path = tmp_path / "model.pth"
    saved(parse, path, "--arch=clip_transformer")
    before = path.read_bytes()

    def full(value, file):
        file.write(b"x" * written)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    config = parse("--arch=clip_transformer")
    message = failure(save_checkpoint, path, create_model(config), config, 9, 9)
    assert str(path) in message
    assert "No space left" in message
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_checkpoint_is_replaced(parse, tmp_path):
    path = tmp_path / "model.pth"
    saved(parse, path, "--arch=clip_transformer")
    config = parse("--arch=clip_transformer")
    save_checkpoint(path, create_model(config), config, 9, 9)
    assert load_checkpoint(path)["epoch"] == 9
    assert list(tmp_path.iterdir()) == [path]
