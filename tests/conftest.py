"""What the tests share: where the data folders lie, and skipping with a reason where they do not."""

import ctypes
import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Threads that wait must not spin: where the cores are shared, a small tensor operation would take many times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read by torch, here and in programs that are started

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="of the programs whose precision no test is about, which would take what is fast on this machine",
    )


def pytest_configure(config: pytest.Config) -> None:
    from tests import precision  # imports torch, which reads the variable above

    precision.chosen = config.getoption("--precision")
    # programs that a shell starts in the background ignore Ctrl-C, and so would those that tests start and interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The index first: its files take longest, and one that comes last would run while the other core waits."""
    items.sort(key=lambda item: "video_index" not in item.nodeid)


def _folder(variable: str, default: str) -> Path:
    folder = Path(os.environ.get(variable, ROOT.parent / "shared" / default))
    if not folder.is_dir():
        pytest.skip(f"no folder {variable}={folder}")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _forks_may_go_backward() -> None:
    """One backward pass before all tests, which compile and fork in any order.

    Where the first one comes after torch.compile was used, it starts threads, and forks refuse to go backward.
    """
    import torch  # reads the variable above

    torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(scope="module", autouse=True)
def _memory_is_given_back() -> Iterator[None]:
    """After each file, where the C library can: a fork of a process of 3 GB takes as long as many a test."""
    yield
    gc.collect()
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


@pytest.fixture(scope="session")
def conformance_dir() -> Path:
    """Recorded numbers of the method (variable CONFORMANCE_DIR)."""
    return _folder("CONFORMANCE_DIR", "conformance")


@pytest.fixture(scope="session")
def annotations_dir() -> Path:
    """Annotation files of the five data sets as they are distributed (variable ANNOTATIONS_DIR)."""
    return _folder("ANNOTATIONS_DIR", "annotations")


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> Path:
    """A small untrained Diffusion-LM folder with the words of CAPTIONS. Nobody writes to it."""
    from tests.made_up import CAPTIONS, make_diffusion_lm  # imports torch, which reads the variable above

    folder = tmp_path_factory.mktemp("teacher")
    make_diffusion_lm(folder, CAPTIONS)
    return folder


@pytest.fixture
def parse(teacher, tmp_path):
    """Reads a command line, of the tiny CLIP and the small teacher; the run is <tmp_path>/outputs/name/run."""
    from config import Config  # imports torch, which reads the variable above

    def parse(line="", small=True):
        sizes = "--clip_arch=tiny --num_frames=3 --diffusion_steps=4 --diffusion_text_len=9" if small else ""
        places = f"--output_dir={tmp_path / 'outputs'} --exp_name=name --diffusion_lm={teacher}"
        return Config.parse(f"{sizes} {places} {line}".split())

    return parse
