"""The noise schedule of Diffusion-LM, in float64, computed once."""

import numpy as np

from utils.errors import InputError

MAX_BETA = 0.999


def sqrt_alpha_bar(s: float) -> float:
    """Share of signal variance left at s in [0, 1]: 1 - sqrt(s + 1e-4) (Li et al. 2022, appendix A)."""
    return 1.0 - np.sqrt(s + 1e-4)


def sqrt_betas(diffusion_steps: int) -> np.ndarray:
    """Betas of the `sqrt` schedule: beta_i = min(1 - abar((i + 1) / T) / abar(i / T), 0.999).

    :param diffusion_steps: T, at least 1.
    :return: float64 array (T,).
    """
    if diffusion_steps < 1:
        raise InputError(f"diffusion_steps must be at least 1, not {diffusion_steps}")
    alpha_bar = np.array([sqrt_alpha_bar(i / diffusion_steps) for i in range(diffusion_steps + 1)])
    return np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], MAX_BETA)
