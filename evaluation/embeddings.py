"""Encoded texts and videos of a split, and the file that keeps them so that they are encoded once."""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from config import Config
from datasets.annotations import Split
from datasets.data_record import content_digest
from datasets.transforms import OPENAI
from model.clip import ClipRetrieval, EncodedVideos
from model.encoders import activations
from model.retrieval import RetrievalModel
from modules.frame_pooling import mean_of_frames
from modules.similarity import check_finite
from utils.device import precision_name
from utils.errors import InputError
from utils.files import written_whole
from utils.threads import map_in_order

FORMAT = "TextDiffs embeddings"
TOKENS_DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Embeddings:
    """What the encoders make of a split."""

    texts: Tensor  # features of the N captions (N, D), float32
    videos: EncodedVideos  # of the M videos; tokens as `new_tokens` made them


def fingerprint(model: RetrievalModel, split: Split, config: Config, dtype: torch.dtype) -> dict[str, str]:
    """All that embeddings depend on, by the name that a message can use. Sampling has no part in it.

    :param dtype: of the matrix products, as --precision or the device has chosen it.
    """
    return {
        "data set": split.dataset,
        "split": split.name,
        "captions and videos": content_digest(split),
        "--num_frames": str(config.num_frames),
        "--input_res": str(config.input_res),
        "--precision": precision_name(dtype),
        "weights of the encoders": digest(*model.encoders()),
        **clip_marks(model),
    }


def clip_marks(model: ClipRetrieval) -> dict[str, str]:
    """What features depend on beside the weights and the flags."""
    return {
        "preprocessing of pictures": str(model.preprocessing),
        "activation of CLIP": activations(model.clip.config),
    }


@torch.no_grad()
def encode_captions(
    model: ClipRetrieval, captions: Sequence[str], batch_size: int, device: torch.device, workers: int = 1
) -> Tensor:
    """Features of N captions that stand for themselves, of no split, (N, D), float32, on the device.

    :param workers: threads that encode, on a CPU; what `one_thread_per_item` gives.
    :raises RunError: a feature is NaN or infinite.
    """
    parts = model.tokenize(captions)["token_ids"].split(batch_size)
    features = torch.cat(list(map_in_order(lambda ids: model.encode_texts(ids.to(device)), parts, workers)))
    check_finite("text", features, captions)
    return features


def differences(made_of: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """The marks in which a file differs from what it is to be used for.

    Files that are older than `clip_marks` do not tell them: their pictures were prepared as OpenAI's, and the weights
    are taken to have had the activation that they have here.
    """
    untold = {"preprocessing of pictures": str(OPENAI), "activation of CLIP": here.get("activation of CLIP")}
    return [name for name, value in here.items() if (untold | dict(made_of)).get(name) != value]


def digest(*modules: nn.Module) -> str:
    """SHA-256 of the names and values of all weights."""
    weights = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            weights.update(name.encode())
            weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return weights.hexdigest()


def new_tokens(videos: int, token_shape: tuple[int, int], folder: Path | None = None) -> Tensor:
    """Room for the tokens of a gallery (M, S, W), half precision, on the CPU: in memory, or in a file that goes with
    the tensor.

    :param folder: where the file lies; None: in memory.
    :raises InputError: it cannot be written.
    """
    shape = (videos, *token_shape)
    if folder is None:
        return torch.empty(shape, dtype=TOKENS_DTYPE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            halves = np.memmap(file, np.int16, "w+", shape=shape)
    except OSError as error:
        raise InputError(f"--output_dir={folder} cannot be written: {error.strerror}") from error
    return torch.from_numpy(halves).view(TOKENS_DTYPE)


def save_embeddings(path: Path, embeddings: Embeddings, split: Split, marks: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all.

    Tensors text_features (N, D), frame_features (M, F, D), video_features (M, D; the mean of the unit frame features),
    video_of_text (N,), and of models that read them video_tokens (M, S, W). Metadata: captions and video_ids as JSON
    lists, and the fingerprint.

    :param marks: what `fingerprint` gave.
    :raises InputError: the file cannot be written.
    """
    tensors = {
        "text_features": embeddings.texts.cpu(),
        "frame_features": embeddings.videos.frames.cpu(),
        "video_features": mean_of_frames(embeddings.videos.frames).cpu(),
        "video_of_text": torch.tensor(split.segment_of_caption),
    }
    if embeddings.videos.tokens is not None:
        tensors["video_tokens"] = embeddings.videos.tokens
    metadata = {
        "format": FORMAT,
        "captions": json.dumps(split.captions),
        "video_ids": json.dumps([segment.video_id for segment in split.segments]),
        "fingerprint": json.dumps(marks),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as unfinished:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished, metadata)
    except (OSError, SafetensorError) as error:
        raise InputError(f"embeddings cannot be written to {path}: {error}") from error


def load_embeddings(path: Path, split: Split, marks: dict[str, str]) -> Embeddings:
    """Read what `save_embeddings` wrote.

    :param marks: what `fingerprint` gives for this model and split.
    :raises InputError: the file is none of ours, or was made of something else; says of what.
    """
    with _opened(path) as file:
        made_of = json.loads(file.metadata()["fingerprint"])
        different = differences(made_of, marks)
        if different:
            told = ", ".join(name + _values(made_of.get(name), marks[name]) for name in different)
            raise InputError(f"--load_embeddings={path} does not belong to this run: it differs in {told}")
        tokens = file.get_tensor("video_tokens") if "video_tokens" in file.keys() else None  # noqa: SIM118 (no dict)
        videos = EncodedVideos(file.get_tensor("frame_features"), tokens)
        embeddings = Embeddings(file.get_tensor("text_features"), videos)
    if (len(embeddings.texts), len(videos.frames)) != (len(split.captions), len(split.segments)):
        raise InputError(f"--load_embeddings={path} does not hold one row for each text and video")
    return embeddings


def without_missing(path: Path, split: Split) -> Split:
    """The part of a split whose videos were there when the file was written, the others as `missing`.

    :raises InputError: the file is none of ours.
    """
    with _opened(path) as file:
        there = set(json.loads(file.metadata()["video_ids"]))
    missing = tuple(dict.fromkeys(segment.video_id for segment in split.segments if segment.video_id not in there))
    return replace(
        split, segments=tuple(segment for segment in split.segments if segment.video_id in there), missing=missing
    )


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    """A file of `save_embeddings`, for reading; what is wrong with it becomes an InputError."""
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("format") != FORMAT:
                raise InputError(f"--load_embeddings={path} is no file of --save_embeddings")
            yield file
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise InputError(f"--load_embeddings={path} cannot be read: {error}") from error


def _values(there: str | None, here: str) -> str:
    """The two values in brackets, unless they are hashes."""
    if len(here) == hashlib.sha256().digest_size * 2:
        return ""
    return f" ({'not said' if there is None else there} in the file, {here} here)"
