"""The figure of the README."""

from xml.etree import ElementTree

from tests.conftest import ROOT

SVG = "{http://www.w3.org/2000/svg}"


def test_the_figure_of_the_method_is_text_that_can_be_read_aloud():
    figure = ElementTree.parse(ROOT / "docs" / "method.svg").getroot()
    by_id = {element.get("id"): "".join(element.itertext()) for element in figure.iter()}
    assert all(len(by_id[name]) > 10 for name in figure.get("aria-labelledby").split())
    words = " ".join("".join(element.itertext()) for element in figure.iter(f"{SVG}text"))
    for part in ("CLIP text", "CLIP image", "X-Pool", "video encoder", "student: Diffusion-LM", "score = cosine"):
        assert part in words
