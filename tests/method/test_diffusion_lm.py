"""Diffusion-LM: its loss, the reverse steps, its network, and captions out of noise."""

import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch.nn import MultiheadAttention

from diffusion_lm.denoiser import DENOISERS, Denoiser, DenoiserConfig, VideoAttention, nearest_word
from diffusion_lm.gaussian_diffusion import GaussianDiffusion, sqrt_betas
from diffusion_lm.losses import end_to_end_loss
from diffusion_lm.sampling import Reading, sample_captions, sample_words
from diffusion_lm.vocabulary import PAD, START, UNK, Vocabulary
from tests.small_diffusion_lm import SMALL, STEPS, randn
from utils.errors import InputError

# -- loss ------------------------------------------------------------------------------------------------------------


def test_loss_terms_equal_a_token_by_token_computation(denoiser, diffusion):
    """Every token alone, from the formulas of the paper, with logarithms and sums written out."""
    ids = torch.tensor([[0, 5, 7, 1, 3], [0, 10, 2, 9, 1], [0, 4, 1, 3, 3]])
    t = torch.tensor([0, 4, 9])
    x_noise, q_noise = randn(3, 5, 4, seed=2), randn(3, 5, 4, seed=3)
    loss = end_to_end_loss(denoiser, diffusion, ids, t, x_noise, q_noise)

    table, bias = denoiser.word_embedding.weight.double(), denoiser.lm_head.bias.double()
    abar = [math.prod(1 - b for b in sqrt_betas(STEPS)[: i + 1]) for i in range(STEPS)]
    regression = prior = rounding = words = 0.0
    for n in range(3):
        x_0 = torch.stack([table[i] + math.sqrt(1 - abar[0]) * x_noise[n, p] for p, i in enumerate(ids[n].tolist())])
        x_t = math.sqrt(abar[t[n]]) * x_0 + math.sqrt(1 - abar[t[n]]) * q_noise[n]
        predicted = denoiser(x_t.float()[None], t[n : n + 1] * 1000 / STEPS)[0]
        target = table[ids[n]] if t[n] == 0 else x_0
        for p in range(5):
            regression += (predicted[p] - target[p]).pow(2).mean().item() / 15
            prior += (math.sqrt(abar[-1]) * x_0[p]).pow(2).mean().item() / 15
            for x, term in ((x_0[p], "rounding"), (predicted[p].double(), "words")):
                scores = table @ x + bias
                nats = -math.log((scores[ids[n, p]].exp() / scores.exp().sum()).item()) / 15
                rounding, words = (rounding + nats, words) if term == "rounding" else (rounding, words + nats)
    assert loss.x_start.item() == pytest.approx(regression, rel=1e-5)
    assert loss.prior.item() == pytest.approx(prior, rel=1e-5)
    assert loss.rounding.item() == pytest.approx(rounding, rel=1e-5)
    assert loss.words.item() == pytest.approx(words, rel=1e-5)
    assert loss.total.item() == pytest.approx(regression + prior + rounding + words, rel=1e-5)


@pytest.mark.parametrize("name", DENOISERS)
@torch.no_grad()
def test_word_scores_are_a_matrix_of_rank_64(name):
    """Of many tokens and words; with the 16 channels of Diffusion-LM of rank 16."""
    for sizes, rank in ((DENOISERS[name], 64), (DenoiserConfig(), 16)):
        small = replace(sizes, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
        scores = Denoiser(small, 100).logits(randn(2, 100, sizes.channels))
        assert torch.linalg.matrix_rank(scores.flatten(0, 1)) == rank


def test_rounding_loss_of_many_tokens_is_the_mean_over_all(denoiser, diffusion):
    """More tokens than one block holds, and not a multiple of it."""
    ids = torch.randint(11, (7, 101), generator=torch.Generator().manual_seed(0))
    noise = randn(7, 101, 4)
    loss = end_to_end_loss(denoiser, diffusion, ids, torch.zeros(7, dtype=torch.long), noise, noise)
    x_start = denoiser.word_embedding(ids) + diffusion.x_start_std * noise
    log_p = denoiser.logits(x_start).log_softmax(-1).gather(-1, ids[..., None])
    torch.testing.assert_close(loss.rounding, -log_p.mean())


@pytest.mark.parametrize("term", ["x_start", "prior", "rounding", "words"])
def test_every_term_moves_the_word_table(denoiser, diffusion, term):
    ids = torch.tensor([[0, 5, 1, 3]])
    loss = end_to_end_loss(denoiser, diffusion, ids, torch.tensor([6]), randn(1, 4, 4), randn(1, 4, 4, seed=1))
    (gradient,) = torch.autograd.grad(getattr(loss, term), denoiser.word_embedding.weight)
    assert (gradient[[0, 5, 1, 3]].abs().sum(-1) > 0).all()


# -- reverse steps ---------------------------------------------------------------------------------------------------


def test_ddpm_step_equals_diffusers(diffusion):
    scheduler = DDPMScheduler(
        num_train_timesteps=STEPS,
        trained_betas=sqrt_betas(STEPS),
        variance_type="fixed_large",
        prediction_type="sample",
        clip_sample=False,
    )
    scheduler.set_timesteps(STEPS)
    x_t, x_start = randn(2, 6, 4), randn(2, 6, 4, seed=1)
    for step in range(STEPS):
        expected = scheduler.step(x_start, step, x_t, generator=torch.Generator().manual_seed(step)).prev_sample
        noise = randn(2, 6, 4, seed=step)
        ours = diffusion.ddpm_step(x_start, x_t, torch.full((2,), step), noise)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sampling_steps", [STEPS, 5, 2])
def test_ddim_step_equals_diffusers(sampling_steps):
    """With fewer steps too, where diffusers' spacing is the same as ours: T divides evenly and 0 is kept."""
    diffusion = GaussianDiffusion.sqrt(STEPS)
    betas = sqrt_betas(STEPS)
    kept = list(range(0, STEPS, STEPS // sampling_steps))
    abar = diffusion.alphas_cumprod_float64[kept]
    coarse = GaussianDiffusion(1 - abar / [1.0, *abar[:-1]])
    scheduler = DDIMScheduler(
        num_train_timesteps=STEPS,
        trained_betas=betas,
        prediction_type="sample",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    scheduler.set_timesteps(sampling_steps)
    assert sorted(scheduler.timesteps.tolist()) == kept
    x_t, x_start = randn(2, 6, 4), randn(2, 6, 4, seed=1)
    for index, step in enumerate(kept):
        expected = scheduler.step(x_start, step, x_t).prev_sample
        ours = coarse.ddim_step(x_start, x_t, torch.full((2,), index))
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_respacing_to_all_steps_is_the_process_itself(diffusion):
    assert diffusion.respaced(STEPS).betas_float64 is diffusion.betas_float64


@pytest.mark.parametrize("sampling_steps", [1, 2, 3, 7])
def test_respaced_steps_keep_the_marginals(diffusion, sampling_steps):
    """q(x_t | x_0) is the same for every kept step, and the network is told the original time."""
    respaced = diffusion.respaced(sampling_steps)
    original = [round(time * STEPS / 1000) for time in respaced.model_times.tolist()]
    assert len(original) == len(set(original)) == sampling_steps
    assert original[-1] == STEPS - 1 and (sampling_steps == 1 or original[0] == 0)
    x_start, noise = randn(sampling_steps, 3, 4), randn(sampling_steps, 3, 4, seed=1)
    torch.testing.assert_close(
        respaced.q_sample(x_start, torch.arange(sampling_steps), noise),
        diffusion.q_sample(x_start, torch.tensor(original), noise),
    )


@pytest.mark.parametrize("sampling_steps", [0, STEPS + 1])
def test_respacing_outside_the_process_is_refused(diffusion, sampling_steps):
    with pytest.raises(InputError, match=r"1\.\.10"):
        diffusion.respaced(sampling_steps)


# -- network ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_fresh_video_attention_leaves_the_unconditional_network(denoiser):
    seeing = Denoiser(SMALL, 11, video_width=12).eval()
    seeing.load_state_dict(denoiser.state_dict(), strict=False)
    x, times = randn(3, 6, 4), torch.tensor([0.0, 300.0, 900.0])
    for seed in range(3):
        video = 10 * randn(3, 5, 12, seed=seed)
        torch.testing.assert_close(seeing.denoise(x, times, video=video), denoiser(x, times), atol=1e-5, rtol=0)


def test_a_fresh_video_attention_can_learn():
    """It adds nothing, but has a gradient: training can move away from that."""
    seeing = Denoiser(SMALL, 11, video_width=12)
    seeing.denoise(randn(3, 6, 4), torch.zeros(3), video=randn(3, 5, 12)).square().mean().backward()
    assert all(attention.out.weight.grad.abs().sum() > 0 for attention in seeing.video_attention)


@torch.no_grad()
def test_video_attention_is_that_of_torch():
    """With the weights of nn.MultiheadAttention, which projects the tokens to keys and values, here as they are."""
    attention, expected = VideoAttention(8, 12), MultiheadAttention(12, 4, batch_first=True)
    x, tokens = randn(3, 4, 8), randn(3, 5, 12, seed=1)
    for parameter in attention.parameters():
        parameter.copy_(torch.randn_like(parameter))
    expected.in_proj_weight.copy_(torch.eye(12).repeat(3, 1))
    expected.in_proj_bias.zero_()
    expected.out_proj.weight.copy_(torch.eye(12))
    found = expected(attention.query(attention.norm(x)), tokens, tokens)[0]
    torch.testing.assert_close(attention(x, tokens), attention.out(found), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_texts_that_lie_together_read_one_video():
    """Three texts of each of two videos, against a video for each text."""
    attention, x, tokens = VideoAttention(8, 12), randn(6, 4, 8), randn(2, 5, 12, seed=1)
    found = attention(x, tokens)
    torch.testing.assert_close(found, attention(x, tokens[[0, 0, 0, 1, 1, 1]]), atol=1e-6, rtol=1e-6)
    assert (attention(x, tokens.flip(0)) - found).abs().flatten(1).max(1).values.min() > 1e-3


@torch.no_grad()
def test_each_layer_sees_the_video_before_its_own_attention(denoiser):
    seeing = Denoiser(SMALL, 11, video_width=12).eval()
    for attention in seeing.video_attention:
        attention.out.weight.normal_()
    x_t, times, video = randn(3, 6, 4), torch.tensor([0.0, 300.0, 900.0]), randn(3, 5, 12, seed=1)
    seen = []
    for layer in seeing.input_transformers.layer:
        layer.register_forward_hook(lambda _, given, output: seen.append((given[0], output)))
    seeing(x_t, times)
    before = seen[0][0]  # what comes into the first layer where there is no video
    seen.clear()
    predicted = seeing.denoise(x_t, times, video=video)
    for attention, (given, output) in zip(seeing.video_attention, seen, strict=True):
        torch.testing.assert_close(given, before + attention(before, video))
        before = output
    torch.testing.assert_close(predicted, seeing.output_down_proj(seen[-1][1]))
    found = seeing.denoise(x_t[2:], times[2:], video=video[2:])
    torch.testing.assert_close(found, predicted[2:], atol=1e-5, rtol=1e-5)


def test_nearest_word_equals_a_search_by_distance():
    table, x = randn(50, 4), randn(7, 9, 4, seed=1)
    expected = torch.tensor([[min(range(50), key=lambda w: torch.dist(v, table[w])) for v in row] for row in x])
    assert torch.equal(nearest_word(x, table), expected)


# -- sampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_samples_are_what_a_certain_denoiser_says(denoiser, sampler):
    """A network that always predicts one caption generates it."""
    vocabulary = Vocabulary.from_captions(["a b c d e f g"])
    ids = vocabulary.encode(["d a g"], 6)
    denoiser.forward = lambda x, times: denoiser.word_embedding(ids).expand(len(x), -1, -1) + 1e-3
    assert sample_captions(denoiser, GaussianDiffusion.sqrt(4), vocabulary, 3, 6, 0, sampler) == ["d a g"] * 3


def test_a_sample_depends_on_its_place_not_on_the_number(denoiser, diffusion):
    denoiser.forward = lambda x, times: x  # words follow from the noise
    vocabulary = Vocabulary.from_captions(["a b c d e f g"])
    many = sample_captions(denoiser, diffusion, vocabulary, 300, 8, seed=5)
    assert sample_captions(denoiser, diffusion, vocabulary, 3, 8, seed=5) == many[:3]
    assert sample_captions(denoiser, diffusion, vocabulary, 3, 8, seed=6) != many[:3]


def test_unknown_words_are_not_generated(denoiser, diffusion):
    """Even where a network predicts nothing else: the nearest known word stands there."""
    vocabulary = Vocabulary.from_captions(["a b c d e f g"])
    unknown = denoiser.word_embedding.weight[vocabulary.token_to_id["UNK"]]
    denoiser.forward = lambda x, times: unknown.expand_as(x)
    assert "UNK" not in " ".join(sample_captions(denoiser, diffusion, vocabulary, 5, 8, seed=5))


VERSES = ["a b c d", "e f g a b"]


@pytest.fixture(scope="module")
def reader():
    """A network that has learned by heart, from noise alone, which of two captions goes with which of two videos of
    three tokens; with its vocabulary and the videos (2, 3, 8)."""
    torch.manual_seed(3)
    vocabulary, videos, process = Vocabulary.from_captions(VERSES), randn(2, 3, 8), GaussianDiffusion.sqrt(4)
    network = Denoiser(replace(SMALL, dropout=0.0), len(vocabulary), video_width=8)
    ids, optimizer = vocabulary.encode(VERSES, 8), torch.optim.Adam(network.parameters(), 3e-3)
    words = (ids != PAD) & (ids != START)  # as TextDiffs counts them
    for step in range(300):
        t = torch.full((2,), step % 4)
        x_t = process.q_sample(network.word_embedding(ids), t, torch.randn(2, 8, SMALL.channels))
        logits = network.logits(network.denoise(x_t, process.model_times[t], video=videos))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits[words], ids[words]).backward()
        optimizer.step()
    return network.eval(), vocabulary, videos, process


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@torch.no_grad()
def test_what_was_learned_of_a_video_is_read_in_it(reader, sampler):
    network, vocabulary, videos, process = reader
    for caption, video in zip(VERSES, videos, strict=True):
        reading = Reading(video[None], network.word_embedding.weight)
        assert sample_captions(network, process, vocabulary, 5, 8, 7, sampler, reading=reading) == [caption] * 5


@torch.no_grad()
def test_each_caption_is_of_its_own_video(reader):
    network, vocabulary, videos, process = reader
    reading = Reading(videos, network.word_embedding.weight)
    ids = sample_words(network, process, randn(2, 5, 8, SMALL.channels), reading=reading)
    assert [vocabulary.decode(row) for row in ids.tolist()] == VERSES
    assert ids[:, 0].tolist() == [START, START]


@torch.no_grad()
def test_one_step_with_a_video_is_the_mean_of_the_words():
    """By the probabilities of those that are known, written out, not what the network predicts."""
    torch.manual_seed(5)
    network = Denoiser(SMALL, 11, video_width=12).eval()
    for layer in (network.output_down_proj[2], *(attention.out for attention in network.video_attention)):
        layer.weight.normal_()
    process, noise = GaussianDiffusion.sqrt(1), randn(2, 2, 8, SMALL.channels)
    video = randn(2, 3, 12)
    predicted = network.denoise(noise[:, 0], process.model_times[torch.tensor([0, 0])], video=video)
    scores, table = network.logits(predicted).exp(), network.word_embedding.weight
    ids = sample_words(network, process, noise, reading=Reading(video, network.word_embedding.weight))
    known = [word for word in range(11) if word != UNK]
    for n in range(2):
        assert ids[n, 0] == START
        for place in range(1, 8):
            mean = sum(scores[n, place, word] * table[word] for word in known) / scores[n, place, known].sum()
            assert ids[n, place] == min(known, key=lambda word: (table[word] - mean).square().sum())
    assert not torch.equal(ids, nearest_word(predicted, table))
