"""OpenAI's own CLIP files for --clip_path, against a network of torch's own layers that has OpenAI's names."""

import json
import re
import shutil
import time
from collections import OrderedDict

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPConfig, CLIPModel

from datasets.transforms import Preprocessing
from model.clip import ClipRetrieval
from model.preprocessing import read_preprocessing
from model.pretrained import HUB_IDS, TINY_FOLDER, load_clip
from tests.published_files import made_up_tokenizer
from utils.errors import InputError

WORDS = 49_408


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """Pre-norm layer with the names of OpenAI's; the attention is torch's."""

    def __init__(self, width, act, heads):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        layers = {"c_fc": nn.Linear(width, 4 * width), "gelu": act(), "c_proj": nn.Linear(4 * width, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x, mask=None):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width, layers, act, heads):
        super().__init__()
        self.resblocks = nn.ModuleList([Block(width, act, heads) for _ in range(layers)])

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(self, width, layers, patch, side, dim, act, heads):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((side // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, act, heads)
        self.proj = nn.Parameter(torch.randn(width, dim) / width**0.5)

    def forward(self, pixels):
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class OpenAIClip(nn.Module):
    """A small CLIP as in Radford et al. 2021, sections 2.4 and 2.5: text 128, image 192, both 3 layers, D = 96."""

    def __init__(self, act=QuickGELU, image_heads=3, text_heads=2):
        super().__init__()
        self.visual = Visual(width=192, layers=3, patch=16, side=64, dim=96, act=act, heads=image_heads)
        self.transformer = Transformer(128, 3, act, text_heads)
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


def network(**form):
    """A CLIP with random weights, the same whatever its form."""
    torch.manual_seed(0)
    model = OpenAIClip(**form).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "ln_" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))  # else swapped ones would go unnoticed
    return model


@pytest.fixture(scope="module")
def original():
    return network()


def openai_state(model):
    """A state dict with the three numbers that OpenAI's have beside their weights."""
    numbers = {"input_resolution": 64, "context_length": 77, "vocab_size": WORDS}
    return model.state_dict() | {name: torch.tensor(number) for name, number in numbers.items()}


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    return made_up_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def file(original, tokenizer_folder, tmp_path):
    """OpenAI's state dict, and the tokenizer beside it."""
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "clip.pt"
    torch.save(openai_state(original), path)
    return path


def features_agree(original, clip, tokenizer, **tolerance):
    model = ClipRetrieval(clip, tokenizer).eval()
    ids = model.tokenize(["a man plays", "two dogs run on the beach", "onion"])["token_ids"]
    assert ids.max() == WORDS - 1
    frames = torch.randint(0, 256, (2, 3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    pixels = (frames.flatten(0, 1).float() / 255 - model.pixel_mean) / model.pixel_std
    with torch.no_grad():
        torch.testing.assert_close(model.encode_texts(ids), original.encode_text(ids), **tolerance)
        torch.testing.assert_close(model.encode_videos(frames).frames.flatten(0, 1), original(pixels), **tolerance)


def test_features_are_those_of_the_original(original, file):
    features_agree(original, *load_clip("ViT-B/32", str(file)), atol=2e-5, rtol=2e-5)


def test_half_precision_files_become_float32(original, file):
    torch.save({name: tensor.half() for name, tensor in openai_state(original).items()}, file)
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


CHANGES = ["missing", "left over", "other size", "resnet", "transformers", "list", "images", "texts", "two", "mask"]


@pytest.mark.parametrize("change", CHANGES)
def test_files_that_do_not_fit_are_named(original, file, change):
    state = openai_state(original)
    named = {
        "missing": "text_model.final_layer_norm.bias", "left over": "visual.new.weight", "resnet": "ResNet",
        "other size": "vision_model.pre_layrnorm.bias", "transformers": "transformers' names", "list": "OpenAI",
        "images": "but not the text encoder", "texts": "but not the image encoder", "mask": "not causal",
        "two": "several CLIPs, below student. and teacher.",
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
    elif change in ("images", "texts"):
        state = {name: tensor for name, tensor in state.items() if name.startswith("visual.") == (change == "images")}
    elif change == "two":
        state = {f"{part}.{name}": tensor for part in ("student", "teacher") for name, tensor in state.items()}
    elif change == "mask":
        state["attn_mask"] = torch.zeros(77, 77)
    else:
        state = [torch.ones(2)]
    torch.save(state, file)
    assert named in failure(file)


WRAPPED = [
    "", "module.", "model.", "clip.", "_orig_mod.", "module.clip.", "module._orig_mod.", "_orig_mod.module.model.clip.",
    "model.clip_model.",
]  # fmt: skip


@pytest.mark.parametrize("prefix", WRAPPED)
def test_wrappers_are_taken_off(original, file, prefix):
    """As DataParallel, torch.compile, Lightning and larger models put a CLIP away, in a checkpoint with other parts."""
    state = {prefix + name: tensor for name, tensor in openai_state(original).items()}
    others = {"module.head.weight": torch.ones(2)} if "clip" in prefix else {}
    content = {"epoch": 3, "name": "run", "state_dict": state | others, "optimizer": {"state": {}}, "scaler": {}}
    torch.save(content, file)
    features_agree(original, *load_clip("ViT-B/32", str(file)), atol=2e-5, rtol=2e-5)


def test_wrappers_within_names_are_taken_off(original, file):
    """Encoders that were compiled, or given to several processes, each by itself."""
    state = {name.replace("visual.", "visual._orig_mod."): tensor for name, tensor in openai_state(original).items()}
    state = {name.replace("resblocks.1.", "resblocks.1.module."): tensor for name, tensor in state.items()}
    torch.save(state, file)
    features_agree(original, *load_clip("ViT-B/32", str(file)), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", ["clip.safetensors", "open_clip_model.bin", "pytorch_model.bin.2"])
def test_what_a_file_is_follows_from_its_content(original, file, name):
    state = {f"module.{name}": tensor.contiguous() for name, tensor in openai_state(original).items()}
    save_file(state, file.with_name(name))
    features_agree(original, *load_clip("ViT-B/32", str(file.with_name(name))), atol=2e-5, rtol=2e-5)
    file.rename(file.with_name("torch.safetensors"))
    features_agree(original, *load_clip("ViT-B/32", str(file.with_name("torch.safetensors"))), atol=2e-5, rtol=2e-5)


# open_clip, whose files have the same names


LAION = {
    "model_cfg": {
        "embed_dim": 96,
        "vision_cfg": {"image_size": 64, "layers": 3, "width": 192, "patch_size": 16, "head_width": 48},
        "text_cfg": {"context_length": 77, "vocab_size": WORDS, "width": 128, "heads": 4, "layers": 3},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 0.75], "resize_mode": "squash", "size": 64},
}


def describe(file, content):
    (file.parent / "open_clip_config.json").write_text(json.dumps(content))


@pytest.mark.parametrize("prefix", ["", "module.", "clip."])
def test_a_file_that_does_not_say_its_activation_is_refused(original, file, prefix):
    torch.save({prefix + name: tensor for name, tensor in original.state_dict().items()}, file)
    message = failure(file)
    assert "quick_gelu" in message and "open_clip_config.json" in message
    describe(file, {"model_cfg": {"quick_gelu": True}})  # the way out that it names
    features_agree(original, *load_clip("ViT-B/32", str(file)), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("quick", [True, False])
def test_activation_and_heads_are_those_of_the_configuration(file, quick):
    laion = network(act=QuickGELU if quick else nn.GELU, image_heads=4, text_heads=4)
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in laion.state_dict().items()}}, file
    )
    describe(file, LAION | {"model_cfg": LAION["model_cfg"] | {"quick_gelu": quick}})
    features_agree(laion, *load_clip("ViT-B/32", str(file)), atol=2e-5, rtol=2e-5)
    other = network(act=nn.GELU if quick else QuickGELU, image_heads=4, text_heads=4)
    with pytest.raises(AssertionError):  # the two differ by far more
        features_agree(other, *load_clip("ViT-B/32", str(file)), atol=2e-3, rtol=2e-3)


def test_heads_that_a_configuration_leaves_out_are_open_clips_default(file):
    """Eight for texts; for pictures as many as 64 goes into the width."""
    laion = network(act=nn.GELU, text_heads=8)
    torch.save(laion.state_dict(), file)
    sizes = {part: dict(LAION["model_cfg"][part]) for part in ("vision_cfg", "text_cfg")}
    del sizes["vision_cfg"]["head_width"], sizes["text_cfg"]["heads"]
    describe(file, {"model_cfg": LAION["model_cfg"] | sizes})
    features_agree(laion, *load_clip("ViT-B/32", str(file)), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_a_folder_of_open_clip_is_read(file, name):
    laion = network(act=nn.GELU, image_heads=4, text_heads=4)
    file.unlink()
    (save_file if name.endswith("safetensors") else torch.save)(laion.state_dict(), file.with_name(name))
    describe(file, LAION)
    features_agree(laion, *load_clip("ViT-B/32", str(file.parent)), atol=2e-5, rtol=2e-5)
    expected = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.5, 0.75), whole=True), 64
    assert read_preprocessing(str(file.parent)) == read_preprocessing(str(file.with_name(name))) == expected


@pytest.mark.parametrize(
    ("part", "setting", "named"),
    [
        ("vision_cfg", {"timm_model_name": "vit_base"}, "vision_cfg.timm_model_name"),
        ("vision_cfg", {"ls_init_value": 1e-5}, "vision_cfg.ls_init_value"),
        ("vision_cfg", {"pool_type": "avg"}, "vision_cfg.pool_type"),
        ("text_cfg", {"hf_tokenizer_name": "xlm"}, "text_cfg.hf_tokenizer_name"),
        ("text_cfg", {"no_causal_mask": True}, "text_cfg.no_causal_mask"),
        ("text_cfg", {"pool_type": "argmax", "embed_cls": False}, None),
    ],
)
def test_a_clip_of_another_kind_is_refused(file, part, setting, named):
    model = LAION["model_cfg"] | {part: LAION["model_cfg"][part] | setting}
    torch.save(network(act=nn.GELU).state_dict(), file)
    describe(file, {"model_cfg": model})
    if named is None:
        load_clip("ViT-B/32", str(file))
    else:
        with pytest.raises(InputError, match=re.escape(named)):
            load_clip("ViT-B/32", str(file))


def test_a_configuration_that_contradicts_the_file_is_refused(file):
    describe(file, LAION)
    assert "two folders" in failure(file)


@pytest.mark.parametrize("beside", ["pool_frames.linear_proj.bias", "stochastic.std_branch.x", "transformerClip.x"])
def test_programs_that_know_only_openais_clip_say_which_it_is(original, file, beside):
    """X-Pool, T-MASS, CLIP4Clip."""
    state = {f"clip.{name}": tensor for name, tensor in original.state_dict().items()}
    torch.save(
        {"state_dict": {f"module.{name}": tensor for name, tensor in (state | {beside: torch.ones(2)}).items()}}, file
    )
    features_agree(original, *load_clip("ViT-B/32", str(file)), atol=2e-5, rtol=2e-5)


def test_the_causal_mask_that_open_clip_once_saved_is_no_weight(original, file):
    torch.save(openai_state(original) | {"attn_mask": torch.full((77, 77), float("-inf")).triu(1)}, file)
    features_agree(original, *load_clip("ViT-B/32", str(file)), atol=2e-5, rtol=2e-5)


def test_a_missing_tokenizer_is_an_error(original, file, monkeypatch):
    """transformers itself goes on with an empty tokenizer, and every caption becomes the same."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setitem(HUB_IDS, "ViT-B/32", "nobody/no-such-clip")
    for name in ("vocab.json", "merges.txt"):
        (file.parent / name).unlink()
    with pytest.raises(InputError, match=r"vocab\.json and merges\.txt") as caught:
        load_clip("ViT-B/32", str(file))
    assert "\n" not in str(caught.value)


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch):
    """Its library would try for half a minute."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    begun = time.perf_counter()
    with pytest.raises(InputError, match="nobody/no-such-clip is not in the local cache and cannot be downloaded"):
        load_clip("ViT-B/32", "nobody/no-such-clip")
    assert time.perf_counter() - begun < 10
