"""The real Trainer against plain PyTorch: what one would write by hand for the same recipe."""

import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from config import Config
from datasets.annotations import Segment, Split
from datasets.holdout import Selection, TrainingSplits
from datasets.loading import batches
from modules.losses import clamp_logit_scale, symmetric_infonce
from tests.made_up import write_video
from tests.processes import in_processes
from tests.small_models import settled, small_textdiffs, small_xpool
from trainer.checkpoints import BEST, load_checkpoint
from trainer.optimizer import parameter_groups
from trainer.run_folder import MetricsWriter
from trainer.trainer import Trainer
from utils import distributed

CPU = torch.device("cpu")
CLIP_LR, NOCLIP_LR, WEIGHT_DECAY = 1e-4, 1e-3, 0.2
EPOCHS, PAIRS, BATCH = 2, 16, 4
STEPS, WARMUP = 8, 2


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Eight videos with two captions each."""
    folder, rng, segments = tmp_path_factory.mktemp("videos"), np.random.default_rng(0), []
    for index in range(PAIRS // 2):
        frames = rng.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8).repeat(16, 1).repeat(16, 2)
        write_video(folder / f"{index}.mp4", frames)
        segments.append(Segment(str(index), folder / f"{index}.mp4", (f"a {index} b", f"{index} runs")))
    return Split("custom", "train", tuple(segments))


def make_trainer(split: Split, folder: Path, dtype: torch.dtype = torch.float32, **flags) -> Trainer:
    """Trains X-Pool without evaluations, from a logit scale above its bound."""
    config = Config(
        arch="clip_transformer", num_epochs=EPOCHS, num_frames=2, input_res=64, num_workers=0,
        clip_lr=CLIP_LR, noclip_lr=NOCLIP_LR, weight_decay=WEIGHT_DECAY, warmup_proportion=WARMUP / STEPS, seed=3,
        **({"batch_size": BATCH} | flags),
    )  # fmt: skip
    torch.manual_seed(1)
    model = settled(small_xpool(), config)
    model.pool_frames.dropout.p = 0.0
    with torch.no_grad():
        model.clip.logit_scale.fill_(4.7)
    splits = TrainingSplits(split, None, None, Selection(None, "by nothing"))
    return Trainer(model, config, splits, CPU, dtype, folder, MetricsWriter(folder, None, 0))


def plain_training(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The parameters of the trainer's model after all steps, by hand."""
    model, loader = trainer.model, trainer.loader
    parameters = dict(model.named_parameters())
    means, squares = ({name: torch.zeros_like(p) for name, p in parameters.items()} for _ in range(2))
    step, right = 0, torch.arange(BATCH)
    for epoch in range(1, EPOCHS + 1):
        loader.sampler.set_epoch(epoch)
        for frames, index in batches(loader):
            texts = model.encode_texts(model.tokenize([trainer.split.captions[i] for i in index])["token_ids"])
            pooled = model.pool_frames(texts, model.encode_videos(frames).frames)  # (videos, texts, D)
            logits = model.clip.logit_scale.exp() * F.cosine_similarity(texts[:, None], pooled.transpose(0, 1), dim=-1)
            loss = (F.cross_entropy(logits, right) + F.cross_entropy(logits.t(), right)) / 2
            gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
            norm = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt()
            progress = (step - WARMUP) / (STEPS - WARMUP)
            schedule = step / WARMUP if step < WARMUP else (1 + math.cos(math.pi * progress)) / 2
            step += 1
            for name, parameter in parameters.items():
                gradient = gradients[name] / max(1.0, norm.item())
                means[name] = 0.9 * means[name] + 0.1 * gradient
                squares[name] = 0.98 * squares[name] + 0.02 * gradient.square()
                mean, square = means[name] / (1 - 0.9**step), squares[name] / (1 - 0.98**step)
                lr = schedule * (CLIP_LR if name.startswith("clip.") else NOCLIP_LR)
                decays = parameter.ndim >= 2 and "token_embedding" not in name and "position_embedding" not in name
                parameter.data *= 1 - lr * (WEIGHT_DECAY if decays else 0.0)
                parameter.data -= lr * mean / (square.sqrt() + 1e-6)
            model.clip.logit_scale.data.clamp_(max=math.log(100))
    assert step == STEPS
    return {name: parameter.detach() for name, parameter in parameters.items()}


def test_training_is_what_plain_pytorch_does(split, tmp_path):
    """Groups of parameters, AdamW, weight decay, clipping, warm-up and cosine schedule, bound of the logit scale."""
    trainer, by_hand = make_trainer(split, tmp_path), make_trainer(split, tmp_path)
    assert trainer.model.clip.logit_scale.exp().item() == pytest.approx(100, rel=1e-6)  # held before the first step
    for each in (trainer, by_hand):
        with torch.no_grad():
            each.model.clip.logit_scale.fill_(4.7)  # and after it
    trainer.train()
    expected = plain_training(by_hand)
    after = dict(trainer.model.named_parameters())
    assert after.keys() == expected.keys()
    for name, parameter in after.items():
        # a step moves a parameter by up to lr; the gradient of the biases of keys is zero but for rounding
        lr = CLIP_LR if name.startswith("clip.") else NOCLIP_LR
        torch.testing.assert_close(parameter, expected[name], atol=2e-3 * lr, rtol=2.5e-7, msg=name)
    assert 4.6 < after["clip.logit_scale"].item() < math.log(100) - CLIP_LR  # it was bound, and came down from there


def test_each_part_of_a_model_has_its_learning_rate():
    """CLIP clip_lr, the pooling noclip_lr, the student and the encoder of the videos potential_lr, whose matrices Muon
    moves; their vectors and tables have 0.3 of it."""
    model = small_textdiffs(["a b"])
    config = Config(clip_lr=1e-6, noclip_lr=1e-5, potential_lr=1e-2, weight_decay=0.3)
    groups = parameter_groups(model, config)
    found = {id(parameter): group for group in groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(found) == len(list(model.parameters()))
    student, encoder = model.potential.student, model.potential.video_encoder
    expected = {id(p): (1e-6, False) for p in model.clip.parameters()}
    expected |= {id(p): (1e-5, False) for p in model.pool_frames.parameters()}
    tables = [student.word_embedding, student.position_embeddings, encoder.frame_position, encoder.patch_position]
    for parameter in model.potential.parameters():
        matrix = parameter.ndim == 2 and all(parameter is not table.weight for table in tables)
        expected[id(parameter)] = (1e-2 * (1 if matrix else 0.3), matrix)
    assert {key: group["orthogonal"] for key, group in found.items()} == {
        key: muon for key, (_, muon) in expected.items()
    }
    assert {key: group["lr"] for key, group in found.items()} == pytest.approx(
        {k: lr for k, (lr, _) in expected.items()}
    )
    for module, decays in ((student.word_embedding, 0.0), (student.output_down_proj[0], 0.3),
                           (student.video_attention[0].query, 0.3), (student.LayerNorm, 0.0)):  # fmt: skip
        assert found[id(module.weight)]["weight_decay"] == decays
    assert found[id(model.potential.weight)]["weight_decay"] == 0
    of_xpool = {group["lr"] for group in parameter_groups(small_xpool(), config)}
    assert of_xpool == {1e-6, 1e-5}


@pytest.fixture(scope="module")
def many_captions(tmp_path_factory):
    """Eight videos with 1, 2, ... 8 captions; nothing opens their files."""
    folder = tmp_path_factory.mktemp("videos")
    segments = [Segment(str(n), folder / f"{n}.mp4", tuple(f"a {n} b {i}" for i in range(n))) for n in range(1, 9)]
    return Split("custom", "train", tuple(segments))


def read_captions(split, folder, own: list[int], step: int, chunks: int = 1, count: int = 3) -> torch.Tensor:
    """What the trainer of this process reads with the own captions of a batch of all processes, (B, R)."""
    trainer = make_trainer(split, folder, batch_size=len(own) // chunks // distributed.size(), grad_accum=chunks)
    trainer.model.captions_read, rows = count, trainer.rows
    return trainer.captions.read_with(torch.tensor(own[rows.start : rows.stop]), step, rows)


def test_captions_that_are_read_are_those_of_the_video(many_captions, tmp_path):
    """The own one first; another step takes others."""
    first = [0, 1, 3, 6, 10, 15, 21, 28]  # caption of each video
    found = read_captions(many_captions, tmp_path, first, step=5)
    assert found[:, 0].tolist() == first
    for video, row in enumerate(found.tolist()):
        captions = [caption for caption in row if caption != -1]
        assert len(captions) == len(set(captions)) == min(3, video + 1)
        assert {many_captions.segment_of_caption[caption] for caption in captions} == {video}
    assert not torch.equal(found, read_captions(many_captions, tmp_path, first, step=6))
    assert torch.equal(read_captions(many_captions, tmp_path, first, step=5, count=1), torch.tensor(first))


def test_processes_and_chunks_read_the_same_captions(many_captions, tmp_path):
    """As does a run that goes on, which is another trainer at the same step."""
    own = [35, 27, 20, 14, 9, 5, 2, 0]
    expected = read_captions(many_captions, tmp_path, own, step=7)
    assert torch.equal(read_captions(many_captions, tmp_path, own, step=7, chunks=2), expected)
    parts = in_processes(2, read_as_lists, many_captions, tmp_path, own, 7)
    assert [row for part in parts for row in part] == expected.tolist()


def read_as_lists(*arguments) -> list[list[int]]:
    return read_captions(*arguments).tolist()


@pytest.mark.parametrize(("asked", "chunks", "pairs"), [(16, 1, 8), (8, 2, 8), (5, 3, 6), (8, 1, 8), (2, 3, 6)])
def test_a_batch_has_no_more_pairs_than_there_are_videos(split, tmp_path, caplog, asked, chunks, pairs):
    """Of 8 videos with two captions each, in whole chunks."""
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(split, tmp_path, batch_size=asked, grad_accum=chunks)
    assert trainer.batch_size == pairs and trainer.steps_of_epoch == 2
    told = f"there are only 8 training videos: it has {pairs} pairs instead of {asked * chunks}"
    assert (told in caplog.text) == (asked * chunks > 8)
    for frames, index in batches(trainer.loader):
        assert len(frames) == pairs
        assert len({split.segment_of_caption[i] for i in index}) == pairs


def test_the_logit_scale_of_clip_can_fall_and_is_not_moved_without_need():
    """At the value of OpenAI's released weights: a clamp within the loss has no gradient there."""
    scale = torch.nn.Parameter(torch.tensor(100.0).log())
    clamp_logit_scale(scale)
    assert scale.item() == torch.tensor(100.0).log().item() and scale.exp().item() == pytest.approx(100, rel=1e-6)
    symmetric_infonce(torch.full((4, 4), 0.5).fill_diagonal_(0.4), scale).backward()
    assert scale.grad.item() > 1
    with torch.no_grad():
        scale.add_(0.5)
    clamp_logit_scale(scale)
    assert scale.item() == torch.tensor(100.0).log().item() and scale.requires_grad


def test_a_step_that_fp16_leaves_out_does_not_move_the_schedule(split, tmp_path):
    """The scale of the loss begins too large: gradients are infinite until it has been halved often enough."""
    trainer = make_trainer(split, tmp_path, torch.float16)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    trainer.train()
    weight = trainer.model.pool_frames.linear_proj.weight
    taken = int(trainer.optimizer.state[weight]["step"])
    assert trainer.step == STEPS and 0 < taken < STEPS
    assert trainer.scheduler.last_epoch == taken


def test_the_split_that_is_tested_does_not_weigh_the_ratio(split, tmp_path):
    """Held-out videos do, and the model that they choose keeps it."""
    config = Config(num_epochs=1, batch_size=BATCH, num_frames=2, input_res=64, num_workers=0, seed=3)
    for name, val in (("held-out", split), ("none", None)):
        (folder := tmp_path / name).mkdir()
        torch.manual_seed(1)
        captions = [caption for segment in split.segments for caption in segment.captions]
        model = settled(small_textdiffs(captions, num_frames=2), config)
        splits = TrainingSplits(split, val, split, Selection("val" if val else "test", "for a test"))
        Trainer(model, config, splits, CPU, torch.float32, folder, MetricsWriter(folder, None, 0)).train()
        weight = load_checkpoint(folder / BEST)["state_dict"]["potential.read_weight"].item()
        assert weight == model.potential.read_weight.item() and (weight == 1) == (val is None)
