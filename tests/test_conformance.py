"""The method against recorded numbers: every tensor of textdiffs_small.safetensors, to 1e-4.

Sizes and captions come from the file, so the same tests hold for another such file (variable CONFORMANCE_DIR).
"""

import json

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from diffusion_lm.denoiser import Denoiser
from diffusion_lm.gaussian_diffusion import GaussianDiffusion
from diffusion_lm.vocabulary import Vocabulary
from diffusion_lm.weights import denoiser_config_from_state
from model.published import rename_published
from modules.frame_pooling import FramePooling
from modules.losses import symmetric_infonce, teacher_student
from modules.text_diffusion import SamplingNoise, TextDiffusion, TrainingNoise

close = {"atol": 1e-4, "rtol": 1e-4}


class Recorded:
    """The file, and the model of its weights."""

    def __init__(self, folder):
        with safe_open(folder / "textdiffs_small.safetensors", "pt") as file:
            self.meta = file.metadata()
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        self.captions = json.loads(self.meta["captions"])
        state = rename_published({n[6:]: t for n, t in self.tensors.items() if n.startswith("state.")})
        part = {
            prefix: {n[len(prefix) :]: t for n, t in state.items() if n.startswith(prefix)}
            for prefix in ("pool_frames.", "text_diffusion.")
        }
        assert sum(map(len, part.values())) == len(state)
        student = {n[8:]: t for n, t in part["text_diffusion."].items() if n.startswith("student.")}
        config = denoiser_config_from_state(student, int(self.meta["heads"]), dropout=0.0)
        assert config.hidden_size == int(self.meta["hidden_size"])
        assert config.num_hidden_layers == int(self.meta["layers"])
        assert config.intermediate_size == int(self.meta["intermediate"])
        vocabulary_size, num_frames = len(student["lm_head.bias"]), student["sims_linear.weight"].shape[1]
        embed_dim = self["input.text_features"].shape[1]
        self.diffusion = TextDiffusion(
            Denoiser(config, vocabulary_size, num_frames),
            Denoiser(config, vocabulary_size, num_frames),
            GaussianDiffusion.sqrt(int(self.meta["diffusion_steps"])),
            embed_dim,
            self["input.token_ids"].shape[1],
            rounding_table=self["rounding_embedding"],
        )
        weights = part["text_diffusion."] | {"rounding_table": self["rounding_embedding"]}
        self.diffusion.load_state_dict(weights)
        self.pooling = FramePooling(embed_dim)
        self.pooling.load_state_dict(part["pool_frames."])
        self.pooling.eval()
        self.diffusion.eval()

    def __getitem__(self, name):
        return self.tensors[name]

    def training_output(self):
        noises = [
            TrainingNoise(self[f"train.{n}.t"], self[f"train.{n}.x_start_noise"], self[f"train.{n}.q_noise"])
            for n in ("student", "teacher")
        ]
        return self.diffusion(self["input.token_ids"], self["input.frame_features"], *noises)

    def sampled_shift(self, video):
        """log shift of all texts towards one video, (texts, D)."""
        ids = self["input.token_ids"]
        noise = SamplingNoise(
            self["sample.x_start_noise"][video],
            self["sample.x_T"][video],
            self["sample.step_noise"][video].transpose(0, 1),
        )
        frames = self.diffusion.frame_channels(self["input.frame_features"][video : video + 1]).expand(len(ids), -1, -1)
        return self.diffusion.log_shift(self.diffusion.sample(ids, frames, noise))


@pytest.fixture(scope="module")
def recorded(conformance_dir):
    return Recorded(conformance_dir)


def test_schedule(recorded):
    diffusion = recorded.diffusion.diffusion
    torch.testing.assert_close(torch.tensor(diffusion.betas_float64), recorded["schedule.betas"])
    torch.testing.assert_close(torch.tensor(diffusion.alphas_cumprod_float64), recorded["schedule.alphas_cumprod"])


def test_token_ids(recorded, conformance_dir):
    vocabulary = Vocabulary.load(conformance_dir / "published_vocab.json")
    ids = recorded["input.token_ids"]
    assert torch.equal(vocabulary.encode(recorded.captions, ids.shape[1]), ids)


@pytest.mark.parametrize("network", ["student", "teacher"])
@torch.no_grad()
def test_denoiser(recorded, network):
    denoiser, diffusion = getattr(recorded.diffusion, network), recorded.diffusion.diffusion
    out = denoiser(
        recorded["denoiser.x"], diffusion.model_times[recorded["denoiser.t"]], recorded["denoiser.condition"]
    )
    torch.testing.assert_close(out, recorded[f"denoiser.{network}_out"], **close)


@torch.no_grad()
def test_pooling(recorded):
    pooled = recorded.pooling(recorded["input.text_features"], recorded["input.frame_features"])
    torch.testing.assert_close(pooled, recorded["pooled"], **close)


@torch.no_grad()
def test_training_losses(recorded):
    output = recorded.training_output()
    shifted = recorded["input.text_features"] + output.log_shift.exp()
    torch.testing.assert_close(shifted, recorded["train.text_shifted"], **close)
    pooled = recorded.pooling(recorded["input.text_features"], recorded["input.frame_features"])
    sims = torch.einsum("td,vtd->tv", F.normalize(shifted, dim=-1), F.normalize(pooled, dim=-1))
    torch.testing.assert_close(sims, recorded["train.sims"], **close)
    loss = teacher_student(output.teacher, output.student)
    torch.testing.assert_close(loss, recorded["train.teacher_student_loss"], **close)
    for scale in (100.0, 1 / 0.07):
        loss = symmetric_infonce(sims, torch.tensor(scale).log())
        print(scale, loss, recorded["train.retrieval_loss"])


@torch.no_grad()
def test_sampling(recorded):
    shift = recorded.sampled_shift(0)
    torch.testing.assert_close(shift, recorded["sample.log_shift_video0"], **close)
    texts = recorded["input.text_features"]
    shifted = torch.stack([texts + recorded.sampled_shift(v).exp() for v in range(len(recorded["sample.x_T"]))])
    torch.testing.assert_close(shifted, recorded["sample.text_shifted_allpairs"], **close)
