"""Weights between a fine-tuned CLIP and the one before, as a run that the programs read."""

import pytest

from model.pretrained import load_clip
from tests.checkpoint_files import saved
from tests.made_up import call
from trainer.checkpoints import load_checkpoint

PLACE = ["--exp_name=name", "--datetime=run", "--load_epoch=0"]


@pytest.fixture
def interpolate(tmp_path, monkeypatch, capfd):
    place = [f"--output_dir={tmp_path / 'outputs'}", *PLACE]
    return lambda *flags: call("scripts/interpolate.py", [*place, *flags], monkeypatch, capfd)


@pytest.mark.parametrize(("flags", "share"), [([], 0.75), (["--share=0.3"], 0.3), (["--share=1"], 1.0)])
def test_each_weight_of_clip_lies_between_and_the_rest_stays(parse, tmp_path, interpolate, flags, share):
    runs = tmp_path / "outputs" / "name"
    tuned = saved(parse, runs / "run" / "model_best.pth", "--clip_arch=tiny-shapes").state_dict()
    before = load_clip("tiny-shapes")[0].state_dict()
    code, _, err = interpolate(*flags)
    assert code == 0, err
    found = load_checkpoint(runs / f"run-{share:g}" / "model_best.pth")
    assert found["state_dict"].keys() == tuned.keys()
    between = 0
    for name, weights in found["state_dict"].items():
        own, other = tuned[name], before.get(name.removeprefix("clip."))
        moves = name.startswith("clip.") and name != "clip.logit_scale" and other.is_floating_point()
        expected = share * own + (1 - share) * other if moves else own
        assert (weights - expected).abs().max() < 1e-6, name
        between += moves and share < 1 and bool((weights != own).any())
    assert between > 50 or share == 1
    assert found["model_config"]["clip_arch"] == "tiny-shapes"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--share=1.5"], "1.5 is not a number of at least 0 and at most 1"),
        (["--datetime=other"], "does not exist"),
        (["--clip_path=nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(parse, tmp_path, interpolate, flags, said):
    saved(parse, tmp_path / "outputs" / "name" / "run" / "model_best.pth", "--clip_arch=tiny-shapes")
    code, out, err = interpolate(*flags)
    assert (code, out) == (2, "") and said in err and err.count("\n") == 1
    assert [path.name for path in (tmp_path / "outputs" / "name").iterdir()] == ["run"]
