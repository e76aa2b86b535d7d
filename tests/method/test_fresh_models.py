"""What a run starts from: DESIGN section 3."""

import pytest
import torch

from diffusion_lm import weights
from model.factory import create_model
from modules.noise import sampling_noise
from tests.checkpoint_files import assert_equal_states
from tests.made_up import CAPTIONS


def predictions(denoiser, pretrained, conditions):
    """Predictions of x_0 of a denoiser for two conditions, and of the pre-trained Diffusion-LM without any."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 9, 16, generator=generator)
    times = torch.tensor([0.0, 100.0, 250.0, 500.0, 900.0])
    with torch.no_grad():
        return *(denoiser(x, times, c) for c in conditions), pretrained.build().eval()(x, times)


@pytest.fixture
def conditions():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(5, 9, 3, generator=generator) * 2 - 1 for _ in range(2)]


def test_the_student_starts_as_the_pretrained_diffusion(parse, teacher):
    """And words are noised where it has them. What this says of scores is in test_text_potential.py."""
    potential, pretrained = create_model(parse()).potential, weights.load(teacher).build()
    student = {n: t for n, t in potential.student.state_dict().items() if not n.startswith("video_attention.")}
    assert_equal_states(student, pretrained.state_dict())
    assert torch.equal(potential.word_table, pretrained.word_embedding.weight)
    assert potential.student.word_embedding.weight.data_ptr() != potential.word_table.data_ptr()


def test_published_recipe_starts_at_random(parse, teacher, conditions):
    """The student is random; the teacher is the pre-trained one behind condition layers that are random."""
    model = create_model(parse("--recipe=published")).eval()
    diffusion, pretrained = model.text_diffusion, weights.load(teacher)
    assert not torch.equal(diffusion.student.word_embedding.weight, diffusion.teacher.word_embedding.weight)
    for name, tensor in pretrained.state_dict.items():
        assert torch.equal(diffusion.teacher.state_dict()[name], tensor)
    one, two, unconditional = predictions(diffusion.teacher, pretrained, conditions)
    assert (one - unconditional).abs().max() > 1e-3
    assert not torch.equal(one, two)


@torch.no_grad()
def test_words_are_rounded_to_the_random_table(parse, teacher):
    """The last step of sampling adds no noise: every token is a row of the table."""
    model = create_model(parse("--recipe=published")).eval()
    diffusion, noise = model.text_diffusion, sampling_noise(CAPTIONS, 0, 4, 9, 16)
    x = diffusion.sample(model.vocabulary.encode(CAPTIONS, 9), torch.ones(4, 3, 16), noise)
    random, own = (
        (x.reshape(-1, 1, 16) - table).norm(dim=-1).min(1).values.max()
        for table in (weights.load(teacher).random_table, diffusion.student.word_embedding.weight)
    )
    assert random < 1e-4 and own > 0.1


def test_published_teacher_and_student_have_noise_of_their_own(parse):
    student, teacher = create_model(parse("--recipe=published")).draw_noise(3, range(50))
    assert not any(torch.equal(mine, theirs) for mine, theirs in zip(student, teacher, strict=True))
