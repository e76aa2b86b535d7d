"""A pre-trained Diffusion-LM folder: the files that the published one has, under the same names.

ema_<rate>_<steps>.pt   bare state dict of the EMA weights of the denoiser (no condition layers)
random_emb.torch        state dict of a word table that was never trained: weight (V, C)
vocab.json              word -> id
training_args.json      hyper-parameters of the run
"""

import json
import os
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffusion_lm.denoiser import DENOISERS, MAX_POSITIONS, Denoiser, DenoiserConfig
from diffusion_lm.vocabulary import Vocabulary
from utils.errors import InputError
from utils.files import written_whole

T = TypeVar("T")
VOCABULARY_FILE = "vocab.json"
RANDOM_TABLE_FILE = "random_emb.torch"
ARGS_FILE = "training_args.json"
_ASIDE = ".new-"  # begins the name of the folder in which new files are written
_EMA_NAME = re.compile(r"ema_[\d.]+_(\d+)\.pt")
_LONGEST_SAFETENSORS_HEAD = 100_000_000  # bytes, by its specification
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_BERT_BASE = "bert-base-uncased"  # what the published training_args.json calls the base denoiser

VIDEO_LAYERS = ("sims_linear.", "sims_decoder.", "video_attention.")  # of a denoiser, which no Diffusion-LM has


@dataclass(frozen=True)
class PretrainedDiffusionLM:
    """What a Diffusion-LM folder holds."""

    folder: Path
    weights_file: Path
    denoiser_config: DenoiserConfig
    vocabulary: Vocabulary
    state_dict: dict[str, Tensor]
    random_table: Tensor  # (V, C)
    training_args: dict

    def build(self) -> Denoiser:
        """The pre-trained, unconditional denoiser."""
        denoiser = Denoiser(self.denoiser_config, len(self.vocabulary))
        self.fill(denoiser)
        return denoiser

    def fill(self, denoiser: Denoiser) -> None:
        """Give a denoiser the pre-trained weights; layers that look at a video keep theirs.

        :raises InputError: other names are missing, or left over.
        """
        missing, unexpected = denoiser.load_state_dict(self.state_dict, strict=False)
        missing = [name for name in missing if not name.startswith(VIDEO_LAYERS)]
        if missing or unexpected:
            raise InputError(f"{self.weights_file}: names missing {missing}, names not known {unexpected}")


def find_weights(folder: Path) -> Path | None:
    """The EMA weights file of the most steps in `folder`, or None."""
    found = [
        (int(match[1]), path) for path in Path(folder).glob("ema_*.pt") if (match := _EMA_NAME.fullmatch(path.name))
    ]
    return max(found)[1] if found else None


def load(folder: Path) -> PretrainedDiffusionLM:
    """Read a Diffusion-LM folder.

    :raises InputError: a file is missing, damaged, or disagrees with another; names the file.
    """
    folder = Path(folder)
    weights_file = find_weights(folder)
    if weights_file is None:
        raise InputError(f"{folder} holds no Diffusion-LM weights (ema_<rate>_<steps>.pt)")
    state_dict = load_tensors(weights_file)
    state_dict.pop("position_ids", None)
    random_table: Any = load_tensors(folder / RANDOM_TABLE_FILE).get("weight")
    vocabulary = Vocabulary.load(folder / VOCABULARY_FILE)
    args_file = folder / ARGS_FILE
    try:
        training_args = json.loads(args_file.read_text(encoding="utf-8"))
        config = _denoiser_config(state_dict, training_args)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{args_file} or {weights_file.name} does not describe a denoiser: {error!r}") from error
    table = state_dict["word_embedding.weight"]
    for name, rows in (
        (VOCABULARY_FILE, (len(vocabulary), table.shape[1])),
        (RANDOM_TABLE_FILE, getattr(random_table, "shape", None)),
    ):
        if rows != tuple(table.shape):
            raise InputError(
                f"{folder / name}: size {rows} does not fit the word table {tuple(table.shape)} of the weights"
            )
    return PretrainedDiffusionLM(folder, weights_file, config, vocabulary, state_dict, random_table, training_args)


def save(
    folder: Path, denoiser_state: dict[str, Tensor], random_table: Tensor, vocabulary: Vocabulary, training_args: dict
) -> Path:
    """Write a Diffusion-LM folder: all files aside first, then into place, so that a run that dies, or a full disk,
    leaves the folder that was there.

    :param training_args: has "ema_rate", "steps" and "denoiser" (the fields of DenoiserConfig).
    :return: the weights file.
    :raises InputError: the folder cannot be written.
    """
    folder = Path(folder)
    weights_file = folder / f"ema_{training_args['ema_rate']}_{training_args['steps']:06d}.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{_ASIDE}*"):  # by a run that was killed here
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=_ASIDE, dir=folder) as aside:
            new = Path(aside)
            vocabulary.save(new / VOCABULARY_FILE)
            (new / ARGS_FILE).write_text(json.dumps(training_args, indent=2) + "\n", encoding="utf-8")
            save_atomically({"weight": random_table}, new / RANDOM_TABLE_FILE)
            save_atomically(denoiser_state, new / weights_file.name)
            for name in (VOCABULARY_FILE, ARGS_FILE, RANDOM_TABLE_FILE, weights_file.name):
                os.replace(new / name, folder / name)
        for older in folder.glob("ema_*.pt"):
            if older != weights_file:
                older.unlink()
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}; what was there stays") from error
    return weights_file


def load_tensors(path: Path, mapped: bool = False) -> dict:
    """What a file of torch.save or safetensors holds, told by its content: tensors and plain values only.

    :param mapped: read a tensor of torch.save only where it is looked at; the file must not change meanwhile.
    :raises InputError: it is not there, damaged, another kind of file, or its pickle holds more; says which.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        if is_safetensors(path):
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about archives and pickles that are then refused
            mapped = mapped and zipfile.is_zipfile(path)  # not of the format before torch 1.6
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except SafetensorError as error:
        raise InputError(f"{path} is a safetensors file that is damaged or cut short: {one_line(error)}") from error
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # bytes that are no pickle make the unpickler fail in many ways
        raise InputError(f"{path} {_what_it_is(path, str(error))}") from error


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as those of safetensors do: eight bytes of length, then JSON."""
    with open(path, "rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_SAFETENSORS_HEAD


def without_wrappers(state: Mapping[str, T]) -> dict[str, T]:
    """A state dict by the names that it has without wrappers (`module.` of DistributedDataParallel, `_orig_mod.` of
    torch.compile, ...), wherever they stand in them, and without a `model.` that all names begin with."""
    state = {
        ".".join(part for part in name.split(".") if part not in _WRAPPERS): value for name, value in state.items()
    }
    while state and all(name.startswith("model.") for name in state):
        state = {name.removeprefix("model."): value for name, value in state.items()}
    return state


def one_line(error: object) -> str:
    """The text of an error of a library without line breaks and terminal codes."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())


def _what_it_is(path: Path, reason: str) -> str:
    """Why torch cannot load a file, by a look at it: what follows its name in a sentence.

    :param reason: of torch, whose advice is not for this program. A pickle that imports something is named in it.
    """
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        return "is empty"
    if head.startswith(b"version https://git-lfs"):
        return "is only a pointer of Git LFS to a file: fetch that with git lfs pull"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not weights: download the file itself"
    names = re.findall(r"GLOBAL ([\w.]+)", reason)
    if head.startswith(b"PK"):
        try:
            with zipfile.ZipFile(path) as parts:
                damaged, inside = parts.testzip(), {name.rpartition("/")[2] for name in parts.namelist()}
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            return f"is damaged or cut short: {one_line(error)}"
        if damaged:
            return f"is damaged: the checksum of {damaged} is wrong"
        if "constants.pkl" in inside:
            return (
                "is a TorchScript archive, which holds code and is not run: where you trust it, make a file of its "
                "tensors with torch.save(torch.jit.load(FILE, map_location='cpu').state_dict(), NEW_FILE)"
            )
        if "data.pkl" not in inside:
            return "is a zip archive of something else: weights are files of torch.save or safetensors"
    elif not names:
        return "is damaged or cut short, or neither a file of torch.save nor of safetensors"
    more = f"more than tensors and plain values ({names[0]})" if names else "a pickle of another kind than torch.save's"
    return (
        f"holds {more}, which could run code and is not read: where you trust it, load it in Python and torch.save its "
        "state dict alone to a new file"
    )


def save_atomically(value: object, path: Path) -> None:
    """torch.save, `written_whole`.

    :raises OSError: with the reason, where torch tells only that its archive has not the length that it should have.
    """
    with written_whole(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def denoiser_config_from_state(state: dict[str, Tensor], heads: int, dropout: float = 0.1) -> DenoiserConfig:
    """Sizes of a denoiser from its weights; the number of heads is the one that they do not show."""
    hidden, channels = state["input_up_proj.0.weight"].shape
    layer = re.compile(r"input_transformers\.layer\.(\d+)\.")
    layers = {int(match[1]) for name in state if (match := layer.match(name))}
    if state["position_embeddings.weight"].shape[0] != MAX_POSITIONS:
        raise ValueError(f"a denoiser has {MAX_POSITIONS} positions")
    return DenoiserConfig(
        hidden_size=hidden,
        num_hidden_layers=len(layers),
        num_attention_heads=heads,
        intermediate_size=state["input_transformers.layer.0.intermediate.dense.weight"].shape[0],
        channels=channels,
        dropout=dropout,
    )


def _denoiser_config(state: dict[str, Tensor], training_args: dict) -> DenoiserConfig:
    """Ours say "denoiser"; the published one only that it is BERT base (its "num_heads" belongs to another network)."""
    if "denoiser" in training_args:
        heads = training_args["denoiser"]["num_attention_heads"]
    elif training_args.get("config_name") == _BERT_BASE:
        heads = DENOISERS["base"].num_attention_heads
    else:
        raise ValueError('neither "denoiser" nor "config_name": "bert-base-uncased"')
    return denoiser_config_from_state(state, heads, training_args.get("dropout", 0.1))
