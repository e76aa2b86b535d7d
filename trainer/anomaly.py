"""--detect_anomaly: names the module, or the operation of the backward pass, that first makes a number not finite."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from utils.errors import RunError


@contextmanager
def find_anomalies(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Check the output of every module, and let autograd check every operation of the backward pass.

    :raises RunError: in a forward pass, with the name of the module.
    """
    if not wanted:
        yield
        return
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            handle = module.register_forward_hook(_check(name))
            hooks.callback(handle.remove)
        hooks.enter_context(torch.autograd.detect_anomaly())
        yield


def _check(name: str):
    def hook(module: nn.Module, inputs: tuple, output: object) -> None:
        if not all(tensor.isfinite().all() for tensor in _tensors(output)):
            fed = "finite" if all(tensor.isfinite().all() for tensor in _tensors(inputs)) else "not finite"
            raise RunError(
                f"--detect_anomaly: the output of {name or 'the model'} ({type(module).__name__}) is not finite; "
                f"its inputs are {fed}"
            )

    return hook


def _tensors(value: object) -> Iterator[Tensor]:
    """The floating-point tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
