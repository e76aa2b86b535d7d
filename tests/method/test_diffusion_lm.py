"""Diffusion-LM: its loss, the average of its weights, the reverse steps, its files, and its two programs."""

import json
import math
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch.nn import MultiheadAttention

from config import Config
from datasets.moving_shapes import render, scene_of
from diffusion_lm import weights
from diffusion_lm.denoiser import DENOISERS, Denoiser, DenoiserConfig, VideoAttention, nearest_word
from diffusion_lm.gaussian_diffusion import GaussianDiffusion
from diffusion_lm.losses import end_to_end_loss
from diffusion_lm.sampling import Reading, sample_captions, sample_words
from diffusion_lm.schedule import sqrt_betas
from diffusion_lm.training import EndlessBatches, ExponentialAverage, recovered, split_held_out
from diffusion_lm.vocabulary import END, PAD, START, UNK, Vocabulary
from model.factory import create_model
from tests import precision
from tests.made_up import CAPTIONS, make_diffusion_lm, write_video
from trainer.checkpoints import save_checkpoint
from utils.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
SMALL = DenoiserConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, channels=4)
STEPS = 10


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def denoiser():
    torch.manual_seed(1)
    return Denoiser(SMALL, 11).eval()


@pytest.fixture(scope="module")
def diffusion():
    return GaussianDiffusion.sqrt(STEPS)


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


@pytest.mark.parametrize("kind", ["num_frames", "video_width"])
def test_layers_that_see_a_video_keep_their_values_when_a_diffusion_lm_is_filled_in(denoiser, folder, kind):
    seeing = Denoiser(SMALL, 11, **{kind: 5})
    before = {name: tensor.clone() for name, tensor in seeing.state_dict().items()}
    weights.load(folder).fill(seeing)
    own, filled = denoiser.state_dict(), seeing.state_dict()
    assert own.keys() < filled.keys()
    for name, tensor in filled.items():
        assert torch.equal(tensor, own[name] if name in own else before[name]), name


def test_nearest_word_equals_a_search_by_distance():
    table, x = randn(50, 4), randn(7, 9, 4, seed=1)
    expected = torch.tensor([[min(range(50), key=lambda w: torch.dist(v, table[w])) for v in row] for row in x])
    assert torch.equal(nearest_word(x, table), expected)


# -- training --------------------------------------------------------------------------------------------------------


def test_average_follows_the_formula():
    """EMA_n = r_n EMA_{n-1} + (1 - r_n) w_n with r_n = min(rate, (1 + n) / (10 + n)), from the first weights on."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 3.0)
    average = ExponentialAverage(model, 0.5)
    expected = 3.0
    for n in range(1, 20):
        model.weight.data.fill_(n * n)
        average.update_parameters(model)
        rate = min(0.5, (1 + n) / (10 + n))
        expected = rate * expected + (1 - rate) * n * n
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-6)


def test_average_keeps_the_word_table_tied(denoiser):
    average = ExponentialAverage(denoiser, 0.9).module
    assert average.lm_head.weight is average.word_embedding.weight


def test_held_out_captions_do_not_occur_in_training():
    captions = [f"caption {i % 300}" for i in range(1000)]
    train, held_out = split_held_out(captions, 0.25, seed=3)
    assert len(held_out) == len(set(held_out)) == 75
    assert not set(train) & set(held_out)
    assert len(train) == sum(caption not in held_out for caption in captions)
    assert (train, held_out) == split_held_out(captions, 0.25, seed=3)
    assert held_out != split_held_out(captions, 0.25, seed=4)[1]


def test_at_least_fifty_captions_are_held_out():
    captions = [f"caption {i}" for i in range(120)]
    assert len(split_held_out(captions, 0.01, seed=0)[1]) == 50
    with pytest.raises(InputError, match="90 distinct captions"):
        split_held_out(captions[:90], 0.01, seed=0)


def test_batches_show_every_caption_once_an_epoch():
    batches = EndlessBatches(10, 4, torch.Generator().manual_seed(0))
    order = torch.cat([next(batches) for _ in range(10)]).reshape(4, 10)
    assert (order.sort(-1).values == torch.arange(10)).all()
    assert not (order[0] == order[1]).all()


@torch.no_grad()
def test_recovered_words_of_a_perfect_denoiser(denoiser, diffusion):
    """A network that answers with the word embeddings recovers every word, one that answers PAD only the PADs."""
    denoiser.word_embedding.weight.copy_(torch.nn.functional.one_hot(torch.arange(11) % 4, 4) * 1.0)
    denoiser.word_embedding.weight.copy_(torch.nn.functional.normalize(randn(11, 4), dim=-1))
    ids = torch.tensor([[0, 5, 1, 3], [0, 8, 9, 1]])
    denoiser.forward = lambda x, times: denoiser.word_embedding(ids)
    assert recovered(denoiser, diffusion, ids, torch.Generator()).all()
    denoiser.forward = lambda x, times: denoiser.word_embedding(torch.full_like(ids, PAD))
    assert torch.equal(recovered(denoiser, diffusion, ids, torch.Generator()), ids == PAD)


# -- vocabulary ------------------------------------------------------------------------------------------------------


def test_vocabulary_order_and_rare_words():
    captions = ["a cat and a dog", "a dog runs", "the cat PAD", "bird"]
    vocabulary = Vocabulary.from_captions(captions, min_count=2)
    assert vocabulary.token_to_id == {"START": 0, "END": 1, "UNK": 2, "PAD": 3, "a": 4, "cat": 5, "dog": 6}
    assert vocabulary.unknown_share(["a bird", "cat dog"]) == 0.25


def test_encoding_pads_cuts_and_decodes():
    vocabulary = Vocabulary.from_captions(["a cat runs"])
    a, cat, runs = (vocabulary.token_to_id[word] for word in ("a", "cat", "runs"))
    ids = vocabulary.encode(["a cat runs", "a bird", "a cat runs runs runs", ""], 5)
    assert ids.tolist() == [
        [START, a, cat, runs, END],
        [START, a, UNK, END, PAD],
        [START, a, cat, runs, runs],
        [START, END, PAD, PAD, PAD],
    ]
    assert [vocabulary.decode(row) for row in ids.tolist()] == ["a cat runs", "a UNK", "a cat runs runs", ""]


@pytest.mark.parametrize("bad", [{"START": 0}, {"START": 0, "END": 1, "UNK": 2, "PAD": 3, "cat": 5}])
def test_vocabulary_with_wrong_ids_is_refused(bad):
    with pytest.raises(InputError, match="vocabulary"):
        Vocabulary(bad)


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(denoiser, tmp_path):
    vocabulary = Vocabulary.from_captions(["a b c d e f g"])
    args = {"denoiser": SMALL.to_dict(), "ema_rate": 0.9999, "steps": 1234, "dropout": SMALL.dropout}
    weights.save(tmp_path, denoiser.state_dict(), randn(11, 4), vocabulary, args)
    return tmp_path


def test_folder_round_trip_is_bit_identical(denoiser, folder):
    assert {path.name for path in folder.iterdir()} == {
        "ema_0.9999_001234.pt",
        "random_emb.torch",
        "training_args.json",
        "vocab.json",
    }
    loaded = weights.load(folder)
    assert loaded.denoiser_config == SMALL
    assert torch.equal(loaded.random_table, randn(11, 4))
    rebuilt = loaded.build().state_dict()
    assert rebuilt.keys() == denoiser.state_dict().keys()
    assert all(torch.equal(rebuilt[name], tensor) for name, tensor in denoiser.state_dict().items())


def test_a_new_run_replaces_the_old_weights(denoiser, folder):
    vocabulary = Vocabulary.load(folder / "vocab.json")
    args = json.loads((folder / "training_args.json").read_text()) | {"steps": 7}
    weights.save(folder, denoiser.state_dict(), randn(11, 4), vocabulary, args)
    assert [path.name for path in folder.glob("*.pt")] == ["ema_0.9999_000007.pt"]


@pytest.mark.parametrize("name", ["random_emb.torch", "training_args.json", "vocab.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=name):
        weights.load(folder)


@pytest.mark.parametrize("name", ["ema_0.9999_001234.pt", "random_emb.torch", "training_args.json", "vocab.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "garbage"])
def test_a_damaged_file_is_named_in_one_line(folder, name, damage):
    path = folder / name
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "garbage": b"\x80\x04garbage\xff" * 9}[damage])
    with pytest.raises(InputError, match=name) as error:
        weights.load(folder)
    assert "\n" not in str(error.value)


def test_a_folder_without_weights_is_named(tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        weights.load(tmp_path)


def test_a_vocabulary_of_another_model_is_refused(folder):
    Vocabulary.from_captions(["two words"]).save(folder / "vocab.json")
    with pytest.raises(InputError, match=r"vocab\.json"):
        weights.load(folder)


def test_published_folder_loads(conformance_dir, tmp_path):
    """The names, shapes and hyper-parameters of the published folder, with random values."""
    published = json.loads((conformance_dir / "published_diffusion_lm.json").read_text())
    vocabulary = (conformance_dir / "published_vocab.json").read_text()
    state = {
        name: torch.arange(shape[1])[None] if dtype == "int64" else 0.02 * randn(*shape, seed=seed)
        for seed, (name, (shape, dtype)) in enumerate(published["state_dict"].items())
    }
    state["lm_head.weight"] = state["word_embedding.weight"]
    (weights_name,) = (name for name in published["files"] if name.endswith(".pt"))
    torch.save(state, tmp_path / weights_name)
    torch.save({"weight": randn(*state["lm_head.weight"].shape)}, tmp_path / "random_emb.torch")
    (tmp_path / "vocab.json").write_text(vocabulary)
    (tmp_path / "training_args.json").write_text(json.dumps(published["training_args"]))
    loaded = weights.load(tmp_path)
    assert loaded.denoiser_config.num_attention_heads == 12
    assert loaded.denoiser_config == DenoiserConfig()
    rebuilt = loaded.build().state_dict()
    assert rebuilt.keys() == state.keys() - {"position_ids"}
    assert all(torch.equal(rebuilt[name], tensor) for name, tensor in state.items() if name != "position_ids")


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


# -- programs --------------------------------------------------------------------------------------------------------


def program(name, *arguments, cwd):
    command = [sys.executable, str(ROOT / "Diffusion-LM" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


@pytest.fixture(scope="module")
def captions_file(tmp_path_factory):
    """216 different captions of eighteen words."""
    path = tmp_path_factory.mktemp("captions") / "toys.txt"
    lines = [
        f"a {size} {colour} {thing} {verb} slowly"
        for size in ("big", "small", "tiny")
        for colour in ("red", "blue", "green", "white")
        for thing in ("ball", "car", "dog", "bird", "boat", "kite")
        for verb in ("rolls", "stops", "moves")
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def trained(captions_file, tmp_path_factory):
    """Two runs of the same command line."""
    folder = tmp_path_factory.mktemp("runs")
    runs = []
    for name in ("first", "second"):
        arguments = ["--captions", captions_file, "--denoiser=tiny", "--text_len=10", "--steps=60", "--log_step=10"]
        arguments += ["--eval_every=30", "--gpu=cpu", "--samples=2", precision.stated(), f"--output_dir={name}"]
        run = program("train.py", *arguments, cwd=folder)
        assert run.returncode == 0, run.stderr
        runs.append((folder / name, run))
    return runs


@pytest.mark.slow
def test_training_writes_the_files_of_the_published_folder(trained):
    folder, _ = trained[0]
    assert {path.name for path in folder.iterdir()} == {
        "ema_0.9999_000060.pt",
        "random_emb.torch",
        "training_args.json",
        "vocab.json",
        "log.txt",
        "metrics.jsonl",
    }
    model = weights.load(folder)
    args = model.training_args
    assert len(model.vocabulary) == args["vocab_size"] == 22
    assert (args["steps"], args["ema_rate"], args["diffusion_steps"], args["text_len"]) == (60, 0.9999, 10, 10)
    assert (args["noise_schedule"], args["predict_xstart"], args["in_channel"]) == ("sqrt", True, 64)
    assert model.denoiser_config == replace(DENOISERS["tiny"], dropout=args["dropout"])
    assert args["held_out"]["captions"] == 50 and 0 < args["held_out"]["accuracy"] <= args["held_out"]["accuracy_all"]


@pytest.mark.slow
def test_loss_falls(trained):
    lines = [json.loads(line) for line in (trained[0][0] / "metrics.jsonl").read_text().splitlines()]
    totals = [line["train"]["total"] for line in lines if "train" in line]
    held_out = [line["held_out"]["loss"] for line in lines if "held_out" in line]
    assert len(totals) == 6 and totals[-1] < 0.7 * totals[0]
    assert len(held_out) == 2 and held_out[1] < held_out[0]


@pytest.mark.slow
def test_same_seed_gives_the_same_weights(trained):
    first, second = (weights.load(folder) for folder, _ in trained)
    assert all(torch.equal(tensor, second.state_dict[name]) for name, tensor in first.state_dict.items())
    assert torch.equal(first.random_table, second.random_table)
    assert first.training_args["held_out"] == second.training_args["held_out"]


@pytest.mark.slow
def test_sample_prints_captions(trained):
    folder, run = trained[0]
    shown = program("sample.py", folder, "--num=5", "--gpu=cpu", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert len(lines) == 5
    words = weights.load(folder).vocabulary.token_to_id
    assert all(word in words for line in lines for word in line.split())
    assert lines[:2] == run.stdout.splitlines()[-2:]  # what train.py --samples printed


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run a program in this process, in tmp_path: exit code, standard output, standard error."""

    def run(name, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "Diffusion-LM" / name), run_name="__main__")
        return end.value.code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--captions=absent.txt"], "absent.txt"),
        (["--captions=few.txt"], "distinct captions"),
        (["--captions=binary.txt"], "binary.txt"),
        (["--dataset_name=Nothing"], "Nothing"),
        (["--dataset_name=MSVD", "--data_dir=nowhere"], "nowhere"),
        ([], "--captions"),
        (["--captions=good.txt", "--batch_size=0"], "batch_size"),
        (["--captions=good.txt", "--steps=0"], "steps"),
        (["--captions=good.txt", "--text_len=513"], "512"),
        (["--captions=good.txt", "--min_count=9999"], "min_count"),
        (["--captions=good.txt", "--lr=nan"], "lr"),
        (["--captions=good.txt", "--gpu=99"], "--gpu=cpu"),
        (["--captions=good.txt", "--unheard_of"], "--unheard_of"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(arguments, complaint, call, captions_file, tmp_path):
    (tmp_path / "good.txt").write_text(captions_file.read_text())
    (tmp_path / "few.txt").write_text("a cat\na dog\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00caption")
    before = set(tmp_path.iterdir())
    code, out, err = call("train.py", *arguments, "--denoiser=tiny", "--output_dir=out")
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("train.py: error: ") and complaint in line
    assert set(tmp_path.iterdir()) == before


def test_output_dir_that_is_a_file_is_named(call, captions_file, tmp_path):
    (tmp_path / "out").write_text("in the way")
    code, _, err = call("train.py", "--captions", captions_file, "--denoiser=tiny", "--output_dir=out")
    assert code == 2 and err.count("\n") == 1 and "run folder out cannot be written" in err
    assert (tmp_path / "out").read_text() == "in the way"


@pytest.mark.parametrize(
    ("arguments", "complaint"), [(["nowhere"], "nowhere"), (["--num=0"], "--num"), (["--sampling_steps=11"], "11")]
)
def test_sample_refuses_bad_input_in_one_line(arguments, complaint, call, folder):
    code, out, err = call("sample.py", *([] if arguments == ["nowhere"] else [folder]), *arguments)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("sample.py: error: ") and complaint in line


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Checkpoints by name of TextDiffs before training, of the published recipe and of X-Pool, on the tiny CLIP."""
    folder = tmp_path_factory.mktemp("checkpoints")
    make_diffusion_lm(folder / "teacher", CAPTIONS)
    flags = ["--clip_arch=tiny", "--num_frames=2", "--diffusion_text_len=9", f"--diffusion_lm={folder / 'teacher'}"]
    more = {"textdiffs": [], "published": ["--recipe=published"], "xpool": ["--arch=clip_transformer"]}
    for name, given in more.items():
        torch.manual_seed(0)
        config = Config.parse([*flags, *given])
        save_checkpoint(folder / f"{name}.pth", create_model(config), config, 1, 1)
    write_video(folder / "film.mp4", render(scene_of(5, "test", 0)))
    return folder


def test_sample_reads_a_video(call, runs):
    """Before training the cross-attention adds nothing: whatever the video, a ratio is 0."""
    video, checkpoint = f"--video={runs / 'film.mp4'}", f"--checkpoint={runs / 'textdiffs.pth'}"
    code, out, err = call("sample.py", video, checkpoint, "--num=4", "--gpu=cpu", "--sampling_steps=3")
    assert (code, err) == (0, "")
    known = {word for caption in CAPTIONS for word in caption.split()}
    for line in out.splitlines():
        ratio, *words = line.split()
        assert float(ratio) == pytest.approx(0, abs=0.01) and set(words) <= known
    assert len(out.splitlines()) == 4
    assert call("sample.py", video, checkpoint, "--num=4", "--gpu=cpu", "--sampling_steps=3")[1] == out


def test_what_the_video_explains_best_comes_first(call, runs):
    """Of a student that was moved at random."""
    checkpoint = torch.load(runs / "textdiffs.pth", weights_only=True)
    for name, tensor in checkpoint["state_dict"].items():
        if ".video_attention." in name and ".out." in name:
            tensor.copy_(randn(*tensor.shape))
    torch.save(checkpoint, runs / "moved.pth")
    _, out, _ = call("sample.py", f"--video={runs / 'film.mp4'}", f"--checkpoint={runs / 'moved.pth'}", "--gpu=cpu")
    ratios = [float(line.split()[0]) for line in out.splitlines()]
    assert len(ratios) == 10 and ratios == sorted(ratios, reverse=True) and ratios[0] != 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--video=film.mp4"], "--checkpoint"),
        (["--checkpoint=textdiffs.pth"], "--video"),
        (["teacher", "--video=film.mp4", "--checkpoint=textdiffs.pth"], "two models"),
        (["--video=textdiffs.pth", "--checkpoint=textdiffs.pth"], "textdiffs.pth does not open"),
        (["--video=absent.mp4", "--checkpoint=textdiffs.pth"], "absent.mp4"),
        (["--video=film.mp4", "--checkpoint=absent.pth"], "absent.pth"),
        (["--video=film.mp4", "--checkpoint=film.mp4"], "film.mp4"),
        (["--video=film.mp4", "--checkpoint=published.pth"], "--recipe=published"),
        (["--video=film.mp4", "--checkpoint=xpool.pth"], "--arch=clip_transformer"),
    ],
)
def test_sample_names_what_cannot_read_a_video(arguments, complaint, call, runs):
    paths = [argument.replace("=", f"={runs}/") for argument in arguments]
    code, out, err = call("sample.py", *paths, "--gpu=cpu")
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("sample.py: error: ") and complaint in line


def test_bad_input_through_the_shell(tmp_path):
    run = program("train.py", "--captions=absent.txt", cwd=tmp_path)
    assert run.returncode == 2 and run.stderr.count("\n") == 1 and run.stderr.startswith("train.py: error: ")
