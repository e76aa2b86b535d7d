"""Checkpoints of small models, and what is said of them."""

import pytest
import torch

from model.factory import create_model, restore_model
from trainer.checkpoints import load_checkpoint, save_checkpoint
from utils.errors import InputError


def assert_equal_states(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name]), name


def failure(function, *arguments):
    """The one line of an InputError."""
    with pytest.raises(InputError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def saved(parse, path, line=""):
    """A checkpoint file and the model in it."""
    torch.manual_seed(3)
    config = parse(line)
    model = create_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, model, config, epoch=2, step=17, training={"metrics": {"R1": 12.5}, "random_states": []})
    return model


def assert_contradiction_is_named(parse, path, flag, value_of_checkpoint):
    """One line with the file, the flag that was given, and what it should be."""
    message = failure(restore_model, parse(flag, small=False), load_checkpoint(path), path)
    assert str(path) in message
    assert flag in message
    assert value_of_checkpoint in message
