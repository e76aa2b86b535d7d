"""A small Diffusion-LM, for the files that test its parts."""

import pytest

from diffusion_lm.denoiser import Denoiser
from diffusion_lm.gaussian_diffusion import GaussianDiffusion
from tests.small_diffusion_lm import STEPS, small_denoiser


@pytest.fixture
def denoiser() -> Denoiser:
    return small_denoiser()


@pytest.fixture(scope="module")
def diffusion() -> GaussianDiffusion:
    return GaussianDiffusion.sqrt(STEPS)
