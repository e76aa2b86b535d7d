"""The twins of MovingShapes: what they differ in, what is said of them, and how models are scored on them."""

import json
from collections import Counter

import numpy as np
import pytest

from datasets.annotations import Segment, Split
from datasets.moving_shapes import captions_of, ensure_motion, generate, render, scene_of
from datasets.moving_shapes.captions import LANGUAGE, WORDS, holds
from datasets.moving_shapes.motion import BACKWARDS, KINDS, PAIRS, Twins, twins_of
from datasets.moving_shapes.scene import GROWTH, RADII
from datasets.video import frame_indices
from evaluation.motion import format_motion, motion_rows, twin_pairs
from modules.metrics import winoground
from tests.made_up import call, call_program, make_diffusion_lm

FEW = 6  # pairs of the data set that programs are run on
SCORES = ("text", "video", "group")


@pytest.fixture(scope="module")
def twins() -> list[Twins]:
    return [twins_of(24, pair) for pair in range(PAIRS)]


def of_kind(twins: list[Twins], kind: str) -> list[Twins]:
    return [pair for pair in twins if pair.kind == kind]


def test_there_are_200_pairs_of_three_kinds(twins):
    assert Counter(pair.kind for pair in twins) == {"direction": 67, "order": 67, "change": 66}
    assert len({caption.text for pair in twins for caption in pair.captions}) == 400
    ways = Counter(shown.path for pair in of_kind(twins, "direction") for shown in (pair.scenes[0].objects[0],))
    changes = Counter(pair.scenes[0].objects[0].change for pair in of_kind(twins, "change"))
    assert ways.keys() == {"left", "right", "up", "down"} and min(ways.values()) >= 8
    assert changes.keys() == {"colour", "appear", "grow"} and min(changes.values()) >= 15


def test_each_caption_is_true_of_its_own_video_alone(twins):
    for pair in twins:
        true = [[holds(caption, scene) for scene in pair.scenes] for caption in pair.captions]
        assert true == [[True, False], [False, True]], pair.captions


def test_twins_differ_in_one_fact(twins):
    for pair in twins:
        first, second = pair.scenes
        assert first.background == second.background and first.tracks.shape == second.tracks.shape
        facts = [(a.facts() ^ b.facts()) for a, b in zip(first.objects, second.objects, strict=True)]
        assert not any(facts[1:])
        if pair.kind == "order":
            assert not facts[0]
            (a, b), (c, d) = (scene.objects[:2] for scene in pair.scenes)
            assert (a.change_at, b.change_at) == (d.change_at, c.change_at) and a.change_at != b.change_at
            np.testing.assert_array_equal(first.tracks, second.tracks)
        else:
            a, b = first.objects[0], second.objects[0]
            attribute = "path" if pair.kind == "direction" else "then" if a.change == "colour" else "change"
            assert {name for name, _ in facts[0]} == {attribute}


def test_captions_of_twins_have_the_same_words_but_for_the_fact(twins):
    """Of an order or a colour the words are the same in another sequence; else one word or so is another."""
    for pair in twins:
        first, second = (caption.text.split() for caption in pair.captions)
        assert all(6 <= len(words) <= 18 for words in (first, second))
        left, right = Counter(first) - Counter(second), Counter(second) - Counter(first)
        swapped = pair.kind == "order" or pair.scenes[0].objects[0].change == "colour"
        if not swapped:
            assert first[:2] == second[:2] and max(left.total(), right.total()) <= 2
        elif "colour" in dict(pair.captions[0].mentions[0]):
            assert {*left, *right} <= {"a", "an"}, (first, second)


def test_words_of_opposite_changes_are_words_of_these_changes():
    opposites = LANGUAGE["opposites"]
    for change, wordings in opposites.items():
        assert set(wordings) <= set(WORDS["change"][change])
    assert {len(opposites[name]) for name in ("appear", "disappear")} == {2}
    assert len(opposites["grow"]) == len(opposites["shrink"])
    for first, second in BACKWARDS.items():
        assert len(WORDS["path"][first]) == len(WORDS["path"][second])


def test_single_frames_do_not_tell_directions_and_what_can_run_backwards(twins):
    """One video is the other one backwards, also in the frames that tests take."""
    backwards = [
        pair for pair in twins if pair.kind == "direction" or pair.scenes[0].objects[0].change in ("colour", "appear")
    ]
    backwards = [pair for pair in backwards if pair.kind != "order"]
    assert len(backwards) > 100
    for pair in backwards:
        first, second = (render(scene) for scene in pair.scenes)
        np.testing.assert_array_equal(first, second[::-1])
        taken = frame_indices(len(first), 12)
        np.testing.assert_array_equal(first[taken], second[taken][::-1])
        assert (first[taken] != second[taken]).any()


def test_named_directions_are_those_of_the_pixels(twins):
    ways = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}
    for pair in of_kind(twins, "direction"):
        for scene in pair.scenes:
            axis, sign = ways[scene.objects[0].path]
            assert sign * (scene.tracks[0, -1, axis] - scene.tracks[0, 0, axis]) > 0.3


def test_what_grows_stays_in_the_picture(twins):
    for pair in of_kind(twins, "change"):
        if pair.scenes[0].objects[0].change == "grow":
            assert all(scene.objects[0].size == "medium" for scene in pair.scenes)
            edge = RADII["medium"] * GROWTH
            assert all((scene.tracks[0] >= edge).all() and (scene.tracks[0] <= 1 - edge).all() for scene in pair.scenes)


def test_twins_are_a_function_of_seed_and_pair(twins):
    again, other = twins_of(24, 7), twins_of(25, 7)
    assert again.captions == twins[7].captions
    for scene, before, index in zip(again.scenes, twins[7].scenes, (14, 15), strict=True):
        np.testing.assert_array_equal(render(scene), render(before))
        np.testing.assert_array_equal(render(scene), render(scene_of(24, "motion", index)))
    assert other.captions != again.captions
    assert [caption.text for (caption,) in captions_of(24, "motion", 4)] == [
        caption.text for pair in twins[:2] for caption in pair.captions
    ]


def test_rows_by_kind():
    """Twelve pairs by hand: all directions right, of the orders none, of the changes those of the videos."""
    right, wrong, videos = [[1, 0], [0, 1]], [[0, 1], [1, 0]], [[5, 1], [6, 7]]
    kinds = [*KINDS] * 4
    scores = np.array([{"direction": right, "order": wrong, "change": videos}[kind] for kind in kinds])
    rows = {row["kind"]: row for row in motion_rows("strict", kinds, scores)}
    assert rows["direction"] == {
        "scores": "strict",
        "kind": "direction",
        "pairs": 4,
        "text": 100,
        "video": 100,
        "group": 100,
    }
    assert [rows["order"][name] for name in SCORES] == [0, 0, 0]
    assert [rows["change"][name] for name in SCORES] == [0, 100, 0]
    assert rows["all"]["pairs"] == 12
    assert [rows["all"][name] for name in SCORES] == pytest.approx([100 / 3, 200 / 3, 100 / 3])
    assert {"motion as made, all", "motion as made, order"} <= {
        line[:21].split("  ")[0] for line in format_motion(list(rows.values()), {"strict": "as made"}).splitlines()
    }


def test_pairs_without_a_video_are_left_out(tmp_path):
    names = [f"motion{index:04d}" for index in (5, 0, 1, 2, 9, 8)]
    split = Split("MovingShapes", "test-motion", tuple(Segment(name, tmp_path, ("",)) for name in names))
    kinds, twins = twin_pairs(split)
    assert kinds == ["direction", "order"] and twins.tolist() == [[1, 2], [5, 4]]
    kinds, twins = twin_pairs(Split("MovingShapes", "test-motion", split.segments[:1]))
    assert kinds == [] and twins.shape == (0, 2)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A small MovingShapes with a few twins, and a Diffusion-LM of their words."""
    folder = tmp_path_factory.mktemp("motion")
    generate(folder / "data" / "MovingShapes", 24, 2, 2, workers=1)
    ensure_motion(folder / "data" / "MovingShapes", 24, FEW, workers=1)
    make_diffusion_lm(folder / "teacher", [caption.text for (caption,) in captions_of(24, "motion", 2 * FEW)])
    return folder


@pytest.mark.parametrize(
    "more",
    [
        ["--arch=clip_transformer"],
        ["--arch=clip_wti"],
        ["--arch=clip_tmass", "--rerank_topk=1"],
        [],
        ["--rerank_topk=1"],
    ],
)
def test_every_arch_is_scored_on_twins(place, more, monkeypatch, capfd):
    """results.json holds the scores of the saved matrices; those of pairs that were not reranked are of all pairs."""

    def evaluate(*flags):
        arguments = [
            "--dataset_name=MovingShapes", "--split=motion", f"--data_dir={place / 'data'}", "--clip_arch=tiny",
            "--num_frames=3", "--diffusion_text_len=12", "--diffusion_steps=4", f"--diffusion_lm={place / 'teacher'}",
            f"--output_dir={place / 'outputs'}", "--num_workers=0", "--gpu=cpu", "--precision=fp32",
            f"--save_sims={place / 'sims.npz'}", f"--output_json={place / 'results.json'}", *flags,
        ]  # fmt: skip
        code, out, err = call("test.py", arguments, monkeypatch, capfd)
        assert code == 0, err
        assert sum(line.startswith("motion ") for line in out.splitlines()) == 2 * (1 + len(KINDS))
        with np.load(place / "sims.npz") as file:
            return json.loads((place / "results.json").read_text()), dict(file)

    report, _ = evaluate(*more)
    _, matrices = evaluate(*[flag for flag in more if "rerank" not in flag])
    assert report["split"] == "test-motion"
    found = {(row["scores"], row["kind"]): row for row in report["motion"]}
    assert found.keys() == {(name, kind) for name in ("strict", "undiffused") for kind in ("all", *KINDS)}
    for name in ("strict", "undiffused"):
        blocks = np.stack([matrices[name][i : i + 2, i : i + 2] for i in range(0, 2 * FEW, 2)])
        for kind, chosen in (("all", slice(None)), *((kind, slice(i, None, 3)) for i, kind in enumerate(KINDS))):
            row = found[name, kind]
            assert row["pairs"] == len(blocks[chosen])
            assert {score: row[score] for score in SCORES} == winoground(blocks[chosen])


def test_other_splits_have_no_such_scores(place, monkeypatch, capfd):
    arguments = ["--dataset_name=MovingShapes", f"--data_dir={place / 'data'}", "--clip_arch=tiny", "--num_frames=2",
                 "--arch=clip_baseline", f"--output_dir={place / 'outputs'}", "--num_workers=0", "--gpu=cpu",
                 f"--output_json={place / 'plain.json'}"]  # fmt: skip
    code, err = call_program("test.py", arguments, monkeypatch, capfd)
    assert code == 0, err
    assert "motion" not in json.loads((place / "plain.json").read_text())
