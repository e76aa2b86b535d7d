"""Where a run computes, in which precision, from which seed. The only file that chooses a device."""

import random
from contextlib import AbstractContextManager

import numpy as np
import torch

from diffusion_lm.errors import InputError


def choose_device(gpu: str | None) -> torch.device:
    """The device of --gpu: an index, `cpu`, or None for the first GPU if there is one."""
    if gpu is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if gpu == "cpu":
        return torch.device("cpu")
    if not gpu.isdecimal():
        raise InputError(f"--gpu={gpu} is neither the index of a GPU nor cpu")
    if not torch.cuda.is_available():
        raise InputError(f"--gpu={gpu}: this machine has no CUDA device that PyTorch can use; give --gpu=cpu")
    if int(gpu) >= torch.cuda.device_count():
        raise InputError(f"--gpu={gpu}: there are only GPUs 0 to {torch.cuda.device_count() - 1}; or give --gpu=cpu")
    return torch.device("cuda", int(gpu))


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products. `auto` is bf16 on GPUs that have it and on CPUs with AMX, else fp32.

    A CPU without AMX computes bf16 far slower than fp32.
    """
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Autocast to `dtype`; a no-op for float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def set_up(device: torch.device, seed: int) -> None:
    """Seed every global generator; TF32 for float32 products on a GPU."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
