"""Files with exactly the published names and shapes and random values, and a tokenizer of CLIP's size."""

import json
from pathlib import Path

import torch
from torch import Tensor
from transformers.convert_slow_tokenizer import bytes_to_unicode

CLIP_TOKENS = 49_408


def made_up_tokenizer(folder: Path) -> Path:
    """vocab.json and merges.txt as CLIP's: bytes, bytes that end a word, merges (others), start and end."""
    letters = list(bytes_to_unicode().values())
    units = [*letters, *(f"{letter}</w>" for letter in letters)]
    pairs = [(first, second) for first in letters for second in units]
    # pairs of letters a-z first, so that words are merged at all
    pairs.sort(key=lambda pair: not all(unit[0].isascii() and unit[0].isalpha() for unit in pair))
    merges = pairs[: CLIP_TOKENS - len(units) - 2]
    words = [*units, *("".join(pair) for pair in merges), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    return folder


def random_state(listed: dict[str, list], seed: int) -> dict[str, Tensor]:
    """Random tensors of listed names, shapes and types, of the size of trained ones; tied weights are tied."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: _random(name, shape, dtype, generator) for name, (shape, dtype) in listed.items()}
    for name in state:
        if name.endswith("lm_head.weight"):
            state[name] = state[name.replace("lm_head", "word_embedding")]
    return state


def _random(name: str, shape: list[int], dtype: str, generator: torch.Generator) -> Tensor:
    if dtype == "int64":
        return torch.arange(shape[-1])[None]
    uniform = torch.empty(shape, dtype=getattr(torch, dtype)).uniform_(-1, 1, generator=generator)
    if name.endswith("logit_scale"):
        return 3 + uniform
    if "norm" in name.lower() and name.endswith("weight"):
        return 1 + 0.2 * uniform
    scale = 1.0 if "word_embedding" in name or "lm_head" in name else 2 / max(16, shape[-1]) ** 0.5
    return scale * uniform if len(shape) > 1 else 0.1 * uniform


def published_diffusion_lm(conformance: Path, folder: Path, seed: int) -> dict[str, Tensor]:
    """A published Diffusion-LM folder; returns its weights."""
    listed = json.loads((conformance / "published_diffusion_lm.json").read_text())
    state = random_state(listed["state_dict"], seed)
    folder.mkdir(parents=True)
    torch.save(state, folder / "ema_0.9999_200000.pt")
    words, channels = listed["state_dict"]["word_embedding.weight"][0]
    table = torch.randn(words, channels, generator=torch.Generator().manual_seed(seed + 1))
    torch.save({"weight": table}, folder / "random_emb.torch")
    (folder / "vocab.json").write_bytes((conformance / "published_vocab.json").read_bytes())
    (folder / "training_args.json").write_text(json.dumps(listed["training_args"]))
    return state


def published_textdiffs(conformance: Path, seed: int, teacher: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a published TextDiffs checkpoint whose teacher is a Diffusion-LM."""
    listed = json.loads((conformance / "published_checkpoint.json").read_text())["state_dict"]
    prefix = "textdiffs.diffusion.run_diffusion.teacher_model."
    given = {prefix + name: tensor for name, tensor in teacher.items()}
    made = random_state({name: value for name, value in listed.items() if name not in given}, seed)
    return {name: given.get(name, made.get(name)) for name in listed}
