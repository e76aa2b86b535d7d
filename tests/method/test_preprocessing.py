"""How a CLIP was shown its pictures, which its files say: against transformers' own processor of pictures."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from config import Config
from datasets import transforms
from datasets.moving_shapes import render, scene_of
from datasets.transforms import OPENAI, Preprocessing
from evaluation.embeddings import clip_marks, differences
from model.clip import ClipRetrieval
from model.factory import create_model, restore_model
from model.preprocessing import read_preprocessing
from model.pretrained import TINY_FOLDER, load_clip
from tests.made_up import as_before
from trainer.checkpoints import load_checkpoint, save_checkpoint
from utils.errors import InputError

HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
CROP = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
SQUARE = {"size": {"height": 64, "width": 64}, "do_center_crop": False}


@pytest.fixture
def folder(tmp_path):
    """An image-text pre-trained CLIP, for sides of 64, without a word on preprocessing."""
    return shutil.copytree(TINY_FOLDER, tmp_path / "clip")


def says(folder, values, name="preprocessor_config.json"):
    (folder / name).write_text(json.dumps(values))
    return str(folder)


def pictures():
    """RGB frames of two shapes (H, W), with structure on all scales."""
    rng = np.random.default_rng(0)
    for index, shape in enumerate([(120, 160), (200, 90)]):
        frame = Image.fromarray(render(scene_of(3, "train", index))[0]).resize(shape[::-1])
        ramp = np.linspace(0, 60, shape[1])[None, :, None] * np.sin(np.arange(shape[0]) / 5)[:, None, None]
        yield np.clip(np.asarray(frame) * 0.7 + ramp + rng.normal(0, 20, (*shape, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "values",
    [
        {},
        CROP | HALF,
        {"size": 64, "crop_size": 64, "resample": 2},
        SQUARE | HALF,
        SQUARE | {"do_center_crop": True, "crop_size": 64},
        {"size": {"shortest_edge": 80}, "crop_size": 64},
        {"size": {"height": 73, "width": 73}, "crop_size": {"height": 64, "width": 64}},
        {"size": [64, 64], "crop_size": [64, 64]},
        CROP | {"do_normalize": False},
        CROP | {"do_rescale": False, "image_mean": [120.0, 110.0, 100.0], "image_std": [60.0, 70.0, 80.0]},
        CROP | HALF | {"rescale_factor": 1 / 127.5},
        CROP | {"feature_extractor_type": "CLIPFeatureExtractor", "do_convert_rgb": True, "image_std": [0.2, 0.3, 0.4]},
    ],
)
def test_pixels_and_features_are_those_of_transformers(folder, values):
    source = says(folder, values)
    model = ClipRetrieval(*load_clip("tiny", source)).eval()
    preprocessing, side = read_preprocessing(source)
    assert side in (None, 64)
    model.set_preprocessing(preprocessing)
    own = values or CROP  # without a size it is that of the CLIP
    processor = CLIPImageProcessorPil(**{name: value for name, value in own.items() if "type" not in name})
    for picture in pictures():
        theirs = processor(Image.fromarray(picture), return_tensors="pt")["pixel_values"]
        frame = transforms.test_transform(64, preprocessing)(torch.from_numpy(picture).permute(2, 0, 1)[None])
        ours = model.pixels(frame)
        steps = ((ours - theirs) * torch.tensor(preprocessing.std).view(3, 1, 1) * 255).abs()  # of 256 shades
        assert steps.mean() < 0.5 and steps.max() < 8
        with torch.no_grad():
            a, b = model.encode_videos(frame[None]).frames[0, 0], model.clip.get_image_features(theirs).pooler_output[0]
        assert torch.cosine_similarity(a, b, dim=0) > 0.9999


def test_nothing_said_is_openais(folder):
    assert read_preprocessing(str(folder)) == (OPENAI, None)
    assert read_preprocessing(says(folder, {})) == (OPENAI, None)


def test_what_openai_wrote_itself_is_openais(folder):
    """The file of clip-vit-base-patch32 on the hub."""
    values = {
        "crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3, "size": 224,
        "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }  # fmt: skip
    assert read_preprocessing(says(folder, values)) == (OPENAI, 224)
    more = {"do_rescale": True, "rescale_factor": 0.00392156862745098, "image_processor_type": "CLIPImageProcessorFast"}
    assert read_preprocessing(says(folder, values | more)) == (OPENAI, 224)


@pytest.mark.parametrize("name", ["processor_config.json", "preprocessor_config.json", "open_clip_config.json"])
def test_every_file_that_may_say_it_is_read(folder, name):
    values = {
        "processor_config.json": {"image_processor": HALF | CROP},
        "preprocessor_config.json": HALF | CROP,
        "open_clip_config.json": {"preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "size": [64, 64]}},
    }[name]
    expected = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), 64
    assert read_preprocessing(says(folder, values, name)) == expected


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"do_resize": False}, "do_resize"),
        ({"do_center_crop": False}, "do_center_crop"),
        ({"resample": 1}, "resample 1"),
        ({"do_pad": True}, "do_pad"),
        ({"size": {"longest_edge": 64}}, "longest_edge"),
        ({"size": {"height": 64, "width": 32}, "do_center_crop": False}, "no squares"),
        ({"size": 64, "crop_size": {"height": 64, "width": 32}}, "no squares"),
        ({"size": 64, "crop_size": 96}, "a crop of 96 from pictures of 64"),
        ({"image_processor_type": "ConvNextImageProcessor"}, "ConvNextImageProcessor"),
        ({"image_mean": [0.5, 0.5]}, "image_mean"),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std"),
        ({"image_mean": 0.5}, "image_mean 0.5"),
        ({"image_mean": [float("nan")] * 3}, "image_mean [nan"),
        ({"size": "large"}, "not understood: size large"),
        ({"crop_size": [64]}, "crop_size [64]"),
        ("text", "not a JSON object"),
    ],
)
def test_what_is_not_done_here_is_refused(folder, values, named):
    with pytest.raises(InputError) as caught:
        read_preprocessing(says(folder, values))
    message = str(caught.value)
    assert named in message and "\n" not in message
    assert message.count(str(folder / "preprocessor_config.json")) == 1


@pytest.mark.parametrize("mode", ["longest", "keep"])
def test_what_open_clip_does_more_is_refused(folder, mode):
    with pytest.raises(InputError, match=mode):
        read_preprocessing(says(folder, {"preprocess_cfg": {"resize_mode": mode}}, "open_clip_config.json"))


def test_the_side_of_open_clip_may_be_that_of_its_model(folder):
    cfg = {"preprocess_cfg": {"resize_mode": "squash"}, "model_cfg": {"vision_cfg": {"image_size": 64}}}
    assert read_preprocessing(says(folder, cfg, "open_clip_config.json")) == (Preprocessing(whole=True), 64)
    with pytest.raises(InputError, match="squash without a size"):
        read_preprocessing(says(folder, {"preprocess_cfg": {"resize_mode": "squash"}}, "open_clip_config.json"))


def test_what_lies_beside_a_file_is_read(folder):
    """Also where the configuration of open_clip tells the activation alone."""
    says(folder, {"model_cfg": {"quick_gelu": True}}, "open_clip_config.json")
    says(folder, HALF | CROP)
    assert read_preprocessing(str(folder / "model.safetensors")) == (Preprocessing((0.5,) * 3, (0.5,) * 3), 64)


# the side of the frames


def model_of(folder, line=""):
    config = Config.parse(f"--arch=clip_baseline --clip_arch=tiny --clip_path={folder} {line}".split())
    model = create_model(config)
    return config.of_model(model.model_config), model


@pytest.fixture
def clip96(folder):
    """A CLIP for sides of 96."""
    config = CLIPConfig.from_pretrained(folder)
    config.vision_config.image_size = 96
    CLIPModel(config).save_pretrained(folder)
    return folder


def test_frames_are_of_the_side_of_the_clip(clip96):
    assert model_of(clip96)[0].input_res == 96
    says(clip96, {"size": 96, "crop_size": 96})
    assert model_of(clip96)[0].input_res == 96
    assert model_of(clip96, "--input_res=64")[0].input_res == 64


def test_files_that_contradict_each_other_are_refused(clip96):
    says(clip96, CROP)
    with pytest.raises(InputError, match=r"pictures of 64 pixels, but its image network is for 96.*--input_res"):
        model_of(clip96)
    assert model_of(clip96, "--input_res=96")[0].input_res == 96


# it stays with the weights


def test_a_checkpoint_keeps_it(folder, tmp_path):
    says(folder, HALF | {"size": 80, "crop_size": 64, "resample": 2})
    config, model = model_of(folder)
    expected = Preprocessing((0.5,) * 3, (0.5,) * 3, "bilinear", margin=1.25)
    assert model.preprocessing == expected
    path = tmp_path / "model.pth"
    save_checkpoint(path, model, config, 1, 1)
    assert not any("pixel" in name for name in load_checkpoint(path)["state_dict"])  # published names hold
    (folder / "preprocessor_config.json").unlink()  # with a checkpoint only the tokenizer is read
    restored = restore_model(Config.parse([f"--clip_path={folder}"]), load_checkpoint(path), path)
    assert restored.preprocessing == expected
    assert torch.equal(restored.pixel_mean, model.pixel_mean) and torch.equal(restored.pixel_std, model.pixel_std)
    older = {name: value for name, value in as_before(load_checkpoint(path)).items() if name != "preprocessing"}
    assert restore_model(Config.parse([f"--clip_path={folder}"]), older, path).preprocessing == OPENAI
    assert json.loads(json.dumps(model.model_config.to_dict()))["preprocessing"]["mean"] == [0.5, 0.5, 0.5]


def test_features_that_were_made_in_another_way_are_not_taken(folder):
    here = clip_marks(model_of(folder)[1])
    half = clip_marks(model_of(says(folder, HALF))[1])
    assert differences(here, here) == differences({}, here) == []  # files without marks are of OpenAI's
    assert differences(here, half) == differences({}, half) == ["preprocessing of pictures"]
    assert differences(here, here | {"activation of CLIP": "quick_gelu quick_gelu"}) == ["activation of CLIP"]
