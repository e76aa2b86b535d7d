"""The model that an index belongs to: from the flags of a command line, or from those that the index keeps."""

import hashlib
import logging

import torch

from config import SearchConfig
from evaluation.embeddings import clip_marks, differences, digest
from model.retrieval import RetrievalModel
from trainer.checkpoints import chosen_model
from utils.device import set_up
from utils.errors import InputError
from video_index.head import Head

logger = logging.getLogger(__name__)

WINDOW = 30.0  # seconds
WEIGHTS, SAMPLED, SAMPLES = "model weights", "sampled ", 4096  # numbers of a tensor that are looked at, at least


def load_model(
    config: SearchConfig, head: Head | None, device: torch.device
) -> tuple[SearchConfig, RetrievalModel, Head]:
    """The model of the command line, else that of the index, in evaluation mode; before it the settings with what the
    index and the checkpoint say, and after it what an index of it begins with.

    :param head: of the index, None for a new one.
    :raises InputError: there is no such model, or the index belongs to another one.
    """
    if head is not None and not config.names_model:
        config = config.with_model(head.flags)
    flags = config.model_flags()  # before the checkpoint's own settings join them
    set_up(device, config.seed)  # of a CLIP with random weights
    path, model = chosen_model(config)[:2]
    config = config.of_model(model.model_config)
    for note in config.notes(config.command):
        logger.info(note)
    marks = {
        "--num_frames": str(config.num_frames),
        "--input_res": str(config.input_res),
        WEIGHTS: _weights(model, head),
        **clip_marks(model),
    }
    if path is None and config.clip_arch == "tiny" and config.clip_path is None:
        logger.warning("--clip_arch=tiny has random weights, so that what is found means nothing: it is for tests")
    made_with = str(path.resolve()) if path else f"CLIP {config.clip_path or config.clip_arch} ({config.arch})"
    window = config.window or (WINDOW if head is None else head.window)
    made = Head(made_with, marks, flags, window, (config.num_frames, model.embed_dim), model.token_shape)
    if head is not None:
        _refuse_another(config, head, made)
    return config, model.to(device).eval(), made


def _weights(model: RetrievalModel, head: Head | None) -> str:
    """What tells these weights from others: names, shapes, and numbers of each tensor at equal distances, as reading
    all of a large CLIP takes as long as a query. Of earlier indexes it is the digest of all."""
    if head is not None and not head.model[WEIGHTS].startswith(SAMPLED):
        return digest(model)
    seen = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        seen.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        numbers = tensor.flatten()
        some = numbers[:: max(1, len(numbers) // SAMPLES)]
        seen.update(some.cpu().contiguous().view(torch.uint8).numpy())
    return SAMPLED + seen.hexdigest()


def _refuse_another(config: SearchConfig, head: Head, here: Head) -> None:
    """:raises InputError: an index was made with another model or window."""
    different = differences(head.model, here.model)
    if different:
        raise InputError(
            f"--index={config.index} belongs to another model: it was made with {head.made_with}, not with "
            f"{here.made_with}, and differs in {', '.join(different)}"
        )
    if head.window != here.window:
        raise InputError(
            f"--index={config.index} has segments of --window={head.window:g} seconds, not {here.window:g}: leave the "
            "flag out or give another folder"
        )
