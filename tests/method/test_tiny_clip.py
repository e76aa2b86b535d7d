"""Pictures of MovingShapes, and the tiny CLIP that is pre-trained on them."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.random import Generator, Philox
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from datasets.moving_shapes import scene_of
from datasets.moving_shapes.captions import WORDS, describe_picture
from datasets.moving_shapes.pictures import TRAITS, Picture, Pictures, take_picture
from datasets.moving_shapes.scene import COLOURS, SHAPES, MovingObject, Scene, figures
from model.clip import ClipRetrieval
from model.pretrained import TINY_FOLDER, load_clip
from tests.training_runs import run_forked
from utils.errors import InputError

SIDE, PATCH = 64, 16
NAME_OF = {word: name for name, words in WORDS["colour"].items() for word in words}


class WholeFrame:
    """In place of random numbers: those that take a whole frame."""

    def __init__(self) -> None:
        self.rng = Generator(Philox(0))

    def uniform(self, low: float, high: float) -> float:
        return high

    def __getattr__(self, name: str) -> object:
        return getattr(self.rng, name)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [scene_of(3, "train", index) for index in range(120)]


@pytest.fixture(scope="module")
def pictures(scenes) -> list[Picture]:
    return list(map(Pictures(scenes, 300, SIDE, PATCH, seed=5).__getitem__, range(300)))


def test_a_picture_is_a_function_of_seed_and_number(scenes, pictures):
    again, other = Pictures(scenes, 300, SIDE, PATCH, seed=5)[7], Pictures(scenes, 300, SIDE, PATCH, seed=6)[7]
    for value, same in zip(pictures[7], again, strict=True):
        assert np.array_equal(value, same)
    assert not np.array_equal(pictures[7].pixels, other.pixels)


def test_patches_name_the_colour_that_is_there(pictures):
    """In the middle third of a patch. Holes leave some without, and corners reach out of the disc."""
    right = coloured = wrong = grey = 0
    for picture in pictures:
        assert picture.pixels.shape == (3, SIDE, SIDE) and picture.patches.shape == ((SIDE // PATCH) ** 2, 2)
        cells = picture.pixels.reshape(3, SIDE // PATCH, PATCH, SIDE // PATCH, PATCH).transpose(1, 3, 0, 2, 4)
        for cell, (shape, colour) in zip(cells.reshape(-1, 3, PATCH, PATCH), picture.patches, strict=True):
            assert (shape == 0) == (colour == 0)
            middle = cell[:, 5:11, 5:11].reshape(3, -1).T.astype(int)
            if colour == 0:
                grey += 1
                wrong += np.ptp(cell[:, PATCH // 2, PATCH // 2].astype(int)) > 100
            elif list(COLOURS)[colour - 1] != "white":  # which pale backgrounds are near to
                coloured += 1
                distances = np.abs(middle - COLOURS[list(COLOURS)[colour - 1]]).max(1)
                right += bool((distances < 40).any())
    assert right > 0.75 * coloured > 300
    assert wrong < 0.05 * grey
    assert grey > 1000


def test_traits_and_captions_are_those_of_the_patches(pictures):
    several = 0
    for picture in pictures:
        seen = {(SHAPES[s - 1], list(COLOURS)[c - 1]) for s, c in picture.patches if s}
        traits = {TRAITS[i] for i in np.flatnonzero(picture.traits)}
        pairs = {trait for trait in traits if isinstance(trait, tuple)}
        assert seen <= pairs  # one may lie wholly below another
        assert traits == pairs | {shape for shape, _ in pairs} | {colour for _, colour in pairs}
        told = {NAME_OF[word] for word in picture.caption.split() if word in NAME_OF}
        assert told <= {colour for _, colour in pairs}
        several += len(told) > 1
    assert several > 50


def test_a_picture_without_objects_is_described_by_its_background():
    rng = Generator(Philox(0))
    for background, words in WORDS["background"].items():
        assert describe_picture(background, [], rng) in words


def test_a_figure_has_the_size_that_is_seen():
    grown = MovingObject("star", "red", "small", "still", "grow", change_at=0.3)
    shrunk = replace(grown, size="big", change="shrink")
    for shown, sizes in ((grown, ("small", "big")), (shrunk, ("big", "small"))):
        scene = Scene("grey", (shown,), np.full((1, 24, 2), 0.5))
        assert (figures(scene, 0)[0].size, figures(scene, 23)[0].size) == sizes


def test_the_topmost_object_names_the_patch():
    below, above = MovingObject("square", "red", "big", "still"), MovingObject("star", "blue", "small", "still")
    tracks = np.full((2, 24, 2), 0.5)
    seen = take_picture(Scene("grey", (below, above), tracks), WholeFrame(), SIDE, PATCH)
    red, blue = (1 + SHAPES.index("square"), 1), (1 + SHAPES.index("star"), 3)
    rows = seen.patches.reshape(4, 4, 2)
    assert all(tuple(rows[y, x]) == blue for y in (1, 2) for x in (1, 2))  # 11 of 64 pixels from the middle
    assert (rows[[0, 0, 3, 3], [0, 3, 0, 3]] == 0).all()
    below_only = take_picture(Scene("grey", (below,), tracks[:1]), WholeFrame(), SIDE, PATCH)
    assert tuple(below_only.patches.reshape(4, 4, 2)[1, 1]) == red


def test_the_script_makes_weights_that_load(tmp_path):
    shutil.copytree(TINY_FOLDER, tmp_path / "clip")
    weights = tmp_path / "clip" / "model.safetensors"
    weights.unlink(missing_ok=True)
    done = run_forked(
        "scripts/pretrain_clip.py", f"--output={weights}", "--scenes=24", "--sight_steps=3", "--captions_steps=3",
        "--batch_size=8", "--held_out=8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    clip, _ = load_clip("tiny", str(tmp_path / "clip"))
    torch.manual_seed(7)
    started = load_clip("tiny")[0].state_dict()
    saved, loaded = load_file(weights), clip.state_dict()
    assert saved.keys() == loaded.keys()
    for name, tensor in saved.items():
        assert tensor.dtype == torch.float16
        assert torch.equal(loaded[name], tensor.float())
    for tower in ("text", "vision"):  # both have learned
        name = f"{tower}_model.encoder.layers.0.mlp.fc1.weight"
        assert not torch.equal(saved[name], started[name].half())


def test_weights_of_something_else_are_refused(tmp_path):
    shutil.copytree(TINY_FOLDER, tmp_path / "clip", ignore=shutil.ignore_patterns("*.safetensors"))
    save_file({"nonsense": torch.zeros(3)}, tmp_path / "clip" / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="not those of its config"):
        load_clip("tiny", str(tmp_path / "clip"))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("prefix", ["", "module.", "clip.", "_orig_mod.", "module.model.clip."])
@pytest.mark.parametrize("save", [torch.save, save_file])
def test_a_folder_is_read_whatever_its_file_is(tmp_path, name, prefix, save):
    """Its kind follows from its content, and wrappers are taken off its names."""
    state = load_file(TINY_FOLDER / "model.safetensors")
    shutil.copytree(TINY_FOLDER, tmp_path / "clip", ignore=shutil.ignore_patterns("*.safetensors"))
    save({prefix + key: tensor for key, tensor in state.items()}, tmp_path / "clip" / name)
    loaded = load_clip("tiny", str(tmp_path / "clip"))[0].state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], tensor.float()) for key, tensor in state.items())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.safetensors", b"", "is empty"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "pointer of Git LFS"),
        ("pytorch_model.bin", b"<!DOCTYPE html><html></html>", "is a web page"),
        ("model.safetensors", 1000, "safetensors file that is damaged or cut short"),
        ("config.json", b"{", "config.json cannot be read"),
        ("config.json", b"[]", "config.json is not a JSON object"),
        ("config.json", b'{"model_type": "bert"}', "config.json is that of a bert, not of an image-text encoder"),
        ("config.json", None, "it needs config.json, model.safetensors"),
        ("model.safetensors", {"text_projection.weight": torch.zeros(3, 3)}, "is (3, 3) instead of (128, 128)"),
        ("model.safetensors", None, "it needs config.json, model.safetensors"),
    ],
)
def test_a_folder_that_does_not_load_says_why(tmp_path, capfd, name, content, said):
    shutil.copytree(TINY_FOLDER, tmp_path / "clip")
    path, weights = tmp_path / "clip" / name, tmp_path / "clip" / "model.safetensors"
    if isinstance(content, dict):
        save_file(load_file(weights) | content, path)
    elif content is None:
        path.unlink()
    else:
        data = weights.read_bytes()[:content] if isinstance(content, int) else content
        if name != "config.json":
            weights.unlink()
        path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        load_clip("tiny", str(tmp_path / "clip"))
    message = str(caught.value)
    assert said in message and str(tmp_path / "clip") in message
    assert "\n" not in message and "\x1b" not in message
    assert capfd.readouterr() == ("", "")  # no report of transformers


@pytest.mark.parametrize("attribute", ["shape", "colour"])
@torch.no_grad()
def test_the_pretrained_tiny_clip_knows_shapes_and_colours(attribute):
    """Zero-shot classification of pictures with one object, as CLIP's authors do it, by prompts like the captions."""
    model = ClipRetrieval(*load_clip("tiny-shapes")).eval()
    rng, names = Generator(Philox(1)), {"shape": SHAPES, "colour": tuple(COLOURS)}[attribute]
    pixels, labels = [], []
    for index in range(800):
        scene = scene_of(3, "test", index)
        shown = scene.objects[0]
        if len(scene.objects) == 1 and shown.change != "colour":
            picture = take_picture(scene, rng, SIDE, PATCH)
            if picture.patches.any():  # it has appeared
                pixels.append(torch.from_numpy(picture.pixels))
                labels.append(names.index(getattr(shown, attribute)))
    prompts = [f"the {name} shape" if attribute == "colour" else f"the {name}" for name in names]
    texts = F.normalize(model.encode_texts(**model.tokenize(prompts)), dim=-1)
    images = F.normalize(model.encode_videos(torch.stack(pixels)[:, None]).frames[:, 0], dim=-1)
    right = ((images @ texts.T).argmax(1) == torch.tensor(labels)).float().mean()
    assert len(labels) > 100
    assert right > 0.75, f"{100 * right:.0f} % right, chance {100 / len(names):.0f} %"
