"""Where a run computes, in which precision, from which seed. The only file that chooses a device."""

import random
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.errors import InputError
from utils.launch import Processes
from utils.machine import keep_freed_memory

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(gpu: str | None, here: Processes | None = None) -> torch.device:
    """The device of --gpu: an index, `cpu`, or None for the first GPU if there is one.

    :param here: this process among several, each of which takes the GPU of its own index on its machine.
    """
    if here is not None and here.size > 1 and gpu != "cpu":
        return _own_gpu(gpu, here)
    if gpu is None:
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if gpu == "cpu":
        return torch.device("cpu")
    if not gpu.isdecimal():
        raise InputError(f"--gpu={gpu} is neither the index of a GPU nor cpu")
    if not torch.cuda.is_available():
        raise InputError(f"--gpu={gpu}: this machine has no CUDA device that PyTorch can use; give --gpu=cpu")
    if int(gpu) >= torch.cuda.device_count():
        raise InputError(f"--gpu={gpu}: there are only GPUs 0 to {torch.cuda.device_count() - 1}; or give --gpu=cpu")
    return torch.device("cuda", int(gpu))


def _own_gpu(gpu: str | None, here: Processes) -> torch.device:
    if gpu is not None:
        raise InputError(
            f"--gpu={gpu} with {here.size} processes: leave it out, each takes a GPU of its own; or give cpu"
        )
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if here.local_size > torch.cuda.device_count():
        gpus = torch.cuda.device_count()
        raise InputError(f"{here.local_size} processes on a machine with {gpus} GPUs: start fewer, or give --gpu=cpu")
    return torch.device("cuda", here.local_rank)


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products. `auto` is bf16 on GPUs and CPUs that have instructions for it, else fp32.

    Without them it is emulated, far slower than fp32. AVX-512 has them without AMX, too, at twice the rate of fp32.
    """
    if precision == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return PRECISIONS[precision]


def precision_name(dtype: torch.dtype) -> str:
    """The value of --precision that means this dtype."""
    return next(name for name, meant in PRECISIONS.items() if meant == dtype)


def check_compiler(device: torch.device) -> None:
    """:raises InputError: torch.compile does not work here."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(2, device=device))
    except Exception as error:  # of one of many compilers
        raise InputError(f"--compile: torch.compile does not work here: {str(error).splitlines()[0]}") from error


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Autocast to `dtype`; a no-op for float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def product_dtype(x: Tensor) -> torch.dtype:
    """In which precision products of `x` are computed, autocast considered."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on a device, without waiting for it: only pinned memory is copied beside other work."""
    if device.type != "cuda":
        return tensor
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)


def set_up(device: torch.device, seed: int, trains: bool = False) -> None:
    """Seed every global generator, and let float32 be float32 on every device, not TF32.

    What is fast is half precision. float32 is what --precision=fp32 asks for, and in any precision what disables
    autocast: the cosines of the loss and of all scores, the first stage of an evaluation, and the rounding of the
    diffusion to words. TF32 has the mantissa of half precision.

    :param trains: on a CPU, keep what is freed for the next step.
    """
    if trains and device.type == "cpu":
        keep_freed_memory()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False  # convolutions, where PyTorch has it on by default


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of every global generator of this process, as tensors and plain values."""
    numpy_state = np.random.get_state(legacy=False)
    key = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    return {
        "python": random.getstate(),
        "numpy": {**numpy_state, "state": {"key": key, "pos": int(numpy_state["state"]["pos"])}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Set every global generator of this process to what `random_state` gave."""
    random.setstate(state["python"])
    inner = state["numpy"]["state"]
    key = inner["key"].numpy().astype(np.uint32)
    np.random.set_state({**state["numpy"], "state": {"key": key, "pos": inner["pos"]}})
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


def seed_process(seed: int, rank: int, step: int) -> None:
    """A stream of random numbers (dropout) of this process alone, from `step` on."""
    torch.manual_seed(int(np.random.SeedSequence((seed, rank, step)).generate_state(1, np.uint64)[0] >> 1))
