"""A small Diffusion-LM of eleven words with random weights, and the folder of one."""

import torch

from diffusion_lm import weights
from diffusion_lm.denoiser import Denoiser, DenoiserConfig
from diffusion_lm.vocabulary import Vocabulary

SMALL = DenoiserConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, channels=4)
STEPS = 10


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small_denoiser():
    """Without dropout, the same in every call."""
    torch.manual_seed(1)
    return Denoiser(SMALL, 11).eval()


def write_folder(path, denoiser):
    """What a pre-training leaves of it."""
    vocabulary = Vocabulary.from_captions(["a b c d e f g"])
    args = {"denoiser": SMALL.to_dict(), "ema_rate": 0.9999, "steps": 1234, "dropout": SMALL.dropout}
    weights.save(path, denoiser.state_dict(), randn(11, 4), vocabulary, args)
    return path
