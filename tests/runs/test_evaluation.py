"""test.py at scale: several processes, embeddings encoded once, reranking; on a made-up MSR-VTT folder."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from config import Config
from datasets.annotations import Segment, Split, load_annotations, load_captions
from evaluation import results
from evaluation.results import SharedCaptions, format_table
from model.factory import create_model
from modules.metrics import text_to_video
from tests.made_up import TEST_VIDEOS, call, call_program, make_diffusion_lm, make_msrvtt, needs_compiler
from tests.precision import TOLERANCE
from tests.training_runs import Run
from trainer.checkpoints import save_checkpoint
from utils.device import choose_precision, set_up

MATRICES = ("strict", "published", "undiffused", "mean_pooled")


class Place:
    """The made-up data, checkpoints, and how test.py is called on them."""

    def __init__(self, root):
        self.root = root
        make_msrvtt(root)
        make_diffusion_lm(root / "teacher", load_captions("MSRVTT", root / "data" / "MSRVTT"))
        self.save("textdiffs")
        self.save("other_encoder")
        self.save("published", "--recipe=published")

    def save(self, run, *more):
        """A checkpoint of weights that follow from the seed, with a student to which videos matter."""
        torch.manual_seed(1)
        config = Config.parse([*self.model(), *more])
        model = create_model(config)
        with torch.no_grad():
            if config.recipe == "textdiffs":
                for attention in model.potential.student.video_attention:
                    attention.out.weight.normal_()
                model.potential.student.output_down_proj[2].weight.mul_(10)
            if run == "other_encoder":
                model.potential.video_encoder.patch_position.weight[3, 5] += 0.1
        path = self.root / "outputs" / config.exp_name / run / "model_best.pth"
        path.parent.mkdir(parents=True)
        save_checkpoint(path, model, config, epoch=1, step=1)

    def model(self):
        """Arguments that shape the model."""
        return ["--clip_arch=tiny", "--num_frames=3", "--diffusion_text_len=12", "--diffusion_steps=4",
                f"--diffusion_lm={self.root / 'teacher'}"]  # fmt: skip

    def arguments(self, name, *more, run="textdiffs"):
        """Arguments that keep the score matrices in <name>.npz and the results in <name>.json.

        :param run: of a checkpoint; None: an untrained model, whose weights follow from the seed.
        """
        model = self.model() if run is None else [f"--datetime={run}", "--load_epoch=0"]
        return [
            "--dataset_name=MSRVTT", f"--data_dir={self.root / 'data'}", f"--videos_dir={self.root / 'videos'}",
            *model, "--batch_size=2", f"--output_dir={self.root / 'outputs'}", "--num_workers=0",
            "--gpu=cpu", "--precision=fp32", "--batch_size_split=5", f"--save_sims={self.root / name}.npz",
            f"--output_json={self.root / name}.json", *more,
        ]  # fmt: skip

    def matrices(self, name):
        with np.load(self.root / f"{name}.npz") as file:
            return dict(file)

    def results(self, name):
        return json.loads((self.root / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture
def evaluate(place, monkeypatch, capfd):
    """Runs test.py in this process: matrices and results."""

    def run(name, *more, run="textdiffs"):
        code, err = call_program("test.py", place.arguments(name, *more, run=run), monkeypatch, capfd)
        assert code == 0, err
        return place.matrices(name), place.results(name)

    return run


def equal(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "more"), [(2, ["--rerank_topk=2", "--save_memory_mode"]), (3, [])])
def test_processes_give_the_same_bits(place, evaluate, size, more, tmp_path):
    """Videos, captions and pairs are shared; four of the processes' parts are empty or small."""
    alone, results = evaluate("alone", *more)
    run = Run(place.arguments("together", *more), tmp_path / "logs", size, program="test.py")
    assert run.wait() == [0] * size, run.errors()
    assert run.output().count("t2v strict") == 1  # one process speaks
    assert equal(place.matrices("together"), alone)
    assert place.results("together")["results"] == results["results"]
    assert abs(alone["strict"] - alone["undiffused"])[alone["strict"] > -np.inf].mean() > 1e-3  # tokens matter


def test_saved_scores_are_those_of_the_results(evaluate):
    """R@1 of both directions, counted from the saved matrices."""
    matrices, report = evaluate("sims")
    assert list(matrices["video_of_text"]) == list(range(TEST_VIDEOS))
    for row in report["results"]:
        if not row["dsl"]:
            scores = matrices[row["protocol"]] if row["metric"] == "t2v" else matrices[row["protocol"]].T
            first = [np.flatnonzero(line >= line[i]).tolist() == [i] for i, line in enumerate(scores)]
            assert row["R1"] == pytest.approx(100 * np.mean(first))
    assert report["pairs_diffused"] == TEST_VIDEOS**2


def test_few_pairs_at_once_and_matrices_on_disk(place, evaluate):
    plain, _ = evaluate("plain")
    on_disk, _ = evaluate("memory", "--save_memory_mode")
    assert equal(plain, on_disk)
    assert not [path for path in (place.root / "outputs").iterdir() if path.name.startswith(".scores-")]


def test_reranking(evaluate):
    every, all_report = evaluate("every")
    some, report = evaluate("some", "--rerank_topk=2")
    assert report["rerank_topk"] == 2 and report["pairs_diffused"] == (some["strict"] > -np.inf).sum() < TEST_VIDEOS**2
    candidates = some["undiffused"] >= some["text_floor"][:, None]
    assert (candidates.sum(1) == 2).all()
    np.testing.assert_allclose(some["strict"][candidates], every["strict"][candidates], atol=2e-5)
    whole, whole_report = evaluate("whole", f"--rerank_topk={TEST_VIDEOS}")
    assert equal(whole, every) and whole_report["results"] == all_report["results"]


@pytest.mark.parametrize(("has_it", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_is_what_the_cpu_is_fast_at(monkeypatch, has_it, dtype):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_it)
    assert choose_precision("auto", torch.device("cpu")) == dtype


def test_float32_is_not_tf32():
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    set_up(torch.device("cpu"), 0)
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("recipe", ["textdiffs", "published"])
def test_half_precision(evaluate, precision, recipe):
    """Of the published diffusion one step: words that lie close may change places in each."""
    run, more = ("textdiffs", []) if recipe == "textdiffs" else (None, ["--recipe=published", "--diffusion_steps=1"])
    full, _ = evaluate("full", *more, run=run)
    half, _ = evaluate(precision, *more, f"--precision={precision}", run=run)
    for name in MATRICES:
        np.testing.assert_allclose(half[name], full[name], atol=TOLERANCE[precision])
    assert not np.array_equal(half["strict"], full["strict"])


@pytest.mark.parametrize("run", ["textdiffs", "published"])
def test_embeddings_are_encoded_once(place, evaluate, monkeypatch, run):
    """From the file of --save_embeddings come the same bits, without a video; and its tensors are what they say."""
    file = place.root / "embeddings" / f"{run}.safetensors"
    encoded, report = evaluate("encoded", f"--save_embeddings={file}", run=run)
    monkeypatch.setattr("cv2.VideoCapture", None)  # no video can be opened
    loaded, loaded_report = evaluate("loaded", f"--load_embeddings={file}", "--videos_dir=/nonexistent", run=run)
    assert equal(loaded, encoded) and loaded_report["results"] == report["results"]
    tensors = load_file(file)
    assert tensors["text_features"].shape == (TEST_VIDEOS, 128)
    assert tensors["frame_features"].shape == (TEST_VIDEOS, 3, 128)
    unit = torch.nn.functional.normalize(tensors["frame_features"], dim=-1)
    torch.testing.assert_close(tensors["video_features"], unit.mean(1))
    texts, videos = (torch.nn.functional.normalize(tensors[f"{n}_features"], dim=1) for n in ("text", "video"))
    np.testing.assert_allclose(texts @ videos.T, encoded["mean_pooled"], atol=1e-5)
    if run == "textdiffs":
        assert tensors["video_tokens"].shape == (TEST_VIDEOS, 3 * 16, 128)
        assert tensors["video_tokens"].dtype == torch.bfloat16
    else:
        assert "video_tokens" not in tensors
        other, report = evaluate("other", f"--load_embeddings={file}", "--sampler=ddim", "--sampling_steps=2", run=run)
        assert np.array_equal(other["undiffused"], encoded["undiffused"])
        assert (report["sampler"], report["sampling_steps"]) == ("ddim", 2)


def test_embeddings_of_another_encoder_of_the_videos_are_refused(place, evaluate, monkeypatch, capfd):
    """Though CLIP is the same; without that encoder as well."""
    file = place.root / "tokens.safetensors"
    evaluate("tokens", f"--save_embeddings={file}")
    for run in ("other_encoder", "published"):
        arguments = place.arguments("bad", f"--load_embeddings={file}", run=run)
        code, err = call_program("test.py", arguments, monkeypatch, capfd)
        assert (code, err.count("\n")) == (2, 1) and "it differs in weights of the encoders" in err


def test_embeddings_of_something_else_are_refused(place, evaluate, monkeypatch, capfd):
    file = place.root / "embeddings.safetensors"
    evaluate("good", f"--save_embeddings={file}", run=None)
    nan, text = place.root / "nan.safetensors", place.root / "text.safetensors"
    text.write_text("no tensors")
    save_file({"x": torch.ones(1)}, place.root / "foreign.safetensors")
    tensors = load_file(file)
    tensors["frame_features"][4] = float("nan")
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        save_file(tensors, nan, opened.metadata())
        marks = json.loads(opened.metadata()["fingerprint"])
        del marks["--precision"]  # as older versions wrote it
        unsaid = place.root / "unsaid.safetensors"
        save_file(load_file(file), unsaid, opened.metadata() | {"fingerprint": json.dumps(marks)})
    captions = place.root / "data" / "MSRVTT" / "MSRVTT_JSFUSION_test.csv"
    cases = [
        (file, ["--seed=3"], 2, "differs in weights of the encoders"),
        (file, ["--num_frames=4"], 2, "--num_frames (3 in the file, 4 here)"),
        (file, ["--input_res=96"], 2, "--input_res (64 in the file, 96 here)"),
        (file, ["--precision=bf16"], 2, "--precision (fp32 in the file, bf16 here)"),
        (unsaid, [], 2, "--precision (not said in the file, fp32 here)"),
        (text, [], 2, "text.safetensors cannot be read"),
        (place.root / "foreign.safetensors", [], 2, "no file of --save_embeddings"),
        (place.root / "missing.safetensors", [], 2, "missing.safetensors cannot be read"),
        (nan, [], 1, "frame features hold NaN or infinite values: 1 of 6, the first is video 4 (video9004)"),
    ]
    for path, more, expected, said in cases:
        arguments = place.arguments("bad", f"--load_embeddings={path}", *more, run=None)
        code, err = call_program("test.py", arguments, monkeypatch, capfd)
        assert (code, err.count("\n")) == (expected, 1) and said in err, err
    original = captions.read_text()
    captions.write_text(original.replace("circle", "square").replace("square", "round thing"))
    try:
        arguments = place.arguments("bad", f"--load_embeddings={file}", run=None)
        code, err = call_program("test.py", arguments, monkeypatch, capfd)
    finally:
        captions.write_text(original)
    assert code == 2 and "differs in captions and videos" in err, err
    assert not (place.root / "bad.json").exists()


def captioned(*captions):
    """A split of segments with these captions."""
    return Split("custom", "test", tuple(Segment(str(i), Path(str(i)), texts) for i, texts in enumerate(captions)))


def test_captions_of_several_videos_are_counted():
    """Their bound is what a search reaches that errs in nothing else, and finds the video that has it most often."""
    split = captioned(
        ("a dog", "A  dog", "a cat"), ("a dog", "somebody runs"), ("a cat", "a dog"), ("a bird", "a bird")
    )
    found = SharedCaptions.of(split)
    texts, owner = [" ".join(text.lower().split()) for text in split.captions], split.segment_of_caption
    scores = np.array(
        [
            [[t for t, o in zip(texts, owner, strict=True) if o == v].count(text) - 0.1 * v for v in range(4)]
            for text in texts
        ]
    )
    assert (found.captions, found.texts) == (2, 6)
    assert found.best_t2v_R1 == pytest.approx(text_to_video(scores.astype(np.float32), owner)["R1"], abs=0.01)
    assert found.best_t2v_R1 == pytest.approx(100 * (9 - 3) / 9, abs=0.01)
    assert SharedCaptions.of(captioned(("a dog", "a dog"), ("a cat",))) == SharedCaptions(0, 0, 100.0)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [("MSRVTT", (4, 9, 99.5)), ("LSMDC", (5, 10, 99.5)), ("DiDeMo", (0, 0, 100.0)), ("MSVD", (961, 4372, 91.41))],
)
def test_captions_of_several_videos_in_the_real_test_splits(annotations_dir, dataset, expected):
    """Those that docs/PROTOCOL.md tells."""
    assert SharedCaptions.of(load_annotations(dataset, "test", annotations_dir / dataset)) == SharedCaptions(*expected)


def test_captions_of_several_videos_are_told(place, evaluate, monkeypatch):
    file = place.root / "data" / "MSRVTT" / "MSRVTT_JSFUSION_test.csv"
    original = file.read_text()
    rows = original.splitlines()
    (_, caption), (other, _) = rows[1].rsplit(",", 1), rows[2].rsplit(",", 1)
    tables = []
    monkeypatch.setattr(results, "format_table", lambda *args: tables.append(format_table(*args)) or tables[-1])
    try:
        file.write_text("\n".join([*rows[:2], f"{other},{caption.upper()}", *rows[3:]]) + "\n")
        _, report = evaluate("shared")
    finally:
        file.write_text(original)
    assert report["shared_captions"] == {"captions": 1, "texts": 2, "best_t2v_R1": 83.33}
    assert "captions that several videos have: 1 (2 of the texts)" in tables[0]


def test_flags_of_one_recipe_are_noted_by_that_of_the_checkpoint(place, tmp_path, monkeypatch, capfd):
    """Which --recipe need not repeat."""
    flags = ["--sampler=ddim", "--sampling_steps=2", f"--output_json={tmp_path / 'results.json'}"]
    for run, notes in (("textdiffs", 2), ("published", 0)):
        code, out, err = call("test.py", place.arguments("noted", *flags, run=run), monkeypatch, capfd)
        assert code == 0, err
        assert out.count("has no effect without --recipe=published") == notes


@pytest.mark.parametrize("flag", ["--save_embeddings", "--save_sims"])
def test_files_that_cannot_be_written(place, monkeypatch, capfd, flag):
    (place.root / "in-the-way").write_text("a file")
    target = place.root / "in-the-way" / "file"
    code, err = call_program("test.py", place.arguments("unwritten", f"{flag}={target}"), monkeypatch, capfd)
    assert code == 2 and err.count("\n") == 1 and str(target) in err


@needs_compiler
@pytest.mark.slow
def test_compiled_network_gives_the_same_scores(evaluate, monkeypatch):
    """All but the making of machine code, which test_training_step has too."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    more = ["--batch_size_split=36"]
    plain, _ = evaluate("eager", *more)
    compiled, _ = evaluate("compiled", *more, "--compile")
    np.testing.assert_allclose(compiled["strict"], plain["strict"], atol=1e-5)
