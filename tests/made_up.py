"""A small made-up MSR-VTT folder and a small untrained Diffusion-LM, for tests that run the real programs."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch

from datasets.moving_shapes import captions_of, render, scene_of
from diffusion_lm import weights
from diffusion_lm.denoiser import Denoiser, DenoiserConfig
from diffusion_lm.vocabulary import Vocabulary
from model.model_config import PARTS

ROOT = Path(__file__).resolve().parent.parent
SMALL = DenoiserConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
TRAIN_VIDEOS, TEST_VIDEOS, SEED = 12, 6, 5
CAPTIONS = ["a man plays a guitar", "two dogs run on the beach", "somebody cuts an onion", "a cat"]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


def write_video(path: Path, frames) -> None:
    """Encode RGB uint8 frames (F, H, W, 3)."""
    height, width = frames.shape[1:3]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 12, (width, height))
    assert writer.isOpened()
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()


def make_msrvtt(folder: Path) -> None:
    """<folder>/data/MSRVTT with the annotation files as distributed, <folder>/videos with the video files."""
    annotations, videos = folder / "data" / "MSRVTT", folder / "videos"
    annotations.mkdir(parents=True)
    videos.mkdir()
    sentences, test_rows = [], ["key,vid_key,video_id,sentence"]
    for index, captions in enumerate(captions_of(SEED, "train", TRAIN_VIDEOS)):
        write_video(videos / f"video{index}.mp4", render(scene_of(SEED, "train", index)))
        sentences += [
            {"caption": caption.text, "video_id": f"video{index}", "sen_id": len(sentences) + i}
            for i, caption in enumerate(captions[:2])
        ]
    for index, (caption,) in enumerate(captions_of(SEED, "test", TEST_VIDEOS)):
        name = f"video{9000 + index}"
        write_video(videos / f"{name}.mp4", render(scene_of(SEED, "test", index)))
        test_rows.append(f"ret{index},msr{9000 + index},{name},{caption.text}")
    (annotations / "MSRVTT_data.json").write_text(json.dumps({"sentences": sentences}))
    train_rows = ["video_id", *(f"video{index}" for index in range(TRAIN_VIDEOS))]
    (annotations / "MSRVTT_train.9k.csv").write_text("\n".join(train_rows) + "\n")
    (annotations / "MSRVTT_train.7k.csv").write_text("\n".join(train_rows[:9]) + "\n")
    (annotations / "MSRVTT_JSFUSION_test.csv").write_text("\n".join(test_rows) + "\n")


def make_diffusion_lm(folder: Path, captions: list[str]) -> None:
    """An untrained Diffusion-LM folder with the words of the captions."""
    torch.manual_seed(0)
    vocabulary = Vocabulary.from_captions(captions)
    denoiser = Denoiser(SMALL, len(vocabulary))
    arguments = {"ema_rate": "0.999", "steps": 1, "denoiser": SMALL.to_dict()}
    weights.save(folder, denoiser.state_dict(), torch.randn(len(vocabulary), SMALL.channels), vocabulary, arguments)


def as_before(checkpoint: dict) -> dict:
    """A checkpoint as it was written when the flags of the run said what its model is."""
    parts = {name: checkpoint["model_config"][name] for name in PARTS if checkpoint["model_config"][name] is not None}
    return {name: value for name, value in checkpoint.items() if name != "model_config"} | parts


def run_program(program: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Run an entry point in a process of its own, as people do."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / program), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def call_program(program: str, arguments: list[str], monkeypatch, capfd) -> tuple[int, str]:
    """Run an entry point in this process: exit code and what it wrote to standard error."""
    code, _, err = call(program, arguments, monkeypatch, capfd)
    return code, err


def call(program: str, arguments: list[str], monkeypatch, capfd) -> tuple[int, str, str]:
    """Run an entry point in this process: exit code, and what it wrote to standard output and to standard error."""
    from utils.program import run_program

    specification = importlib.util.spec_from_file_location(f"entry_point_{Path(program).stem}", ROOT / program)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    capfd.readouterr()
    code = run_program(program, module.main)
    return code, *capfd.readouterr()
