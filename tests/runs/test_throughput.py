"""Figures of speed: against counting by hand, and without a trace in what they measure."""

import json
import os
import time

import pytest
import torch

from benchmarks.bench_train import flops_per_pair, matmul_rate
from datasets.loading import TrainPairs
from tests.processes import in_processes
from tests.programs.test_end_to_end import Place
from tests.small_models import small_textdiffs, small_xpool
from tests.training_runs import Run
from trainer.throughput import Stopwatch
from utils import distributed
from utils.device import random_state

CPU = torch.device("cpu")


def test_measuring_draws_no_random_numbers():
    """Else dropout would depend on how fast the machine is."""
    model = small_xpool()
    before = random_state(CPU)
    rate = matmul_rate(CPU, torch.float32)
    tokens = model.select(model.tokenize(["a cat"]), torch.tensor([0]))
    flops_per_pair(model, torch.zeros(1, 2, 3, 64, 64, dtype=torch.uint8), tokens, CPU, torch.float32)
    after = random_state(CPU)
    assert torch.equal(before["torch"], after["torch"]) and before["python"] == after["python"]
    assert torch.equal(before["numpy"]["state"]["key"], after["numpy"]["state"]["key"])
    assert all(parameter.grad is None for parameter in model.parameters())
    assert 1e8 < rate < 1e14


def test_flops_are_those_of_the_layers():
    """Twice the weights of the linear layers for each token, forward, and twice that backward."""
    model = small_xpool()
    frames = 3
    tokens = model.select(model.tokenize(["a cat"]), torch.tensor([0]))

    def weights(encoder) -> int:
        return sum(module.weight.numel() for module in encoder.modules() if isinstance(module, torch.nn.Linear))

    vision, text = model.clip.vision_model, model.clip.text_model
    patches = vision.embeddings.num_patches
    layers = frames * (patches + 1) * weights(vision.encoder) + tokens["token_ids"].shape[1] * weights(text.encoder)
    images = frames * patches * vision.embeddings.patch_embedding.weight.numel()
    images_backward = images  # of the weights alone: nobody asks for the gradient of pixels
    expected = 2 * (3 * layers + images + images_backward)
    counted = flops_per_pair(model, torch.zeros(1, frames, 3, 64, 64, dtype=torch.uint8), tokens, CPU, torch.float32)
    assert counted == pytest.approx(expected, rel=0.1)  # attention and projections are the rest


def flops(model, pairs: int) -> int:
    """Of pairs whose captions are all alike."""
    frames = torch.zeros(pairs, 2, 3, 64, 64, dtype=torch.uint8)
    index = torch.zeros(pairs, model.captions_read, dtype=torch.long)
    tokens = model.select(model.tokenize(["a man plays a guitar"]), index)
    return flops_per_pair(model, frames, tokens, CPU, torch.float32)


def test_each_caption_that_is_read_and_each_wrong_video_is_counted():
    """One more caption of a video, or one more wrong one, is one more pass of the student, whose cross-attention sees
    tokens that are made once; the caption without a video is one without."""
    model = small_textdiffs(["a man plays a guitar"], num_frames=2, captions_read=1, negatives=1)
    one = flops(model, 4)
    model.captions_read = 2
    two = flops(model, 4)
    model.captions_read = 5
    assert flops(model, 4) - one == pytest.approx(4 * (two - one), rel=1e-6)
    model.captions_read, model.negatives = 1, 2
    assert flops(model, 4) - one == pytest.approx(two - one, rel=0.05)
    model.negatives = 3
    three = flops(model, 4)
    assert three - one == pytest.approx(2 * (two - one), rel=0.05)
    model.negatives = 9  # there are no more videos in this batch
    assert flops(model, 4) == three
    weights = sum(
        module.weight.numel() * (1 if name.startswith("time_embed") else model.potential.text_length)
        for name, module in model.potential.student.named_modules()
        if isinstance(module, torch.nn.Linear)
    )
    assert two - one == pytest.approx(3 * 2 * weights, rel=0.25)  # attention is the rest; x_t needs no gradient


def test_stopwatch_counts_waiting_and_leaves_out_pauses():
    def slow():
        for _ in range(3):
            time.sleep(0.05)
            yield 1

    watch = Stopwatch()
    for _ in watch.waiting(slow()):
        time.sleep(0.05)
        watch.pairs += 4
        with watch.paused():
            time.sleep(0.1)
    speed, waited = watch.read()
    assert speed == pytest.approx(12 / 0.3, rel=0.3)
    assert waited == pytest.approx(0.5, abs=0.15)


def slow_steps(waits: list[list[float]], pause: float) -> tuple[float, float]:
    """What the watch of a process says of steps of 10 pairs, which wait for data as long as each process's row says."""

    def batches():
        for seconds in waits[distributed.rank()]:
            time.sleep(seconds)
            yield 1

    distributed.barrier()
    watch = Stopwatch()
    for _ in watch.waiting(batches()):
        distributed.any_process(False)  # as training does in every step, which all do together
        watch.pairs += 10
    with watch.paused():
        time.sleep(pause)
    return watch.read()


@pytest.mark.parametrize("waits", [[[0.0] * 4, [0.1] * 4], [[0.1, 0.0] * 2, [0.0, 0.1] * 2]])
def test_the_speed_is_that_of_the_slowest_process(waits):
    """Whichever process says it: data that one of them waits for, all wait for."""
    for speed, waited in in_processes(2, slow_steps, waits, 0.3):
        assert speed == pytest.approx(100, rel=0.2)
        assert waited > 0.8


def slow_data_of_the_second() -> None:
    """Before a run: its process of rank 1 takes 0.3 s longer to read a sample."""
    read = TrainPairs._frames
    if os.environ["RANK"] == "1":
        TrainPairs._frames = lambda self, *arguments: time.sleep(0.3) or read(self, *arguments)


def test_a_run_tells_the_wait_of_a_process_that_does_not_log(tmp_path):
    """Two processes of two pairs a step, of which the one that logs has its data at once; nothing else is said."""
    place = Place(tmp_path)
    arguments = place.train_arguments(
        "slow", "--arch=clip_baseline", "--num_epochs=1", "--batch_size=2", "--log_step=2", "--skip_eval",
        "--no_tensorboard", "--save_steps=1",
    )  # fmt: skip
    run = Run(arguments, tmp_path / "logs", size=2, first=slow_data_of_the_second)
    assert run.wait() == [0, 0] and run.errors() == ""
    records = [json.loads(line) for line in (place.folder("slow") / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == 3
    for record in records:
        # hundreds, and no wait, where only the process that logs is looked at; what is saved meanwhile is no training
        assert record["speed/data_wait"] > 0.5 and record["speed/pairs_per_s"] < 20
    assert "loading is the bottleneck" in run.output()
