"""Encoders of transformers behind --clip_path, small and with random weights: against transformers' own features."""

import json
import shutil

import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from config import Config
from datasets.transforms import test_transform as transform_for
from model.encoders import KINDS
from model.factory import create_model, restore_model
from model.pretrained import TINY_FOLDER, load_clip
from trainer.checkpoints import load_checkpoint, save_checkpoint
from utils.errors import InputError

CAPTIONS = [
    "a dog runs across the snow",
    "two red balls",
    "a cat",
    "a man is cooking rice and beans in a small kitchen",
]
SIDE, PATCH, WIDTH, OUT = 64, 16, 32, 24
LAYER = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = LAYER | {"image_size": SIDE, "patch_size": PATCH}
SQUARE = {"size": {"height": SIDE, "width": SIDE}}


def words_tokenizer(folder, start="[CLS]", end="[SEP]", pad="[PAD]", lower=False):
    """A tokenizer of words, as BERT's are, saved into a folder; the number of its tokens."""
    specials = list(dict.fromkeys((start, pad, end, "[UNK]")))
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if lower:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.train_from_iterator(CAPTIONS, trainers.WordLevelTrainer(special_tokens=specials))
    ids = [(token, tokenizer.token_to_id(token)) for token in (start, end)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=ids)
    names = {"cls_token": start, "bos_token": start, "sep_token": end, "eos_token": end, "pad_token": pad}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **names).save_pretrained(folder)
    return tokenizer.get_vocab_size()


def sentence_pieces(folder):
    """SigLIP's tokenizer with a vocabulary of its own; the number of its tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS), model_prefix=str(folder / "spiece"), vocab_size=30, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    transformers.SiglipTokenizer(str(folder / "spiece.model")).save_pretrained(folder)
    return 30


def text_of(tokens, pad, end, **more):
    return LAYER | {"vocab_size": tokens, "pad_token_id": pad, "eos_token_id": end, "bos_token_id": 0} | more


def make_metaclip(folder):
    tokens = words_tokenizer(folder)
    text = text_of(tokens, 1, 2, max_position_embeddings=20)
    return transformers.MetaClip2Config(text_config=text, vision_config=VISION, projection_dim=OUT), {}


def make_siglip(folder):
    tokens = sentence_pieces(folder)
    text = text_of(tokens, 1, 1, max_position_embeddings=16, projection_size=WIDTH)
    return transformers.SiglipConfig(text_config=text, vision_config=VISION), SQUARE


def make_siglip2(folder):
    """As its hub has it in its native resolutions: with a tokenizer that leaves capitals."""
    tokens = words_tokenizer(folder)
    text = text_of(tokens, 1, 2, max_position_embeddings=16, projection_size=WIDTH)
    vision = LAYER | {"patch_size": PATCH, "num_patches": 16}
    return transformers.Siglip2Config(text_config=text, vision_config=vision), {"max_num_patches": 16}


def make_chinese(folder):
    tokens = words_tokenizer(folder)
    text = text_of(tokens, 1, 2, max_position_embeddings=30)
    config = transformers.ChineseCLIPConfig(text_config=text, vision_config=VISION, projection_dim=OUT)
    return config, {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}


def make_altclip(folder):
    tokens = words_tokenizer(folder)
    text = text_of(tokens, 1, 2, max_position_embeddings=30, project_dim=OUT)
    config = transformers.AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=OUT)
    return config, {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}


def dual(vision, text):
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=OUT)
    return config


def make_vit_bert(folder):
    tokens = words_tokenizer(folder, lower=True)
    text = transformers.BertConfig(**text_of(tokens, 1, 2, max_position_embeddings=30))
    return dual(transformers.ViTConfig(**VISION), text), SQUARE


def make_dino_roberta(folder):
    tokens = words_tokenizer(folder)
    text = transformers.RobertaConfig(**text_of(tokens, 1, 2, max_position_embeddings=30))
    vision = transformers.Dinov2WithRegistersConfig(**VISION | {"num_register_tokens": 3})
    return dual(vision, text), {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}


def make_efficientnet_clip(folder):
    """A convolutional network, with the text network of CLIP, whose padding is its end token."""
    tokens = words_tokenizer(folder, pad="[SEP]")
    text = transformers.CLIPTextConfig(**text_of(tokens, 1, 1, max_position_embeddings=20))
    vision = transformers.EfficientNetConfig(
        image_size=SIDE, width_coefficient=0.2, depth_coefficient=0.2, hidden_dim=256, hidden_size=256,
    )  # fmt: skip
    return dual(vision, text), {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}


PROCESSORS = {
    make_siglip: "SiglipImageProcessor", make_siglip2: "Siglip2ImageProcessor",
    make_chinese: "ChineseCLIPImageProcessor",
    make_vit_bert: "ViTImageProcessor", make_dino_roberta: "BitImageProcessor",
}  # fmt: skip
MADE = [
    make_metaclip, make_siglip, make_siglip2, make_chinese, make_altclip, make_vit_bert, make_dino_roberta,
    make_efficientnet_clip,
]  # fmt: skip


@pytest.fixture(scope="module", params=MADE, ids=lambda make: make.__name__.removeprefix("make_"))
def folder(request, tmp_path_factory):
    """A folder as transformers writes it."""
    place = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config, sizes = request.param(place)
    model = AutoModel.from_config(config)
    for module in model.vision_model.modules():  # transformers' own numbers leave nothing of a picture
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    model.save_pretrained(place)
    name = PROCESSORS.get(request.param, "CLIPImageProcessor")
    sizes = sizes or {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    getattr(transformers, name)(**sizes).save_pretrained(place)
    return place


def model_of(folder, line="--arch=clip_baseline"):
    return create_model(Config.parse([*line.split(), f"--clip_path={folder}", "--num_frames=2"])).eval()


def square_picture():
    """RGB of the side that the encoders are for, so that no resampling is compared."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


@torch.no_grad()
def test_features_are_those_of_transformers(folder):
    model, theirs = model_of(folder), AutoModel.from_pretrained(folder).eval()
    kind = KINDS[theirs.config.model_type]
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
    padding = {"padding": "max_length", "max_length": 16} if kind.one_length else {"padding": True}
    inputs = tokenizer(CAPTIONS, return_tensors="pt", truncation=True, **padding)
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")[: 1 if kind.one_length else 2]}
    expected = theirs.get_text_features(**inputs).pooler_output
    tokens = model.tokenize(CAPTIONS)
    found = model.encode_texts(**tokens)
    assert found.shape == (4, model.embed_dim) and found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for row in range(4):  # whatever longer texts are beside it
        alone = model.encode_texts(**model.select(tokens, torch.tensor([row])))
        torch.testing.assert_close(alone[0], expected[row], rtol=0, atol=1e-5)

    picture = square_picture()
    inputs = AutoImageProcessor.from_pretrained(folder)(images=Image.fromarray(picture), return_tensors="pt")
    expected = theirs.get_image_features(**inputs).pooler_output
    assert model.model_config.input_res == SIDE
    frames = transform_for(SIDE, model.preprocessing)(torch.from_numpy(picture).permute(2, 0, 1)[None])
    features, patches = model.frame_features(frames[None])
    torch.testing.assert_close(features[0], expected, rtol=0, atol=1e-5)
    side = 2 if theirs.vision_model.config.model_type == "efficientnet" else SIDE // PATCH
    assert patches.shape[:3] == (1, 1, side**2)


@torch.no_grad()
def test_patches_are_where_they_are(folder):
    """The last patch is the lower right one, in which a change there is seen most; a convolutional network says where
    each is."""
    model = model_of(folder)
    frames = torch.full((1, 1, 3, SIDE, SIDE), 128, dtype=torch.uint8)
    changed = frames.clone()
    changed[..., -PATCH:, -PATCH:] = torch.randint(0, 256, (3, PATCH, PATCH), dtype=torch.uint8)
    patches = model.frame_features(changed)[1][0, 0]
    if model.clip.vision_model.config.model_type == "efficientnet":
        hidden = model.clip.vision_model(model.pixels(changed[0])).last_hidden_state[0]
        assert torch.equal(patches[1], hidden[:, 0, 1]) and torch.equal(patches[-1], hidden[:, -1, -1])
        return
    change = (patches - model.frame_features(frames)[1][0, 0]).norm(dim=-1)
    assert change.argmax() == len(change) - 1


def test_every_arch_learns_with_it_and_comes_back_from_a_checkpoint(folder, tmp_path):
    """One step moves both networks; statistics of pre-training stay."""
    model = model_of(folder, "--arch=clip_transformer").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frames = torch.randint(0, 256, (4, 2, 3, SIDE, SIDE), dtype=torch.uint8)
    pairs = model.encode_pairs(frames, **model.tokenize(CAPTIONS))
    scores = model.similarities(pairs, pairs.videos, torch.arange(4))[:, 0] * model.clip.logit_scale.exp()
    torch.nn.functional.cross_entropy(scores, torch.arange(4)).backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    after = model.state_dict()
    for network in ("text_model", "vision_model"):
        names = [name for name in after if name.startswith(f"clip.{network}")]
        assert any(not torch.equal(after[name], before[name]) for name in names)
    assert all(torch.equal(after[name], before[name]) for name in after if "running_" in name)

    path = tmp_path / "model.pth"
    config = Config.parse([f"--clip_path={folder}"])
    save_checkpoint(path, model, config, epoch=1, step=1, training={})
    again = restore_model(config, load_checkpoint(path), path).eval()
    loaded = again.state_dict()
    assert loaded.keys() == after.keys() and all(torch.equal(loaded[name], after[name]) for name in after)
    with torch.no_grad():
        model.eval()
        # up to the rounding of convolutions, which on some processors depends on where in memory weights lie
        expected = model.encode_videos(frames).frames
        assert (again.encode_videos(frames).frames - expected).norm() < 1e-6 * expected.norm()
        ids = model.tokenize(CAPTIONS)
        assert torch.equal(again.encode_texts(**again.tokenize(CAPTIONS)), model.encode_texts(**ids))


def test_siglip_reads_small_letters(tmp_path):
    config, sizes = make_siglip2(tmp_path)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    transformers.Siglip2ImageProcessor(**sizes).save_pretrained(tmp_path)
    model = model_of(tmp_path)
    assert torch.equal(model.tokenize(["A Cat"])["token_ids"], model.tokenize(["a cat"])["token_ids"])


def a_folder(tmp_path):
    torch.manual_seed(0)
    config, _ = make_vit_bert(tmp_path)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(**SQUARE).save_pretrained(tmp_path)
    return config


def without_processor(folder):
    (folder / "preprocessor_config.json").unlink()


def another_kind(folder):
    transformers.BertConfig().save_pretrained(folder)


def without_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def more_tokens(folder):
    values = json.loads((folder / "tokenizer.json").read_text())
    values["model"]["vocab"] |= {f"word{index}": 100 + index for index in range(50)}
    (folder / "tokenizer.json").write_text(json.dumps(values))


def without_pad(folder):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": None}))


def another_processor(folder):
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "PerceiverImageProcessor"}')


def without_a_feature(folder):
    tokens = words_tokenizer(folder)
    sizes = {"dim": WIDTH, "hidden_dim": 48, "n_layers": 1, "n_heads": 2, "vocab_size": tokens, "pad_token_id": 1}
    text = transformers.DistilBertConfig(**sizes)
    AutoModel.from_config(dual(transformers.ViTConfig(**VISION), text)).save_pretrained(folder)


def cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without_processor, "it needs preprocessor_config.json"),
        (another_kind, "is that of a bert, not of an image-text encoder"),
        (without_tokenizer, "holds no tokenizer"),
        (more_tokens, "more than the"),
        (without_pad, "has no pad token"),
        (another_processor, "PerceiverImageProcessor"),
        (without_a_feature, "the text network"),
        (cut_short, "damaged or cut short"),
    ],
)
def test_bad_folders_are_named_in_one_line(tmp_path, capfd, spoil, said):
    a_folder(tmp_path)
    model_of(tmp_path)
    spoil(tmp_path)
    with pytest.raises(InputError) as caught:
        model_of(tmp_path)
    assert said in str(caught.value) and str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().out == ""


def test_a_clip_of_openai_is_as_before(tmp_path):
    shutil.copytree(TINY_FOLDER, tmp_path / "clip")
    model, tokenizer = load_clip("tiny", str(tmp_path / "clip"))
    assert type(model).__name__ == "CLIPModel" and tokenizer.padding_side == "right"
