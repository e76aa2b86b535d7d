"""What README.md and the pages beside it say: commands run, or parse where they need a download; messages, files and
links exist."""

import argparse
import ast
import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from config import Config
from datasets.moving_shapes import captions_of, render, scene_of
from tests import precision
from tests.conftest import ROOT
from tests.made_up import call_program, run_program, write_video

README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "Diffusion-LM" / "README.md"]
RUN_IN_ORDER = [README, *sorted((ROOT / "docs").glob("*.md"))]
NEEDS_A_DOWNLOAD = "<!-- needs a download -->\n"
STARTERS = (r"python", r"torchrun --nproc_per_node=\d+", r"mpirun -n \d+ python", r"srun (?:--\S+ )*python")
WITH_CONFIG = ("train.py", "test.py")
# what commands are run with besides, in a test: small models, few steps
SMALL = {
    "Diffusion-LM/train.py": "--denoiser=tiny --steps=2 --text_len=8 --min_count=1 --gpu=cpu --output_dir=teacher",
    "train.py": "--clip_arch=tiny --num_frames=2 --diffusion_text_len=8 --diffusion_lm=teacher --batch_size=32 "
    "--num_epochs=1 --num_workers=0 --gpu=cpu --no_tensorboard",
    "search.py": "--num_workers=0 --gpu=cpu",
    "test.py": "--batch_size=2 --num_workers=0 --gpu=cpu",
}
OWN_PROCESSES = ("check_data.py", "cache_frames.py", "compress_video.py")  # they start workers that import them


def blocks(page: Path) -> list[tuple[list[str], bool]]:
    """Commands of each block, and whether it needs a download."""
    found = re.findall(rf"({NEEDS_A_DOWNLOAD})?```bash\n(.*?)```", page.read_text(), re.DOTALL)
    return [(lines.replace("\\\n", "").splitlines(), bool(mark)) for mark, lines in found]


def program_of(command: str) -> tuple[str, list[str]] | None:
    """The Python program that a command starts, and its arguments; None when it starts another one."""
    match = re.match(rf"(?:{'|'.join(STARTERS)}) (\S+\.py)(.*)", command)
    return match and (match[1], shlex.split(match[2], comments=True))


COMMANDS = [line for page in PAGES for lines, _ in blocks(page) for line in lines]
TABLES = re.findall(r"^\|.*`(python [^`]+)`", README.read_text(), re.MULTILINE)


class Parsed(Exception):
    """The command line was understood."""


@pytest.mark.parametrize("command", [*COMMANDS, *TABLES])
def test_commands_parse(command, monkeypatch):
    """Each command names a program that is there, and flags and values that it knows."""
    program = program_of(command)
    if program is None:
        for name in re.findall(r"scripts/\S+|\S+\.txt", command):
            assert (ROOT / name).is_file()
        return
    name, arguments = program
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    if name in WITH_CONFIG:
        assert Config.parse(arguments).notes() in ([], ["--raw_video has no effect: they always do here"])
        return
    parse = argparse.ArgumentParser.parse_args

    def stop(parser, *given):
        parse(parser, *given)
        raise Parsed

    specification = importlib.util.spec_from_file_location("program", ROOT / name)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(Parsed):
        module.main()


def test_tables_have_the_commands_that_people_know():
    assert len(TABLES) == 10
    assert sum("train.py" in command for command in TABLES) == 5


@pytest.fixture
def workplace(tmp_path):
    """A folder as the README supposes it: captions.csv and more lines, the videos they name, sentences."""
    (example,) = re.findall(r"```csv\n(.*?)```", README.read_text(), re.DOTALL)
    rows = captions_of(1, "train", 24)  # a text diffusion needs a hundred captions
    more = "".join(f"beach.mp4,{caption.text},,,train\n" for captions in rows for caption in captions)
    (tmp_path / "captions.csv").write_text(example + more)
    (tmp_path / "sentences.txt").write_text("a boat crosses the lake\ntwo dogs run\n")
    for index, name in enumerate(sorted({line.split(",")[0] for line in example.splitlines()[1:]})):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        slow = 15 if name == "kitchen/cake.mp4" else 1  # of which a part begins after 30 s
        write_video(path, np.repeat(render(scene_of(1, "train", index)), slow, axis=0))
    return tmp_path


@pytest.mark.slow
def test_commands_run(workplace, monkeypatch, capfd):
    """All commands that need no download, in their order, with small models."""
    monkeypatch.chdir(workplace)
    for page in RUN_IN_ORDER:
        for command in (line for lines, needs in blocks(page) if not needs for line in lines):
            name, arguments = program_of(command)
            arguments += [*SMALL[name].split(), precision.stated()] if name in SMALL else []
            if Path(name).name in OWN_PROCESSES:
                done = run_program(name, *arguments, cwd=workplace)
                code, err = done.returncode, done.stderr
            else:
                code, err = call_program(name, arguments, monkeypatch, capfd)
            assert code == 0, f"{page.name}: {command}\n{err}"
            assert "\r" not in err and "\x1b" not in err  # this is no terminal
    run = workplace / "outputs" / "mine" / "first"
    assert {row["gallery"] for row in json.loads((run / "results.json").read_text())["results"]} == {2}
    copies = [path.relative_to(workplace / "videos_small") for path in (workplace / "videos_small").rglob("*.mp4")]
    assert len(copies) == len(list((workplace / "videos").rglob("*.mp4"))) == 6
    assert any((workplace / "cache").rglob("*"))


def templates(path: Path) -> set[str]:
    """The texts of a program, with … where something is put in."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            found.add("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(re.sub(r"%[.\d]*[sdfg]", "…", node.value).replace("%%", "%"))
    return found


def troubles() -> list[str]:
    return re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "TROUBLESHOOTING.md").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def texts_of_the_code() -> list[str]:
    folders = (
        "config",
        "datasets",
        "Diffusion-LM",
        "evaluation",
        "model",
        "modules",
        "preprocess",
        "report",
        "trainer",
        "utils",
        "video_index",
    )
    paths = [*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    scripts = [path.read_text() for path in (ROOT / "scripts").glob("*.sh")]
    return [text for path in paths for text in templates(path)] + scripts


@pytest.mark.parametrize("message", troubles())
def test_quoted_messages_are_those_of_the_code(message, texts_of_the_code):
    assert any(message in text for text in texts_of_the_code)


def test_there_are_messages():
    assert len(troubles()) >= 10


def anchors(page: Path) -> set[str]:
    """Places of a page that a link can name, as GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    for link in (link for link in links if not link.startswith("https://")):
        name, _, place = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not place or place in anchors(target), link


def test_the_layout_names_what_is_there():
    page = (ROOT / "docs" / "CONTRIBUTING.md").read_text()
    (layout,) = re.findall(r"## Where things live\n(.*?)\n## ", page, re.DOTALL)
    named = re.findall(r"^\| `(\S+)` \|", layout, re.MULTILINE)
    assert len(named) >= 10
    assert all((ROOT / name).exists() for name in named)
