"""Muon for matrices against torch's own, and beside AdamW in one optimizer."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import AdamW, Muon

from model.factory import create_model
from trainer.optimizer import ADAM_BETAS, MuonAdamW, make_optimizer, orthogonalised
from utils.errors import InputError

SHAPES = ((8, 8), (8, 24), (24, 8), (8, 8))


def parameters(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in (*SHAPES, (8,))]


def give_gradients(params: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in params:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def both(params: list[nn.Parameter], lr: float = 0.02, decay: float = 0.1) -> MuonAdamW:
    """Matrices by Muon, the vector by AdamW."""
    groups = [
        {"params": params[:-1], "lr": lr, "weight_decay": decay, "orthogonal": True},
        {"params": params[-1:], "lr": lr, "weight_decay": decay, "orthogonal": False},
    ]
    return MuonAdamW(groups, betas=ADAM_BETAS, fused=True)


def take(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        give_gradients(params, step)
        optimizer.step()


@pytest.mark.parametrize("shape", [(3, 6, 6), (2, 6, 20), (2, 20, 6)])
def test_orthogonalised_matrices_keep_their_singular_vectors_and_have_values_about_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = orthogonalised(matrices)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    values = u.mT @ found @ v.mT
    diagonal = torch.diagonal(values, dim1=1, dim2=2)
    assert diagonal.min() > 0.5 and diagonal.max() < 1.3
    torch.testing.assert_close(values, torch.diag_embed(diagonal), atol=1e-4, rtol=0)


def test_a_matrix_without_gradient_stays():
    assert torch.equal(orthogonalised(torch.zeros(1, 4, 4)), torch.zeros(1, 4, 4))


def test_matrices_move_as_by_the_muon_of_torch():
    """Which computes in bf16: hence the tolerance, a tenth of a step."""
    ours, theirs, lr = parameters(), parameters(), 0.02
    take(both(ours, lr), ours, range(5))
    muon = Muon(theirs[:-1], lr=lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    take(muon, theirs, range(5))
    for mine, other, before in zip(ours[:-1], theirs[:-1], parameters(), strict=False):
        torch.testing.assert_close(mine, other, atol=0.1 * lr, rtol=0)
        assert (mine - before).abs().max() > lr


def test_vectors_move_as_by_adamw():
    ours, theirs = parameters(), parameters()
    take(both(ours), ours, range(5))
    take(AdamW(theirs[-1:], lr=0.02, betas=ADAM_BETAS, weight_decay=0.1, fused=True), theirs, range(5))
    assert torch.equal(ours[-1], theirs[-1])


def test_without_orthogonal_groups_it_is_adamw():
    ours, theirs = parameters(), parameters()
    take(MuonAdamW([{"params": ours, "orthogonal": False}], lr=0.02, fused=True), ours, range(3))
    take(AdamW(theirs, lr=0.02, fused=True), theirs, range(3))
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)


def test_it_goes_on_from_its_state():
    once, halves = parameters(), parameters()
    take(both(once), once, range(4))
    first = both(halves)
    take(first, halves, range(2))
    again = both(halves)
    again.load_state_dict(copy.deepcopy(first.state_dict()))
    take(again, halves, range(2, 4))
    for one, other in zip(once, halves, strict=True):
        assert torch.equal(one, other)


def test_the_scaler_of_fp16_leaves_out_a_step_that_is_not_finite():
    params = parameters()
    optimizer, scaler = both(params), torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(sum(parameter.sum() for parameter in params) * torch.inf).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    for parameter, before in zip(params, parameters(), strict=True):
        assert torch.equal(parameter, before)


@pytest.mark.parametrize("arch", ["clip_transformer", "clip_stochastic"])
def test_a_rate_of_zero_freezes_and_moves_the_rest_alike(parse, arch):
    """CLIP gets no gradient, and what has a rate gets the one that it would have had."""
    gradients = []
    for rate in ("0", "1e-9"):
        config = parse(f"--arch={arch} --clip_lr={rate} --noclip_lr=1e-3")
        torch.manual_seed(0)
        model = create_model(config).eval()
        make_optimizer(model, config)
        frames = torch.randint(0, 256, (3, config.num_frames, 3, 64, 64), dtype=torch.uint8)
        captions = ["a dog", "two balls", "a red car"]
        tokens = model.select(model.tokenize(captions), torch.arange(3))
        pairs = model.encode_pairs(frames, **tokens, noise=model.draw_noise(0, range(3)))
        model.similarities(pairs, pairs.videos, torch.arange(3)).square().sum().backward()
        named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        gradients.append({name: grad for name, grad in named.items() if not name.startswith("clip.")})
        assert (len(gradients[-1]) == len(named)) == (rate == "0")
    frozen, moved = gradients
    assert frozen.keys() == moved.keys() and frozen
    assert all(torch.equal(frozen[name], moved[name]) for name in frozen)


def test_nothing_to_train_is_refused(parse):
    config = parse("--arch=clip_baseline --clip_lr=0")
    with pytest.raises(InputError, match="leaves nothing to train"):
        make_optimizer(create_model(config), config)
