"""scripts/condition_use.py: small models with random weights on videos of moving shapes."""

import json
import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch

from config import Config
from datasets.annotations import Segment, Split
from datasets.moving_shapes import captions_of, render, scene_of
from evaluation.evaluator import Evaluator, reordered
from model.clip import EncodedVideos
from model.factory import create_model
from scripts.condition_use import BASE, OWN, condition_use, frame_orders, other_videos
from tests import precision
from tests.made_up import call, make_diffusion_lm, write_video

VIDEOS, FRAMES, SEED = 7, 4, 3
FLAGS = f"--clip_arch=tiny --num_frames={FRAMES} --diffusion_text_len=12 --diffusion_steps=4 --batch_size=3 --gpu=cpu "
FLAGS += "--num_workers=0 --precision=fp32"
CONDITIONS = [OWN, "shuffled videos", "shuffled frames", "reversed frames", BASE]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A custom data set, and a Diffusion-LM of its words."""
    root = tmp_path_factory.mktemp("condition")
    rows = ["video,caption"]
    captions = [caption.text for (caption,) in captions_of(SEED, "test", VIDEOS)]
    for index, caption in enumerate(captions):
        write_video(root / f"{index}.mp4", render(scene_of(SEED, "test", index)))
        rows.append(f"{index}.mp4,{caption}")
    (root / "captions.csv").write_text("\n".join(rows) + "\n")
    make_diffusion_lm(root / "teacher", captions)
    return root


@pytest.fixture(scope="module", params=["textdiffs", "published"])
def config(folder, request):
    return Config.parse(shlex.split(f"{FLAGS} --diffusion_lm={folder / 'teacher'} --recipe={request.param}"))


@pytest.fixture(scope="module")
def evaluator(folder, config):
    captions = captions_of(SEED, "test", VIDEOS)
    segments = tuple(Segment(str(i), folder / f"{i}.mp4", (captions[i][0].text,)) for i in range(VIDEOS))
    model = create_model(config)
    split = Split("custom", "test", segments)
    return Evaluator(split, config, torch.device("cpu"), torch.float32, model.preprocessing)


@pytest.fixture
def model(config):
    """Before training the video has no part in the score of a text; here it has."""
    torch.manual_seed(SEED)
    made = create_model(config).eval()
    with torch.no_grad():
        if config.recipe == "textdiffs":
            for attention in made.potential.student.video_attention:
                attention.query.weight.mul_(100)
                attention.out.weight.normal_()
        else:
            made.text_diffusion.student.output_down_proj[2].weight.mul_(100)
            for layer in (made.text_diffusion.student.sims_linear, *made.text_diffusion.student.sims_decoder[::2]):
                layer.weight.normal_()
    return made


def test_rows_are_those_of_the_evaluation(evaluator, model, monkeypatch):
    """The own condition and the base alone are what test.py reports, all pairs scored or some."""
    for topk in (0, 2):
        monkeypatch.setattr(evaluator, "config", replace(evaluator.config, rerank_topk=topk))
        rows = condition_use(evaluator, model, topk, SEED)
        assert [(row["metric"], row["condition"]) for row in rows] == [
            (m, c) for m in ("t2v", "v2t") for c in CONDITIONS
        ]
        evaluation = evaluator.evaluate(model, evaluator.encode(model))
        found = {(row["metric"], row["condition"]): row for row in rows}
        for metric in ("t2v", "v2t"):
            (base,) = [
                row for row in evaluation.references
                if (row["metric"], row["scores"], row["dsl"]) == (metric, "undiffused", False)
            ]  # fmt: skip
            own = found[metric, OWN]
            assert (own["R1"], found[metric, BASE]["R1"]) == (evaluation.row(metric)["R1"], base["R1"])
            assert (own["lost"], own["low"], own["high"]) == (0, 0, 0)
        for row in rows:
            own = found[row["metric"], OWN]
            assert row["lost"] == pytest.approx(own["R1"] - row["R1"])
            assert row["low"] <= row["lost"] <= row["high"] and row["queries"] == VIDEOS


def test_another_condition_changes_the_second_stage_alone(evaluator, model):
    orders = frame_orders(VIDEOS, FRAMES, SEED)
    own, *others = evaluator.encode_orders(model, [None, *orders.values()])
    scores = evaluator.similarity(model, own, 3, None)
    same = evaluator.similarity(model, own, 3, None, own.videos)
    np.testing.assert_array_equal(same.strict, scores.strict)
    for other in others:
        changed = evaluator.similarity(model, own, 3, None, other.videos)
        np.testing.assert_array_equal(changed.undiffused, scores.undiffused)
        np.testing.assert_array_equal(changed.strict == -np.inf, scores.strict == -np.inf)  # the same candidates
        assert (changed.strict != scores.strict).mean() > 0.2


@pytest.mark.parametrize("config", ["textdiffs"], indirect=True)
def test_a_shuffled_video_brings_the_potential_of_the_other_one(evaluator, model):
    """score(t, v) - cosine(t, v) is then that of the video whose tokens v has."""
    embeddings, order = evaluator.encode(model), other_videos(VIDEOS, SEED)
    shuffled = EncodedVideos(*(part[order] for part in embeddings.videos))
    own = evaluator.similarity(model, embeddings, 0, None)
    other = evaluator.similarity(model, embeddings, 0, None, shuffled)
    potential = own.strict - own.undiffused
    assert potential.std(axis=1).min() > 1e-3
    np.testing.assert_allclose(other.strict - other.undiffused, potential[:, order.numpy()], atol=2e-5)


@pytest.mark.parametrize("config", ["textdiffs"], indirect=True)
def test_without_cross_attention_no_condition_counts(evaluator, model):
    model.potential.student.reset_video_attention_to_no_op()
    for row in condition_use(evaluator, model, 0, SEED):
        assert (row["lost"], row["low"], row["high"]) == (0, 0, 0)


def test_frames_are_encoded_in_the_order_asked_for(evaluator, model):
    """Against the encoder on frames that are flipped by hand; frame features are only moved."""
    orders = frame_orders(VIDEOS, FRAMES, SEED)
    (plain, turned) = evaluator.encode_orders(model, [None, orders["reversed frames"]])
    torch.testing.assert_close(turned.videos.frames, plain.videos.frames.flip(1))
    assert turned.texts is plain.texts
    if model.token_shape is not None:
        frames = torch.stack([evaluator.loader.dataset[index].frames for index in range(VIDEOS)])
        with torch.no_grad():
            expected = model.encode_videos(frames.flip(1)).tokens
        torch.testing.assert_close(turned.videos.tokens.float(), expected, rtol=0.02, atol=0.02)
        assert (turned.videos.tokens - plain.videos.tokens).abs().max() > 0.1


def test_orders():
    orders = frame_orders(50, 6, seed=1)
    assert all(order.sort(1).values.tolist() == [list(range(6))] * 50 for order in orders.values())
    assert len({tuple(row) for row in orders["shuffled frames"].tolist()}) > 30  # each video in its own way
    frames = torch.randint(256, (50, 6, 3, 2, 2), dtype=torch.uint8)
    turned = reordered(frames, orders["reversed frames"])
    assert torch.equal(turned, frames.flip(1))
    assert torch.equal(reordered(turned, orders["reversed frames"]), frames)
    mixed = reordered(frames, orders["shuffled frames"])
    assert torch.equal(mixed[7, 2], frames[7, orders["shuffled frames"][7, 2]])


@pytest.mark.parametrize("videos", [2, 3, 100])
def test_no_video_keeps_its_own_condition(videos):
    other = other_videos(videos, seed=1)
    assert sorted(other.tolist()) == list(range(videos))
    assert (other != torch.arange(videos)).all()


def test_the_program_writes_a_table_and_a_file(folder, monkeypatch, capfd):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    places = [
        f"--annotations={folder / 'captions.csv'}",
        f"--videos_dir={folder}",
        f"--output_dir={folder / 'outputs'}",
    ]
    arguments = ["--dataset_name=custom", *places, *FLAGS.split(), f"--diffusion_lm={folder / 'teacher'}",
                 precision.stated(), "--rerank_topk=2"]  # fmt: skip
    output = folder / "made" / "use.json"
    code, out, err = call("scripts/condition_use.py", [*arguments, f"--output_json={output}"], monkeypatch, capfd)
    assert code == 0, err
    report = json.loads(output.read_text())
    assert (report["arch"], report["split"], report["resamples"]) == ("clip_stochastic", "test", 10_000)
    for row in report["results"]:
        (line,) = [text for text in out.splitlines() if text.startswith(f"{row['metric']} {row['condition']} ")]
        assert f"{row['R1']:.1f}" in line.split() and f"[{row['low']:.1f}, {row['high']:.1f}]" in line
    code, _, err = call("scripts/condition_use.py", [*arguments, "--arch=clip_transformer"], monkeypatch, capfd)
    assert (code, err.count("\n")) == (2, 1) and "has no diffusion" in err
