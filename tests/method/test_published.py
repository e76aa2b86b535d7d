"""Published checkpoints of full size through test.py's own path, with the same weights placed by hand beside it."""

import json

import huggingface_hub
import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from config import Config
from datasets.annotations import load_split
from datasets.loading import TestVideos
from datasets.transforms import PIXEL_MEAN, PIXEL_STD
from diffusion_lm.denoiser import Denoiser, DenoiserConfig
from diffusion_lm.gaussian_diffusion import GaussianDiffusion
from diffusion_lm.vocabulary import Vocabulary
from modules.frame_pooling import FramePooling
from modules.noise import sampling_noise
from modules.text_diffusion import TextDiffusion
from tests.made_up import call_program, make_msrvtt
from tests.published_files import made_up_tokenizer, published_diffusion_lm, published_textdiffs

STEPS, SEED = 2, 24


class Published:
    """A made-up MSR-VTT folder of few test videos, and the published files."""

    def __init__(self, root, conformance):
        self.root = root
        make_msrvtt(root)
        test_file = root / "data" / "MSRVTT" / "MSRVTT_JSFUSION_test.csv"
        test_file.write_text("".join(test_file.read_text().splitlines(keepends=True)[:3]))  # two videos
        made_up_tokenizer(root / "tokenizer")
        teacher = published_diffusion_lm(conformance, root / "diffusion_lm", seed=1)
        self.state = published_textdiffs(conformance, 2, teacher)
        run = root / "outputs" / "MSR-VTT-9k" / "run"
        run.mkdir(parents=True)
        torch.save({"epoch": 5, "state_dict": self.state}, run / "model_best.pth")

    def arguments(self, *more):
        """The command of seed-readme.md, with places, fewer steps and the published recipe."""
        return [
            "--datetime=run", "--arch=clip_stochastic", f"--videos_dir={self.root / 'videos'}", "--batch_size=32",
            "--noclip_lr=1e-7", "--transformer_dropout=0.3", "--dataset_name=MSRVTT", "--msrvtt_train_file=9k",
            "--gpu=cpu", "--precision=fp32", "--load_epoch=0", "--exp_name=MSR-VTT-9k", f"--diffusion_steps={STEPS}",
            f"--data_dir={self.root / 'data'}", f"--output_dir={self.root / 'outputs'}", "--num_workers=0",
            f"--diffusion_lm={self.root / 'diffusion_lm'}", f"--clip_path={self.root / 'tokenizer'}", *more,
        ]  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory, conformance_dir):
    return Published(tmp_path_factory.mktemp("published"), conformance_dir)


def part(state, prefix, *without):
    """The tensors below a prefix, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix) and not name.endswith(without)
    }


@torch.no_grad()
def scores_by_hand(published):
    """Strict and published scores [text, video]: each part filled by itself, without renames, a pair at a time."""
    state, config = published.state, Config.parse(published.arguments("--recipe=published"))
    split = load_split("MSRVTT", "test", config.dataset_dir, config.videos_dir)
    clip = CLIPModel(CLIPConfig()).eval()
    clip.load_state_dict(part(state, "clip.", "position_ids"))
    pool = FramePooling(512).eval()
    pool.load_state_dict(part(state, "pool_frames."))
    folder, inner = published.root / "diffusion_lm", "textdiffs.diffusion.run_diffusion.student_model."
    student = Denoiser(DenoiserConfig(), 821, 12).eval()
    student.load_state_dict(part(state, inner, "position_ids"))
    rounding = torch.load(folder / "random_emb.torch", weights_only=True)["weight"]
    diffusion = TextDiffusion(student, student, GaussianDiffusion.sqrt(STEPS), 512, 64, rounding).eval()
    for name in ("linear_text", "linear_sims", "linear_sims_sum"):
        getattr(diffusion, name).load_state_dict(part(state, f"textdiffs.diffusion.{name}."))

    tokenizer = CLIPTokenizer.from_pretrained(published.root / "tokenizer")
    ids = tokenizer(list(split.captions), padding=True, return_tensors="pt")["input_ids"]
    ends = (ids == 49_407).int().argmax(1)
    hidden = clip.text_model(ids).last_hidden_state[torch.arange(len(ids)), ends]
    texts = clip.text_projection(hidden)
    videos = TestVideos(split, 12, 224)
    frames = torch.stack([videos[index][0] for index in range(len(videos))]).float() / 255
    pixels = (frames - torch.tensor(PIXEL_MEAN).view(3, 1, 1)) / torch.tensor(PIXEL_STD).view(3, 1, 1)
    frames = clip.visual_projection(clip.vision_model(pixels.flatten(0, 1)).pooler_output).unflatten(0, (-1, 12))

    words = Vocabulary.load(folder / "vocab.json").encode(split.captions, 64)
    noise = sampling_noise(split.captions, SEED, STEPS, 64, 16)
    pooled = pool(texts, frames)  # (videos, texts, D)
    strict, leaking = torch.empty(len(texts), len(frames)), torch.empty(len(texts), len(frames))
    for text in range(len(texts)):
        own = type(noise)(*(tensor[text : text + 1] for tensor in noise))
        for video in range(len(frames)):
            x = diffusion.sample(words[text : text + 1], diffusion.frame_channels(frames[video : video + 1]), own)
            shift = diffusion.linear_sims_sum(diffusion.linear_sims(x).transpose(1, 2))[..., 0]
            diffused = texts[text] + shift[0].exp()
            strict[text, video] = torch.cosine_similarity(diffused, pooled[video, text], dim=0)
            leaking[text, video] = torch.cosine_similarity(diffused, pooled[video, video], dim=0)
    return strict, leaking


@pytest.mark.slow
def test_scores_are_those_of_weights_placed_by_hand(published, monkeypatch, capfd):
    """Without network and without --recipe: the checkpoint says that it is published."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    sims = published.root / "sims.npz"
    code, errors = call_program("test.py", published.arguments(f"--save_sims={sims}"), monkeypatch, capfd)
    assert code == 0, errors
    report = json.loads((published.root / "outputs" / "MSR-VTT-9k" / "run" / "results.json").read_text())
    assert (report["arch"], report["recipe"]) == ("clip_stochastic", "published")
    strict, leaking = scores_by_hand(published)
    assert strict.std() > 1e-3  # scores that are all the same would agree as well
    saved = np.load(sims)
    np.testing.assert_allclose(saved["strict"], strict, atol=2e-5)
    np.testing.assert_allclose(saved["published"], leaking, atol=2e-5)
