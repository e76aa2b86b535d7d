"""The flags that a model is built from. A checkpoint keeps them."""

from dataclasses import dataclass
from typing import Literal, get_args

from config.flags import flag, group

ARCHS = ("clip_stochastic", "clip_tmass", "clip_transformer", "clip_wti", "clip_baseline")
ARCH_ALIASES = {"clip_textdiffs": "clip_stochastic"}
DIFFUSION_ARCHS, TMASS, BASELINE = ARCHS[:1], ARCHS[1:2], ARCHS[4:]
CROSS_ATTENTION_ARCHS, LEARNED_ARCHS = ARCHS[:3], ARCHS[:4]  # the latter have more weights than their encoder
CLIP_INPUT_RES = {
    "ViT-B/32": 224, "ViT-B/16": 224, "ViT-L/14": 224, "ViT-B/32-laion": 224, "siglip2-base": 224, "tiny": 64,
    "tiny-shapes": 64,
}  # fmt: skip
Pooling = Literal["avg", "topk", "attention", "transformer"]
Sampler = Literal["ddpm", "ddim"]
PriorKind = Literal["uniform01", "normal"]

# A flag takes the lines that its words need.
# fmt: off


@group("model", "Which retrieval model, on which CLIP, of how many frames; and the seed of all of it.", "shape")
@dataclass(frozen=True)
class Retrieval:
    arch: str = flag("clip_stochastic", "retrieval model: clip_stochastic or clip_textdiffs is TextDiffs, clip_tmass"
        " T-MASS, clip_transformer X-Pool, clip_wti token-wise interaction, clip_baseline CLIP with simple pooling",
        choices=(*ARCHS, *ARCH_ALIASES), names_model=True)
    recipe: str = flag("textdiffs", "ours, or the published one in every detail", choices=("textdiffs", "published"),
        archs=DIFFUSION_ARCHS)
    clip_arch: str = flag("ViT-B/32", "encoder that is fine-tuned: OpenAI's CLIPs, LAION's, SigLIP 2; two are small and"
        " need no download: tiny has random weights, tiny-shapes knows pictures of drawn shapes",
        choices=tuple(CLIP_INPUT_RES), names_model=True)
    clip_path: str | None = flag(None, "encoder instead of --clip_arch: hub id or local folder (config, weights,"
        " preprocessing, tokenizer) of CLIP, SigLIP, Chinese-CLIP, AltCLIP, MetaCLIP 2 or a vision-text dual encoder of"
        " transformers, or state dict of a CLIP with OpenAI's names; with a checkpoint only its tokenizer is read",
        role="source", metavar="PATH", names_model=True)
    embed_dim: int | None = flag(None, "width of the CLIP embedding, which is only checked; that of ViT-B/32 is 512",
        minimum=1, unset="that of the CLIP")
    num_frames: int = flag(12, "frames taken of each video", aliases=("num_frame",), minimum=1, metavar="FRAMES")
    input_res: int | None = flag(None, "side of the square input, in pixels", minimum=1, metavar="PIXELS",
        unset="that of the CLIP: 224, tiny 64; of --clip_path what its files say")
    pooling_type: Pooling = flag("transformer", "how frames become a video with clip_baseline: avg is their mean, and"
        " what it takes unless told otherwise; topk the mean of the --k most similar to the text; attention weighs them"
        " by a softmax of that similarity; transformer is --arch=clip_transformer",
        choices=get_args(Pooling), archs=BASELINE)
    k: int = flag(-1, "frames of top-k pooling, 1 to --num_frames", archs=BASELINE, needs="pooling_type=topk",
        metavar="FRAMES")
    attention_temperature: float = flag(0.01, "temperature of attention pooling", archs=BASELINE,
        needs="pooling_type=attention")
    num_mha_heads: int = flag(1, "heads of the text-frame attention", minimum=1, archs=CROSS_ATTENTION_ARCHS,
        metavar="HEADS")
    transformer_dropout: float = flag(0.3, "dropout of the frame pooling, between 0 and 1", role="training", minimum=0,
        maximum=1, archs=CROSS_ATTENTION_ARCHS, metavar="SHARE")
    seed: int = flag(24, "seed of everything random", role="score", minimum=0, programs="train test index query serve")


@group("diffusion", "The text diffusion of TextDiffs (--arch=clip_stochastic).", "shape", DIFFUSION_ARCHS)
@dataclass(frozen=True)
class Diffusion:
    diffusion_steps: int = flag(10, "T, steps of the text diffusion", minimum=1, metavar="STEPS")
    diffusion_lm: str | None = flag(None,
        "folder of the pre-trained Diffusion-LM: what the student starts as, or as published its teacher",
        role="source", metavar="DIR",
        unset="Diffusion-LM/diffusion_models/<dataset_name>, else diffusion_models itself")
    diffusion_text_len: int = flag(64, "L, word tokens of a caption in the diffusion", minimum=3, maximum=512,
        metavar="TOKENS")
    read_captions: int = flag(5,
        "captions of each video of a batch, where it has so many, that the text diffusion learns to read in it",
        role="training", minimum=1, recipe="textdiffs", metavar="R")
    hard_negatives: int = flag(1,
        "wrong videos of the batch, the most similar ones, with which each caption is also read in training",
        role="training", minimum=1, recipe="textdiffs", metavar="K")
    potential_lr: float = flag(3e-4, "learning rate of the network that reads captions and of the encoder of the videos"
        " that it reads them with; small denoisers take more, such as 1e-2", role="training", minimum=0,
        recipe="textdiffs")
    sampler: Sampler = flag("ddpm", "reverse process at inference", role="score", choices=get_args(Sampler),
        recipe="published")
    sampling_steps: int | None = flag(None, "steps at inference, at most --diffusion_steps", role="score", minimum=1,
        recipe="published", metavar="STEPS", unset="all of them")


@group("T-MASS", "The sampled texts of T-MASS (--arch=clip_tmass).", "shape", TMASS)
@dataclass(frozen=True)
class SampledTexts:
    support_loss_weight: float = flag(0.8, "weight of the support loss", role="training", minimum=0)
    stochastic_prior: PriorKind = flag("uniform01", "what the text is sampled with: uniform numbers of [0, 1) or normal"
        " ones", choices=get_args(PriorKind))
    stochastic_prior_std: float = flag(1.0, "spread of the normal prior", minimum=0, needs="stochastic_prior=normal")
    stochasic_trials: int = flag(20, "samples of the text for each pair at inference, of which the best counts",
        role="score", aliases=("stochastic_trials",), minimum=1, metavar="SAMPLES")


@dataclass(frozen=True)
class ModelFlags(Retrieval, Diffusion, SampledTexts):
    """All flags that shape, train or score a model."""
