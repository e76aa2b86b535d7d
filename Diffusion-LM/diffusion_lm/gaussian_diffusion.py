"""Gaussian diffusion over word embeddings with a network that predicts x_0.

Names follow Ho et al. 2020 (DDPM), Song et al. 2021 (DDIM) and Nichol & Dhariwal 2021 (respacing).
"""

import numpy as np
import torch
from torch import Tensor, nn

from utils.errors import InputError

TIME_SCALE = 1000.0  # the network sees t * 1000 / T, so that its time input does not depend on T
MAX_BETA = 0.999


def sqrt_betas(diffusion_steps: int) -> np.ndarray:
    """Betas of the `sqrt` schedule, whose share of signal variance left at s in [0, 1] is abar(s) = 1 - sqrt(s + 1e-4)
    (Li et al. 2022, appendix A): beta_i = min(1 - abar((i + 1) / T) / abar(i / T), 0.999).

    :param diffusion_steps: T, at least 1.
    :return: float64 array (T,).
    """
    if diffusion_steps < 1:
        raise InputError(f"diffusion_steps must be at least 1, not {diffusion_steps}")
    alpha_bar = 1.0 - np.sqrt(np.arange(diffusion_steps + 1) / diffusion_steps + 1e-4)
    return np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], MAX_BETA)


class GaussianDiffusion(nn.Module):
    """The forward process and the two reverse steps, for a fixed list of betas.

    Coefficients are computed in float64 and kept as float32 buffers, so that they follow the model to its device
    without being part of a checkpoint.

    :param betas: float64 array (S,), the variance added by each step.
    :param model_times: float array (S,), what the network is told for each step; default arange(S) * 1000 / S.
    """

    betas: Tensor  # this and the following (S,)
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor
    model_times: Tensor

    def __init__(self, betas: np.ndarray, model_times: np.ndarray | None = None) -> None:
        super().__init__()
        betas = np.asarray(betas, dtype=np.float64)
        if betas.ndim != 1 or not ((betas > 0) & (betas <= 1)).all():
            raise InputError("betas must be a list of numbers in (0, 1]")
        self.num_steps = len(betas)
        if model_times is None:
            model_times = np.arange(self.num_steps) * (TIME_SCALE / self.num_steps)
        self.betas_float64 = betas
        self.alphas_cumprod_float64 = abar = np.cumprod(1.0 - betas)
        abar_prev = np.append(1.0, abar[:-1])
        coefficients = {
            "betas": betas,
            "alphas_cumprod": abar,
            "alphas_cumprod_prev": abar_prev,
            "sqrt_alphas_cumprod": np.sqrt(abar),
            "sqrt_one_minus_alphas_cumprod": np.sqrt(1.0 - abar),
            "posterior_mean_coef1": betas * np.sqrt(abar_prev) / (1.0 - abar),
            "posterior_mean_coef2": (1.0 - abar_prev) * np.sqrt(1.0 - betas) / (1.0 - abar),
            "model_times": model_times,
        }
        for name, values in coefficients.items():
            self.register_buffer(name, torch.tensor(np.asarray(values), dtype=torch.float32), persistent=False)

    @classmethod
    def sqrt(cls, diffusion_steps: int) -> "GaussianDiffusion":
        """The diffusion of Diffusion-LM: T steps of the `sqrt` schedule."""
        return cls(sqrt_betas(diffusion_steps))

    @property
    def x_start_std(self) -> float:
        """sigma_0 = sqrt(1 - abar_0): spread of x_0 around the word embeddings."""
        return float(np.sqrt(1.0 - self.alphas_cumprod_float64[0]))

    def respaced(self, sampling_steps: int) -> "GaussianDiffusion":
        """The same process in fewer steps: evenly spaced ones, the first and the last included.

        :param sampling_steps: S in [1, T]; S = T gives the process itself.
        :return: a diffusion of S steps whose network input stays the time of the original steps.
        """
        if not 1 <= sampling_steps <= self.num_steps:
            raise InputError(f"sampling steps must lie in 1..{self.num_steps} (diffusion_steps), not {sampling_steps}")
        if sampling_steps == self.num_steps:
            return self
        kept = np.round(np.linspace(self.num_steps - 1, 0, sampling_steps)).astype(int)[::-1]
        abar = self.alphas_cumprod_float64[kept]
        betas = 1.0 - abar / np.append(1.0, abar[:-1])
        times = self.model_times.double().cpu().numpy()[kept]
        return GaussianDiffusion(betas, times).to(self.betas.device)

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t ~ q(x_t | x_0) for given noise.

        :param x_start: (N, L, C).
        :param t: integer steps (N,) in [0, S).
        :param noise: standard normal (N, L, C).
        """
        return _at(self.sqrt_alphas_cumprod, t) * x_start + _at(self.sqrt_one_minus_alphas_cumprod, t) * noise

    def q_posterior_mean(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Mean of q(x_{t-1} | x_t, x_0), (N, L, C); Ho et al. 2020, equation 7."""
        return _at(self.posterior_mean_coef1, t) * x_start + _at(self.posterior_mean_coef2, t) * x_t

    def ddpm_step(self, x_start: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_{t-1} from x_t and the predicted x_0, with the FIXED_LARGE variance beta_t and no noise at t = 0.

        :param x_start: predicted x_0 (N, L, C).
        :param x_t: (N, L, C).
        :param t: integer steps (N,).
        :param noise: standard normal (N, L, C).
        """
        std = _at(torch.where(t == 0, 0.0, self.betas[t].sqrt()))
        return self.q_posterior_mean(x_start, x_t, t) + std * noise

    def ddim_step(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x_{t-1} from x_t and the predicted x_0 without noise (eta = 0); Song et al. 2021, equation 12.

        :param x_start: predicted x_0 (N, L, C).
        :param x_t: (N, L, C).
        :param t: integer steps (N,); the step before t is t - 1, and x_0 itself before 0.
        """
        noise = (x_t - _at(self.sqrt_alphas_cumprod, t) * x_start) / _at(self.sqrt_one_minus_alphas_cumprod, t)
        abar_prev = _at(self.alphas_cumprod_prev, t)
        return abar_prev.sqrt() * x_start + (1.0 - abar_prev).sqrt() * noise


def _at(coefficients: Tensor, t: Tensor | None = None) -> Tensor:
    """Coefficients (S,) at steps t (N,), or given ones (N,), shaped (N, 1, 1) to meet (N, L, C)."""
    return (coefficients if t is None else coefficients[t])[:, None, None]
