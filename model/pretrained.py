"""Pre-trained encoders: by --clip_arch from the hub or assets/, by --clip_path from a hub id, a folder or a file."""

import logging
import socket
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from diffusion_lm.weights import load_tensors, one_line, without_wrappers
from model.encoders import KINDS, check_features, config_from, kind_of, native_side, with_random_weights
from model.openai_clip import read_openai
from model.preprocessing import OPEN_CLIP_FILE, read_json
from utils.errors import InputError

logger = logging.getLogger(__name__)

HUB_IDS = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-B/32-laion": "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
    "siglip2-base": "google/siglip2-base-patch16-224",
}
HUB_SECONDS = 5.0  # in which it must answer
USUAL_SIDE = 224  # pixels, of image networks that do not tell theirs
TINY_FOLDER = Path(__file__).resolve().parent.parent / "assets" / "clip-tiny"
TOKENIZER_FILES = "the files of its tokenizer (of CLIP vocab.json and merges.txt, or tokenizer.json)"
NEEDED_FILES = f"config.json, model.safetensors (or pytorch_model.bin), preprocessor_config.json and {TOKENIZER_FILES}"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_NOT_LOADED = (
    OSError, ValueError, RuntimeError, AttributeError, KeyError, TypeError, UnpicklingError, SafetensorError
)  # fmt: skip
_EMPTY_TOKENIZER = 3  # words of the tokenizer that transformers makes up where it finds no files, at most
# what CLIPConfig must be told beyond its defaults, which are ViT-B/32
CLIP_CONFIGS: dict[str, dict] = {
    "ViT-B/32": CLIPConfig().to_dict(),
    "ViT-B/16": CLIPConfig(vision_config={"patch_size": 16}).to_dict(),
    "ViT-L/14": CLIPConfig(
        projection_dim=768,
        text_config={"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        vision_config={
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
            "patch_size": 14,
        },
    ).to_dict(),
    "tiny": CLIPConfig.from_pretrained(TINY_FOLDER).to_dict(),
    "tiny-shapes": CLIPConfig.from_pretrained(TINY_FOLDER).to_dict(),
}  # fmt: skip


def load_clip(clip_arch: str, clip_path: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """An encoder with its weights in float32, and its tokenizer: pre-trained, or random for `tiny` without a path.

    :param clip_path: hub id, folder of transformers or open_clip, or file with OpenAI's names.
    :raises InputError: neither a local folder nor the hub's cache nor the hub has it; says which files to put where.
    """
    if clip_path is None and clip_arch == "tiny":
        return build_clip(CLIP_CONFIGS["tiny"], TINY_FOLDER)
    if clip_path is not None and (file := _weights_file(Path(clip_path))):
        return _load_openai(file, clip_arch)
    source = clip_path or home(clip_arch)
    spare_retries(source)
    transformers_logging.disable_progress_bar()
    told = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # a page of names, of which one line is said below
    try:
        config = _read_config(source)
        clip, report = kind_of(config).model.from_pretrained(
            **_weights_of(source, config),
            dtype=torch.float32,  # transformers 5 keeps that of the file otherwise
            ignore_mismatched_sizes=True,  # they are said here
            output_loading_info=True,
        )
    except _NOT_LOADED as error:
        raise InputError(_why_not(source, error)) from error
    finally:
        transformers_logging.set_verbosity(told)
    _check_names(report, source)
    tokenizer = load_tokenizer(source, config)
    if config.model_type == "vision-text-dual-encoder":
        ids = tokenizer(["a"], return_tensors="pt")["input_ids"]
        check_features(clip, ids, native_side(config) or USUAL_SIDE, source)
    return clip, tokenizer


def _read_config(source: str | Path) -> PreTrainedConfig:
    """The configuration of a folder or hub id.

    :raises InputError: it is none of an image-text encoder; transformers would make a CLIP of any.
    """
    folder = Path(source)
    config = folder / "config.json"
    if not folder.is_dir():
        values, _ = PreTrainedConfig.get_config_dict(source)
    elif config.is_file():
        values = read_json(config)
    else:
        raise InputError(f"{folder} holds no image-text encoder: it needs {NEEDED_FILES}")
    kind = values.get("model_type", "clip")
    if kind not in KINDS:
        raise InputError(
            f"{config if folder.is_dir() else source} is that of a {kind}, not of an image-text encoder that is known "
            f"here: {', '.join(KINDS)}"
        )
    return config_from(values)


def _check_names(report: dict[str, Any], source: str | Path) -> None:
    """:raises InputError: tensors are missing or of another size, which transformers fills with random numbers."""
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"the weights of {source} are not those of its config.json: {missing[0]} and {len(missing) - 1} more are "
            f"missing"
        )
    if others := sorted(report["mismatched_keys"]):
        name, size, wanted = others[0]
        raise InputError(
            f"the weights of {source} are not those of its config.json: {name} is {tuple(size)} instead of "
            f"{tuple(wanted)}, and {len(others) - 1} more are of another size"
        )
    if unknown := sorted(report["unexpected_keys"]):
        logger.info("%s: %s and %d more tensors have no place in its model", source, unknown[0], len(unknown) - 1)


def _weights_of(source: str | Path, config: PreTrainedConfig) -> dict[str, Any]:
    """What transformers builds an encoder from, as arguments: a hub id, or the configuration and weights of a folder.

    Those in one file are read here, whatever its kind and the wrappers in its names.
    """
    folder = Path(source)
    files = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    if not files:
        return {"pretrained_model_name_or_path": source}  # or a folder with weights in several files
    content = load_tensors(files[0])
    content = content.get("state_dict", content)
    state = without_wrappers({name: value for name, value in content.items() if isinstance(value, Tensor)})
    if all(name.startswith("clip.") for name in state):
        state = {name.removeprefix("clip."): value for name, value in state.items()}
    return {"pretrained_model_name_or_path": None, "config": config, "state_dict": state}


def _weights_file(place: Path) -> Path | None:
    """The file that is read with OpenAI's names, if it is one: itself, or that of a folder of open_clip."""
    if place.is_file():
        return place
    if (place / "config.json").is_file() or not (place / OPEN_CLIP_FILE).is_file():
        return None
    return next((place / name for name in _OPEN_CLIP_WEIGHTS if (place / name).is_file()), None)


def _load_openai(path: Path, clip_arch: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    state, clip_config = read_openai(path)
    clip, tokenizer = build_clip(clip_config, tokenizer_source(clip_arch, str(path)))
    try:
        clip.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path} does not fit CLIP: {one_line(error)[:600]}") from error
    return clip, tokenizer


def load_tokenizer(source: str | Path, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of an encoder.

    :param source: hub id or folder.
    :param config: of the encoder.
    :raises InputError: it is not there (transformers says nothing then, and makes an empty one), or does not fit.
    """
    spare_retries(source)
    text = config.text_config
    try:
        tokenizer = (CLIPTokenizer if config.model_type == "clip" else AutoTokenizer).from_pretrained(source)
    except (*_NOT_LOADED, ImportError) as error:
        raise InputError(_no_tokenizer(source, error)) from error
    if len(tokenizer) <= _EMPTY_TOKENIZER:
        raise InputError(_no_tokenizer(source))
    if len(tokenizer) > text.vocab_size:
        raise InputError(
            f"the tokenizer of {source} has {len(tokenizer)} tokens, more than the {text.vocab_size} of this encoder: "
            f"--clip_path=FOLDER names another"
        )
    if tokenizer.pad_token_id is None:
        raise InputError(f"the tokenizer of {source} has no pad token, which texts of several lengths need")
    tokenizer.padding_side = "right"  # as all of them were trained
    return tokenizer


def spare_retries(source: str | Path) -> None:
    """Let the hub be asked no more where it cannot be reached: its library would try for half a minute. A proxy may
    reach it all the same."""
    if Path(source).exists() or constants.HF_HUB_OFFLINE or getproxies():
        return
    place = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((place.hostname, place.port or 443), timeout=HUB_SECONDS).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True


def build_clip(clip_config: dict, tokenizer_source: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """An encoder with random weights, to be filled from a checkpoint or trained from scratch.

    :param clip_config: what `to_dict` of its configuration gave.
    :param tokenizer_source: hub id or folder of the tokenizer.
    :raises InputError: the tokenizer is not there, or has more tokens than the encoder.
    """
    config = config_from(clip_config)
    tokenizer = load_tokenizer(tokenizer_source, config)
    if config.model_type == "clip":
        config.text_config.eos_token_id = tokenizer.eos_token_id  # the feature of a caption is that of this token
    return with_random_weights(config), tokenizer


def tokenizer_source(clip_arch: str, clip_path: str | None) -> str | Path:
    """Where the tokenizer of a CLIP lies: a folder or a hub id. That of a file lies beside it, if there is one."""
    if clip_path is not None and Path(clip_path).is_file():
        folder = Path(clip_path).parent
        if any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json")):
            return folder
        clip_path = None
    return clip_path or home(clip_arch)


def home(clip_arch: str) -> str | Path:
    """Where the files of --clip_arch lie: a folder or a hub id."""
    return TINY_FOLDER if clip_arch in ("tiny", "tiny-shapes") else HUB_IDS[clip_arch]


def _no_tokenizer(source: str | Path, error: Exception | None = None) -> str:
    if Path(source).is_dir():
        reason = "" if error is None else f" ({one_line(error)[:300]})"
        return f"{source} holds no tokenizer: it needs {TOKENIZER_FILES}{reason}"
    return (
        f"the tokenizer of {source} is not in the local cache and cannot be downloaded: put {TOKENIZER_FILES} into "
        f"a folder and give --clip_path=FOLDER"
    )


def _why_not(source: str | Path, error: Exception) -> str:
    folder = Path(source)
    if folder.is_dir():
        weights = [file for pattern in ("model*.safetensors", "pytorch_model*.bin") for file in folder.glob(pattern)]
        if not weights:
            return f"{source} holds no image-text encoder: it needs {NEEDED_FILES}"
        for file in weights:
            load_tensors(file)  # says in one line what is wrong with it
        return f"{source} does not load as an image-text encoder of transformers: {one_line(error)[:400]}"
    return (
        f"{source} is not in the local cache and cannot be downloaded: put {NEEDED_FILES} into a folder and give "
        f"--clip_path=FOLDER (--clip_arch=tiny needs none and has random weights, for training alone)"
    )
