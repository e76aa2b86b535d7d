"""The CLIP that is fine-tuned: transformers' CLIPModel and its tokenizer, by --clip_arch or --clip_path."""

import html
import logging
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, NamedTuple

import ftfy
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from datasets.transforms import OPENAI, Preprocessing
from diffusion_lm.weights import load_tensors, one_line, without_wrappers
from model.openai_clip import read_openai
from model.preprocessing import OPEN_CLIP_FILE, read_json
from utils.errors import InputError

if TYPE_CHECKING:
    from model.model_config import ModelConfig

logger = logging.getLogger(__name__)

HUB_IDS = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
}
TINY_FOLDER = Path(__file__).resolve().parent.parent / "assets" / "clip-tiny"
TOKENIZER_FILES = "vocab.json and merges.txt (or tokenizer.json)"
NEEDED_FILES = f"config.json, model.safetensors (or pytorch_model.bin), {TOKENIZER_FILES}"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
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


class EncodedVideos(NamedTuple):
    """What the encoders make of N videos."""

    frames: Tensor  # projected frame features (N, F, D), float32
    tokens: Tensor | None = None  # (N, S, W), of models that read them


class ClipRetrieval(nn.Module):
    """CLIP's two encoders, projected and not normalised, with tokenisation and pixel scaling: the base of all models.

    :param clip: the network; its parameters are named `clip.*`, as in published checkpoints.
    :param tokenizer: captions to CLIP's token ids.
    """

    pixel_mean: Tensor  # (3, 1, 1), of pixels in [0, 1]
    pixel_std: Tensor
    model_config: "ModelConfig"  # that it was built from, of models of the factory

    def __init__(self, clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.clip, self.tokenizer = clip, tokenizer
        self.set_preprocessing(OPENAI)

    def set_preprocessing(self, preprocessing: Preprocessing) -> None:
        """Expect pictures as this CLIP was shown them. Frames are cut and resized before, by the data's transforms."""
        self.preprocessing = preprocessing
        for name, values in (("pixel_mean", preprocessing.mean), ("pixel_std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    @property
    def embed_dim(self) -> int:
        """D, width of the projected features."""
        return self.clip.config.projection_dim

    def prepare(self, gradient_checkpointing: bool, compiled: bool) -> None:
        """Make training take less memory, or less time; results stay the same up to rounding."""
        if gradient_checkpointing:
            self.clip.gradient_checkpointing_enable({"use_reentrant": False})
        if compiled:
            for network in self.networks():
                network.compile()

    def networks(self) -> list[nn.Module]:
        """The parts that are worth compiling."""
        return [self.clip.vision_model, self.clip.text_model]

    def encoders(self) -> list[nn.Module]:
        """What texts and videos are encoded with."""
        return [self.clip]

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """What the model reads of N captions: tensors of N rows, on the CPU.

        Here CLIP's token ids (N, longest) of the cleaned captions, padded behind the end token and cut at CLIP's
        longest.
        """
        longest = self.clip.config.text_config.max_position_embeddings
        cleaned = list(map(clean_caption, captions))
        encoded = self.tokenizer(cleaned, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        return {"token_ids": encoded["input_ids"]}

    def select(self, tokens: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
        """Rows `index` of what `tokenize` gave, CLIP's ids cut to the longest caption among them."""
        chosen = {name: rows[index] for name, rows in tokens.items()}
        ids = chosen["token_ids"]
        chosen["token_ids"] = ids[:, : int((ids != self.tokenizer.pad_token_id).sum(1).max()) + 1]  # + the end token
        return chosen

    def encode_texts(self, token_ids: Tensor) -> Tensor:
        """Token ids (N, tokens) -> text features (N, D), float32.

        No attention mask: attention is causal and the feature is that of the end token, so what follows it is not seen.
        """
        return _features(self.clip.get_text_features(input_ids=token_ids))

    def pixels(self, frames: Tensor) -> Tensor:
        """Frames uint8 (N, 3, R, R) -> what CLIP's image encoder reads, (N, 3, R, R) float32."""
        return (frames.float() / 255 - self.pixel_mean) / self.pixel_std

    def encode_videos(self, frames: Tensor) -> EncodedVideos:
        """Frames uint8 (B, F, 3, R, R) -> their features."""
        return EncodedVideos(self.frame_features(frames)[0])

    def frame_features(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames uint8 (B, F, 3, R, R) -> projected features (B, F, D), float32, and those of the patches, as the last
        layer of the image encoder leaves them, (B, F, P, width)."""
        pixels = self.pixels(frames.flatten(0, 1))
        native = self.clip.config.vision_config.image_size
        seen = self.clip.vision_model(pixel_values=pixels, interpolate_pos_encoding=pixels.shape[-1] != native)
        projected = self.clip.visual_projection(seen.pooler_output).float()
        return tuple(part.unflatten(0, frames.shape[:2]) for part in (projected, seen.last_hidden_state[:, 1:]))


def clean_caption(caption: str) -> str:
    """What CLIP reads of a caption, as OpenAI's tokenizer prepares it: text that was decoded with the wrong encoding is
    repaired, curly quotes are straight, HTML entities are characters, blanks are single, letters are small.

    transformers' tokenizer does only the last two. The words of the text diffusion are those of the caption as it is,
    as its published vocabularies and `word_tokens.json` have them.
    """
    if caption.isascii() and caption.isprintable() and "&" not in caption:
        text = caption  # nothing to repair, and so are nearly all captions of the data sets
    else:
        text = html.unescape(html.unescape(ftfy.fix_text(caption)))
    return " ".join(text.split()).lower()


def load_clip(clip_arch: str, clip_path: str | None = None) -> tuple[CLIPModel, CLIPTokenizer]:
    """CLIP with its weights in float32: pre-trained, or random for `tiny` without a path.

    :param clip_path: hub id, folder of transformers or open_clip, or file with OpenAI's names.
    :raises InputError: neither a local folder nor the hub's cache nor the hub has it; says which files to put where.
    """
    if clip_path is None and clip_arch == "tiny":
        return build_clip(CLIP_CONFIGS["tiny"], TINY_FOLDER)
    if clip_path is not None and (file := _weights_file(Path(clip_path))):
        return _load_openai(file, clip_arch)
    source = clip_path or _home(clip_arch)
    _check_kind(Path(source))
    transformers_logging.disable_progress_bar()
    told = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # a page of names, of which one line is said below
    try:
        clip, report = CLIPModel.from_pretrained(
            **_weights_of(source),
            attn_implementation="sdpa",
            dtype=torch.float32,  # transformers 5 keeps that of the file otherwise
            ignore_mismatched_sizes=True,  # they are said here
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, UnpicklingError, SafetensorError) as error:
        raise InputError(_not_loaded(source, error)) from error
    finally:
        transformers_logging.set_verbosity(told)
    _check_names(report, source)
    return clip, load_tokenizer(source)


def _check_kind(folder: Path) -> None:
    """:raises InputError: a folder holds no CLIP, or a model of another kind: transformers would make a CLIP of it."""
    if not folder.is_dir():
        return
    config = folder / "config.json"
    if not config.is_file():
        raise InputError(f"{folder} holds no CLIP: it needs {NEEDED_FILES}")
    kind = read_json(config).get("model_type", "clip")
    if kind != "clip":
        raise InputError(f"{config} is that of a {kind}, not of a CLIP")


def _check_names(report: dict[str, Any], source: str | Path) -> None:
    """:raises InputError: tensors are missing or of another size, which transformers fills with random numbers."""
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"the weights of {source} are not those of its CLIP: {missing[0]} and {len(missing) - 1} more are missing"
        )
    if others := sorted(report["mismatched_keys"]):
        name, size, wanted = others[0]
        raise InputError(
            f"the weights of {source} are not those of its CLIP: {name} is {tuple(size)} instead of {tuple(wanted)}, "
            f"and {len(others) - 1} more are of another size"
        )
    if unknown := sorted(report["unexpected_keys"]):
        logger.info("%s: %s and %d more tensors have no place in CLIP", source, unknown[0], len(unknown) - 1)


def _weights_of(source: str | Path) -> dict[str, Any]:
    """What transformers builds a CLIP from, as arguments: a hub id, or the configuration and the weights of a folder.

    Those in one file are read here, whatever its kind and the wrappers in its names.
    """
    folder = Path(source)
    files = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    if not files or not (folder / "config.json").is_file():
        return {"pretrained_model_name_or_path": source}  # or a folder with weights in several files
    content = load_tensors(files[0])
    content = content.get("state_dict", content)
    state = without_wrappers({name: value for name, value in content.items() if isinstance(value, Tensor)})
    if all(name.startswith("clip.") for name in state):
        state = {name.removeprefix("clip."): value for name, value in state.items()}
    return {"pretrained_model_name_or_path": None, "config": CLIPConfig.from_pretrained(source), "state_dict": state}


def _weights_file(place: Path) -> Path | None:
    """The file that is read with OpenAI's names, if it is one: itself, or that of a folder of open_clip."""
    if place.is_file():
        return place
    if (place / "config.json").is_file() or not (place / OPEN_CLIP_FILE).is_file():
        return None
    return next((place / name for name in _OPEN_CLIP_WEIGHTS if (place / name).is_file()), None)


def _load_openai(path: Path, clip_arch: str) -> tuple[CLIPModel, CLIPTokenizer]:
    state, clip_config = read_openai(path)
    clip, tokenizer = build_clip(clip_config, tokenizer_source(clip_arch, str(path)))
    try:
        clip.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path} does not fit CLIP: {one_line(error)[:600]}") from error
    return clip, tokenizer


def load_tokenizer(source: str | Path) -> CLIPTokenizer:
    """The tokenizer of a CLIP.

    :param source: hub id or folder.
    :raises InputError: it is not there. transformers says nothing then, and makes an empty one.
    """
    try:
        tokenizer = CLIPTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise InputError(_no_tokenizer(source)) from error
    if len(tokenizer) <= _EMPTY_TOKENIZER:
        raise InputError(_no_tokenizer(source))
    return tokenizer


def build_clip(clip_config: dict, tokenizer_source: str | Path) -> tuple[CLIPModel, CLIPTokenizer]:
    """CLIP of a configuration with random weights, to be filled from a checkpoint or trained from scratch.

    :param clip_config: what CLIPConfig.to_dict gave.
    :param tokenizer_source: hub id or folder of the tokenizer.
    :raises InputError: the tokenizer is not there, or has more tokens than the CLIP.
    """
    tokenizer = load_tokenizer(tokenizer_source)
    config = CLIPConfig.from_dict(clip_config)
    if len(tokenizer) > config.text_config.vocab_size:
        raise InputError(
            f"the tokenizer of {tokenizer_source} has {len(tokenizer)} tokens, more than the "
            f"{config.text_config.vocab_size} of this CLIP: --clip_path=FOLDER names another"
        )
    config.text_config.eos_token_id = tokenizer.eos_token_id  # the feature of a caption is that of this token
    return clip_of(config), tokenizer


def clip_of(config: CLIPConfig) -> CLIPModel:
    """CLIP of a configuration with random weights."""
    return CLIPModel._from_config(config, attn_implementation="sdpa")


def tokenizer_source(clip_arch: str, clip_path: str | None) -> str | Path:
    """Where the tokenizer of a CLIP lies: a folder or a hub id. That of a file lies beside it, if there is one."""
    if clip_path is not None and Path(clip_path).is_file():
        folder = Path(clip_path).parent
        if any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json")):
            return folder
        clip_path = None
    return clip_path or _home(clip_arch)


def _home(clip_arch: str) -> str | Path:
    return TINY_FOLDER if clip_arch in ("tiny", "tiny-shapes") else HUB_IDS[clip_arch]


def _no_tokenizer(source: str | Path) -> str:
    if Path(source).is_dir():
        return f"{source} holds no tokenizer of CLIP: it needs {TOKENIZER_FILES}"
    return (
        f"the tokenizer of CLIP {source} is not in the local cache and cannot be downloaded: put {TOKENIZER_FILES} of "
        f"it into a folder and give --clip_path=FOLDER"
    )


def _not_loaded(source: str | Path, error: Exception) -> str:
    folder = Path(source)
    if folder.is_dir():
        weights = [file for pattern in ("model*.safetensors", "pytorch_model*.bin") for file in folder.glob(pattern)]
        if not weights:
            return f"{source} holds no CLIP: it needs {NEEDED_FILES}"
        for file in weights:
            load_tensors(file)  # says in one line what is wrong with it
        return f"{source} does not load as a CLIP of transformers: {one_line(error)[:400]}"
    return (
        f"CLIP {source} is not in the local cache and cannot be downloaded: put {NEEDED_FILES} of it into a folder "
        f"and give --clip_path=FOLDER, or use --clip_arch=tiny"
    )


def _features(output: Any) -> Tensor:
    """The projected features: transformers 5 wraps them in an output object, transformers 4 returns the tensor."""
    return (output if isinstance(output, Tensor) else output.pooler_output).float()
