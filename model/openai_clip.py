"""Files with OpenAI's names and layout of the tensors of a CLIP, as transformers' CLIPModel has them.

open_clip has the same names, so a file says which activation its CLIP was trained with only by what lies beside it.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffusion_lm.weights import load_tensors, without_wrappers
from model.preprocessing import OPEN_CLIP_FILE, read_json
from utils.errors import InputError

logger = logging.getLogger(__name__)

# OpenAI -> transformers, read in order; the first that fits wins
_RENAMES = (
    (r"visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"visual\.proj$", "visual_projection.weight"),
    (r"token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"ln_final\.", "text_model.final_layer_norm."),
    (r"text_projection$", "text_projection.weight"),
    (r"logit_scale$", "logit_scale"),
)
_IN_LAYERS = (
    (".attn.", ".self_attn."), (".ln_1.", ".layer_norm1."), (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."), (".mlp.c_proj.", ".mlp.fc2."),
)  # fmt: skip
_TRANSPOSED = ("visual.proj", "text_projection")  # kept as x @ proj
_NUMBERS = ("input_resolution", "context_length", "vocab_size")  # beside the weights in OpenAI's own archives alone
_IMAGES, _TEXTS = "visual.conv1.weight", "token_embedding.weight"  # the first tensors of the encoders
_TRANSFORMERS = "vision_model.embeddings.patch_embedding.weight"
_RESNET = "visual.layer1.0.conv1.weight"
_STATES = ("state_dict", "model_state_dict", "model")  # under which programs keep the weights in a checkpoint
# tensors beside the CLIP that only programs have which know no other CLIP than OpenAI's
_OPENAI_ONLY = {
    "pool_frames.": "X-Pool", "stochastic.": "T-MASS", "transformerClip.": "CLIP4Clip",
    "frame_position_embeddings.": "CLIP4Clip",
}  # fmt: skip
_HEAD_WIDTH = 64  # where nothing says another, as in every CLIP of OpenAI
# of open_clip's model_cfg: what tensors show or has no part in the features, and what transformers' CLIP does anyway
_SHOWN = {
    "": {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg", "init_logit_scale"},
    "vision_cfg": {"image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size", "patch_dropout"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"},
}
_USUAL = {"pool_type": ("tok", "argmax"), "pos_embed_type": ("learnable",), "proj_type": ("linear",)}


@dataclass(frozen=True)
class Form:
    """What the tensors of a CLIP do not show."""

    quick_gelu: bool = True
    vision_head_width: int = _HEAD_WIDTH
    text_heads: int | None = None


def read_openai(path: Path) -> tuple[dict[str, Tensor], dict]:
    """A file with OpenAI's names, which open_clip has too: the state and the configuration of transformers' CLIPModel.

    A state dict or a checkpoint, of torch.save or safetensors; the CLIP may be in wrappers or in a larger model.

    :raises InputError: it is none, or does not say which CLIP it is; says what it is and what to do.
    """
    state, others = _clip_part(load_tensors(path), path)
    form = _form(state, others, path)
    mask = state.pop("attn_mask", None)  # a constant that open_clip once saved
    if mask is not None and not torch.equal(mask, torch.full_like(mask, float("-inf")).triu(1)):
        raise InputError(f"{path} holds a CLIP whose attn_mask is not causal, which is not known here")
    renamed = rename_openai(state)
    try:
        return renamed, config_of(renamed, form)
    except (KeyError, ZeroDivisionError) as error:
        raise InputError(f"{path} lacks a part of CLIP: {error}") from error


def _clip_part(content: object, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the CLIP in a file, by OpenAI's names, and the names of those beside it."""
    if isinstance(content, dict) and content.keys() & {"model_config", "clip_config"}:  # the second in older ones
        raise InputError(
            f"{path} is a checkpoint of this project: --datetime and --load_epoch name those, not --clip_path"
        )
    for key in _STATES:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    content = content if isinstance(content, dict) else {}
    weights = {str(name): value for name, value in content.items() if isinstance(value, Tensor) or name in _NUMBERS}
    state = without_wrappers(weights)
    images, texts = (
        {name.removesuffix(first) for name in state if f".{name}".endswith(f".{first}")} for first in (_IMAGES, _TEXTS)
    )
    if any(name.endswith(_TRANSFORMERS) for name in state):
        raise InputError(
            f"{path} holds a CLIP with transformers' names, which its config.json belongs to: --clip_path=FOLDER reads"
            " both, and the preprocessing and tokenizer beside them"
        )
    if any(name.endswith(_RESNET) for name in state):
        raise InputError(f"{path} is a CLIP with a ResNet: only those with a ViT are known here")
    both = images & texts
    if len(both) > 1:
        raise InputError(f"{path} holds several CLIPs, below {' and '.join(sorted(both))}: keep one of them in it")
    if not both:
        raise InputError(f"{path} {_what_is_missing(images, texts)}")
    prefix = both.pop()
    others = [name for name in state if not name.startswith(prefix)]
    if others:
        logger.info("%s: the CLIP is below %s; %d other tensors are not read", path, prefix, len(others))
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}, others


def _what_is_missing(images: set[str], texts: set[str]) -> str:
    if images and texts:
        return f"holds a CLIP whose text encoder ({min(texts)}{_TEXTS}) is of another kind than OpenAI's"
    if images:
        return f"holds the image encoder of a CLIP, but not the text encoder with OpenAI's names ({_TEXTS}, ...)"
    if texts:
        return f"holds the text encoder of a CLIP, but not the image encoder with OpenAI's names ({_IMAGES}, ...)"
    return f"holds no CLIP with OpenAI's names ({_IMAGES}, {_TEXTS}, ...)"


def _form(state: dict[str, Tensor], others: list[str], path: Path) -> Form:
    """Which CLIP it is, from open_clip's configuration beside the file, or what in the file only OpenAI's have.

    :raises InputError: nothing says it. Names and sizes are the same, and the features of another CLIP would be noise.
    """
    beside = path.parent / OPEN_CLIP_FILE
    openai = state.keys() >= set(_NUMBERS)
    if beside.is_file():
        form = _open_clip_form(beside)
        if openai and not form.quick_gelu:
            raise InputError(
                f"{beside} says that quick_gelu is false, but {path} is OpenAI's: keep them in two folders"
            )
        return form
    program = next((_OPENAI_ONLY[first] for name in others for first in _OPENAI_ONLY if name.startswith(first)), None)
    if not openai and program is None:
        raise InputError(
            f"{path} does not say whether its CLIP has quick_gelu, as OpenAI's, or gelu, as most of open_clip: put the "
            f"{OPEN_CLIP_FILE} of these weights beside it, or where they are OpenAI's a file of that name with "
            '{"model_cfg": {"quick_gelu": true}}; or give --clip_path=FOLDER with the same CLIP as transformers has it'
        )
    logger.info("%s: OpenAI's CLIP, as %s", path, f"{program} has it" if program else "its three numbers say")
    return Form()


def _open_clip_form(path: Path) -> Form:
    """What an open_clip_config.json says that tensors do not.

    :raises InputError: the model is of a kind that transformers' CLIP is not.
    """
    model = read_json(path).get("model_cfg")
    if not isinstance(model, dict):
        raise InputError(f"{path} has no model_cfg of open_clip")
    parts = {"": model} | {name: model.get(name) or {} for name in ("vision_cfg", "text_cfg")}
    if not all(isinstance(part, dict) for part in parts.values()):
        raise InputError(f"{path} has no model_cfg of open_clip")
    for part, known in _SHOWN.items():
        for name, value in parts[part].items():
            if value and name not in known and value not in _USUAL.get(name, ()):
                raise InputError(f"{path}: a CLIP with {part}{part and '.'}{name}={value} is not known here")
    return Form(
        quick_gelu=bool(model.get("quick_gelu", False)),
        vision_head_width=parts["vision_cfg"].get("head_width") or _HEAD_WIDTH,
        text_heads=parts["text_cfg"].get("heads", 8) if parts["text_cfg"] else None,  # 8 is open_clip's default
    )


def rename_openai(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's names -> those of transformers, float32. Names that are not known stay, for strict loading to name."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in _NUMBERS:
            continue
        new = _renamed(name)
        tensor = tensor.float().t() if name in _TRANSPOSED else tensor.float()
        if ".in_proj_" in new:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):  # one matrix for queries, keys and values
                renamed[new.replace(".in_proj_", f".{part}_proj.")] = rows
        else:
            renamed[new] = tensor
    return renamed


def config_of(state: dict[str, Tensor], form: Form) -> dict:
    """CLIPConfig, as a dictionary, of a state with transformers' names.

    :raises KeyError: a tensor that shows a size is not there.
    """
    table = state["text_model.embeddings.token_embedding.weight"]
    patches = state["vision_model.embeddings.patch_embedding.weight"]
    positions = len(state["vision_model.embeddings.position_embedding.weight"]) - 1  # without that of the class
    text, vision = _encoder(state, "text_model"), _encoder(state, "vision_model")
    act = {"hidden_act": "quick_gelu" if form.quick_gelu else "gelu"}
    text_heads = form.text_heads or max(1, text["hidden_size"] // _HEAD_WIDTH)
    return {
        "projection_dim": len(state["text_projection.weight"]),
        "text_config": {
            **text,
            **act,
            "num_attention_heads": text_heads,
            "vocab_size": len(table),
            "max_position_embeddings": len(state["text_model.embeddings.position_embedding.weight"]),
            "bos_token_id": len(table) - 2,
            "eos_token_id": len(table) - 1,
        },
        "vision_config": {
            **vision,
            **act,
            "num_attention_heads": max(1, vision["hidden_size"] // form.vision_head_width),
            "patch_size": patches.shape[-1],
            "image_size": round(positions**0.5) * patches.shape[-1],
        },
    }


def _encoder(state: dict[str, Tensor], part: str) -> dict:
    layers = {int(match[1]) for name in state if (match := re.match(rf"{part}\.encoder\.layers\.(\d+)\.", name))}
    intermediate, width = state[f"{part}.encoder.layers.0.mlp.fc1.weight"].shape
    return {
        "hidden_size": width,
        "intermediate_size": intermediate,
        "num_hidden_layers": len(layers),
    }


def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMES:
        if match := re.match(pattern, name):
            name = replacement + name[match.end() :]
            break
    for old, new in _IN_LAYERS:
        name = name.replace(old, new)
    return name
