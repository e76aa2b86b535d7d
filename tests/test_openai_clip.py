"""OpenAI's own CLIP files for --clip_path, against a network of torch's own layers that has OpenAI's names."""

import shutil
from collections import OrderedDict

import huggingface_hub
import pytest
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel

from diffusion_lm.errors import InputError
from model.clip import HUB_IDS, TINY_FOLDER, ClipRetrieval, load_clip
from tests.published_files import made_up_tokenizer

WORDS = 49_408


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """Pre-norm layer with the names of OpenAI's; the attention is torch's."""

    def __init__(self, width):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        layers = {"c_fc": nn.Linear(width, 4 * width), "gelu": QuickGELU(), "c_proj": nn.Linear(4 * width, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x, mask=None):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width, layers):
        super().__init__()
        self.resblocks = nn.ModuleList([Block(width) for _ in range(layers)])

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(self, width, layers, patch, side, dim):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((side // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, layers)
        self.proj = nn.Parameter(torch.randn(width, dim) / width**0.5)

    def forward(self, pixels):
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class OpenAIClip(nn.Module):
    """A small CLIP as in Radford et al. 2021, sections 2.4 and 2.5: text 128, image 192, both 3 layers, D = 96."""

    def __init__(self):
        super().__init__()
        self.visual = Visual(width=192, layers=3, patch=16, side=64, dim=96)
        self.transformer = Transformer(128, 3)
        self.token_embedding = nn.Embedding(WORDS, 128)
        self.positional_embedding = nn.Parameter(torch.randn(77, 128))
        self.ln_final = nn.LayerNorm(128)
        self.text_projection = nn.Parameter(torch.randn(128, 96) / 128**0.5)
        self.logit_scale = nn.Parameter(torch.tensor(4.6))

    def forward(self, pixels):
        return self.visual(pixels)

    def encode_text(self, ids):
        length = ids.shape[1]
        mask = torch.full((length, length), float("-inf")).triu(1)
        x = self.transformer(self.token_embedding(ids) + self.positional_embedding[:length], mask)
        return self.ln_final(x)[torch.arange(len(ids)), ids.argmax(1)] @ self.text_projection


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(0)
    model = OpenAIClip().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "ln_" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))  # else swapped ones would go unnoticed
    return model


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    return made_up_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def file(original, tokenizer_folder, tmp_path):
    """A state dict with the three numbers that OpenAI's have beside their weights, and the tokenizer."""
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    numbers = {"input_resolution": 64, "context_length": 77, "vocab_size": WORDS}
    path = tmp_path / "clip.pt"
    torch.save(original.state_dict() | {name: torch.tensor(number) for name, number in numbers.items()}, path)
    return path


def features_agree(original, clip, tokenizer, **tolerance):
    model = ClipRetrieval(clip, tokenizer).eval()
    ids = model.tokenize(["a man plays", "two dogs run on the beach", "onion"])["token_ids"]
    assert ids.max() == WORDS - 1
    frames = torch.randint(0, 256, (2, 3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    pixels = (frames.flatten(0, 1).float() / 255 - model.pixel_mean) / model.pixel_std
    with torch.no_grad():
        torch.testing.assert_close(model.encode_texts(ids), original.encode_text(ids), **tolerance)
        torch.testing.assert_close(model.encode_videos(frames).flatten(0, 1), original(pixels), **tolerance)


def test_features_are_those_of_the_original(original, file):
    features_agree(original, *load_clip("ViT-B/32", str(file)), atol=2e-5, rtol=2e-5)


def test_half_precision_files_become_float32(original, file):
    torch.save({name: tensor.half() for name, tensor in original.state_dict().items()}, file)
    clip, tokenizer = load_clip("ViT-B/32", str(file))
    assert {parameter.dtype for parameter in clip.parameters()} == {torch.float32}
    features_agree(original, clip, tokenizer, atol=2e-2, rtol=2e-2)


def failure(path):
    with pytest.raises(InputError) as caught:
        load_clip("ViT-B/32", str(path))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_torchscript_archives_are_refused_with_the_way_out(original, file):
    torch.jit.save(torch.jit.trace(original, torch.randn(1, 3, 64, 64)), file)
    message = failure(file)
    assert "TorchScript" in message
    assert "torch.jit.load" in message


@pytest.mark.parametrize("change", ["missing", "left over", "other size", "resnet", "transformers", "list"])
def test_files_that_do_not_fit_are_named(original, file, change):
    state = original.state_dict()
    named = {
        "missing": "text_model.final_layer_norm.bias", "left over": "visual.new.weight", "resnet": "ResNet",
        "other size": "vision_model.pre_layrnorm.bias", "transformers": "visual.conv1.weight", "list": "OpenAI",
    }[change]  # fmt: skip
    if change == "missing":
        del state["ln_final.bias"]
    elif change == "left over":
        state[named] = torch.ones(2)
    elif change == "resnet":
        state["visual.layer1.0.conv1.weight"] = torch.ones(2)
    elif change == "other size":
        state["visual.ln_pre.bias"] = torch.ones(3)
    elif change == "transformers":
        state = CLIPModel(CLIPConfig.from_pretrained(TINY_FOLDER)).state_dict()
    else:
        state = [torch.ones(2)]
    torch.save(state, file)
    assert named in failure(file)


def test_a_missing_tokenizer_is_an_error(original, file, monkeypatch):
    """transformers itself goes on with an empty tokenizer, and every caption becomes the same."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setitem(HUB_IDS, "ViT-B/32", "nobody/no-such-clip")
    for name in ("vocab.json", "merges.txt"):
        (file.parent / name).unlink()
    with pytest.raises(InputError, match=r"vocab\.json and merges\.txt") as caught:
        load_clip("ViT-B/32", str(file))
    assert "\n" not in str(caught.value)
