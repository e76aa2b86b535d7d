"""The method against recorded numbers: every tensor of textdiffs_small.safetensors, to 1e-4.

Sizes and captions come from the file, so the same tests hold for another such file (variable CONFORMANCE_DIR).
"""

import json
from functools import cached_property

import pytest
import torch
from safetensors import safe_open

from diffusion_lm.denoiser import Denoiser
from diffusion_lm.gaussian_diffusion import GaussianDiffusion
from diffusion_lm.vocabulary import Vocabulary
from diffusion_lm.weights import denoiser_config_from_state
from model import published_textdiffs
from model.clip import EncodedVideos
from model.other_checkpoints import to_our_names
from model.published_textdiffs import PublishedTextDiffs
from model.retrieval import EncodedPairs
from modules.losses import clamp_logit_scale, symmetric_infonce, teacher_student
from modules.similarity import Similarity, similarity
from modules.text_diffusion import SamplingNoise, TextDiffusion, TrainingNoise
from tests.precision import TOLERANCE, autocast
from tests.small_models import small_clip

PARTS = ("pool_frames.", "text_diffusion.")


class Recorded:
    """The file, the model of its weights, and what that model makes of the inputs and the noise in the file."""

    def __init__(self, folder):
        with safe_open(folder / "textdiffs_small.safetensors", "pt") as file:
            self.meta = file.metadata()
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        self.read = set()  # names of the tensors that were asked for
        self.captions = json.loads(self.meta["captions"])
        self.vocabulary = Vocabulary.load(folder / "published_vocab.json")
        state = {name: self[name] for name in self.tensors if name.startswith("state.")}
        state = to_our_names({name.removeprefix("state."): tensor for name, tensor in state.items()})
        student = {n.rpartition("student.")[2]: t for n, t in state.items() if n.startswith("text_diffusion.student.")}
        config = denoiser_config_from_state(student, int(self.meta["heads"]), dropout=0.0)
        assert config.hidden_size == int(self.meta["hidden_size"])
        assert config.num_hidden_layers == int(self.meta["layers"])
        assert config.intermediate_size == int(self.meta["intermediate"])
        size, frames = len(student["lm_head.bias"]), student["sims_linear.weight"].shape[1]
        denoisers = (Denoiser(config, size, frames) for _ in range(2))
        steps = GaussianDiffusion.sqrt(int(self.meta["diffusion_steps"]))
        texts, table = self["input.text_features"], self["rounding_embedding"]
        self.diffusion = TextDiffusion(*denoisers, steps, texts.shape[1], self["input.token_ids"].shape[1], table)
        self.model = PublishedTextDiffs(*small_clip(texts.shape[1]), self.diffusion, self.vocabulary).eval()
        state["text_diffusion.rounding_table"] = table
        assert all(name.startswith(PARTS) for name in state)
        missing, unexpected = self.model.load_state_dict(state, strict=False)  # the file has no CLIP
        assert not unexpected and not [name for name in missing if name.startswith(PARTS)]
        self.own = torch.arange(len(texts))

    def __getitem__(self, name):
        self.read.add(name)
        return self.tensors[name]

    def denoised(self, network):
        times = self.diffusion.diffusion.model_times[self["denoiser.t"]]
        return getattr(self.diffusion, network)(self["denoiser.x"], times, self["denoiser.condition"])

    @cached_property
    def trained(self):
        """What a training step predicts."""
        noises = [
            TrainingNoise(self[f"train.{n}.t"], self[f"train.{n}.x_start_noise"], self[f"train.{n}.q_noise"])
            for n in ("student", "teacher")
        ]
        return self.diffusion(self["input.token_ids"], self["input.frame_features"], *noises)

    def text_shifted(self):
        return self["input.text_features"] + self.trained.log_shift.exp()

    def training_sims(self):
        texts, videos = self["input.text_features"], EncodedVideos(self["input.frame_features"])
        return self.model.similarities(EncodedPairs(texts, videos, self.text_shifted(), {}), videos, self.own)[:, 0]

    def retrieval_loss(self):
        """At the largest scale, which is CLIP's own: one that has grown beyond it comes back to it."""
        logit_scale = torch.tensor(10.0)
        clamp_logit_scale(logit_scale)
        return symmetric_infonce(self.training_sims(), logit_scale)

    def noise_towards(self, video):
        """In the file each pair has noise of its own."""
        steps = self["sample.step_noise"][video].transpose(0, 1)
        return SamplingNoise(self["sample.x_start_noise"][video], self["sample.x_T"][video], steps)

    def sampled_shift(self, video):
        """log shift of all texts towards one video, (texts, D)."""
        ids = self["input.token_ids"]
        frames = self.diffusion.frame_channels(self["input.frame_features"][video : video + 1]).expand(len(ids), -1, -1)
        return self.diffusion.log_shift(self.diffusion.sample(ids, frames, self.noise_towards(video)))

    def sampled_texts(self):
        """Towards every video, (videos, texts, D)."""
        return torch.stack([self["input.text_features"] + self.sampled_shift(video).exp() for video in self.own])

    @cached_property
    def scores(self):
        """What an evaluation computes, one video at a time, as noise of an evaluation depends on the text alone."""
        numbers = [str(index) for index in self.own.tolist()]  # captions may be equal and have other noise
        texts = self.model.texts(numbers, self["input.text_features"], {"word_ids": self["input.token_ids"]})
        columns = [self._scores_of(texts, video) for video in self.own.tolist()]
        return {
            name: torch.cat([torch.from_numpy(getattr(column, name)) for column in columns], dim=1)
            for name in ("strict", "published")
        }

    def _scores_of(self, texts, video) -> Similarity:
        frames = self.model.videos(EncodedVideos(self["input.frame_features"][video : video + 1]))
        noise = self.noise_towards(video)
        with pytest.MonkeyPatch.context() as patch:
            drawn = lambda numbers, *_: SamplingNoise(*(tensor[[int(n) for n in numbers]] for tensor in noise))  # noqa: E731
            patch.setattr(published_textdiffs, "sampling_noise", drawn)
            return similarity(self.model, texts, frames, torch.tensor([video]))


OUTPUTS = {
    "schedule.betas": lambda r: torch.tensor(r.diffusion.diffusion.betas_float64),
    "schedule.alphas_cumprod": lambda r: torch.tensor(r.diffusion.diffusion.alphas_cumprod_float64),
    "input.token_ids": lambda r: r.vocabulary.encode(r.captions, r.tensors["input.token_ids"].shape[1]),
    "denoiser.student_out": lambda r: r.denoised("student"),
    "denoiser.teacher_out": lambda r: r.denoised("teacher"),
    "pooled": lambda r: r.model.pool_frames(r["input.text_features"], r["input.frame_features"]),
    "train.text_shifted": Recorded.text_shifted,
    "train.sims": Recorded.training_sims,
    "train.teacher_student_loss": lambda r: teacher_student(r.trained.teacher, r.trained.student).sum(),
    "train.retrieval_loss": Recorded.retrieval_loss,
    "sample.log_shift_video0": lambda r: r.sampled_shift(0),
    "sample.text_shifted_allpairs": Recorded.sampled_texts,
    "sims.strict": lambda r: r.scores["strict"],
    "sims.published": lambda r: r.scores["published"],
}


@pytest.fixture(scope="module")
def recorded(conformance_dir):
    return Recorded(conformance_dir)


@pytest.fixture(scope="module")
def recorded_in_bf16(conformance_dir):
    return Recorded(conformance_dir)


@pytest.mark.parametrize("name", OUTPUTS)
@torch.no_grad()
def test_outputs(recorded, name):
    expected = recorded.tensors[name]
    close = {"atol": 1e-4, "rtol": 1e-4} if expected.dtype == torch.float32 else {}  # float64 to 1e-7, integers exactly
    torch.testing.assert_close(OUTPUTS[name](recorded), expected, **close)


@pytest.mark.parametrize("name", [name for name in OUTPUTS if name.startswith(("denoiser", "pooled", "train", "sims"))])
@torch.no_grad()
def test_outputs_in_bf16(recorded_in_bf16, name):
    """Not the samples themselves: a word next to another one may become that one. Their scores still agree."""
    expected = recorded_in_bf16.tensors[name]
    with autocast("bf16"):
        error = (OUTPUTS[name](recorded_in_bf16) - expected).abs()
    worst = error.max() if "sims" in name else error.norm() / expected.norm()  # cosines have the length 1 behind them
    assert 0 < worst < TOLERANCE["bf16"]


@torch.no_grad()
def test_every_tensor_of_the_file_is_used(recorded):
    """Each is an input of what is asserted, or asserted."""
    for compute in OUTPUTS.values():
        compute(recorded)
    assert recorded.tensors.keys() == recorded.read | OUTPUTS.keys()
