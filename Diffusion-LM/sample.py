"""Print captions that a Diffusion-LM generates: `python Diffusion-LM/sample.py [FOLDER]`.

With --video, those that the text diffusion of a trained TextDiffs reads in a video, the best explained first, each with
its log ratio in nats: `python Diffusion-LM/sample.py --video=FILE --checkpoint=RUN/model_best.pth`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from config.flags import check_bounds, flag, flag_parser, group
from diffusion_lm import weights
from diffusion_lm.denoiser import MAX_POSITIONS, Denoiser
from diffusion_lm.gaussian_diffusion import GaussianDiffusion
from diffusion_lm.sampling import SAMPLERS, TEMPERATURE, Reading, sample_captions
from diffusion_lm.vocabulary import Vocabulary
from utils.device import choose_device
from utils.errors import InputError
from utils.program import run_program

MODELS = Path(__file__).resolve().parent / "diffusion_models"
PUBLISHED_TEXT_LEN = 64
USAGE = "python %(prog)s [FOLDER] [--flag=VALUE]"


@group("sampling", "What is read, and how captions are drawn.", role="score")
@dataclass(frozen=True)
class Sampling:
    """The settings of this program."""

    # fmt: off
    video: Path | None = flag(None, "video that is read", metavar="FILE", unset="none, captions are of nothing")
    checkpoint: Path | None = flag(None, "TextDiffs that reads --video: a .pth file of its run", metavar="FILE")
    num: int = flag(10, "captions to print", minimum=1)
    seed: int = flag(24, "seed of the noise", minimum=0)
    sampler: str = flag("ddpm", "reverse process", choices=SAMPLERS)
    temperature: float = flag(TEMPERATURE, "factor of the noise of ddpm: lower is more fluent and less varied, 1 is the"
        " model itself", minimum=0)
    sampling_steps: int | None = flag(None, "steps, at most the T of the model", minimum=1, metavar="STEPS", unset="T")
    text_len: int | None = flag(None, "tokens of a caption", minimum=3, maximum=MAX_POSITIONS, metavar="TOKENS",
        unset="as in training; published: 64")
    gpu: str | None = flag(None, "index of the GPU, or cpu", metavar="INDEX", unset="the first GPU if there is one")
    # fmt: on
    folder: Path | None = None


def main() -> None:
    args = parse_args()
    device = choose_device(args.gpu)
    for line in captions_of_video(args, device) if args.video else captions(args, device):
        sys.stdout.write(line + "\n")


def captions(args: Sampling, device: torch.device) -> list[str]:
    """Captions of a Diffusion-LM."""
    model = weights.load(args.folder or newest_folder(MODELS))
    diffusion = GaussianDiffusion.sqrt(model.training_args.get("diffusion_steps", 10)).to(device)
    length = args.text_len or model.training_args.get("text_len", PUBLISHED_TEXT_LEN)
    return sampled(args, model.build().to(device), diffusion, model.vocabulary, length)


@torch.no_grad()
def captions_of_video(args: Sampling, device: torch.device) -> list[str]:
    """Captions that the student of a TextDiffs reads in a video, the best explained first, with their log ratios.

    :raises InputError: the file is no video, or the checkpoint is of another model.
    """
    from config import Config
    from config.model_flags import DIFFUSION_ARCHS
    from datasets.annotations import Segment
    from datasets.loading import FilmSegments, Sample
    from model.factory import restore_model
    from model.textdiffs import TextDiffs
    from trainer.checkpoints import load_checkpoint

    # 1. model
    model = restore_model(Config.parse([]), load_checkpoint(args.checkpoint), args.checkpoint)
    config = model.model_config
    if not isinstance(model, TextDiffs):
        recipe = f" --recipe={config.recipe}" if config.arch in DIFFUSION_ARCHS else ""
        raise InputError(
            f"{args.checkpoint} has no text potential, which is what reads words in a video: its model is "
            f"--arch={config.arch}{recipe}"
        )
    model.to(device).eval()

    # 2. video
    segment = Segment(args.video.name, args.video, ())
    (sample,) = FilmSegments([segment], config.num_frames, config.input_res, model.preprocessing)
    if not isinstance(sample, Sample):
        raise sample[1]
    video = model.videos(model.encode_videos(sample.frames[None].to(device)))

    # 3. captions
    potential = model.potential
    reading = Reading(video.tokens, potential.word_table)
    length = args.text_len or potential.text_length
    found = sampled(args, potential.student, potential.diffusion, model.vocabulary, length, reading)

    # 4. how well the video explains them
    inputs = {name: ids.to(device) for name, ids in model.tokenize(found).items()}
    texts = model.texts(found, model.encode_texts(inputs["token_ids"]), inputs)
    places = torch.arange(len(found))
    ratios = model.word_ratios(texts, video, places, torch.zeros_like(places)).sum(1).cpu()
    order = ratios.argsort(descending=True, stable=True).tolist()
    return [f"{ratios[place]:+8.2f}  {found[place]}" for place in order]


def sampled(
    args: Sampling,
    denoiser: Denoiser,
    diffusion: GaussianDiffusion,
    vocabulary: Vocabulary,
    length: int,
    reading: Reading | None = None,
) -> list[str]:
    """`sample_captions` as the command line wants it."""
    if args.sampling_steps is not None:
        diffusion = diffusion.respaced(args.sampling_steps)
    return sample_captions(
        denoiser, diffusion, vocabulary, args.num, length, args.seed, args.sampler, args.temperature, reading
    )


def parse_args() -> Sampling:
    """The command line."""
    parser = flag_parser(Sampling, prog="Diffusion-LM/sample.py", description=__doc__, usage=USAGE)
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        metavar="FOLDER",
        help="Diffusion-LM folder (default: the newest in diffusion_models)",
    )
    args = Sampling(**vars(parser.parse_args()))
    check_bounds(args)
    if (args.video is None) != (args.checkpoint is None):
        raise InputError("--video needs the --checkpoint of a TextDiffs that reads it, and --checkpoint a --video")
    if args.folder is not None and args.checkpoint is not None:
        raise InputError(f"two models are named, {args.folder} and --checkpoint={args.checkpoint}: leave one out")
    return args


def newest_folder(models: Path) -> Path:
    """The folder in `models`, or `models` itself, whose weights were written last."""
    folders = [models, *(path for path in models.iterdir() if path.is_dir())] if models.is_dir() else []
    found = [path for folder in folders if (path := weights.find_weights(folder))]
    if not found:
        raise InputError(f"{models} holds no Diffusion-LM: make one with Diffusion-LM/train.py, or name a folder")
    return max(found, key=lambda path: path.stat().st_mtime).parent


if __name__ == "__main__":
    sys.exit(run_program("sample.py", main))
