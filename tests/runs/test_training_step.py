"""The training step: one loss for any number of processes and chunks, against a slow computation of its own."""

import ctypes
import json
import math
import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from config.pretraining import PretrainingConfig
from diffusion_lm.denoiser import Denoiser
from diffusion_lm.gaussian_diffusion import GaussianDiffusion
from modules.losses import hardest_videos, symmetric_infonce, teacher_student
from modules.text_potential import NoisedWords
from tests.made_up import needs_compiler
from tests.processes import in_processes
from tests.slow_potential import log_p, noised
from tests.small_models import SMALL, small_baseline, small_textdiffs, small_tmass, small_xpool
from trainer import training_step
from trainer.optimizer import parameter_groups
from trainer.pretraining import Pretraining
from trainer.run_folder import MetricsWriter
from trainer.training_step import TrainingStep
from utils import distributed

CAPTIONS = ["a man plays a guitar", "two dogs run on the beach", "somebody cuts an onion", "a cat", "a dog jumps high",
            "people dance", "a woman reads a book to a child", "a car drives"]  # fmt: skip
CPU = torch.device("cpu")
FRAMES, SIDE = 5, 64
M_MMAP_THRESHOLD = -3


class Settings:
    clip_lr, noclip_lr, weight_decay = 1e-5, 1e-4, 0.2  # AdamW blows up the rounding of gradients that are almost 0
    potential_lr = 1e-4


def make_model(arch: str, dropout: bool = False):
    """A small model in training mode, the same in every process."""
    torch.manual_seed(1)
    model = {
        "textdiffs": lambda: small_textdiffs(CAPTIONS, steps=10, negatives=3, captions_read=3),
        "published": lambda: small_textdiffs(CAPTIONS, scaled=False, published=True),
        "xpool": small_xpool,
        "tmass": lambda: small_tmass(support_loss_weight=0.7),
        "attention": lambda: small_baseline("attention"),
    }[arch]()
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and not dropout:
            module.p = 0.0
    return model


def captions_read(model, rows: range) -> torch.Tensor:
    """The caption of each row, and where a model reads several of a video, up to two of other rows beside it."""
    if model.captions_read == 1:
        return torch.tensor(rows)
    return torch.tensor([[row, (row + 3) % 8 if row % 4 else -1, (row + 5) % 8 if row % 2 else -1] for row in rows])


def make_batch(model, rows: range, step: int = 0):
    """Frames, tokens and noise of rows of the batch of a step."""
    frames = torch.randint(
        256, (len(CAPTIONS), FRAMES, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(step), dtype=torch.uint8
    )
    tokens = model.select(model.tokenize(CAPTIONS), captions_read(model, rows))
    return frames[list(rows)], tokens, model.draw_noise(step, rows)


def train(arch: str, chunks: int = 1, steps: int = 3, dropout: bool = False, compiled: bool = False):
    """Losses of each step, gradients of the first, and the state after the last, in one process of a group."""
    model = make_model(arch, dropout)
    model.prepare(gradient_checkpointing=False, compiled=compiled)
    own = len(CAPTIONS) // distributed.size()
    rows = range(distributed.rank() * own, (distributed.rank() + 1) * own)
    step = distributed.synchronised(TrainingStep(model, chunks, CPU, torch.float32))
    optimizer = torch.optim.AdamW(parameter_groups(model, Settings), eps=1e-5, fused=True)
    losses, gradients = [], {}
    for index in range(steps):
        terms = step(*make_batch(model, rows, index))
        optimizer.zero_grad()
        sum(terms.values()).backward()
        if not gradients:
            gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        losses.append({name: value.item() for name, value in terms.items()})
    return losses, as_lists(gradients), as_lists(model.state_dict())


def as_lists(tensors):
    """What goes through a queue without shared memory."""
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


@pytest.fixture(scope="module", params=["textdiffs", "published", "xpool", "tmass"])
def alone(request):
    return request.param, train(request.param)


def assert_same(found, expected):
    (losses, gradients, parameters), (losses_alone, gradients_alone, parameters_alone) = found, expected
    for step, step_alone in zip(losses, losses_alone, strict=True):
        assert step == pytest.approx(step_alone, abs=1e-5)
    for kind, tensors, others in (
        ("gradient", gradients, gradients_alone), ("parameter", parameters, parameters_alone)
    ):  # fmt: skip
        assert tensors.keys() == others.keys()
        for name, tensor in tensors.items():
            scale = max(1.0, abs(others[name]).max())  # some gradients are sums of thousands of pixels
            assert abs(tensor - others[name]).max() < 1e-5 * scale, f"{kind} of {name}"


@pytest.mark.parametrize(("size", "chunks"), [(2, 1), (4, 1), (2, 2)])
def test_processes_and_chunks_change_nothing(alone, size, chunks, capfd):
    """And nothing is said on standard error."""
    arch, expected = alone
    for found in in_processes(size, train, arch, chunks):
        assert_same(found, expected)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("arch", ["textdiffs", "published", "xpool", "tmass", "attention"])
def test_every_parameter_that_requires_a_gradient_gets_one(arch):
    """DistributedDataParallel waits for each of them."""
    model = make_model(arch)
    sum(TrainingStep(model, 1, CPU, torch.float32)(*make_batch(model, range(len(CAPTIONS)))).values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad != (p.grad is not None)] == []


def train_on(resumed_at: int | None):
    """Parameters after 4 steps, in one process of a group, with all made anew from its weights after some of them."""
    model, own = make_model("xpool"), len(CAPTIONS) // distributed.size()
    rows = range(distributed.rank() * own, (distributed.rank() + 1) * own)
    step = distributed.synchronised(TrainingStep(model, 1, CPU, torch.float32))
    for index in range(4):
        if index == resumed_at:
            weights, model = model.state_dict(), make_model("xpool")
            model.load_state_dict(weights)
            step = distributed.synchronised(TrainingStep(model, 1, CPU, torch.float32))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        optimizer.zero_grad()
        sum(step(*make_batch(model, rows, index)).values()).backward()
        optimizer.step()
    return as_lists(dict(model.named_parameters()))


def test_a_resumption_of_four_processes_rounds_alike():
    """Sums of more than two numbers depend on their order: here on how gradients lie in the buckets of DDP."""
    expected = in_processes(4, train_on, None)[0]
    for found in in_processes(4, train_on, 2):
        assert [name for name, tensor in found.items() if not np.array_equal(tensor, expected[name])] == []


@pytest.mark.parametrize("chunks", [2, 8])
def test_chunks_change_nothing(alone, chunks):
    arch, expected = alone
    assert_same(train(arch, chunks), expected)


def test_chunks_change_nothing_for_the_baseline():
    assert_same(train("attention", 4), train("attention"))


@needs_compiler
@pytest.mark.slow
def test_compiled_networks_change_nothing():
    assert_same(train("textdiffs", compiled=True), train("textdiffs"))


def test_the_loss_is_that_of_every_text_with_every_video():
    """Pair by pair, with nothing batched."""
    model = make_model("published").eval()
    frames, tokens, noise = make_batch(model, range(len(CAPTIONS)))
    with torch.no_grad():
        terms = TrainingStep(model, 1, CPU, torch.float32)(frames, tokens, noise)
        texts, videos = model.encode_texts(tokens["token_ids"]), model.encode_videos(frames).frames
        sims, distance = torch.empty(len(CAPTIONS), len(CAPTIONS)), 0.0
        for i in range(len(CAPTIONS)):
            own = tuple(type(n)(*(part[i : i + 1] for part in n)) for n in noise)
            output = model.text_diffusion(tokens["word_ids"][i : i + 1], videos[i : i + 1], *own)
            distance += teacher_student(output.teacher, output.student)
            for j in range(len(CAPTIONS)):
                pooled = model.pool_frames(texts[i : i + 1], videos[j : j + 1])[0]
                sims[i, j] = F.cosine_similarity(texts[i : i + 1] + output.log_shift.exp(), pooled)
        scale = model.clip.logit_scale.exp()
        right = torch.arange(len(CAPTIONS))
        expected = (F.cross_entropy(scale * sims, right) + F.cross_entropy(scale * sims.t(), right)) / 2
    assert terms["retrieval"].item() == pytest.approx(expected.item(), abs=1e-4)
    assert terms["teacher_student"].item() == pytest.approx(0.1 * distance.item(), rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("negatives", [1, 3, 7, 50])
def test_the_loss_of_textdiffs_is_that_of_its_three_terms(negatives):
    """Pair by pair. Each caption is read with its own and the K wrong videos that X-Pool holds to be most similar, with
    one t and one noise; a text and a video that are not read together have no share in the second term. What reading
    costs, in nats a caption, is that of all captions of a video with it, and of the pair's own without one."""
    model = make_model("textdiffs").eval()
    model.negatives, count = negatives, len(CAPTIONS)
    model.potential.weight.fill_(0.6)
    frames, tokens, (drawn,) = make_batch(model, range(count))
    terms = TrainingStep(model, 1, CPU, torch.float32)(frames, tokens, (drawn,))
    texts, videos, potential = model.encode_texts(tokens["token_ids"]), model.encode_videos(frames), model.potential
    scale, steps = model.clip.logit_scale.exp().item(), potential.diffusion.num_steps
    base, nats, read = torch.empty(count, count), 0.0, {}
    for i in range(count):
        word_ids, t = tokens["word_ids"][i, 0].tolist(), drawn.t[i, 0].item()
        x_t, time = noised(model, word_ids, t, drawn.x_start[i, 0], drawn.q[i, 0]), t * 1000 / steps
        for j in range(count):
            pooled = model.pool_frames(texts[i : i + 1], videos.frames[j : j + 1])[0]
            base[i, j] = F.cosine_similarity(texts[i : i + 1], pooled)
        prior = sum(log_p(potential.student, word_ids, x_t, time))
        readings = [prior]
        for place, caption in enumerate(captions_read(model, range(count))[i].tolist()):
            if caption != -1:
                ids, t_of = model.vocabulary.encode([CAPTIONS[caption]], 8)[0].tolist(), drawn.t[i, place].item()
                of = noised(model, ids, t_of, drawn.x_start[i, place], drawn.q[i, place])
                readings.append(sum(log_p(potential.student, ids, of, t_of * 1000 / steps, videos.tokens[i])))
        assert len(readings) == (2, 4, 3, 4)[i % 4]  # a video may have fewer captions than are read
        nats -= sum(readings) / len(readings) / count
        wrong = sorted((j for j in range(count) if j != i), key=lambda j: -base[i, j].item())[:negatives]
        for j in (i, *wrong):
            with_video = sum(log_p(potential.student, word_ids, x_t, time, videos.tokens[j]))
            read[i, j] = scale * base[i, j].item() + 0.6 * (with_video - prior)
    right = torch.arange(count)
    expected = (F.cross_entropy(scale * base, right) + F.cross_entropy(scale * base.t(), right)) / 2
    assert terms["retrieval"].item() == pytest.approx(expected.item(), abs=1e-4)
    potential_loss = 0.0
    for i in range(count):
        of_text = sum(math.exp(score) for (text, _), score in read.items() if text == i)
        of_video = sum(math.exp(score) for (_, video), score in read.items() if video == i)
        potential_loss += (math.log(of_text) + math.log(of_video) - 2 * read[i, i]) / (2 * count)
    assert terms["potential"].item() == pytest.approx(potential_loss, abs=1e-4)
    assert terms["words"].item() == pytest.approx(nats, rel=1e-5)
    assert terms.keys() == {"retrieval", "potential", "words"}
    assert abs(terms["potential"] - terms["retrieval"]) > 0.01  # the words do something in this model


@pytest.mark.parametrize("count", [1, 4, 9, 50])
def test_the_hardest_videos_are_those_of_others_that_are_most_similar(count):
    sims, own = torch.randn(6, 10), torch.tensor([4, 5, 6, 7, 8, 9])
    chosen = hardest_videos(sims, own, count)
    for row, video, similar in zip(chosen.tolist(), own.tolist(), sims, strict=True):
        others = sorted((j for j in range(10) if j != video), key=lambda j: -similar[j].item())
        assert row == others[:count]


def test_the_words_that_are_noised_never_move():
    table, words = "potential.word_table", "potential.student.word_embedding.weight"
    before = as_lists(make_model("textdiffs").state_dict())
    _, gradients, after = train("textdiffs")
    assert table not in gradients and np.array_equal(after[table], before[table])
    assert not np.array_equal(after[words], before[words])  # those that are scored do


def gradients_of(value, parameters):
    return torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)


def test_the_contrast_of_ratios_does_not_move_the_prior():
    """Its gradient is that of log p(w | x_t, v): a prior that the contrast could lower would be no likelihood."""
    model = make_model("textdiffs")
    frames, tokens, noise = make_batch(model, range(len(CAPTIONS)))
    pairs = model.encode_pairs(frames, **tokens, noise=noise)
    read, student = pairs.reading, list(model.potential.student.parameters())
    assert not read.prior.requires_grad
    own = NoisedWords(read.word_ids, read.x_t, read.t)
    with_video = model.potential.log_p(own, pairs.videos.tokens).sum(1)
    without = model.potential.log_p(own).sum(1)
    torch.testing.assert_close(read.own_ratio, with_video - without, atol=1e-4, rtol=1e-4)
    weights = torch.arange(1.0, 1 + len(CAPTIONS))
    found, expected, other = (
        gradients_of(weights @ value, student) for value in (read.own_ratio, with_video, with_video - without)
    )
    for gradient, of_video in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, of_video, atol=1e-4, rtol=1e-3)
    assert any((a - b).abs().max() > 0.01 for a, b in zip(found, other, strict=True) if b is not None)
    videos = model.similarities(pairs, pairs.videos, torch.arange(len(CAPTIONS)))[:, 1]
    assert gradients_of(videos.diagonal().sum(), [model.potential.weight])[0] != 0


def test_clip_learns_by_contrast_alone():
    """Words move the encoder of the videos, and nothing before it."""
    model = make_model("textdiffs")
    terms = TrainingStep(model, 1, CPU, torch.float32)(*make_batch(model, range(len(CAPTIONS))))
    clip, encoder = list(model.clip.parameters()), list(model.potential.video_encoder.parameters())
    assert all(gradient is None for gradient in gradients_of(terms["words"], clip))
    assert all(gradient.abs().max() > 0 for gradient in gradients_of(terms["words"], encoder))
    assert any(gradient is not None for gradient in gradients_of(terms["potential"], clip))


def test_a_batch_of_one_pair_has_no_wrong_video():
    model = make_model("textdiffs")
    frames, tokens, noise = make_batch(model, range(1))
    terms = TrainingStep(model, 1, CPU, torch.float32)(frames, tokens, noise)
    sum(terms.values()).backward()
    assert terms["retrieval"] == terms["potential"] == 0 and terms["words"] > 0


@pytest.mark.parametrize("arch", ["textdiffs", "tmass"])
def test_half_precision_scores_in_full(arch, monkeypatch):
    """The scores that the loss multiplies by up to 100 stay in float32, and the losses near those of float32."""
    seen, terms = [], {}
    model = make_model(arch).eval()
    batch = make_batch(model, range(len(CAPTIONS)))
    monkeypatch.setattr(
        training_step,
        "symmetric_infonce",
        lambda sims, scale: seen.append(sims.dtype) or symmetric_infonce(sims, scale),
    )
    for dtype in (torch.float32, torch.bfloat16):
        step = TrainingStep(model, 1, CPU, dtype)
        terms[dtype] = {name: value.item() for name, value in step(*batch).items()}
    assert set(seen) == {torch.float32}
    assert terms[torch.bfloat16] == pytest.approx(terms[torch.float32], rel=0.02, abs=0.02)
    assert terms[torch.bfloat16] != terms[torch.float32]


@torch.no_grad()
def test_the_loss_of_tmass_is_that_of_sampled_and_support_texts():
    """Pair by pair; the sample is c + eps exp(r), the support text lies at exp(r) towards the mean pooled video."""
    model = make_model("tmass").eval()
    frames, tokens, noise = make_batch(model, range(len(CAPTIONS)))
    terms = TrainingStep(model, 1, CPU, torch.float32)(frames, tokens, noise)
    texts, videos, projection = (
        model.encode_texts(tokens["token_ids"]), model.encode_videos(frames).frames,
        model.stochastic.std_branch.linear_proj
    )  # fmt: skip
    assert noise[0].eps.min() >= 0 and noise[0].eps.max() < 1 and noise[0].eps.std() > 0.2
    count = len(CAPTIONS)
    pooled = [[model.pool_frames(texts[j][None], videos[i][None])[0, 0] for j in range(count)] for i in range(count)]
    sampled, support = torch.empty(count, count), torch.empty(count, count)
    for i in range(count):
        cosines = torch.stack([F.cosine_similarity(texts[i], frame, dim=0) for frame in videos[i]])
        radius = (projection.weight @ cosines + projection.bias).exp()
        pointer = sum(pooled[i]) / count - texts[i]
        for j in range(count):
            sampled[i, j] = F.cosine_similarity(texts[i] + noise[0].eps[i] * radius, pooled[j][i], dim=0)
            moved = texts[i] + radius * pointer / pointer.square().sum().sqrt()
            support[i, j] = F.cosine_similarity(moved, pooled[j][i], dim=0)
    scale, right = model.clip.logit_scale.exp(), torch.arange(count)
    for name, sims, weight in (("retrieval", sampled, 1.0), ("support", support, 0.7)):
        expected = (F.cross_entropy(scale * sims, right) + F.cross_entropy(scale * sims.t(), right)) / 2
        assert terms[name].item() == pytest.approx(weight * expected.item(), abs=1e-4)
    assert terms.keys() == {"retrieval", "support"}


@pytest.mark.parametrize("chunks", [1, 4])
def test_the_mean_pooled_video_is_that_of_the_similarities(chunks):
    """Dropout included: both see the same pooled videos."""
    model = make_model("tmass", dropout=True)
    batch = make_batch(model, range(len(CAPTIONS)))
    seen = {"sums": [], "sims": []}
    forward = model.pool_frames.forward

    def spy(texts, frames):
        pooled = forward(texts, frames)
        seen["sums" if len(seen["sums"]) < chunks else "sims"].append(pooled.detach())
        return pooled

    model.pool_frames.forward = spy
    TrainingStep(model, chunks, CPU, torch.float32)(*batch)
    assert len(seen["sims"]) == chunks
    assert all(torch.equal(*pair) for pair in zip(*seen.values(), strict=True))
    model.pool_frames.forward = forward
    inputs = torch.randn(1, 128), torch.randn(1, 5, 128)
    assert not torch.equal(forward(*inputs), forward(*inputs))  # there is dropout


class KeepsEverything(TrainingStep):
    """The same chunks, but each keeps what its backward pass needs."""

    def _pass(self, function, *arguments):
        return function(*arguments)


@pytest.mark.parametrize("arch", ["textdiffs", "tmass"])
def test_chunks_see_one_dropout_mask(arch):
    """The backward pass must drop what the forward pass dropped."""
    gradients = []
    for kind in (TrainingStep, KeepsEverything):
        model = make_model(arch, dropout=True)
        batch = make_batch(model, range(len(CAPTIONS)))
        torch.manual_seed(5)
        sum(kind(model, 4, CPU, torch.float32)(*batch).values()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-5, msg=name)


def resident_mb(which: str) -> float:
    """VmRSS, what this process holds, or VmHWM, the most that it has held."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) / 1024


def peak_mb(chunks: int, chunk_size: int) -> float:
    """What one training step takes more than the process held before."""
    ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, 1 << 16)  # what is freed goes back at once
    model = make_model("xpool")
    size = chunks * chunk_size
    frames = torch.zeros(size, 12, 3, SIDE, SIDE, dtype=torch.uint8)
    tokens = model.select(model.tokenize(CAPTIONS * size), torch.arange(size))
    first = TrainingStep(model, 1, CPU, torch.float32)(frames[:1], {"token_ids": tokens["token_ids"][:1]}, ())
    sum(first.values()).backward()  # makes the gradients
    before = resident_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak, see proc(5)
    sum(TrainingStep(model, chunks, CPU, torch.float32)(frames, tokens, ()).values()).backward()
    return resident_mb("VmHWM") - before


def test_memory_is_flat_in_chunks():
    """Sixteen chunks of 4 pairs take hardly more than two, and far less than half as many pairs at once."""
    context = multiprocessing.get_context("forkserver")  # forks of this process would grow into what it has freed
    context.set_forkserver_preload([__name__])
    with context.Pool(1, torch.set_num_threads, (1,), maxtasksperchild=1) as pool:
        two, sixteen, whole = pool.starmap(peak_mb, [(2, 4), (16, 4), (1, 32)], chunksize=1)
    assert sixteen < 1.6 * two  # the uint8 frames are 9 MB more
    assert whole > 2.5 * sixteen


def pretrain(root: Path):
    """Weights of a Diffusion-LM and its averages after 3 steps, and what was recorded, in one process of a group."""
    torch.manual_seed(1)
    denoiser = Denoiser(replace(SMALL, dropout=0.0), 30)
    word_ids = torch.randint(30, (50, 7), generator=torch.Generator().manual_seed(2))
    own = 8 // distributed.size()
    folder = root / f"{distributed.rank()} of {distributed.size()}"
    folder.mkdir()
    config = PretrainingConfig(steps=3, batch_size=own, lr=1e-3, log_step=1, output_dir=str(folder))
    writer = MetricsWriter(folder)
    data = (GaussianDiffusion.sqrt(5), word_ids, word_ids[:8])
    training = Pretraining(denoiser, *data, config, torch.float32, {}, writer)
    training.train()
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return (
        as_lists(denoiser.state_dict()),
        as_lists(training.average.module.state_dict()),
        [r["train"] for r in records if "train" in r],
    )


def test_processes_change_nothing_in_pre_training(tmp_path):
    weights, averages, records = pretrain(tmp_path)
    assert len(records) == 3
    for found in in_processes(2, pretrain, tmp_path):
        for tensors, expected in ((found[0], weights), (found[1], averages)):
            for name, tensor in tensors.items():
                assert abs(tensor - expected[name]).max() < 1e-5, name
        for record, expected in zip(found[2], records, strict=True):
            assert record == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("arch", "steps"), [("published", range(3)), ("textdiffs", range(6, 10))])
def test_steps_that_are_trained(arch, steps):
    """The published diffusion draws all steps, TextDiffs those of the noisier 40 %."""
    drawn = make_model(arch).draw_noise(7, range(2000))[0].t
    assert set(drawn.flatten().tolist()) == set(steps)


@pytest.mark.parametrize("arch", ["textdiffs", "published"])
def test_in_bf16_gradients_do_not_depend_on_which_attention_is_faster(monkeypatch, arch):
    """Up to rounding, and in chunks, whose backward pass encodes again."""
    gradients = {}
    for name, chunks, few in (("fused", 1, 0), ("plain", 1, 128), ("in chunks", 4, 128)):
        monkeypatch.setattr("utils.attention.FEW_KEYS", few)
        model = make_model(arch)
        step = TrainingStep(model, chunks, CPU, torch.bfloat16)
        sum(step(*make_batch(model, range(len(CAPTIONS)))).values()).backward()
        gradients[name] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert F.cosine_similarity(gradients["fused"], gradients["plain"], dim=0) > 0.995
    torch.testing.assert_close(gradients["in chunks"].norm(), gradients["plain"].norm(), rtol=0.01, atol=0)
