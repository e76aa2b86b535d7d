"""The structure of the code: imports between folders go one way, and nothing grows beyond what one can read."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

ORDER = ["utils", "config", "diffusion_lm", "datasets", "modules", "model", "evaluation", "trainer"]
LAST = ["report", "video_index", "preprocess"]  # which do not know each other
MOST_LINES, LONGEST_FUNCTION = 400, 60


def files_of(folder: str) -> list[Path]:
    return sorted((ROOT / ("Diffusion-LM/diffusion_lm" if folder == "diffusion_lm" else folder)).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)


@pytest.mark.parametrize("folder", [*ORDER, *LAST])
def test_imports_go_one_way(folder):
    below = ORDER[: ORDER.index(folder)] if folder in ORDER else ORDER
    unwanted = {*ORDER, *LAST} - {*below, folder}
    assert files_of(folder)
    for path in files_of(folder):
        assert not unwanted & set(imported(path)), path


def test_files_and_functions_can_be_read_at_once():
    """Of the product; a benchmark or a test may be longer."""
    paths = [*ROOT.glob("*.py"), *(ROOT / "Diffusion-LM").glob("*.py"), *(ROOT / "scripts").glob("*.py")]
    for path in [*paths, *(file for folder in (*ORDER, *LAST) for file in files_of(folder))]:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= MOST_LINES, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < LONGEST_FUNCTION, f"{path}: {node.name}"
