"""Noise is a function of what it is for, and other noise for everything else."""

import numpy as np
import pytest
import torch

from modules.noise import caption_noise, prior_of_training, prior_samples, sampling_noise, training_noise
from modules.stochastic_text import Prior

STEPS, LENGTH, CHANNELS = 3, 20, 16
CAPTIONS = ["a man plays a guitar", "a man plays a guitar.", "1a man plays a guitar", "a cat"]
SEEDS = [1, 11, 2**40 + 1]  # seed 1 of the third caption is no seed 11 of the first one


def sampled(captions, seed, steps=STEPS):
    """All numbers of the noise of each caption, (N, numbers)."""
    noise = sampling_noise(captions, seed, steps, LENGTH, CHANNELS)
    return torch.cat([part.flatten(1) for part in noise], dim=1)


def trained(rows, seed=1, step=5, stream=0):
    noise = training_noise(seed, step, stream, rows, 10, LENGTH, CHANNELS)
    return torch.cat([noise.x_start.flatten(1), noise.q.flatten(1)], dim=1)


def drawn(captions, seed):
    return prior_samples(captions, seed, 20, 64, Prior("normal")).flatten(1)


def assert_unrelated(rows):
    """Standard normal numbers (N, numbers) without correlation: that of n such numbers lies within 5 / sqrt(n)."""
    assert len(rows) > 5
    assert rows.mean().abs() < 0.05 and (rows.std() - 1).abs() < 0.05
    correlation = np.corrcoef(rows.numpy()) - np.eye(len(rows))
    assert np.abs(correlation).max() < 5 / rows.shape[1] ** 0.5


@pytest.mark.parametrize("noise", [sampled, drawn])
def test_every_caption_and_every_seed_has_noise_of_its_own(noise):
    assert_unrelated(torch.cat([noise(CAPTIONS, seed) for seed in SEEDS]))


def test_the_parts_of_a_captions_noise_are_unrelated():
    noise = sampling_noise(CAPTIONS[:1], 1, 8, LENGTH, CHANNELS)
    assert_unrelated(torch.cat([noise.x_start, noise.x_T, noise.steps[0]]).flatten(1))


@pytest.mark.parametrize("noise", [sampled, drawn])
def test_it_depends_on_nothing_else(noise):
    """Not on the other captions, nor on what was drawn before."""
    together = noise(CAPTIONS, 1)
    torch.manual_seed(3)
    torch.randn(7)
    for index in (2, 0, 3, 1):
        assert torch.equal(noise([CAPTIONS[index]], 1)[0], together[index])


def test_fewer_steps_start_alike():
    some, all_ = (sampling_noise(CAPTIONS, 1, steps, LENGTH, CHANNELS) for steps in (0, STEPS))
    assert torch.equal(some.x_start, all_.x_start) and torch.equal(some.x_T, all_.x_T)
    assert some.steps.shape == (len(CAPTIONS), 0, LENGTH, CHANNELS)


def test_fewer_draws_are_the_first_of_more():
    some, more = (caption_noise(CAPTIONS, 1, draws, LENGTH, CHANNELS) for draws in (2, 6))
    assert some.shape == (len(CAPTIONS), 2, LENGTH, CHANNELS) and torch.equal(some, more[:, :2])


def test_every_row_step_seed_and_stream_of_training_has_noise_of_its_own():
    others = [{"seed": 2}, {"seed": 1 + 2**32}, {"step": 6}, {"step": 0}, {"stream": 1}]
    assert_unrelated(torch.cat([trained(range(4)), *(trained(range(4), **other) for other in others)]))
    priors = [prior_of_training(seed, step, range(4), 1024, Prior("normal")) for seed in (1, 2) for step in (5, 6)]
    assert_unrelated(torch.cat(priors))


def test_the_rows_of_a_batch_may_lie_in_several_processes():
    whole = training_noise(1, 5, 0, range(6), 10, LENGTH, CHANNELS)
    parts = [training_noise(1, 5, 0, rows, 10, LENGTH, CHANNELS) for rows in (range(2), range(2, 6))]
    for name in whole._fields:
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))


@pytest.mark.parametrize("least", [0, 4])
def test_times_of_training_are_all_equally_likely(least):
    """Of 5,000 draws each of the steps from the first on gets its share, within 5 standard deviations."""
    times, share = training_noise(1, 5, 0, range(5000), 10, 1, 1, least).t, 1 / (10 - least)
    counts = times.bincount(minlength=10)
    assert counts.shape == (10,) and not counts[:least].any()
    assert (counts[least:] - 5000 * share).abs().max() < 5 * (5000 * share * (1 - share)) ** 0.5
