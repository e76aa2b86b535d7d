"""What people see of the programs besides results: --help, exit codes, progress."""

import io
import logging
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time

import pytest

from config import Config
from config.flags import flags_of
from tests.conftest import ROOT
from utils import progress as progress_module
from utils.errors import InputError, RunError
from utils.program import run_program
from utils.progress import progress

FOLDERS = (".", "Diffusion-LM", "preprocess", "scripts", "benchmarks")
PROGRAMS = [
    str(path.relative_to(ROOT))
    for folder in FOLDERS
    for path in sorted((ROOT / folder).glob("*.py"))
    if '\nif __name__ == "__main__":\n' in path.read_text(encoding="utf-8")
]
CONFIG_PROGRAMS = [
    "train.py", "test.py", "preprocess/check_data.py", "preprocess/cache_frames.py", "scripts/condition_use.py",
]  # fmt: skip
WITHOUT_FLAGS = ["search.py", "scripts/make_tiny_clip.py"]  # commands, or arguments alone
NEEDED = {
    "search.py": "index", "preprocess/compress_video.py": "--input_root=a --output_root=b",
    "Diffusion-LM/sample.py": "a",
    "Diffusion-LM/train.py": "--captions=a", 
    "scripts/compare.py": "--method=a:",
    "scripts/make_tiny_clip.py": "a", "scripts/pretrain_clip.py": "--output=a",
    "scripts/make_small_encoder.py": "--captions=a --images=b --output=c",
}  # fmt: skip
SHELL_SCRIPTS = [".ci/run", *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("scripts/*.sh")))]


def files() -> dict[str, tuple[int, int]]:
    """Every file of the repository but what programs write for themselves, with its size and when it was written."""
    kept = (path for path in ROOT.iterdir() if path.name not in ("outputs", "data") and path.name[0] != ".")
    paths = (found for path in kept for found in ([path] if path.is_file() else path.rglob("*")))
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in paths
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture
def program(monkeypatch, capfd, tmp_path):
    """Runs a program as `python PROGRAM ARGUMENTS` does, in this process and in an empty folder: exit code, standard
    output, standard error. It must leave every file as it is, and make none."""

    def run(name: str, *arguments: str) -> tuple[int, str, str]:
        before = files()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.setattr(os, "_exit", sys.exit)  # how search.py leaves, which would end the tests as well
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        assert files() == before and not any(tmp_path.iterdir())
        return ended.value.code, *capfd.readouterr()

    return run


def python_of(folder, name: str, exit_code: int, version: str) -> None:
    """An interpreter of some version, as far as setup.sh asks it, which makes no virtual environment."""
    (folder / name).write_text(
        f"#!/bin/sh\n[ $1 = --version ] && echo Python {version} && exit\n[ $1 = -c ] && exit {exit_code}\nexit 1\n"
    )
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("newer", "said"),
    [(None, r"setup.sh: error: no Python 3\.11 or newer on the PATH \(python3 is Python 3\.10\.12\): install one"),
     ("3.11", r"making .venv with Python 3\.11\.4"), ("3.12", r"making .venv with Python 3\.12\.4"),
     ("3.13", r"making .venv with Python 3\.13\.4")],
)  # fmt: skip
def test_an_old_python3_is_passed_over(newer, said, tmp_path):
    """As on Ubuntu 22.04, with nothing else or with a newer Python beside it."""
    programs, copy = tmp_path / "bin", tmp_path / "copy"
    (copy / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "setup.sh", copy / "scripts")
    (copy / "requirements.txt").touch()
    programs.mkdir()
    for tool in ("dirname", "basename", "awk", "rm"):
        (programs / tool).symlink_to(shutil.which(tool))
    (programs / "df").write_text("#!/bin/sh\necho\necho / 0 0 99999999\n")  # kB free
    (programs / "df").chmod(0o755)
    python_of(programs, "python3", 1, "3.10.12")
    if newer:
        python_of(programs, f"python{newer}", 0, f"{newer}.4")
    command = ["/bin/bash", str(copy / "scripts" / "setup.sh"), "requirements.txt"]
    done = subprocess.run(command, env={"PATH": str(programs)}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert re.search(f"^{said}$", done.stdout + done.stderr, re.MULTILINE), done.stdout + done.stderr


@pytest.fixture
def help_of(monkeypatch, program):
    """The help of a program on a terminal of some width."""

    def ask(name: str, width: int) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        code, out, err = program(name, "--help")
        assert (code, err) == (0, "")
        return out

    return ask


def test_all_programs_are_known():
    assert {"train.py", "search.py", "scripts/make_tiny_clip.py", "benchmarks/bench_train.py"} < set(PROGRAMS)
    assert {"scripts/demo.sh", "scripts/setup.sh"} < set(SHELL_SCRIPTS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_unknown_flags_are_refused_in_one_line(program, name):
    code, out, err = program(name, *NEEDED.get(name, "").split(), "--no_such_flag=1")
    assert (code, out) == (2, "")
    assert "error: " in err and "--no_such_flag" in err and err.count("\n") == 1


@pytest.mark.parametrize("name", SHELL_SCRIPTS)
def test_shell_scripts_tell_what_they_do(name, tmp_path):
    """On a machine that has nothing, and without beginning to do it."""
    before = files()
    command = ["/bin/bash", str(ROOT / name), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    comment = (ROOT / name.replace(".ci/run", "scripts/test.sh")).read_text().split("\n# ")[1]
    assert done.stdout.startswith(comment.splitlines()[0])
    assert files() == before


@pytest.mark.parametrize("name", ["scripts/demo.sh", "scripts/setup.sh"])
def test_shell_scripts_refuse_what_they_do_not_know(name):
    done = subprocess.run(["/bin/bash", str(ROOT / name), "--no_such_flag"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"\w+\.sh: error: .*--no_such_flag.*\n", done.stderr)


def entries(text: str) -> dict[str, str]:
    """What the help says of each flag or argument, in one line."""
    found = re.split(r"\n  (?=--|[A-Z]+ )", text)[1:]
    return {entry.split()[0]: " ".join(re.split(r"\n(?:\n|\S)", entry)[0].split()) for entry in found}


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_flag_tells_its_default(help_of, name):
    flags = {flag: said for flag, said in entries(help_of(name, 80)).items() if flag.startswith("--")}
    few = 1 if name == "scripts/interpolate.py" else 2
    assert len(flags) >= (45 if name in CONFIG_PROGRAMS else 0 if name in WITHOUT_FLAGS else few)
    untold = {name for name, said in flags.items() if not re.search(r"\(default: .+\)$|\(required\)$", said)}
    assert not untold
    assert not [
        said for said in flags.values() if said.count("(default: ") > 1 or "None" in said or "==SUPPRESS" in said
    ]


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("width", [60, 100])
def test_help_fits_the_terminal(help_of, name, width):
    text = help_of(name, width)
    assert max(map(len, text.splitlines())) <= width
    assert len(text.split("\n\n")[1]) > 30  # what the program does
    assert " ".join(text.split()).rpartition("Exit codes: 0 ")[2].count(";") == 3


@pytest.mark.parametrize("name", CONFIG_PROGRAMS)
def test_groups_are_explained(help_of, name):
    text = help_of(name, 100)
    program = "test" if name in ("test.py", "scripts/condition_use.py") else "train"
    used = {declared.group for _, declared in flags_of(Config).values() if declared.shown_by(program)}
    assert len(used) >= 7
    groups = [base.__dict__["flag_group"] for base in Config.__mro__ if "flag_group" in base.__dict__]
    for title, said in ((title, said) for title, said in groups if title in used):
        (block,) = re.findall(rf"^{re.escape(title)}:\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
        assert " ".join(block.split()) == said
        assert f"\n{title}:\n" in text
    assert text.startswith(f"usage: python {name} [")


@pytest.mark.parametrize(
    ("flag", "unit"),
    [("frame_cache_gb", "GB"), ("input_res", "pixels"), ("num_epochs", "EPOCHS"),
     ("save_steps", "STEPS"), ("warmup_proportion", "between 0 and 1"), ("batch_size", "pairs"),
     ("stochasic_trials", "SAMPLES"), ("diffusion_text_len", "TOKENS")],
)  # fmt: skip
def test_units(help_of, flag, unit):
    assert unit in entries(help_of("train.py", 80))[f"--{flag}"]


def test_choices_are_listed(help_of):
    said = entries(help_of("train.py", 80))
    for flag, choices in (
        ("dataset_name", ("MSRVTT", "custom")), ("clip_arch", ("ViT-B/16", "tiny")), ("sampler", ("ddpm", "ddim")),
        ("pooling_type", ("avg", "topk", "attention")), ("arch", ("clip_textdiffs", "clip_baseline")),
    ):  # fmt: skip
        assert all(choice in said[f"--{flag}"] for choice in choices)


def test_no_colours():
    """NO_COLOR wins over what would ask for colours."""
    environment = os.environ | {"NO_COLOR": "1", "FORCE_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "train.py", "--help"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "\x1b" not in done.stdout + done.stderr


def raising(error: BaseException):
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("--flag is wrong"), 2, "program.py: error: --flag is wrong\n"),
        (RunError("the loss is nan"), 1, "program.py: error: the loss is nan\n"),
        (KeyboardInterrupt(), 130, "program.py: error: interrupted\n"),
        (SystemExit(0), 0, ""),
    ],
)
def test_exit_codes(error, code, said, capfd):
    assert run_program("program.py", raising(error)) == code
    assert capfd.readouterr().err == said


def test_a_broken_pipe_to_a_worker_is_no_closed_output():
    with pytest.raises(BrokenPipeError):
        run_program("program.py", raising(BrokenPipeError()))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_letters_that_the_output_does_not_have(encoding):
    """Answers and lines of the log keep what can be written; a name that is no text is written too."""
    code = (
        "import logging, sys\nfrom utils.program import run_program\n"
        "def main():\n    sys.stdout.write('caf\\u00e9 \\u65e5\\n')\n    logging.info('log \\u65e5 \\udce9')\n"
        "sys.exit(run_program('program.py', main))\n"
    )
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True)
    expected = "caf\u00e9 \u65e5\nlog \u65e5 \udce9\n".encode(encoding, "backslashreplace")
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, b"")


def test_a_closed_pipe_ends_a_long_answer():
    """More than a buffer holds, so that writing fails before the end."""
    code = (
        "import sys; from utils.program import run_program\n"
        "def main():\n    for i in range(99999): sys.stdout.write('a line of an answer\\n')\n"
        "sys.exit(run_program('program.py', main))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 128 + signal.SIGPIPE


def test_a_closed_pipe_ends_a_program_quietly(teacher):
    """As in `sample.py | head -1`."""
    command = [sys.executable, "Diffusion-LM/sample.py", str(teacher), "--num=1", "--gpu=cpu", "--sampling_steps=1"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 128 + signal.SIGPIPE


def count(items: int, seconds: float) -> None:
    for _ in progress(range(items), "counting", items, "things"):
        time.sleep(seconds)


@pytest.fixture
def soon(monkeypatch, caplog):
    """Lines come a thousand times as often."""
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.06)
    caplog.set_level(logging.INFO)
    return caplog


def test_lines_where_there_is_no_terminal(soon, capfd):
    count(20, 0.01)
    lines = [record.getMessage() for record in soon.records]
    assert 1 <= len(lines) <= 4
    assert all(re.fullmatch(r"counting: \d+ of 20 things, \d+ %, 00:00 so far, 00:00 left", line) for line in lines)
    with progress(None, "counting", 20, "things", done=10) as bar:
        time.sleep(0.07)
        bar.update(5)
    assert "counting: 15 of 20 things, 75 %" in soon.records[-1].getMessage()
    assert capfd.readouterr().err == ""


def test_short_loops_say_nothing(soon, capfd):
    count(20, 0)
    assert not soon.records and capfd.readouterr().err == ""


def test_a_bar_on_a_terminal(soon, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    count(20, 0.01)
    assert "counting:" in terminal.getvalue() and "\r" in terminal.getvalue()
    assert not soon.records


def test_processes_that_do_not_report(soon, capfd, monkeypatch):
    for terminal in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        assert list(progress(range(3), "counting", 3, "things", shown=False)) == [0, 1, 2]
    assert not soon.records and capfd.readouterr().err == ""


def test_programs_without_a_model_do_not_wait_for_torch():
    """Each worker process of those that prepare data would, and those that draw MovingShapes; and an index with nothing
    to encode."""
    modules = (
        "preprocess.check_data, preprocess.cache_frames, preprocess.compress_video, datasets.moving_shapes, search, "
        "video_index.indexing, video_index.maintenance"
    )
    code = f"import sys, {modules}; sys.exit(sorted({{'torch', 'transformers'}} & set(sys.modules)) or None)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
