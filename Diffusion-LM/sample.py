"""Print captions that a Diffusion-LM generates: `python Diffusion-LM/sample.py [FOLDER]`."""

import sys
from argparse import Namespace
from pathlib import Path

from diffusion_lm import weights
from diffusion_lm.command_line import Parser, number
from diffusion_lm.denoiser import MAX_POSITIONS
from diffusion_lm.errors import InputError
from diffusion_lm.gaussian_diffusion import GaussianDiffusion
from diffusion_lm.sampling import SAMPLERS, TEMPERATURE, sample_captions
from trainer.device import choose_device
from trainer.run_folder import run_program

MODELS = Path(__file__).resolve().parent / "diffusion_models"
PUBLISHED_TEXT_LEN = 64


def main() -> None:
    args = parse_args()
    device = choose_device(args.gpu)
    model = weights.load(args.folder or newest_folder(MODELS))
    diffusion = GaussianDiffusion.sqrt(model.training_args.get("diffusion_steps", 10)).to(device)
    if args.sampling_steps is not None:
        diffusion = diffusion.respaced(args.sampling_steps)
    length = args.text_len or model.training_args.get("text_len", PUBLISHED_TEXT_LEN)
    denoiser = model.build().to(device)
    for caption in sample_captions(
        denoiser, diffusion, model.vocabulary, args.num, length, args.seed, args.sampler, args.temperature
    ):
        sys.stdout.write(caption + "\n")


def parse_args() -> Namespace:
    """The command line."""
    parser = Parser("Diffusion-LM/sample.py", __doc__)
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        metavar="FOLDER",
        help="Diffusion-LM folder (default: the newest in diffusion_models)",
    )
    parser.add_argument("--num", type=number(int, 1), default=10, metavar="N", help="captions to print")
    parser.add_argument("--seed", type=number(int, 0), default=24, metavar="N", help="seed of the noise")
    parser.add_argument("--sampler", choices=SAMPLERS, default="ddpm", help="reverse process")
    parser.add_argument(
        "--temperature",
        type=number(float),
        default=TEMPERATURE,
        metavar="X",
        help="factor of the noise of ddpm: lower is more fluent and less varied, 1 is the model itself",
    )
    parser.add_argument(
        "--sampling_steps", type=number(int, 1), metavar="STEPS", help="steps, at most the T of the model (default: T)"
    )
    parser.add_argument(
        "--text_len",
        type=number(int, 3, MAX_POSITIONS),
        metavar="TOKENS",
        help="tokens of a caption (default: as in training; published: 64)",
    )
    parser.add_argument(
        "--gpu", metavar="INDEX", help="index of the GPU, or cpu (default: the first GPU if there is one)"
    )
    return parser.parse_args()


def newest_folder(models: Path) -> Path:
    """The folder in `models`, or `models` itself, whose weights were written last."""
    folders = [models, *(path for path in models.iterdir() if path.is_dir())] if models.is_dir() else []
    found = [path for folder in folders if (path := weights.find_weights(folder))]
    if not found:
        raise InputError(f"{models} holds no Diffusion-LM: make one with Diffusion-LM/train.py, or name a folder")
    return max(found, key=lambda path: path.stat().st_mtime).parent


if __name__ == "__main__":
    sys.exit(run_program("sample.py", main))
