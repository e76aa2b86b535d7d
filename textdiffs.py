"""Text-video retrieval in Python: embed texts and videos with a trained model, rank them, share the model.

docs/PYTHON.md has the ten lines that most people need.
"""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from config import Config, SearchConfig
from evaluation.embeddings import encode_captions
from model.clip import EncodedVideos
from model.factory import assembled, create_model, restore_model
from model.model_config import ModelConfig
from model.preprocessing import read_json
from model.pretrained import spare_retries
from model.retrieval import RetrievalModel, join_rows
from modules.similarity import similarity
from trainer.checkpoints import BEST, load_checkpoint
from trainer.model_card import CARD_FILE, model_card
from utils.device import autocast, choose_device, choose_precision
from utils.errors import InputError
from utils.threads import one_thread_per_item
from video_index.encoding import Encoder, NewSegment
from video_index.store import Span

CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FOLDER = "config.json", "model.safetensors", "tokenizer"


@dataclass(frozen=True)
class TextEmbeddings:
    """N encoded texts."""

    captions: tuple[str, ...]
    features: Tensor  # (N, D), float32, on the CPU; not normalised

    def __len__(self) -> int:
        return len(self.captions)


@dataclass(frozen=True)
class VideoEmbeddings:
    """M encoded videos. What does not depend on a text is in them; `+` joins two."""

    names: tuple[str, ...]  # their paths, as given
    encoded: EncodedVideos

    @property
    def frames(self) -> Tensor:
        """Features of their frames (M, F, D), float32, on the CPU; not normalised."""
        return self.encoded.frames

    def __len__(self) -> int:
        return len(self.names)

    def __add__(self, other: "VideoEmbeddings") -> "VideoEmbeddings":
        return VideoEmbeddings(self.names + other.names, join_rows([self.encoded, other.encoded]))


@dataclass(frozen=True)
class Ranking:
    """Scores of N texts with M videos: those of test.py's strict protocol."""

    scores: np.ndarray  # (N, M), float32

    @property
    def videos_of_texts(self) -> np.ndarray:
        """For each text the videos, best first: indices (N, M)."""
        return np.argsort(-self.scores, axis=1, kind="stable")

    @property
    def texts_of_videos(self) -> np.ndarray:
        """For each video the texts, best first: indices (M, N)."""
        return np.argsort(-self.scores.T, axis=1, kind="stable")


class TextVideoModel(ModelHubMixin):
    """A retrieval model that takes texts and files. `load_model` makes one.

    :param model: in any mode, on any device; it becomes one for evaluation on `device`.
    :param device: "cpu", or the index of a GPU; None: the first GPU if there is one.
    :param precision: "fp32", "bf16" or "fp16"; "auto" is bf16 where the device is fast at it.
    :param card: text of the model card; None writes one of what the model tells.
    :raises InputError: there is no such device.
    """

    def __init__(
        self, model: RetrievalModel, device: str | None = None, precision: str = "auto", card: str | None = None
    ) -> None:
        self._hub_mixin_config = None  # the library's own; what this model needs is in its folder
        self.device = choose_device(device)
        self.dtype = choose_precision(precision, self.device)
        self.model, self.card = model.to(self.device).eval(), card

    @property
    def config(self) -> ModelConfig:
        """What shapes and scores the model."""
        return self.model.model_config

    @torch.no_grad()
    def embed_texts(self, captions: Sequence[str], batch_size: int = 32) -> TextEmbeddings:
        """Encode N texts.

        :raises InputError: there is none.
        :raises RunError: features are NaN or infinite.
        """
        captions = _listed(captions, "text")
        with autocast(self.device, self.dtype), one_thread_per_item(self.device) as workers:
            features = encode_captions(self.model, captions, batch_size, self.device, workers).cpu()
        return TextEmbeddings(tuple(captions), features)

    def embed_videos(self, paths: Sequence[str | Path], batch_size: int = 32, num_workers: int = 0) -> VideoEmbeddings:
        """Encode M video files, or photographs.

        :param num_workers: processes that decode. A script that wants some begins with `if __name__ == "__main__":`.
        :raises InputError: a file is not there or does not decode; names it.
        """
        names = tuple(map(str, _listed(paths, "video")))
        size = {"num_frames": self.config.num_frames, "input_res": self.config.input_res}
        settings = SearchConfig(**size, batch_size=batch_size, num_workers=num_workers)
        segments = [NewSegment(name, Span(0, 1, None, None)) for name in names]
        found = {}
        for segment, video in Encoder(self.model, settings, self.device, self.dtype)(list(dict.fromkeys(segments))):
            if isinstance(video, InputError):
                raise video
            found[segment] = video
        return VideoEmbeddings(names, join_rows([found[segment] for segment in segments]))

    @torch.no_grad()
    def rank(self, texts: TextEmbeddings, videos: VideoEmbeddings, rerank_topk: int = 0) -> Ranking:
        """Score every text with every video.

        :param rerank_topk: score with the diffusion, or with samples, only the K best candidates of each query in each
            direction, as test.py's flag; all others are -inf. 0: all pairs.
        :raises RunError: a score is NaN or infinite.
        """
        tokens = {name: rows.to(self.device) for name, rows in self.model.tokenize(texts.captions).items()}
        with autocast(self.device, self.dtype), one_thread_per_item(self.device) as workers:
            ready = self.model.texts(texts.captions, texts.features.to(self.device), tokens)
            frames = videos.frames.to(self.device)
            seen = self.model.videos(EncodedVideos(frames, videos.encoded.tokens), videos.names)
            return Ranking(similarity(self.model, ready, seen, rerank_topk=rerank_topk, workers=workers).strict)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write what `from_pretrained` reads: config.json, weights, tokenizer and the model card."""
        values = {"model_type": "textdiffs"} | self.config.to_dict() | {"clip_path": None, "diffusion_lm": None}
        (save_directory / CONFIG_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        state = {name: tensor.cpu().contiguous().clone() for name, tensor in self.model.state_dict().items()}
        save_file(state, save_directory / WEIGHTS_FILE, {"format": "pt"})
        self.model.tokenizer.save_pretrained(save_directory / TOKENIZER_FOLDER)
        card = self.card or str(model_card(self.config))
        (save_directory / CARD_FILE).write_text(card, encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls, model_id: str | Path, *, revision: str | None = None, token: str | bool | None = None, **options: Any
    ) -> "TextVideoModel":
        """The model in a folder of `save_pretrained`, or in one on the hub. No pickle is read.

        :param revision: branch, tag or commit on the hub; `token` where it is not public.
        :param options: `device` and `precision`, as of the class.
        :raises InputError: there is no such folder, or it does not hold a model.
        """
        folder = Path(model_id).expanduser()
        if not folder.is_dir():
            folder = _downloaded(str(model_id), revision, token)
        return super().from_pretrained(folder, **options)

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, device: str | None = None, precision: str = "auto", **_: Any
    ) -> "TextVideoModel":
        folder = Path(model_id)
        if not (folder / CONFIG_FILE).is_file() or not (folder / WEIGHTS_FILE).is_file():
            raise InputError(f"{model_id} is no model of save_pretrained: it needs {CONFIG_FILE} and {WEIGHTS_FILE}")
        settled = ModelConfig.of({"model_config": read_json(folder / CONFIG_FILE)}, folder / CONFIG_FILE)
        try:
            state = load_file(folder / WEIGHTS_FILE)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{folder / WEIGHTS_FILE} cannot be read: {error}") from error
        with _own_random_numbers():
            model = assembled(settled, state, folder / TOKENIZER_FOLDER, folder)
        return cls(model, device, precision, _card_beside(folder / CONFIG_FILE))


def load_model(
    source: str | Path | None = None,
    *,
    clip_path: str | None = None,
    device: str | None = None,
    precision: str = "auto",
) -> TextVideoModel:
    """The model of a run or of a folder; or an encoder as it is, whose frames are averaged.

    :param source: folder of a run, which gives its model_best.pth; a checkpoint file; a folder of `save_pretrained`, or
        the id of one on the hub. None: the encoder of `clip_path`, else CLIP ViT-B/32.
    :param clip_path: where the encoder lies, as --clip_path; with a checkpoint where its tokenizer lies now.
    :param device: as of TextVideoModel, `precision` likewise.
    :raises InputError: there is no such model.
    """
    flags = [] if clip_path is None else [f"--clip_path={clip_path}"]
    if source is None:
        with _own_random_numbers():
            model = create_model(Config.parse(["--arch=clip_baseline", *flags]))
        return TextVideoModel(model, device, precision)
    path = Path(source).expanduser()
    if path.is_dir() and (path / BEST).is_file():
        path = path / BEST
    if not path.is_file():
        return TextVideoModel.from_pretrained(str(source), device=device, precision=precision)
    with _own_random_numbers():
        model = restore_model(Config.parse(flags), load_checkpoint(path), path)
    return TextVideoModel(model, device, precision, _card_beside(path))


def _own_random_numbers() -> AbstractContextManager:
    """Networks draw weights before theirs are read; the stream of the caller stays where it is."""
    return torch.random.fork_rng(devices=[])


def _card_beside(path: Path) -> str | None:
    card = path.parent / CARD_FILE
    return card.read_text(encoding="utf-8") if card.is_file() else None


def _listed(items: Sequence, what: str) -> list:
    """:raises InputError: there is none, or it is one that is not in a list."""
    if isinstance(items, str | Path):
        raise InputError(f"a list of {what}s is expected, not the one {items!r}")
    if not len(items):
        raise InputError(f"a list of {what}s is expected, and it is empty")
    return list(items)


def _downloaded(model_id: str, revision: str | None, token: str | bool | None) -> Path:
    spare_retries(model_id)
    wanted = [CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, f"{TOKENIZER_FOLDER}/*"]
    try:
        return Path(snapshot_download(model_id, revision=revision, token=token, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise InputError(
            f"{model_id} is neither a run, a checkpoint, a folder of save_pretrained, nor a model of the hub or its "
            f"cache: {' '.join(str(error).split())[:200]}"
        ) from error
