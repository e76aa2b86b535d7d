"""Published checkpoints of TextDiffs, T-MASS and X-Pool, of small models: what is read of them, what is refused."""

import itertools
import json
import shutil

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from diffusion_lm.denoiser import Denoiser, DenoiserConfig
from diffusion_lm.gaussian_diffusion import GaussianDiffusion
from model.factory import create_model, restore_model
from model.other_checkpoints import TEXTDIFFS, family_of, to_our_names, to_their_names
from model.pretrained import TINY_FOLDER
from model.published_textdiffs import PublishedTextDiffs
from modules.text_diffusion import TextDiffusion
from tests.checkpoint_files import assert_contradiction_is_named, assert_equal_states, failure, saved
from tests.made_up import CAPTIONS, make_diffusion_lm
from tests.small_models import small_clip
from trainer.checkpoints import load_checkpoint


def published_names(state, family=TEXTDIFFS):
    """The names of a published file, with what only such a file holds."""
    return to_their_names(state, family) | {name: torch.zeros(1) for name in family.unread}


def test_published_checkpoint_loads(parse, tmp_path):
    model = saved(parse, tmp_path / "ours.pth", "--recipe=published")
    path = tmp_path / "published.pth"
    state = published_names(model.state_dict())
    assert "textdiffs.diffusion.run_diffusion.student_model.sims_linear.weight" in state
    assert not any(name.startswith("text_diffusion") for name in state)
    del state["clip.text_model.embeddings.position_ids"]  # which newer versions of transformers do not save
    torch.save({"epoch": 5, "state_dict": state}, path)
    restored = restore_model(parse("--recipe=published"), load_checkpoint(path), path)
    assert_equal_states(restored.state_dict(), model.state_dict())


@pytest.mark.parametrize("change", ["missing", "left over", "other size"])
def test_published_names_that_do_not_fit_are_listed(parse, tmp_path, change):
    path = tmp_path / "published.pth"
    state = published_names(create_model(parse("--recipe=published")).state_dict())
    if change == "missing":
        named = "textdiffs.diffusion.linear_text.bias"
        del state[named]
    elif change == "left over":
        named = "textdiffs.diffusion.new_layer.bias"
        state[named] = torch.ones(2)
    else:
        named = "textdiffs.diffusion.run_diffusion.student_model.sims_linear.bias"
        state[named] = torch.ones(31)
    torch.save({"epoch": 5, "state_dict": state}, path)
    message = failure(restore_model, parse(), load_checkpoint(path), path)
    assert str(path) in message
    assert named in message


def published_file(parse, path, line="--recipe=published"):
    """A published checkpoint of small size, with all that only such a file holds."""
    model = saved(parse, path, line)
    family = family_of({"state_dict": to_their_names(model.state_dict())})
    torch.save({"epoch": 5, "state_dict": published_names(model.state_dict(), family)}, path)
    return model


def test_published_sizes_and_recipe_are_read_from_the_checkpoint(parse, tmp_path):
    path = tmp_path / "published.pth"
    model = published_file(parse, path, "--recipe=published")
    restored = restore_model(parse(small=False), load_checkpoint(path), path)
    assert_equal_states(restored.state_dict(), model.state_dict())
    config = restored.model_config
    assert (config.clip_arch, config.num_frames, config.diffusion_text_len) == ("tiny", 3, 9)
    assert (config.recipe, config.input_res, config.embed_dim) == ("published", 64, 128)


@pytest.mark.parametrize("arch", ["clip_transformer", "clip_tmass"])
def test_published_xpool_and_tmass_load(parse, tmp_path, arch):
    """Told from each other by their names."""
    path = tmp_path / "published.pth"
    model = published_file(parse, path, f"--arch={arch}")
    config = parse("--num_frames=3" if arch == "clip_transformer" else "", small=False)  # X-Pool does not show it
    restored = restore_model(config, load_checkpoint(path), path)
    assert type(restored) is type(model)
    assert_equal_states(restored.state_dict(), model.state_dict())
    config = restored.model_config
    assert (config.arch, config.clip_arch, config.num_frames) == (arch, "tiny", 3)


@pytest.mark.parametrize("arch", ["clip_transformer", "clip_tmass", "clip_stochastic --recipe=published"])
@pytest.mark.parametrize("wrap", ["module.", "model.", "_orig_mod.", "module.model.", "within"])
def test_wrappers_of_published_checkpoints_are_taken_off(parse, tmp_path, arch, wrap):
    """Programs that train on several GPUs in one process have `module.` in all names."""
    path = tmp_path / "published.pth"
    model = published_file(parse, path, f"--arch={arch}")
    checkpoint = load_checkpoint(path)
    names = checkpoint["state_dict"].items()
    state = {name.replace("clip.", "clip.module.") if wrap == "within" else wrap + name: value for name, value in names}
    restored = restore_model(parse("--num_frames=3", small=False), checkpoint | {"state_dict": state}, path)
    assert_equal_states(restored.state_dict(), model.state_dict())


def test_the_arch_that_tmass_gives_itself_is_answered(parse, tmp_path):
    """T-MASS calls itself clip_stochastic, which is TextDiffs here."""
    path = tmp_path / "published.pth"
    published_file(parse, path, "--arch=clip_tmass")
    message = failure(restore_model, parse("--arch=clip_stochastic", small=False), load_checkpoint(path), path)
    assert "--arch=clip_tmass" in message
    assert "--arch=clip_stochastic" in message


@pytest.mark.parametrize(
    ("flag", "shown"),
    [
        ("--arch=clip_transformer", "--arch=clip_stochastic"),
        ("--recipe=textdiffs", "--recipe=published"),
        ("--num_frames=12", "--num_frames=3"),
        ("--diffusion_text_len=64", "--diffusion_text_len=9"),
        ("--clip_arch=ViT-B/32", "--clip_arch=tiny"),
    ],
)
def test_flags_that_contradict_a_published_checkpoint_are_named(parse, tmp_path, flag, shown):
    path = tmp_path / "published.pth"
    published_file(parse, path)
    assert_contradiction_is_named(parse, path, flag, shown)


def test_a_diffusion_lm_with_other_words_is_named(parse, tmp_path):
    path, other = tmp_path / "published.pth", tmp_path / "other"
    published_file(parse, path)
    other.mkdir()
    make_diffusion_lm(other, CAPTIONS[:2])
    message = failure(restore_model, parse(f"--diffusion_lm={other}", small=False), load_checkpoint(path), path)
    assert str(path) in message
    assert str(other) in message


def test_a_published_clip_that_is_not_known_is_named(parse, tmp_path):
    path = tmp_path / "published.pth"
    published_file(parse, path, "--arch=clip_transformer")
    checkpoint = load_checkpoint(path)
    checkpoint["state_dict"]["clip.vision_model.embeddings.patch_embedding.weight"] = torch.ones(96, 3, 7, 7)
    message = failure(restore_model, parse(small=False), checkpoint, path)
    assert "width 96" in message
    assert "ViT-B/32" in message


def test_xpool_without_huggingface_is_refused_with_the_reason(parse, tmp_path):
    state = {"clip.visual.conv1.weight": torch.ones(2), "pool_frames.linear_proj.bias": torch.ones(2)}
    message = failure(restore_model, parse(small=False), {"epoch": 1, "state_dict": state}, tmp_path / "x.pth")
    assert "--huggingface" in message


def test_a_checkpoint_is_no_clip(parse, tmp_path):
    saved(parse, tmp_path / "model.pth", "--arch=clip_transformer")
    assert "--load_epoch" in failure(create_model, parse(f"--arch=clip_baseline --clip_path={tmp_path / 'model.pth'}"))


def test_the_path_of_the_tokenizer_may_change(parse, tmp_path):
    """The weights come from the checkpoint: --clip_path only says where the tokenizer lies on this machine."""
    path = tmp_path / "model.pth"
    model = saved(parse, path, "--arch=clip_transformer")
    shutil.copytree(TINY_FOLDER, tmp_path / "moved")
    line = f"--clip_path={tmp_path / 'moved'}"
    restored = restore_model(parse(line, small=False), load_checkpoint(path), path)
    assert_equal_states(restored.state_dict(), model.state_dict())
    (tmp_path / "empty").mkdir()
    line = f"--clip_path={tmp_path / 'empty'}"
    assert "vocab.json" in failure(restore_model, parse(line, small=False), load_checkpoint(path), path)


def test_names_and_shapes_of_the_published_checkpoint(conformance_dir):
    """A model of full size, without memory, has exactly the tensors that the published file lists."""
    listed = json.loads((conformance_dir / "published_checkpoint.json").read_text())["state_dict"]
    vocabulary_size = listed["textdiffs.diffusion.run_diffusion.student_model.lm_head.bias"][0][0]
    with torch.device("meta"):
        clip = CLIPModel(CLIPConfig())  # its default is ViT-B/32
        student, teacher = (Denoiser(DenoiserConfig(), vocabulary_size, 12) for _ in range(2))
        diffusion = TextDiffusion(student, teacher, GaussianDiffusion.sqrt(10), 512, 64)
        model = PublishedTextDiffs(clip, small_clip()[1], diffusion, None)
    ours = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert to_our_names({name: shape for name, (shape, _) in listed.items()}) == ours


def test_published_diffusion_lm_folder(conformance_dir):
    """A base denoiser without condition layers has exactly the tensors of the published Diffusion-LM."""
    published = json.loads((conformance_dir / "published_diffusion_lm.json").read_text())
    listed = {name: value[0] for name, value in published["state_dict"].items() if name != "position_ids"}
    with torch.device("meta"):
        denoiser = Denoiser(DenoiserConfig(), listed["word_embedding.weight"][0])
    assert {name: list(tensor.shape) for name, tensor in denoiser.state_dict().items()} == listed


def test_every_rename_is_used_once(conformance_dir):
    """No two published names become one of ours."""
    listed = json.loads((conformance_dir / "published_checkpoint.json").read_text())["state_dict"]
    renamed = [to_our_names({name: name}) for name in listed]
    ours = list(itertools.chain.from_iterable(renamed))
    assert len(ours) == len(set(ours))
    dropped = {name for name, new in zip(listed, renamed, strict=True) if not new}
    assert dropped == {n for n in listed if n.endswith("position_ids") or ".diff_proj." in n}
