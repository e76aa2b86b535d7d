"""The pictures of the README."""

from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from datasets.annotations import load_split
from datasets.moving_shapes import generate
from scripts import draw_result
from tests.conftest import ROOT
from tests.made_up import call_program

SVG = "{http://www.w3.org/2000/svg}"


def test_the_figure_of_the_method_is_text_that_can_be_read_aloud():
    figure = ElementTree.parse(ROOT / "docs" / "method.svg").getroot()
    by_id = {element.get("id"): "".join(element.itertext()) for element in figure.iter()}
    assert all(len(by_id[name]) > 10 for name in figure.get("aria-labelledby").split())
    words = " ".join("".join(element.itertext()) for element in figure.iter(f"{SVG}text"))
    for part in ("CLIP text", "CLIP image", "X-Pool", "video encoder", "student: Diffusion-LM", "score = cosine"):
        assert part in words


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    generate(data / "MovingShapes", train_videos=1, test_videos=4, workers=1)
    return data


def test_a_picture_of_results(shapes, tmp_path, monkeypatch, capfd):
    split = load_split("MovingShapes", "test", shapes / "MovingShapes", None)
    scores = np.array([[0.9, 0.1, 0.5, 0.2], [0.3, 0.6, 0.2, 0.8], [0.1, 0.3, 0.2, 0.4], [0.4, 0.3, 0.2, 0.1]])
    figure = draw_result.draw(split, scores, texts=3, hits=2)
    labels = [axes.xaxis.label for axes in figure.axes]
    assert [label.get_text().split() for label in labels] == [
        ["test0000", "0.90"], ["test0002", "0.50"], ["test0003", "0.80"], ["test0001", "0.60"], ["test0003", "0.40"],
        ["test0001", "0.30"],
    ]  # fmt: skip
    assert [label.get_color() == draw_result.RIGHT for label in labels] == [True, False, False, True, False, False]
    words = " ".join(" ".join(text.get_text().split()) for text in figure.texts)
    assert all(caption in words for caption in split.captions[:3])

    np.savez(tmp_path / "sims.npz", strict=scores)
    arguments = [f"--sims={tmp_path / 'sims.npz'}", f"--data_dir={shapes}", f"--output={tmp_path / 'result.png'}"]
    assert call_program("scripts/draw_result.py", arguments, monkeypatch, capfd) == (0, "")
    assert cv2.imread(str(tmp_path / "result.png")).shape[1] > 1000


def test_scores_of_another_set_are_refused(shapes, tmp_path, monkeypatch, capfd):
    np.savez(tmp_path / "sims.npz", strict=np.zeros((3, 3)))
    arguments = [f"--sims={tmp_path / 'sims.npz'}", f"--data_dir={shapes}", f"--output={tmp_path / 'result.png'}"]
    code, err = call_program("scripts/draw_result.py", arguments, monkeypatch, capfd)
    assert code == 2 and "(3, 3)" in err
