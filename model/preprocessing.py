"""What the files beside the weights of an encoder say of its pictures: mean, standard deviation, size, resize.

preprocessor_config.json and processor_config.json are transformers', open_clip_config.json is open_clip's.
"""

import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from datasets.transforms import OPENAI, Preprocessing
from utils.errors import InputError

logger = logging.getLogger(__name__)

TRANSFORMERS_FILES = ("processor_config.json", "preprocessor_config.json")  # read in order, as transformers does
OPEN_CLIP_FILE = "open_clip_config.json"
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # by Pillow's numbers
_STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}
_SIDE = 224  # of CLIPImageProcessor, where a file says one of size and crop_size
_SQUARE = {"size": {"height": _SIDE, "width": _SIDE}, "do_center_crop": False}
_LIKE_VIT = _SQUARE | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_OF_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
# what transformers' processors do unless a file says something else, by how their names begin; {}: as CLIP's
_USUAL: dict[str, dict[str, Any]] = {
    "CLIP": {},
    "ChineseCLIP": {},
    "Bit": {},
    "Siglip": _LIKE_VIT | {"resample": 3},
    "Siglip2": _LIKE_VIT | {"resample": 2, "patch_size": 16, "max_num_patches": 256},
    "ViT": _LIKE_VIT | {"resample": 2},
    "DeiT": {"size": {"height": 256, "width": 256}} | _OF_IMAGENET,
    "DINOv3ViT": _SQUARE | _OF_IMAGENET | {"resample": 2},
}


def read_preprocessing(source: str, as_openai: bool = True) -> tuple[Preprocessing, int | None]:
    """The preprocessing of an encoder, and the side of its pictures if that is said.

    :param source: hub id, folder, or file with weights.
    :param as_openai: take OpenAI's where nothing is said.
    :raises InputError: nothing is said and OpenAI's is not to be taken, or it does something that is not done here;
        names the file.
    """
    files = (*TRANSFORMERS_FILES, OPEN_CLIP_FILE)
    if Path(source).is_file():
        source, files = str(Path(source).parent), (OPEN_CLIP_FILE, *TRANSFORMERS_FILES)
    for name in files:
        path = _path_of(source, name)
        if path is None:
            continue
        content = read_json(path)
        if name == OPEN_CLIP_FILE:
            values = content.get("preprocess_cfg") and _as_transformers(content, path)
        else:
            values = content.get("image_processor") if name == TRANSFORMERS_FILES[0] else content
        if values:
            return _parsed(values, path)
    if not as_openai:
        raise InputError(
            f"{source} does not say how its pictures are prepared: it needs {TRANSFORMERS_FILES[1]}, which transformers"
            f" writes with `AutoImageProcessor.from_pretrained(...).save_pretrained({str(source)!r})`"
        )
    logger.info("no file beside the weights of %s says how its pictures are prepared: OpenAI's way is taken", source)
    return OPENAI, None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    :raises InputError: it is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object")
    return content


def _path_of(source: str, name: str) -> Path | None:
    """A file of a folder, or of the hub or its cache."""
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    try:
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):  # without network
        return None
    return None if found is None else Path(found)


def _as_transformers(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """open_clip's preprocess_cfg in the words of transformers."""
    try:
        values = dict(content["preprocess_cfg"])
        image_size = content.get("model_cfg", {}).get("vision_cfg", {}).get("image_size")
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not understood: {error}") from error
    mode, fill = values.get("resize_mode") or "shortest", values.get("interpolation") or "bicubic"
    if mode not in ("shortest", "squash"):
        raise _not_done(path, f"resize_mode {mode}")
    side = values.get("size") or image_size
    if isinstance(side, list) and len(set(side)) == 1:
        side = side[0]
    if side is None and mode == "squash":
        raise _not_done(path, "resize_mode squash without a size")
    number = next((number for number, name in _INTERPOLATIONS.items() if name == fill), fill)
    sizes = {} if side is None else {"size": {"height": side, "width": side} if mode == "squash" else side}
    sizes |= {} if side is None else {"crop_size": side}
    told = {name: values[name] for name in ("mean", "std") if values.get(name) is not None}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "resample": number,
        **sizes,
        **{f"image_{name}": value for name, value in told.items()},
    }


def _parsed(values: Mapping[str, Any], path: Path) -> tuple[Preprocessing, int | None]:
    """What the processor of transformers that these settings are of does with them.

    :raises InputError: that is more, or something else, than is done here.
    """
    kind = values.get("image_processor_type") or values.get("feature_extractor_type") or "CLIP"
    family = re.sub("(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", str(kind))
    if family not in _USUAL:
        raise _not_done(path, str(kind))
    values = _USUAL[family] | dict(values)
    if family == "Siglip2":  # of as many patches as a square has
        side = math.isqrt(values["max_num_patches"]) * values["patch_size"]
        values = values | {"size": {"height": side, "width": side}}
    for name, value in values.items():
        if name.startswith("do_") and value and name not in _STEPS:
            raise _not_done(path, name)
    steps = {name: values.get(name) is not False for name in _STEPS}
    number = values.get("resample", 3)
    if number not in _INTERPOLATIONS:
        raise _not_done(path, f"resample {number}")
    try:
        unit = 255 * float(values.get("rescale_factor") or 1 / 255) if steps["do_rescale"] else 255.0
        mean, std = (_colours(values, name) or usual for name, usual in (("mean", OPENAI.mean), ("std", OPENAI.std)))
        if not all(number > 0 for number in std):
            raise ValueError(f"image_std {std}")
        if not steps["do_normalize"]:
            mean, std = (0.0,) * 3, (1.0,) * 3
        if unit != 1:
            mean, std = ([float(number) / unit for number in numbers] for numbers in (mean, std))
        whole, resized, side = _sizes(values, steps, path)
    except InputError:
        raise
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise InputError(f"{path} is not understood: {error}") from error
    margin = 1.0 if side is None or resized is None else resized / side
    return Preprocessing(mean, std, _INTERPOLATIONS[number], whole, margin), side


def _sizes(values: Mapping[str, Any], steps: Mapping[str, bool], path: Path) -> tuple[bool, int | None, int | None]:
    """Whether the whole picture is squeezed, the side of what is resized, and that of the square in its middle."""
    if not steps["do_resize"]:
        raise _not_done(path, "do_resize false")
    if values.get("size") is None and values.get("crop_size") is None and steps["do_center_crop"]:
        return False, None, None
    size = _edges(values, "size") or {"shortest_edge": _SIDE}
    crop = _edges(values, "crop_size") or {"height": _SIDE, "width": _SIDE}
    if crop.keys() == {"shortest_edge"}:
        crop = {"height": crop["shortest_edge"], "width": crop["shortest_edge"]}
    whole = size.keys() == {"height", "width"}
    if not whole and size.keys() != {"shortest_edge"}:
        raise _not_done(path, f"size {size}")
    if len(set(size.values())) > 1 or len({crop["height"], crop["width"]}) > 1:
        raise _not_done(path, "pictures that are no squares")
    resized = int(next(iter(size.values())))
    if not steps["do_center_crop"] and not whole:
        raise _not_done(path, "do_center_crop false with a size of the shorter side")
    side = int(crop["height"]) if steps["do_center_crop"] else resized
    if not 0 < side <= resized:
        raise _not_done(path, f"a crop of {side} from pictures of {resized}")
    return whole, resized, side


def _colours(values: Mapping[str, Any], name: str) -> list[float] | None:
    """Three numbers of a file; None where it does not tell them."""
    numbers = values.get(f"image_{name}")
    if numbers is None:
        return None
    if not isinstance(numbers, list) or len(numbers) != 3 or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"image_{name} {numbers}")
    return [float(number) for number in numbers]


def _edges(values: Mapping[str, Any], name: str) -> dict[str, int] | None:
    """A size of a file, which transformers has in three forms; None where it does not tell it."""
    size = values.get(name)
    if isinstance(size, list) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    elif size and isinstance(size, int):
        size = {"shortest_edge": size}
    if size and not isinstance(size, dict):
        raise ValueError(f"{name} {size}")
    return size and {edge: int(pixels) for edge, pixels in size.items() if pixels is not None}


def _not_done(path: Path, what: str) -> InputError:
    return InputError(
        f"{path} asks for {what}, which is not done here: pictures are resized (bicubic or bilinear; by their shorter "
        "side, or to a square), cut to the square in their middle, scaled, and normalised by mean and std"
    )
