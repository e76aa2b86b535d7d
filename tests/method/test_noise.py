"""Noise is a function of what it is for, and other noise for everything else."""

import numpy as np
import pytest
import torch

from modules.noise import (
    caption_noise,
    other_captions,
    prior_of_training,
    prior_samples,
    reading_noise,
    sampling_noise,
    training_noise,
)
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


def test_times_of_training_are_all_equally_likely():
    """Of 5,000 draws each of the steps gets its share, within 5 standard deviations."""
    assert_equally_likely(training_noise(1, 5, 0, range(5000), 10, 1, 1).t, range(10))


@pytest.mark.parametrize("times", [range(10), range(6, 10), range(9, 10)])
def test_times_of_readings_are_all_equally_likely(times):
    assert_equally_likely(reading_noise(1, 5, range(1000), 5, times, 1, 1).t.flatten(), times)


def assert_equally_likely(found, times):
    counts, share = found.bincount(minlength=10), 1 / len(times)
    assert counts.shape == (10,) and set(found.tolist()) == set(times)
    assert (counts[times.start :] - 5000 * share).abs().max() <= 5 * (5000 * share * (1 - share)) ** 0.5


# several captions of a video in one step


def read(rows, seed=1, step=5, draws=3):
    return reading_noise(seed, step, rows, draws, range(6, 10), LENGTH, CHANNELS)


def test_every_reading_has_noise_of_its_own():
    """Of all rows, captions of a row, steps and seeds."""
    noise = [read(range(4), **other) for other in ({}, {"seed": 2}, {"step": 6})]
    assert all(each.t.shape == (4, 3) and each.q.shape == (4, 3, LENGTH, CHANNELS) for each in noise)
    assert_unrelated(torch.cat([part.flatten(0, 1).flatten(1) for each in noise for part in (each.x_start, each.q)]))


def test_readings_of_a_batch_may_lie_in_several_processes():
    whole, parts = read(range(6)), [read(rows) for rows in (range(2), range(2, 6))]
    for name in whole._fields:
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))


OF_VIDEO = [[0, 1, 2, 3, 4, 5, 6, 7], [8], [9, 10], [11, 12, 13, 14, 15]]  # captions


def others(rows=range(4), count=4, seed=1, step=5):
    """Other captions of the videos of some rows, and the own ones."""
    own = [OF_VIDEO[row % 4][step % len(OF_VIDEO[row % 4])] for row in rows]
    return other_captions(own, [OF_VIDEO[row % 4] for row in rows], count, seed, step, rows), own


@pytest.mark.parametrize("count", [1, 4, 20])
@pytest.mark.parametrize("step", [0, 5, 6])
def test_other_captions_are_those_of_the_video_but_the_own_none_twice(count, step):
    found, own = others(count=count, step=step)
    assert found.shape == (4, count)
    for row, caption, captions in zip(found.tolist(), own, OF_VIDEO, strict=True):
        chosen = [other for other in row if other != -1]
        assert len(chosen) == min(count, len(captions) - 1) and row == chosen + [-1] * (count - len(chosen))
        assert len(set(chosen)) == len(chosen) and set(chosen) <= set(captions) - {caption}


def test_other_captions_depend_on_seed_step_and_row_alone():
    """Not on the other rows of a process, nor on what was drawn before."""
    whole, _ = others(range(8))
    np.random.seed(3)
    torch.manual_seed(3)
    assert torch.equal(whole, torch.cat([others(range(3))[0], others(range(3, 8))[0]]))
    assert torch.equal(whole, others(range(8), count=7)[0][:, :4])  # fewer are the first of more
    kinds = [others(range(0, 8, 4), seed=seed, step=step)[0] for seed in (1, 2) for step in (5, 13)]
    assert len({tuple(row) for kind in kinds for row in kind.tolist()}) == 8  # all of one video and own caption


def test_all_other_captions_are_equally_likely():
    """Of 7,000 draws of one of seven, within 5 standard deviations, whatever noise is drawn beside them."""
    rows = range(7000)
    found = other_captions([0] * 7000, [OF_VIDEO[0]] * 7000, 1, 1, 5, rows)[:, 0]
    counts = found.bincount(minlength=8)
    assert counts[0] == 0 and (counts[1:] - 1000).abs().max() < 5 * (7000 / 7 * 6 / 7) ** 0.5
    t = reading_noise(1, 5, rows, 1, range(10), 1, 1).t[:, 0]
    assert abs(np.corrcoef(found, t)[0, 1]) < 5 / 7000**0.5
