"""Train the control of TextDiffs: X-Pool over what the same video encoder makes of the patches, by contrast alone.

python benchmarks/patch_control.py --arch=clip_transformer [flags of train.py]

--potential_lr is the learning rate of its video encoder, whatever train.py says of the flag. It sees all that TextDiffs
sees (patches, places, frame numbers), so its distance to X-Pool is what patches in order are worth, and TextDiffs'
distance to it what reading the words is worth. Its checkpoints are not for test.py: results.json of the run has the
test, of the model that the validation split chose.
"""

import sys

from torch import Tensor, nn

from config import Config
from model.clip import EncodedVideos
from model.factory import create_model, video_encoder
from model.xpool import XPool
from train import main
from utils.program import run_program


class PatchXPool(XPool):
    """X-Pool whose frame features are CLIP's and, at first with weight zero, the mean of the tokens of each frame.

    :param model: X-Pool before training, whose parts it takes.
    :param num_frames: F.
    """

    def __init__(self, model: XPool, num_frames: int) -> None:
        super().__init__(model.clip, model.tokenizer)
        self.pool_frames = model.pool_frames
        self.set_preprocessing(model.preprocessing)
        self.model_config = model.model_config
        self.video_encoder = video_encoder(model.clip, num_frames)
        self.project = nn.Linear(self.video_encoder.width, self.embed_dim)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        self.moved_by_muon = ("video_encoder.", "project.")

    def encode_videos(self, frames: Tensor) -> EncodedVideos:
        """Frames uint8 (B, F, 3, R, R) -> their features."""
        features, patches = self.frame_features(frames)
        tokens = self.video_encoder(patches).unflatten(1, (frames.shape[1], -1)).mean(2)
        return EncodedVideos(features + self.project(tokens).float())


def build(config: Config) -> PatchXPool:
    """The control before training."""
    return PatchXPool(create_model(config), config.num_frames)


if __name__ == "__main__":
    sys.exit(run_program("patch_control.py", lambda: main(build)))
