"""OpenAI's own CLIP files: their names and layout of tensors, as transformers' CLIPModel has them."""

import re
import zipfile
from pathlib import Path

from torch import Tensor

from diffusion_lm.errors import InputError
from diffusion_lm.weights import load_tensors

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
_NUMBERS = ("input_resolution", "context_length", "vocab_size")  # beside the weights
_HEAD_WIDTH = 64  # of every CLIP of OpenAI


def read_openai(path: Path) -> tuple[dict[str, Tensor], dict]:
    """A state dict file with OpenAI's names: the state and the configuration of transformers' CLIPModel.

    :raises InputError: it is a TorchScript archive, a ResNet, or not OpenAI's; says what to do.
    """
    if _is_torchscript(path):
        raise InputError(
            f"{path} is a TorchScript archive, which holds code and is not run: where you trust it, make a file of its"
            f" tensors with torch.save(torch.jit.load(FILE, map_location='cpu').state_dict(), NEW_FILE)"
        )
    content = load_tensors(path)
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    if "visual.layer1.0.conv1.weight" in state:
        raise InputError(f"{path} is a CLIP with a ResNet: only those with a ViT are known here")
    if not {"visual.conv1.weight", "token_embedding.weight"} <= state.keys():
        raise InputError(f"{path} holds no CLIP with OpenAI's names (visual.conv1.weight, token_embedding.weight, ...)")
    renamed = rename_openai(state)
    try:
        return renamed, config_of(renamed)
    except (KeyError, ZeroDivisionError) as error:
        raise InputError(f"{path} lacks a part of CLIP: {error}") from error


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


def config_of(state: dict[str, Tensor]) -> dict:
    """CLIPConfig, as a dictionary, of a state with transformers' names, by OpenAI's rules for what it does not show.

    :raises KeyError: a tensor that shows a size is not there.
    """
    table = state["text_model.embeddings.token_embedding.weight"]
    patches = state["vision_model.embeddings.patch_embedding.weight"]
    positions = len(state["vision_model.embeddings.position_embedding.weight"]) - 1  # without that of the class
    return {
        "projection_dim": len(state["text_projection.weight"]),
        "text_config": {
            **_encoder(state, "text_model"),
            "vocab_size": len(table),
            "max_position_embeddings": len(state["text_model.embeddings.position_embedding.weight"]),
            "bos_token_id": len(table) - 2,
            "eos_token_id": len(table) - 1,
        },
        "vision_config": {
            **_encoder(state, "vision_model"),
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
        "num_attention_heads": max(1, width // _HEAD_WIDTH),
        "hidden_act": "quick_gelu",
    }


def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMES:
        if match := re.match(pattern, name):
            name = replacement + name[match.end() :]
            break
    for old, new in _IN_LAYERS:
        name = name.replace(old, new)
    return name


def _is_torchscript(path: Path) -> bool:
    """Archives of torch.jit.save have the constants of their code in a file of its own."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False
