"""Models of a small real shape with random weights, on the tiny CLIP."""

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from config import Config
from config.flags import flags_of
from config.model_flags import ModelFlags
from diffusion_lm.denoiser import Denoiser, DenoiserConfig
from diffusion_lm.gaussian_diffusion import GaussianDiffusion
from diffusion_lm.vocabulary import Vocabulary
from model.factory import video_encoder
from model.model_config import ModelConfig
from model.pretrained import TINY_FOLDER, build_clip
from model.published_textdiffs import PublishedTextDiffs
from model.retrieval import RetrievalModel
from model.textdiffs import TextDiffs
from model.tmass import TMass
from model.xpool import XPool
from modules.frame_pooling import SimplePooling
from modules.stochastic_text import Prior
from modules.text_diffusion import TextDiffusion
from modules.text_potential import TextPotential

SMALL = DenoiserConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)


def settled(model: RetrievalModel, config: Config) -> RetrievalModel:
    """A model of these with the configuration that the factory would have given it, to be saved."""
    diffusion = getattr(model, "potential", None) or getattr(model, "text_diffusion", None)
    model.model_config = ModelConfig(
        **{name: getattr(config, name) for name in flags_of(ModelFlags)},
        clip_config=model.clip.config.to_dict(),
        denoiser=diffusion and diffusion.student.config,
        vocabulary=diffusion and model.vocabulary.token_to_id,
    )
    return model


def small_clip(embed_dim: int = 128) -> tuple[CLIPModel, CLIPTokenizer]:
    """The tiny CLIP with random weights, projected to another width if wanted, and its tokenizer."""
    config = CLIPConfig.from_pretrained(TINY_FOLDER).to_dict()
    return build_clip(config | {"projection_dim": embed_dim}, TINY_FOLDER)


def small_xpool(embed_dim: int = 128, heads: int = 1) -> XPool:
    """X-Pool in evaluation mode."""
    return XPool(*small_clip(embed_dim), num_mha_heads=heads).eval()


def small_tmass(embed_dim: int = 128, num_frames: int = 5, prior: Prior | None = None, **options) -> TMass:
    """T-MASS in evaluation mode, whose radius is not that of the start."""
    model = TMass(*small_clip(embed_dim), num_frames, prior or Prior(), **options).eval()
    with torch.no_grad():
        projection = model.stochastic.std_branch.linear_proj
        projection.weight.add_(0.5 * torch.randn_like(projection.weight))
    return model


def small_baseline(kind: str, embed_dim: int = 128, k: int = 3, temperature: float = 0.1) -> RetrievalModel:
    """CLIP with simple pooling, in evaluation mode."""
    return RetrievalModel(*small_clip(embed_dim), SimplePooling(kind, k, temperature)).eval()


def small_textdiffs(
    captions: list[str],
    embed_dim: int = 128,
    num_frames: int = 5,
    steps: int = 3,
    length: int = 8,
    scaled: bool = True,
    published: bool = False,
    **options,
) -> TextDiffs | PublishedTextDiffs:
    """TextDiffs in evaluation mode, or with `published` the diffusion that moves the text.

    :param scaled: some layers are scaled up, so that the video moves words as it does in a trained model; rounding
        errors grow with them. Without it TextDiffs is as before training, where the video changes nothing.
    """
    vocabulary = Vocabulary.from_captions(captions)
    process, clip = GaussianDiffusion.sqrt(steps), small_clip(embed_dim)
    if published:
        student, teacher = (Denoiser(SMALL, len(vocabulary), num_frames) for _ in range(2))
        with torch.no_grad():
            for layer in (student.sims_linear, student.sims_decoder[0], student.sims_decoder[2]):
                layer.weight.mul_(20 if scaled else 1)
            student.output_down_proj[2].weight.mul_(100 if scaled else 1)
        diffusion = TextDiffusion(student, teacher, process, embed_dim, length)
        return PublishedTextDiffs(*clip, diffusion, vocabulary, **options).eval()
    encoder = video_encoder(clip[0], num_frames)
    student = Denoiser(SMALL, len(vocabulary), video_width=encoder.width)
    word_table = student.word_embedding.weight.detach().clone()
    if scaled:
        with torch.no_grad():
            student.word_embedding.weight.add_(0.1 * torch.randn_like(word_table))  # as training moves it
            student.output_down_proj[2].weight.mul_(20)
            for attention in student.video_attention:
                attention.query.weight.mul_(3)
                attention.out.weight.normal_()
    potential = TextPotential(student, word_table, encoder, process, length)
    return TextDiffs(*clip, potential, vocabulary, **options).eval()
