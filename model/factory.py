"""Builds a model: fresh for training, or from a checkpoint."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from config import Config
from config.flags import flags_of
from config.model_flags import CLIP_INPUT_RES, DIFFUSION_ARCHS, ModelFlags
from datasets.transforms import OPENAI, Preprocessing
from diffusion_lm import weights
from diffusion_lm.denoiser import Denoiser, DenoiserConfig
from diffusion_lm.gaussian_diffusion import GaussianDiffusion
from diffusion_lm.vocabulary import Vocabulary
from diffusion_lm.weights import PretrainedDiffusionLM, without_wrappers
from model.encoders import config_from, native_side, patch_shape, width_of, with_random_weights
from model.model_config import ModelConfig, check_shape
from model.other_checkpoints import (
    ROUNDING_TABLE,
    TEACHER,
    Family,
    check_names,
    family_of,
    shown_settings,
    to_our_names,
)
from model.preprocessing import read_preprocessing
from model.pretrained import CLIP_CONFIGS, USUAL_SIDE, build_clip, home, load_clip, tokenizer_source
from model.published_textdiffs import PublishedTextDiffs
from model.retrieval import RetrievalModel
from model.textdiffs import TextDiffs
from model.tmass import TMass
from model.wti import TokenWise
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


def _xpool(config: ModelConfig, clip: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> XPool:
    return XPool(clip, tokenizer, config.num_mha_heads, config.transformer_dropout)


def _tmass(config: ModelConfig, clip: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> TMass:
    return TMass(
        clip, tokenizer, config.num_frames, Prior(config.stochastic_prior, config.stochastic_prior_std),
        config.num_mha_heads, config.transformer_dropout, config.support_loss_weight, config.stochasic_trials,
        config.seed,
    )  # fmt: skip


def _wti(config: ModelConfig, clip: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> TokenWise:
    return TokenWise(clip, tokenizer)


def _baseline(config: ModelConfig, clip: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> RetrievalModel:
    assert config.pooling_type != "transformer"  # see `Config.resolved`
    pooling = SimplePooling(config.pooling_type, config.k, config.attention_temperature)
    return RetrievalModel(clip, tokenizer, pooling)


def _diffuses(config: ModelConfig, clip: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> RetrievalModel:
    return (_published if config.recipe == "published" else _textdiffs)(config, clip, tokenizer)


def _words(config: ModelConfig) -> tuple[Vocabulary, DenoiserConfig]:
    """What a text diffusion has of its Diffusion-LM."""
    assert config.vocabulary is not None and config.denoiser is not None
    return Vocabulary(config.vocabulary), config.denoiser


def _published(
    config: ModelConfig, clip: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> PublishedTextDiffs:
    vocabulary, sizes = _words(config)
    student, teacher = (Denoiser(sizes, len(vocabulary), config.num_frames) for _ in range(2))
    process, width = GaussianDiffusion.sqrt(config.diffusion_steps), width_of(clip.config)
    table = torch.empty(len(vocabulary), sizes.channels)
    diffusion = TextDiffusion(student, teacher, process, width, config.diffusion_text_len, table)
    return PublishedTextDiffs(
        clip, tokenizer, diffusion, vocabulary, config.num_mha_heads, config.transformer_dropout, config.seed,
        config.sampler, config.sampling_steps,
    )  # fmt: skip


def video_encoder(clip: PreTrainedModel, num_frames: int) -> VideoEncoder:
    """That of the patches of pictures of an encoder, before training."""
    patches, width = patch_shape(clip, native_side(clip.config) or USUAL_SIDE)
    return VideoEncoder(width, num_frames, patches)


def _textdiffs(config: ModelConfig, clip: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> TextDiffs:
    vocabulary, sizes = _words(config)
    encoder = video_encoder(clip, config.num_frames)
    sizes = replace(sizes, dropout=0.0)  # a ratio compares two readings, which must differ by the video alone
    student, table = Denoiser(sizes, len(vocabulary), video_width=encoder.width), (len(vocabulary), sizes.channels)
    process = GaussianDiffusion.sqrt(config.diffusion_steps)
    potential = TextPotential(student, torch.empty(table), encoder, process, config.diffusion_text_len)
    return TextDiffs(
        clip, tokenizer, potential, vocabulary, config.num_mha_heads, config.transformer_dropout, config.seed,
        config.hard_negatives, config.read_captions,
    )  # fmt: skip


BUILDERS = {
    "clip_stochastic": _diffuses, "clip_tmass": _tmass, "clip_transformer": _xpool, "clip_wti": _wti,
    "clip_baseline": _baseline,
}  # fmt: skip


def build(config: ModelConfig, clip: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> RetrievalModel:
    """A model around a CLIP. Weights of the Diffusion-LM, and tables of words, are still to be filled in."""
    model = BUILDERS[config.arch](config, clip, tokenizer)
    model.set_preprocessing(config.preprocessing)
    model.model_config = config
    return model


def create_model(config: Config) -> RetrievalModel:
    """A model before training: CLIP, identity pooling, and for TextDiffs a student that starts as the
    pre-trained Diffusion-LM.

    :raises InputError: CLIP or the pre-trained Diffusion-LM is not there, or its pictures are prepared in another way
        than is known here.
    """
    published, diffuses = config.recipe == "published", config.arch in DIFFUSION_ARCHS
    pretrained = load_teacher(config, published) if diffuses else None
    clip, tokenizer = load_clip(config.clip_arch, config.clip_path)
    preprocessing, side = _preprocessing(config, clip.config)
    settled = _settled(config, {"input_res": config.input_res or side}, clip.config, pretrained, preprocessing)
    model = build(settled, clip, tokenizer)
    if pretrained is not None:
        _fill(model, pretrained)
    return model


def _fill(model: RetrievalModel, pretrained: PretrainedDiffusionLM) -> None:
    """Give a model with a text diffusion the weights of its Diffusion-LM."""
    if isinstance(model, PublishedTextDiffs):
        pretrained.fill(model.text_diffusion.teacher)
        assert model.text_diffusion.rounding_table is not None
        model.text_diffusion.rounding_table.copy_(pretrained.random_table)
    elif isinstance(model, TextDiffs):
        pretrained.fill(model.potential.student)
        model.potential.word_table.copy_(pretrained.state_dict["word_embedding.weight"])


def _settled(
    config: Config,
    told: Mapping[str, Any],
    clip_config: PreTrainedConfig,
    pretrained: PretrainedDiffusionLM | None,
    preprocessing: Preprocessing = OPENAI,
) -> ModelConfig:
    """The configuration of a model that no checkpoint of ours holds.

    :param told: flags that something else than the command line tells.
    :raises InputError: --embed_dim is not that of the CLIP.
    """
    width = width_of(clip_config)
    if config.embed_dim not in (None, width):
        raise InputError(f"--embed_dim={config.embed_dim} is not the width of this CLIP, which is {width}")
    return ModelConfig(
        **{name: getattr(config, name) for name in flags_of(ModelFlags)} | {"embed_dim": width, **told},
        clip_config=clip_config.to_dict(),
        preprocessing=preprocessing,
        denoiser=None if pretrained is None else pretrained.denoiser_config,
        vocabulary=None if pretrained is None else dict(pretrained.vocabulary.token_to_id),
    )


def _preprocessing(config: Config, clip_config: PreTrainedConfig) -> tuple[Preprocessing, int]:
    """How pictures are prepared for the encoder of a run, and the side that they have unless told otherwise.

    :raises InputError: it is not known here, or the files of the encoder contradict each other.
    """
    native, source = native_side(clip_config), config.clip_path or home(config.clip_arch)
    if config.clip_path is None and config.clip_arch in CLIP_CONFIGS:
        return OPENAI, CLIP_INPUT_RES[config.clip_arch]
    preprocessing, side = read_preprocessing(str(source), as_openai=clip_config.model_type == "clip")
    if config.input_res is None and None not in (side, native) and side != native:
        raise InputError(
            f"{source}: its preprocessing makes pictures of {side} pixels, but its image network is for {native}: say "
            f"with --input_res which is right"
        )
    return preprocessing, native or side or USUAL_SIDE


def take_apart(config: Config, checkpoint: Mapping[str, Any], path: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The model of a checkpoint, ours or a published one, as the command line asks for it; and its weights. All else
    that is in the checkpoint is of its training.

    :param path: where it lies, for messages.
    :raises InputError: a setting on the command line contradicts it, or names or sizes do not fit.
    """
    family = family_of(checkpoint)
    if family:
        logger.info("%s is a published %s checkpoint", path, family.name)
        checkpoint = from_another_project(config, checkpoint, family, path)
    settled, state = ModelConfig.of(checkpoint, path).as_asked(config, path), checkpoint["state_dict"]
    if settled.arch in DIFFUSION_ARCHS and settled.recipe == "textdiffs":
        state = {READ_WEIGHT: torch.tensor(2.0)} | state  # older ones did not choose it
    return settled, state


def restore_model(config: Config, checkpoint: Mapping[str, Any], path: Path) -> RetrievalModel:
    """The model of a checkpoint, with its weights.

    :raises InputError: as `take_apart`.
    """
    settled, state = take_apart(config, checkpoint, path)
    return assembled(settled, state, tokenizer_source(settled.clip_arch, settled.clip_path), path)


def assembled(settled: ModelConfig, state: dict[str, Tensor], tokenizer: str | Path, path: Path) -> RetrievalModel:
    """A model of its configuration and its weights.

    :param tokenizer: where it lies, a folder or a hub id.
    :param path: where the weights come from, for messages.
    :raises InputError: the tokenizer is not there, or the weights do not fit.
    """
    with no_init_weights():  # all of them are there, and drawing them takes longer than reading them
        model = build(settled, *build_clip(settled.clip_config, tokenizer))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path} belongs to another model: {' '.join(str(error).split())[:600]}") from error
    return model


def from_another_project(config: Config, checkpoint: Mapping[str, Any], family: Family, path: Path) -> dict[str, Any]:
    """A published checkpoint as one of ours. What it does not show is as the command line says; words, and the table
    that they are rounded to, come from the Diffusion-LM folder.

    :return: what `take_apart` reads.
    :raises InputError: a setting on the command line contradicts the checkpoint, the folder is not the one that it was
        trained with, or names or sizes do not fit; lists them.
    """
    state = without_wrappers(checkpoint["state_dict"])
    if any(name.startswith("clip.visual.") for name in state):
        raise InputError(f"{path} is a {family.name} checkpoint with OpenAI's CLIP: it loads if trained --huggingface")
    shown = shown_settings(state, family, path)
    check_shape(config, shown, path)
    clip_arch = shown.get("clip_arch", config.clip_arch)
    if "input_res" not in config.explicit:
        shown["input_res"] = CLIP_INPUT_RES[clip_arch]
    ours, pretrained = to_our_names(state, family), None
    if shown["arch"] in DIFFUSION_ARCHS:
        pretrained = load_teacher(config, published_first=True)
        _check_words(state, pretrained, path)
        ours[ROUNDING_TABLE] = pretrained.random_table
    clip_config = config_from(CLIP_CONFIGS[clip_arch])
    settled = _settled(config, shown, clip_config, pretrained)
    with torch.device("meta"):
        model = build(settled, with_random_weights(clip_config), None)
    check_names(state, model.state_dict(), family, path)
    return {
        "epoch": checkpoint.get("epoch", 0),
        "step": 0,
        "state_dict": ours,
        "model_config": settled.to_dict(),
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
