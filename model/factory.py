"""Builds a model: fresh for training, or from a checkpoint."""

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from config import Config
from config.config import CLIP_INPUT_RES, DIFFUSION_ARCHS, REMOVED
from datasets.transforms import OPENAI, Preprocessing
from diffusion_lm import weights
from diffusion_lm.denoiser import Denoiser, DenoiserConfig
from diffusion_lm.gaussian_diffusion import GaussianDiffusion
from diffusion_lm.vocabulary import Vocabulary
from diffusion_lm.weights import PretrainedDiffusionLM, without_wrappers
from model.clip import CLIP_CONFIGS, build_clip, clip_of, load_clip, tokenizer_source
from model.preprocessing import read_preprocessing
from model.published import (
    ROUNDING_TABLE,
    TEACHER,
    Family,
    check_names,
    family_of,
    not_known,
    rename_published,
    shown_settings,
)
from model.published_textdiffs import PublishedTextDiffs
from model.retrieval import RetrievalModel
from model.textdiffs import TextDiffs
from model.tmass import TMass
from model.xpool import XPool
from modules.frame_pooling import SimplePooling
from modules.stochastic_text import Prior
from modules.text_diffusion import TextDiffusion
from modules.text_potential import TextPotential
from modules.video_encoder import VideoEncoder
from utils.errors import InputError

logger = logging.getLogger(__name__)

READ_WEIGHT = "potential.read_weight"

DIFFUSION_MODELS = Path(__file__).resolve().parent.parent / "Diffusion-LM" / "diffusion_models"

# settings that shape a model: a checkpoint brings its own, and one given on the command line must agree
MODEL_SETTINGS = (
    "arch", "clip_arch", "clip_path", "num_frames", "input_res", "num_mha_heads", "recipe", "diffusion_steps",
    "diffusion_text_len", "pooling_type", "k", "attention_temperature", "stochastic_prior", "stochastic_prior_std",
)  # fmt: skip


def _xpool(config: Config, clip: CLIPModel, tokenizer: CLIPTokenizer) -> XPool:
    return XPool(clip, tokenizer, config.num_mha_heads, config.transformer_dropout)


def _tmass(config: Config, clip: CLIPModel, tokenizer: CLIPTokenizer) -> TMass:
    return TMass(
        clip,
        tokenizer,
        config.num_frames,
        Prior(config.stochastic_prior, config.stochastic_prior_std),
        config.num_mha_heads,
        config.transformer_dropout,
        support_loss_weight=config.support_loss_weight,
        trials=config.stochasic_trials,
        seed=config.seed,
    )


def _baseline(config: Config, clip: CLIPModel, tokenizer: CLIPTokenizer) -> RetrievalModel:
    pooling = SimplePooling(config.pooling_type, config.k, config.attention_temperature)
    return RetrievalModel(clip, tokenizer, pooling)


WITHOUT_DIFFUSION = {"clip_transformer": _xpool, "clip_tmass": _tmass, "clip_baseline": _baseline}


def create_model(config: Config) -> RetrievalModel:
    """A model before training: CLIP, identity pooling, and for TextDiffs a student that starts as the
    pre-trained Diffusion-LM.

    `config` takes the side of the frames from the CLIP, unless it is given.

    :raises InputError: CLIP or the pre-trained Diffusion-LM is not there, its pictures are prepared in another way than
        is known here, or patches that the model reads would be left out.
    """
    published, diffuses = config.recipe == "published", config.arch in DIFFUSION_ARCHS
    if config.patch_dropout and diffuses and not published:
        raise InputError("--patch_dropout leaves out patches that --recipe=textdiffs reads: leave it out")
    pretrained = load_teacher(config, published) if diffuses else None
    clip, tokenizer = load_clip(config.clip_arch, config.clip_path)
    check_embed_dim(config, clip)
    preprocessing = _take_preprocessing(config, clip)
    if pretrained is None:
        model = _assemble(config, clip, tokenizer)
    else:
        random_table = pretrained.random_table if published else None
        parts = _Diffusion(pretrained.denoiser_config, pretrained.vocabulary, random_table)
        model = _assemble(config, clip, tokenizer, parts)
        pretrained.fill(model.text_diffusion.teacher if published else model.potential.student)
        if not published:
            model.potential.word_table.copy_(pretrained.state_dict["word_embedding.weight"])
    model.set_preprocessing(preprocessing)
    return model


def _take_preprocessing(config: Config, clip: CLIPModel) -> Preprocessing:
    """That of the CLIP of a run; `config` takes the side of the frames from it, unless that is given.

    :raises InputError: it is not known here, or the files of the CLIP contradict each other.
    """
    native = clip.config.vision_config.image_size
    preprocessing, side = (OPENAI, None) if config.clip_path is None else read_preprocessing(config.clip_path)
    if config.input_res is None and side not in (None, native):
        raise InputError(
            f"{config.clip_path}: its preprocessing makes pictures of {side} pixels, but its CLIP is for {native}: say "
            f"with --input_res which is right"
        )
    config.input_res = config.input_res or native
    return preprocessing


def restore_model(config: Config, checkpoint: dict[str, Any], path: Path) -> RetrievalModel:
    """The model of a checkpoint, with its weights. `config` takes the checkpoint's model settings.

    :param checkpoint: what `torch.load` gave.
    :param path: where it lies, for messages.
    :raises InputError: a setting on the command line contradicts the checkpoint, or names or sizes do not fit.
    """
    family = family_of(checkpoint)
    if family:
        logger.info("%s is a published %s checkpoint", path, family.name)
        checkpoint = from_published(config, checkpoint, family, path)
    model = _build_ours(config, checkpoint, path)
    state = checkpoint["state_dict"]
    if isinstance(model, TextDiffs) and READ_WEIGHT not in state:  # older ones did not choose it
        state = state | {READ_WEIGHT: torch.tensor(2.0)}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path} belongs to another model: {' '.join(str(error).split())[:600]}") from error
    return model


def from_published(config: Config, checkpoint: dict[str, Any], family: Family, path: Path) -> dict[str, Any]:
    """A published checkpoint as one of ours. `config` takes the settings that it shows.

    Words, and the table that they are rounded to, come from the Diffusion-LM folder.

    :return: what `restore_model` reads.
    :raises InputError: a setting on the command line contradicts the checkpoint, the folder is not the one that it was
        trained with, or names or sizes do not fit; lists them.
    """
    state = without_wrappers(checkpoint["state_dict"])
    if any(name.startswith("clip.visual.") for name in state):
        raise InputError(f"{path} is a {family.name} checkpoint with OpenAI's CLIP: it loads if trained --huggingface")
    _take_settings(config, shown_settings(state, family, path), path)
    if "input_res" not in config.explicit:
        config.input_res = CLIP_INPUT_RES[config.clip_arch]
    parts: dict[str, Any] = {"clip_config": CLIP_CONFIGS[config.clip_arch]}
    ours = rename_published(state, family)
    if config.arch in DIFFUSION_ARCHS:
        pretrained = load_teacher(config, published_first=True)
        _check_words(state, pretrained, path)
        parts |= {
            "denoiser": pretrained.denoiser_config.to_dict(),
            "vocabulary": pretrained.vocabulary.token_to_id,
        }
        ours[ROUNDING_TABLE] = pretrained.random_table
    with torch.device("meta"):
        model = _build_from(config, parts, clip_of(CLIPConfig.from_dict(parts["clip_config"])), None)
    check_names(state, model.state_dict(), family, path)
    return {
        "epoch": checkpoint.get("epoch", 0),
        "step": 0,
        "state_dict": ours,
        "config": config.to_dict(),
        **parts,
    }


def _check_words(state: dict[str, torch.Tensor], pretrained: PretrainedDiffusionLM, path: Path) -> None:
    """The words of a checkpoint must be those of the Diffusion-LM folder."""
    table = state.get(f"{TEACHER}word_embedding.weight")
    if table is None:
        return  # named later, with all that is missing
    own = pretrained.state_dict["word_embedding.weight"]
    if len(table) != len(own):
        raise InputError(
            f"{path} knows {len(table)} words, but the Diffusion-LM of {pretrained.folder} {len(own)}: "
            f"--diffusion_lm=FOLDER names the one that it was trained with"
        )
    if not torch.equal(table.float(), own.float()):
        logger.warning("the teacher of %s is not the Diffusion-LM of %s: words may differ", path, pretrained.folder)


def _take_settings(config: Config, trained: dict[str, Any], path: Path) -> None:
    """Settings that shape the model, from the checkpoint.

    :raises InputError: one on the command line contradicts them.
    """
    for name in MODEL_SETTINGS:
        if name not in trained or (name == "clip_path" and name in config.explicit):
            continue  # the weights come from the checkpoint: a path only says where the tokenizer lies now
        given = getattr(config, name)
        if name in config.explicit and given != trained[name]:
            raise InputError(
                f"{path} was trained with --{name}={trained[name]}, but --{name}={given} was given: "
                f"leave the flag out or name another checkpoint"
            )
        setattr(config, name, trained[name])


def _build_ours(config: Config, checkpoint: dict[str, Any], path: Path) -> RetrievalModel:
    trained = checkpoint.get("config")
    if not isinstance(trained, dict) or not trained.keys() >= set(MODEL_SETTINGS) or "clip_config" not in checkpoint:
        raise not_known(path)
    _check_recipe(trained, checkpoint["state_dict"], path)
    _take_settings(config, trained, path)
    if "sampling_steps" not in config.explicit:
        config.sampling_steps = config.diffusion_steps
    clip, tokenizer = build_clip(checkpoint["clip_config"], tokenizer_source(config.clip_arch, config.clip_path))
    check_embed_dim(config, clip)
    model = _build_from(config, checkpoint, clip, tokenizer)
    model.set_preprocessing(Preprocessing(**checkpoint.get("preprocessing", {})))  # older ones had all OpenAI's
    return model


def _check_recipe(trained: dict[str, Any], state: dict[str, torch.Tensor], path: Path) -> None:
    """:raises InputError: a checkpoint has a text diffusion that moves the text, but not as published."""
    moves_text = any(name.startswith("text_diffusion.") for name in state)
    own_ways = any(trained.get(name) not in (None, value) for name, value in REMOVED.items() if value is not None)
    if moves_text and (own_ways or trained["recipe"] != "published"):
        raise InputError(
            f"{path} was trained with a recipe of TextDiffs that has changed since: train anew, or evaluate it with "
            f"the version of this project that wrote it"
        )


def _build_from(
    config: Config, parts: dict[str, Any], clip: CLIPModel, tokenizer: CLIPTokenizer | None
) -> RetrievalModel:
    """A model of the sizes that a checkpoint says."""
    if "denoiser" not in parts:
        return _assemble(config, clip, tokenizer)
    vocabulary, sizes = Vocabulary(parts["vocabulary"]), DenoiserConfig(**parts["denoiser"])
    random_table = torch.empty(len(vocabulary), sizes.channels) if config.recipe == "published" else None
    return _assemble(config, clip, tokenizer, _Diffusion(sizes, vocabulary, random_table))


def description(model: RetrievalModel) -> dict[str, Any]:
    """What a checkpoint must hold beside the weights and the configuration to build the model again."""
    parts: dict[str, Any] = {
        "clip_config": model.clip.config.to_dict(),
        "preprocessing": asdict(model.preprocessing),
    }
    if isinstance(model, TextDiffs | PublishedTextDiffs):
        diffusion = model.potential if isinstance(model, TextDiffs) else model.text_diffusion
        parts["denoiser"] = diffusion.student.config.to_dict()
        parts["vocabulary"] = model.vocabulary.token_to_id
    return parts


def load_teacher(config: Config, published_first: bool = False) -> PretrainedDiffusionLM:
    """The pre-trained Diffusion-LM of a run: --diffusion_lm, else the data set's own, else the one that was dropped in.

    :param published_first: take the data set's own only where none was dropped in.
    :raises InputError: there is none; says which command makes one.
    """
    if config.diffusion_lm:
        return weights.load(Path(config.diffusion_lm))
    own = DIFFUSION_MODELS / config.dataset_name
    dropped_in = [DIFFUSION_MODELS, *sorted(path.parent for path in DIFFUSION_MODELS.glob("1000diff_e2e*/ema_*.pt"))]
    order = [*dropped_in, own] if published_first else [own, *dropped_in]
    for folder in order:
        if weights.find_weights(folder):
            logger.info("Diffusion-LM: %s", folder)
            return weights.load(folder)
    raise InputError(
        f"no pre-trained Diffusion-LM for {config.dataset_name}: make one with `python Diffusion-LM/train.py "
        f"--dataset_name={config.dataset_name} --data_dir={config.data_dir}`, or put a published one into "
        f"Diffusion-LM/diffusion_models"
    )


def check_embed_dim(config: Config, clip: CLIPModel) -> None:
    """--embed_dim must be what the CLIP has; without the flag it is taken from there."""
    actual = clip.config.projection_dim
    if "embed_dim" in config.explicit and config.embed_dim != actual:
        raise InputError(f"--embed_dim={config.embed_dim} is not the width of this CLIP, which is {actual}")
    config.embed_dim = actual


@dataclass(frozen=True)
class _Diffusion:
    """What the denoisers of a model are built from."""

    sizes: DenoiserConfig
    vocabulary: Vocabulary
    random_table: torch.Tensor | None  # (V, C), of the published recipe


def _assemble(
    config: Config, clip: CLIPModel, tokenizer: CLIPTokenizer | None, parts: _Diffusion | None = None
) -> RetrievalModel:
    if parts is None:
        return WITHOUT_DIFFUSION[config.arch](config, clip, tokenizer)
    return (_published if config.recipe == "published" else _textdiffs)(config, clip, tokenizer, parts)


def _published(
    config: Config, clip: CLIPModel, tokenizer: CLIPTokenizer | None, parts: _Diffusion
) -> PublishedTextDiffs:
    student, teacher = (Denoiser(parts.sizes, len(parts.vocabulary), config.num_frames) for _ in range(2))
    process, width = GaussianDiffusion.sqrt(config.diffusion_steps), clip.config.projection_dim
    diffusion = TextDiffusion(student, teacher, process, width, config.diffusion_text_len, parts.random_table)
    return PublishedTextDiffs(
        clip,
        tokenizer,
        diffusion,
        parts.vocabulary,
        config.num_mha_heads,
        config.transformer_dropout,
        seed=config.seed,
        sampler=config.sampler,
        sampling_steps=config.sampling_steps,
    )


def _textdiffs(config: Config, clip: CLIPModel, tokenizer: CLIPTokenizer | None, parts: _Diffusion) -> TextDiffs:
    words, encoder = len(parts.vocabulary), VideoEncoder.of(clip.config.vision_config, config.num_frames)
    sizes = replace(parts.sizes, dropout=0.0)  # a ratio compares two readings, which must differ by the video alone
    potential = TextPotential(
        Denoiser(sizes, words, video_width=encoder.width),
        torch.empty(words, parts.sizes.channels),
        encoder,
        GaussianDiffusion.sqrt(config.diffusion_steps),
        config.diffusion_text_len,
    )
    return TextDiffs(
        clip,
        tokenizer,
        potential,
        parts.vocabulary,
        config.num_mha_heads,
        config.transformer_dropout,
        seed=config.seed,
        negatives=config.hard_negatives,
        captions_read=config.read_captions,
    )
