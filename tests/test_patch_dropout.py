"""Frames that training sees in part."""

import pytest
import torch

from config import Config
from model.factory import create_model
from modules.patch_dropout import PatchDropout
from tests.small_models import small_xpool
from utils.errors import InputError


class Embeddings(torch.nn.Module):
    """Tokens (images, 1 + 16, 3) that say which image and which place they are of."""

    def forward(self, images: int) -> torch.Tensor:
        place = torch.cartesian_prod(torch.arange(images), torch.arange(17)).float()
        return torch.cat([place, torch.ones(len(place), 1)], dim=1).view(images, 17, 3)


@pytest.mark.parametrize(("share", "kept"), [(0.5, 8), (0.25, 12), (0.97, 1), (0.0, 16)])
def test_patches_of_each_image_are_left_out_at_random(share, kept):
    torch.manual_seed(0)
    embeddings = Embeddings()
    embeddings.register_forward_hook(PatchDropout(share))
    tokens = embeddings(50)
    assert tokens.shape == (50, 1 + kept, 3)
    assert (tokens[:, 0, 1] == 0).all()  # the class token stays, and first
    assert (tokens[:, :, 0] == torch.arange(50)[:, None]).all()  # each image keeps its own
    places = tokens[:, 1:, 1]
    assert all(len(row.unique()) == kept and row.min() >= 1 for row in places)
    assert len(places.unique()) == 16  # and not always the same ones


def test_patches_that_the_potential_reads_are_not_left_out(teacher):
    line = f"--clip_arch=tiny --num_frames=2 --diffusion_lm={teacher} --patch_dropout=0.5"
    with pytest.raises(InputError, match="--patch_dropout leaves out patches that --recipe=textdiffs reads"):
        create_model(Config.parse(line.split()))
    for more in ("--recipe=published", "--arch=clip_transformer"):
        create_model(Config.parse([*line.split(), more]))


def test_evaluation_sees_all_patches():
    torch.manual_seed(0)
    model, frames = small_xpool(), torch.randint(256, (2, 5, 3, 64, 64), dtype=torch.uint8)
    whole = model.encode_videos(frames).frames
    model.drop_patches(0.5)
    assert torch.equal(model.encode_videos(frames).frames, whole)
    model.train()
    first, second = (model.encode_videos(frames).frames for _ in range(2))
    assert not torch.allclose(first, whole) and not torch.allclose(first, second)
    first.sum().backward()
    assert model.clip.vision_model.embeddings.patch_embedding.weight.grad.abs().sum() > 0
