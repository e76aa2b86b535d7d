"""What moves the weights: AdamW, and Muon for the matrices of the text potential."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from config import Config
from model.retrieval import RetrievalModel
from utils.errors import InputError

ADAM_BETAS, ADAM_EPS = (0.9, 0.98), 1e-6  # CLIP's (Radford et al. 2021, table 18)
MOMENTUM = 0.95
# Five steps of x -> a x + b x^3 + c x^5 bring singular values in (0, 1] to between 0.7 and 1.2 (Jordan et al. 2024).
NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS = (3.4445, -4.7750, 2.0315), 5
RMS = 0.2  # of a step at learning rate 1, about that of AdamW (Liu et al. 2025, "Muon is Scalable for LLM Training")
ADAM_SHARE = 0.3  # of the rate of Muon's matrices, for the vectors and tables beside them


def make_optimizer(model: RetrievalModel, config: Config) -> "MuonAdamW":
    """The optimizer of a run. What has a rate of 0 is frozen: no gradient goes through it.

    :raises InputError: that is everything.
    """
    groups = parameter_groups(model, config)
    if not any(group["lr"] for group in groups):
        raise InputError(f"--clip_lr={config.clip_lr} leaves nothing to train in --arch={config.arch}")
    for group in groups:
        if not group["lr"]:
            for parameter in group["params"]:
                parameter.requires_grad_(False)
    return MuonAdamW(groups, betas=ADAM_BETAS, eps=ADAM_EPS, fused=True)


def parameter_groups(model: RetrievalModel, config: Config) -> list[dict]:
    """CLIP parameters at clip_lr, those of the text potential at potential_lr, the rest at noclip_lr; no weight decay
    on biases, norms, tables and scales. Matrices of the text potential are `orthogonal`."""
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        matrix = parameter.ndim >= 2 and id(parameter) not in tables
        of_potential = name.startswith(model.moved_by_muon)
        if of_potential:
            rate = config.potential_lr * (1 if matrix else ADAM_SHARE)
        else:
            rate = config.clip_lr if name.startswith("clip.") else config.noclip_lr
        groups.setdefault((rate, matrix, matrix and of_potential), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": rate,
            "weight_decay": config.weight_decay if decays else 0.0,
            "orthogonal": orthogonal,
        }
        for (rate, decays, orthogonal), parameters in groups.items()
    ]


class MuonAdamW(AdamW):
    """AdamW, but groups with `orthogonal` are moved by Muon (Jordan et al. 2024): by their momentum with all singular
    values made about 1, so that no direction of a matrix waits for its turn. Both take learning rates of one size.

    torch.optim.Muon computes in bf16, which many processors emulate, and one matrix at a time.
    """

    def __init__(self, groups: Iterable[dict], **settings: object) -> None:
        super().__init__(groups, **settings)
        self._step_supports_amp_scaling = False  # the scaler of fp16 leaves out a step, not AdamW's kernel

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step; gradients of matrices that Muon moves are used up."""
        for group in self.param_groups:
            if group.get("orthogonal"):
                self._move(group)
        super().step(closure)

    def _move(self, group: dict) -> None:
        alike: dict[tuple[int, int], list[nn.Parameter]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                alike.setdefault(parameter.shape, []).append(parameter)
        for shape, parameters in alike.items():
            directions = orthogonalised(torch.stack(self._momenta(parameters))).to(parameters[0].dtype)
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_sub_(parameters, directions.unbind(), alpha=group["lr"] * RMS * max(shape) ** 0.5)
            for parameter in parameters:
                parameter.grad = None  # AdamW passes it by

    def _momenta(self, parameters: list[nn.Parameter]) -> list[Tensor]:
        """Nesterov's, of the gradients up to now."""
        for parameter in parameters:
            if not self.state[parameter]:
                # AdamW expects a step of every parameter
                self.state[parameter] |= {"step": torch.zeros(()), "momentum": torch.zeros_like(parameter)}
        gradients = [parameter.grad for parameter in parameters]
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        return torch._foreach_lerp(gradients, momenta, MOMENTUM)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Matrices (N, A, B) with the same singular vectors, and all singular values about 1.

    In bf16 on a GPU, as the iteration forgives rounding.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x.to(torch.bfloat16 if x.is_cuda else torch.float32)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
