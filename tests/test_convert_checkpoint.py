"""scripts/convert_checkpoint.py: both directions, both formats, bit by bit."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from config import Config
from model.factory import create_model, restore_model
from model.published import FAMILIES, TEXTDIFFS, XPOOL, to_published
from scripts.convert_checkpoint import read
from tests.made_up import call_program
from trainer.checkpoints import load_checkpoint, save_checkpoint

SIZES = "--clip_arch=tiny --num_frames=3 --diffusion_steps=4 --diffusion_text_len=9 --num_mha_heads=4"
FORMATS = [".pth", ".safetensors"]


@pytest.fixture
def convert(teacher, tmp_path, monkeypatch, capfd):
    """Run the program on a file of tmp_path: exit code and message."""

    def convert(source, target, line=""):
        arguments = [f"--input={tmp_path / source}", f"--output={tmp_path / target}", f"--diffusion_lm={teacher}"]
        return call_program("scripts/convert_checkpoint.py", [*arguments, *line.split()], monkeypatch, capfd)

    return convert


def ours(family, teacher, path):
    """A checkpoint file of ours with weights of random values, and its configuration."""
    torch.manual_seed(3)
    config = Config.parse([*SIZES.split(), f"--arch={family.arch}", "--recipe=published", f"--diffusion_lm={teacher}"])
    model = create_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_checkpoint(path, model, config, epoch=3, step=17)


def published_state(family, teacher, path):
    """A published state of random values, also where nothing computes with them."""
    ours(family, teacher, path)
    state = to_published(load_checkpoint(path)["state_dict"], family)
    unread = {name: make(state) for name, make in family.unread.items()}
    return state | {n: torch.rand(t.shape) if t.is_floating_point() else t for n, t in unread.items()}


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize(("middle", "end"), [FORMATS, FORMATS[::-1]])
def test_published_to_ours_and_back(convert, teacher, tmp_path, family, middle, end):
    state = published_state(family, teacher, tmp_path / "ours.pth")
    torch.save({"epoch": 5, "state_dict": state, "optimizer": {"state": {}}}, tmp_path / "published.pth")
    assert convert("published.pth", f"middle{middle}", SIZES) == (0, "")
    assert convert(f"middle{middle}", f"end{end}") == (0, "")
    back = read(tmp_path / f"end{end}")
    assert back["epoch"] == 5
    assert_same_bits(back["state_dict"], state)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize(("middle", "end"), [FORMATS, FORMATS[::-1]])
def test_ours_to_published_and_back(convert, teacher, tmp_path, family, middle, end):
    ours(family, teacher, tmp_path / "ours.pth")
    before = load_checkpoint(tmp_path / "ours.pth")
    assert convert("ours.pth", f"middle{middle}") == (0, "")
    names = read(tmp_path / f"middle{middle}")["state_dict"].keys()
    assert names >= family.unread.keys()
    assert convert(f"middle{middle}", f"end{end}", SIZES) == (0, "")
    after = read(tmp_path / f"end{end}")
    assert after["epoch"] == 3
    assert_same_bits(after["state_dict"], before["state_dict"])
    for part in ("clip_config", "denoiser", "vocabulary"):
        plain = [json.dumps(file["model_config"][part], sort_keys=True) for file in (after, before)]
        assert plain[0] == plain[1]  # as JSON, which has no keys that are numbers
    restored = restore_model(Config.parse([]), after, tmp_path / f"end{end}")  # without a flag of its shape
    assert_same_bits(restored.state_dict(), before["state_dict"])


def test_names_of_a_converted_file_are_the_published_ones(convert, teacher, tmp_path, conformance_dir):
    """All of them, of another size: the small model has fewer layers."""
    ours(TEXTDIFFS, teacher, tmp_path / "ours.pth")
    assert convert("ours.pth", "published.safetensors") == (0, "")
    listed = json.loads((conformance_dir / "published_checkpoint.json").read_text())["state_dict"]
    state = load_file(tmp_path / "published.safetensors")
    assert state.keys() <= listed.keys()
    deeper = {name for name in listed.keys() - state.keys() if ".layer" in name}
    assert listed.keys() - state.keys() == deeper
    assert {name: str(tensor.dtype) for name, tensor in state.items()} == {
        name: f"torch.{listed[name][1]}" for name in state
    }


def test_published_without_position_ids_comes_back_without(convert, teacher, tmp_path):
    """Newer versions of transformers do not save them."""
    state = published_state(XPOOL, teacher, tmp_path / "ours.pth")
    state = {name: tensor for name, tensor in state.items() if name not in XPOOL.unread}
    torch.save({"epoch": 5, "state_dict": state}, tmp_path / "published.pth")
    assert convert("published.pth", "middle.safetensors", SIZES) == (0, "")
    assert convert("middle.safetensors", "end.pth") == (0, "")
    assert_same_bits(load_checkpoint(tmp_path / "end.pth")["state_dict"], state)


class Dangerous:
    """Pickled as a call that would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_files_with_code_are_refused_unread(convert, tmp_path):
    trace = tmp_path / "trace"
    torch.save({"state_dict": {}, "optimizer": Dangerous(trace)}, tmp_path / "published.pth")
    code, message = convert("published.pth", "ours.pth")
    assert code == 2
    assert "more than tensors" in message
    assert str(tmp_path / "published.pth") in message
    assert message.count("\n") == 1
    assert not trace.exists()
    assert not (tmp_path / "ours.pth").exists()


@pytest.mark.parametrize("what", ["preprocessing", "activation", "heads"])
def test_a_clip_that_published_files_cannot_describe_is_refused(convert, teacher, tmp_path, what):
    """They hold tensors alone: it would come back as another CLIP."""
    ours(XPOOL, teacher, tmp_path / "ours.pth")
    checkpoint = load_checkpoint(tmp_path / "ours.pth")
    model_config = checkpoint["model_config"]
    if what == "preprocessing":
        model_config["preprocessing"]["mean"] = (0.5, 0.5, 0.5)
    elif what == "activation":
        model_config["clip_config"]["vision_config"]["hidden_act"] = "quick_gelu"
    else:
        model_config["clip_config"]["text_config"]["num_attention_heads"] = 2
    torch.save(checkpoint, tmp_path / "ours.pth")
    code, message = convert("ours.pth", "published.pth")
    assert code == 2
    assert {"preprocessing": what, "activation": "hidden_act", "heads": "num_attention_heads"}[what] in message
    assert not (tmp_path / "published.pth").exists()


def test_the_kind_of_a_file_follows_from_its_content(convert, teacher, tmp_path):
    """Weights of the hub are called pytorch_model.bin, whatever they are."""
    state = published_state(XPOOL, teacher, tmp_path / "ours.pth")
    save_file({f"module.{name}": tensor.clone() for name, tensor in state.items()}, tmp_path / "weights.bin")
    assert convert("weights.bin", "middle.pth", SIZES) == (0, "")
    assert convert("middle.pth", "end.pth") == (0, "")
    assert_same_bits(load_checkpoint(tmp_path / "end.pth")["state_dict"], state)


@pytest.mark.parametrize("kind", ["missing", "suffix", "exists", "cut short", "foreign", "foreign names", "arch"])
def test_bad_input_is_one_line(convert, teacher, tmp_path, kind):
    source, target, line = "in.safetensors", "out.pth", ""
    if kind == "missing":
        named = str(tmp_path / source)
    elif kind == "suffix":
        (tmp_path / source).touch()
        target, named = "out.onnx", "out.onnx"
    elif kind == "exists":
        for name in (source, target):
            (tmp_path / name).touch()
        named = str(tmp_path / target)
    elif kind == "cut short":
        (tmp_path / source).write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
        named = str(tmp_path / source)
    elif kind == "foreign":
        save_file({"weight": torch.ones(2)}, tmp_path / source)
        named = "neither"
    else:
        state = published_state(XPOOL, teacher, tmp_path / "ours.pth")
        named = "pool_frames.other.weight" if kind == "foreign names" else "--arch=clip_stochastic"
        if kind == "foreign names":
            state[named] = torch.ones(2)
        save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / source)
        line = SIZES + (" --arch=clip_stochastic" if kind == "arch" else "")
    code, message = convert(source, target, line)
    assert code == 2
    assert named in message
    assert message.count("\n") == 1
