"""Videos, models, and search.py in this process."""

import io
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from config import Config
from tests.made_up import CAPTIONS, call, write_video
from tests.precision import stated
from tests.small_models import settled, small_textdiffs
from tests.video_index.made_up import FRAMES, SENTENCES, VIDEOS, checkpoint, draw
from trainer.checkpoints import save_checkpoint


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """Videos that no test changes."""
    folder = tmp_path_factory.mktemp("drawn")
    for number in range(VIDEOS):
        draw(folder / f"clip{number}.mp4", number)
    return folder


@pytest.fixture
def videos(drawn, tmp_path):
    """A folder of videos of one's own, one of them in a subfolder."""
    shutil.copytree(drawn, tmp_path / "videos")
    (tmp_path / "videos" / "deeper").mkdir()
    (tmp_path / "videos" / "clip0.mp4").rename(tmp_path / "videos" / "deeper" / "clip0.mp4")
    return tmp_path / "videos"


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Two runs of TextDiffs, `one` and `two`, that differ in their weights alone; and the model of `one`."""
    folder = tmp_path_factory.mktemp("outputs")
    sizes = ["--clip_arch=tiny", f"--num_frames={FRAMES}", "--diffusion_steps=3", "--diffusion_text_len=8"]
    config = Config.parse(sizes)
    models = []
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        models.append(settled(small_textdiffs(CAPTIONS + SENTENCES, num_frames=FRAMES), config))
        (folder / "exp" / name).mkdir(parents=True)
        save_checkpoint(folder / "exp" / name / "model_best.pth", models[-1], config, 1, 1)
    return SimpleNamespace(folder=folder, one=models[0])


@pytest.fixture
def search(capfd, monkeypatch):
    """The program in this process: exit code, standard output, standard error."""

    def run(*arguments, stdin=""):
        if arguments[:1] in (("index",), ("query",)):
            arguments = (arguments[0], "--gpu=cpu", stated(), *arguments[1:])  # the same on every machine
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code, out, err = call("search.py", list(map(str, arguments)), monkeypatch, capfd)
        return SimpleNamespace(code=code, out=out, err=err)

    return run


@pytest.fixture
def made(search, runs, tmp_path):
    """Index a folder with the model of `one`; returns the function, which gives what was printed."""

    def index(folder, *flags, code=0):
        done = search("index", f"--videos_dir={folder}", f"--index={tmp_path / 'index'}", *checkpoint(runs), *flags)
        assert done.code == code, done.err
        return done.out

    return index


@pytest.fixture(scope="session")
def three_colours(tmp_path_factory):
    """Six seconds: two of red noise, two of green, two of blue; and two seconds of green alone."""
    folder = tmp_path_factory.mktemp("colours")
    generator = np.random.default_rng(0)
    parts = generator.integers(0, 60, (3, 24, 64, 64, 3), dtype=np.uint8)
    for channel in range(3):
        parts[channel, ..., channel] += 190
    write_video(folder / "long.mp4", parts.reshape(72, 64, 64, 3))
    write_video(folder / "green.mp4", parts[1])
    return folder
