"""The image-text encoders of transformers that are fine-tuned: what is asked of each, and in what they differ."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import isqrt
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

import utils.attention  # noqa: F401 (which its networks attend with)
from utils.errors import InputError

ROBERTAS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "altclip_text_model")  # count places from pad + 1


@dataclass(frozen=True)
class Kind:
    """How models of one `model_type` of transformers read texts.

    :param family: how the names of its model and of its configuration begin in transformers.
    """

    family: str
    lower: bool = False  # it was trained on small letters alone, which its tokenizer may not make
    masked: bool = False  # padding must be hidden from its attention
    one_length: bool = False  # it was trained on texts of one length, padding included

    @property
    def config(self) -> type[PreTrainedConfig]:
        """The class of its configuration."""
        return getattr(transformers, f"{self.family}Config")

    @property
    def model(self) -> type[PreTrainedModel]:
        """The class of the model."""
        return getattr(transformers, f"{self.family}Model")


KINDS = {
    "clip": Kind("CLIP", lower=True),  # causal: what follows the end token, whose feature counts, is not seen
    "metaclip_2": Kind("MetaClip2"),
    "siglip": Kind("Siglip", lower=True, one_length=True),
    "siglip2": Kind("Siglip2", lower=True, one_length=True),
    "chinese_clip": Kind("ChineseCLIP", masked=True),
    "altclip": Kind("AltCLIP", masked=True),
    "vision-text-dual-encoder": Kind("VisionTextDualEncoder", masked=True),
}


def kind_of(config: PreTrainedConfig) -> Kind:
    """How a model with this configuration is used."""
    return KINDS[config.model_type]


def config_from(values: dict[str, Any]) -> PreTrainedConfig:
    """The configuration of which `to_dict` gave these values."""
    return KINDS[values.get("model_type", "clip")].config.from_dict(values)


def with_random_weights(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a configuration."""
    return kind_of(config).model._from_config(config)


def width_of(config: PreTrainedConfig) -> int:
    """D, width of the features."""
    return getattr(config, "projection_dim", None) or config.vision_config.hidden_size  # SigLIP projects nothing


def native_side(config: PreTrainedConfig) -> int | None:
    """Pixels of a side of the pictures that the image network was made for; None where it does not tell."""
    vision = config.vision_config
    if config.model_type == "siglip2":  # as many patches as a square has
        return isqrt(vision.num_patches) * vision.patch_size
    side = getattr(vision, "image_size", None)
    return side[0] if isinstance(side, list | tuple) else side


def activations(config: PreTrainedConfig) -> str:
    """Names of the activations of both networks, which no tensor shows."""
    names = (getattr(part, "hidden_act", "") for part in (config.vision_config, config.text_config))
    return " ".join(names)


def longest_text(config: PreTrainedConfig) -> int:
    """Tokens of the longest text that is read, start and end included."""
    text = config.text_config
    places = text.max_position_embeddings
    if text.model_type in ROBERTAS:
        places -= text.pad_token_id + 1
    return places


def text_features(model: PreTrainedModel, token_ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Token ids (N, tokens), padded behind -> text features (N, D), float32."""
    return _read(model, token_ids, tokenizer).pooler_output.float()


def text_parts(
    model: PreTrainedModel, token_ids: Tensor, tokenizer: PreTrainedTokenizerBase
) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids (N, tokens), padded behind -> text features (N, D) and those of the tokens, in the same space,
    (N, tokens, D), both float32; and `given_tokens`."""
    seen = _read(model, token_ids, tokenizer)
    projection = getattr(model, "text_projection", None) or model.text_model.head  # SigLIP has the second
    return seen.pooler_output.float(), projection(seen.last_hidden_state).float(), given_tokens(token_ids, tokenizer)


def _read(model: PreTrainedModel, token_ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> Any:
    """What the text network gives, with the projected feature of the whole as its `pooler_output`."""
    mask = {"attention_mask": given_tokens(token_ids, tokenizer)} if kind_of(model.config).masked else {}
    return model.get_text_features(input_ids=token_ids, **mask)


def given_tokens(token_ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """1 for each token of a text, the end token included, 0 for the padding behind it: (N, tokens)."""
    pad = tokenizer.pad_token_id
    count = (token_ids != pad).sum(1, keepdim=True) + int(pad == tokenizer.eos_token_id)
    return (torch.arange(token_ids.shape[1], device=token_ids.device) < count).long()


def image_features(model: PreTrainedModel, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised pictures (N, 3, R, R) -> their features (N, D), float32, and those of the patches, as the last
    layer of the image network leaves them, (N, P, W); P is a square."""
    seen = model.vision_model(**_image_inputs(model, pixels))
    pooled = seen.pooler_output.flatten(1)
    projection = getattr(model, "visual_projection", None)
    projected = pooled if projection is None else projection(pooled)
    return projected.float(), _patches(seen.last_hidden_state)


def patch_shape(model: PreTrainedModel, side: int) -> tuple[int, int]:
    """(P, W) of the patches of a picture of `side` pixels."""
    with _looking(model):
        patches = image_features(model, torch.zeros(1, 3, side, side, device=model.device))[1]
    return patches.shape[1], patches.shape[2]


def check_features(model: PreTrainedModel, token_ids: Tensor, side: int, source: object) -> None:
    """Pass one text and one picture through two networks that were not made for each other.

    :raises InputError: one of them has no feature of the whole.
    """
    with _looking(model):
        outputs = {
            "text": (model.text_model, model.text_model(input_ids=token_ids)),
            "image": (model.vision_model, model.vision_model(pixel_values=torch.zeros(1, 3, side, side))),
        }
    for what, (network, output) in outputs.items():
        if getattr(output, "pooler_output", None) is None:
            raise InputError(
                f"the {what} network of {source}, a {network.config.model_type}, gives features of its parts alone "
                f"(no pooler_output): take one that also has a feature of the whole"
            )


@contextmanager
def _looking(model: PreTrainedModel) -> Iterator[None]:
    """In evaluation mode and without gradients, in which nothing is drawn."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def freeze_statistics(model: nn.Module) -> None:
    """Keep the running means of batch norms as pre-training left them: a step would otherwise depend on how its pairs
    are split into chunks and processes, and frames of one video are no sample of all pictures."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def is_convolutional(network: nn.Module) -> bool:
    """Whether an image network has more convolutions than the one of a transformer's patches: it is 1.4 to 1.7 times as
    fast where the channels of a pixel lie together in memory; the one of patches alone is slower backward."""
    return sum(isinstance(module, nn.Conv2d) for module in network.modules()) > 1


def _image_inputs(model: PreTrainedModel, pixels: Tensor) -> dict[str, Any]:
    """What the image network is called with."""
    config, side = model.config, pixels.shape[-1]
    if config.model_type == "siglip2":
        return _in_patches(pixels, config.vision_config.patch_size)
    resized = side != native_side(config) and _takes_any_side(type(model.vision_model).forward)
    return {"pixel_values": pixels} | ({"interpolate_pos_encoding": True} if resized else {})


@cache
def _takes_any_side(forward: Callable) -> bool:
    return "interpolate_pos_encoding" in inspect.signature(forward).parameters


def _in_patches(pixels: Tensor, patch: int) -> dict[str, Any]:
    """Pictures (N, 3, R, R) as SigLIP 2 reads them in its native resolutions: patches (N, P, patch^2 x 3), none of
    which is padding."""
    count, _, height, width = pixels.shape
    rows, columns = height // patch, width // patch
    cut = pixels[..., : rows * patch, : columns * patch].unflatten(3, (columns, patch)).unflatten(2, (rows, patch))
    patches = cut.permute(0, 2, 4, 3, 5, 1).reshape(count, rows * columns, -1)
    return {
        "pixel_values": patches,
        "pixel_attention_mask": torch.ones(patches.shape[:2], dtype=torch.long, device=pixels.device),
        "spatial_shapes": torch.tensor([[rows, columns]] * count),  # read as numbers, which waits for no device
    }


def _patches(hidden: Tensor) -> Tensor:
    """The patches of what the last layer leaves: (N, W, rows, columns) of a convolutional network, (N, tokens, W) of
    others, in which class and register tokens come first."""
    if hidden.ndim == 4:
        return hidden.flatten(2).mT
    return hidden[:, hidden.shape[1] - isqrt(hidden.shape[1]) ** 2 :]
