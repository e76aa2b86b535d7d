"""Convert a checkpoint: published (TextDiffs, T-MASS, X-Pool) to ours, ours to published; .pth or .safetensors.

`python scripts/convert_checkpoint.py --input=FILE --output=FILE` takes the flags of test.py as well. The direction
follows from what is in the file. A published file does not hold all that ours does: flags say the rest (as
--num_mha_heads, --diffusion_steps), and --diffusion_lm names the folder with the words. Tensors are not changed;
optimizer states, which depend on the order of parameters, are left out.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from config import Config
from diffusion_lm.weights import is_safetensors, one_line, save_atomically
from model.factory import from_published
from model.model_config import ModelConfig
from model.published import family_of, published_checkpoint
from trainer.checkpoints import load_checkpoint
from utils.command_line import Parser
from utils.errors import InputError
from utils.files import written_whole
from utils.program import run_program

logger = logging.getLogger(__name__)

SUFFIXES = (".pth", ".pt", ".safetensors")
_SETTINGS = "textdiffs"  # metadata of a safetensors file: all of ours but tensors, as JSON
_UNREAD = "published/"  # before the names of tensors that only a published file has


def main() -> None:
    parser = Parser("scripts/convert_checkpoint.py", __doc__)
    parser.add_argument(
        "--input", type=Path, required=True, metavar="FILE", help="checkpoint: of torch.save or safetensors"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="file to write: .pth, .pt or .safetensors"
    )
    args, others = parser.parse_known_args()
    config = Config.parse(others, program="test", prog="scripts/convert_checkpoint.py")
    _check_places(args.input, args.output)
    checkpoint = read(args.input)
    if family := family_of(checkpoint):
        converted, form = from_published(config, checkpoint, family, args.input), "ours"
    else:
        model_config = ModelConfig.of(checkpoint, args.input)
        converted, form = published_checkpoint(checkpoint, model_config, args.input), "published"
    if "optimizer" in checkpoint:
        logger.info("the state of the optimizer is left out: training cannot go on from %s", args.output)
    write(converted, args.output)
    logger.info("%s (%s): %d tensors", args.output, form, len(converted["state_dict"]))


def read(path: Path) -> dict[str, Any]:
    """A checkpoint as `trainer.checkpoints` has it, from either format.

    :raises InputError: it is damaged, no checkpoint, or holds more than tensors and plain values.
    """
    if not path.is_file() or not is_safetensors(path):
        return load_checkpoint(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dictionary)
            metadata = file.metadata() or {}
        others = json.loads(metadata[_SETTINGS]) if _SETTINGS in metadata else {"epoch": int(metadata.get("epoch", 0))}
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{path} is a safetensors file that is damaged or cut short: {one_line(error)}") from error
    state = {name: tensor for name, tensor in tensors.items() if not name.startswith(_UNREAD)}
    unread = {name.removeprefix(_UNREAD): tensor for name, tensor in tensors.items() if name.startswith(_UNREAD)}
    return {**others, "state_dict": state, **({"published": unread} if "published" in others else {})}


def write(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint, whole or not at all, in the format of the suffix.

    :raises InputError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            _write_safetensors(checkpoint, path)
        else:
            save_atomically(checkpoint, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InputError(f"{path} cannot be written: {reason}") from error


def _write_safetensors(checkpoint: dict[str, Any], path: Path) -> None:
    unread = {_UNREAD + name: tensor for name, tensor in checkpoint.get("published", {}).items()}
    others = {name: value for name, value in checkpoint.items() if name != "state_dict"}
    if "published" in others:
        others["published"] = len(unread)  # also where there are none
    ours = "model_config" in checkpoint
    metadata = {_SETTINGS: json.dumps(others)} if ours else {"epoch": str(others["epoch"])}
    with written_whole(path) as temporary:
        save_file(_separate(checkpoint["state_dict"] | unread), temporary, metadata)


def _separate(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share memory (tied weights) as tensors of their own: the format knows no sharing."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in state.items():
        place = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if place in seen else tensor.contiguous()
        seen.add(place)
    return separate


def _check_places(source: Path, target: Path) -> None:
    if target.suffix not in SUFFIXES:
        raise InputError(f"--output={target}: the name must end in one of {', '.join(SUFFIXES)}")
    if not source.is_file():
        raise InputError(f"--input={source} does not exist")
    if target.exists():
        raise InputError(f"--output={target} exists: name another file")


if __name__ == "__main__":
    sys.exit(run_program("convert_checkpoint.py", main))
