"""Every flag of train.py and test.py, declared once: name, type, default, help and the archs that it concerns."""

import argparse
import json
import math
import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

from utils.command_line import MANY_FLAGS, Parser, at_home
from utils.errors import InputError

DATASETS = ("MSRVTT", "MSVD", "LSMDC", "DiDeMo", "ActivityNet", "MovingShapes", "custom")
ARCHS = ("clip_stochastic", "clip_tmass", "clip_transformer", "clip_baseline")
ARCH_ALIASES = {"clip_textdiffs": "clip_stochastic"}
CLIP_INPUT_RES = {"ViT-B/32": 224, "ViT-B/16": 224, "ViT-L/14": 224, "tiny": 64, "tiny-shapes": 64}
PUBLISHED_TEXT_LENGTH = 64
PLACES = ("DIR", "FILE", "PATH")  # what the help calls paths: in these a leading ~ is the home folder
CHOICES_WIDTH = 24  # of the help, up to which choices stand beside the name of a flag
DIFFUSION_ARCHS = ("clip_stochastic",)
TMASS = ("clip_tmass",)
BASELINE = ("clip_baseline",)
BEFORE_THE_FLAG = {"select_on": "test"}  # what runs did that are older than a flag, where its default is another
REMOVED = {  # flags that older configurations have, and what they were for --recipe=published; None: any
    "cond_negatives": 0, "hard_share": None, "undiffused_loss_weight": 0.0, "score_fusion": 0.0, "fused_pooling": None,
    "condition": "tokens", "round_last": "yes", "sweep": None, "detect_anomaly": None, "profile": None,
}  # fmt: skip
CROSS_ATTENTION_ARCHS = ("clip_stochastic", "clip_tmass", "clip_transformer")


# of the help: title and what its flags are for
GROUPS = {
    "data": "Which videos and captions, how many frames of each, and where decoded frames are kept.",
    "model": "Which retrieval model, on which CLIP.",
    "diffusion": "The text diffusion of TextDiffs (--arch=clip_stochastic).",
    "T-MASS": "The sampled texts of T-MASS (--arch=clip_tmass).",
    "training": "The optimiser, its steps, and going on with a run. Other programs read --batch_size and --seed.",
    "device": "Where it is computed, and in which arithmetic.",
    "evaluation": "What test.py, and train.py between its steps, compute and show.",
    "checkpoint and more files": "Which checkpoint is read, and what is kept besides results. Not of train.py.",
    "output": "Where files go, how often, and which.",
}


def flag(
    default: Any,
    help: str,
    *,
    group: str,
    choices: Sequence[str] = (),
    aliases: Sequence[str] = (),
    archs: Sequence[str] | None = None,
    recipe: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    no_effect: str = "",
    alone: str | None = None,
    needs: str = "",
    metavar: str = "",
    unset: str = "none",
) -> Any:
    """A field of Config that is a flag.

    :param archs: the archs for which the flag does something; None means all of them.
    :param recipe: the only --recipe for which it does something; "" means both.
    :param no_effect: why the flag never does anything here, for flags kept so that known commands run.
    :param alone: the value of the flag when it is given without one.
    :param needs: the flag without which it does nothing, or FLAG=VALUE.
    :param metavar: what the help calls its value: a unit, or a kind of text; a path has one of PLACES.
    :param unset: what the help says of a default of None.
    """
    metadata = {
        "help": help,
        "group": group,
        "choices": tuple(choices),
        "aliases": tuple(aliases),
        "archs": archs,
        "recipe": recipe,
        "minimum": minimum,
        "maximum": maximum,
        "no_effect": no_effect,
        "alone": alone,
        "needs": needs,
        "metavar": metavar,
        "unset": unset,
    }
    return field(default=default, metadata=metadata)


@dataclass
class Config:
    """All settings of a run. `Config.parse` reads a command line; `save` and `load` keep it in config.json."""

    # data
    dataset_name: str = flag("MSRVTT", "data set", group="data", choices=DATASETS)
    videos_dir: str | None = flag(
        None,
        "folder of the video files, which may lie in subfolders",
        group="data",
        metavar="DIR",
        unset="none; only MovingShapes, which makes its own, does without",
    )
    data_dir: str = flag(
        "./data", "folder that holds <Dataset>/ with the annotation files", group="data", metavar="DIR"
    )
    annotations: str | None = flag(
        None,
        "file of --dataset_name=custom: .csv or .jsonl with video, caption and, if wanted, start, end, split",
        group="data",
        metavar="FILE",
        unset="none",
    )
    allow_missing: bool = flag(
        False, "go on without the videos that have no file; tables then say n of N", group="data"
    )
    msrvtt_train_file: str = flag("9k", "training split of MSR-VTT", group="data", choices=("7k", "9k"))
    split: str = flag(
        "usual",
        "test split: of MovingShapes also a large one, 500 videos that begin with the usual 100, and one of motion: "
        "200 pairs of videos that differ in one fact",
        group="data",
        choices=("usual", "large", "motion"),
        needs="dataset_name=MovingShapes",
    )
    num_frames: int = flag(
        12, "frames taken of each video", group="data", aliases=("num_frame",), minimum=1, metavar="FRAMES"
    )
    video_sample_type: str = flag(
        "uniform",
        "frame of each equal part of a video in training: its middle or a random one; tests take the middle",
        group="data",
        choices=("uniform", "rand"),
    )
    input_res: int | None = flag(
        None,
        "side of the square input, in pixels",
        group="data",
        minimum=1,
        metavar="PIXELS",
        unset="that of the CLIP: 224, tiny 64; of --clip_path what its files say",
    )
    num_workers: int = flag(
        8,
        "processes that decode videos, at most one per CPU core; 0 decodes in the main process",
        group="data",
        minimum=0,
        metavar="PROCESSES",
    )
    frame_cache: str | None = flag(
        None,
        "folder that keeps decoded frames, so that only the first epoch decodes; runs may share it",
        group="data",
        metavar="DIR",
        unset="none, every epoch decodes",
    )
    frame_cache_gb: float | None = flag(
        None, "size at which the frame cache takes no more, in GB", group="data", minimum=0,
        needs="frame_cache", metavar="GB", unset="no limit",
    )  # fmt: skip
    frame_cache_side: int = flag(
        256,
        "shorter side, in pixels, to which larger frames are reduced in the frame cache",
        group="data",
        minimum=1,
        needs="frame_cache",
        metavar="PIXELS",
    )
    raw_video: bool = flag(False, "frames come from video files", group="data", no_effect="they always do here")

    # model
    arch: str = flag(
        "clip_stochastic",
        "retrieval model: clip_stochastic or clip_textdiffs is TextDiffs, clip_tmass T-MASS, clip_transformer X-Pool,"
        " clip_baseline CLIP with simple pooling",
        group="model",
        choices=(*ARCHS, *ARCH_ALIASES),
    )
    recipe: str = flag(
        "textdiffs",
        "ours, or the published one in every detail",
        group="model",
        choices=("textdiffs", "published"),
        archs=DIFFUSION_ARCHS,
    )
    clip_arch: str = flag(
        "ViT-B/32",
        "CLIP that is fine-tuned; two are small and need no download: tiny has random weights, tiny-shapes knows"
        " pictures of drawn shapes",
        group="model",
        choices=tuple(CLIP_INPUT_RES),
    )
    clip_path: str | None = flag(
        None,
        "CLIP instead of --clip_arch: hub id, local folder (config, weights, preprocessing, tokenizer) or state dict"
        " with OpenAI's names; with a checkpoint only its tokenizer is read",
        group="model",
        metavar="PATH",
        unset="none",
    )
    embed_dim: int | None = flag(
        None,
        "width of the CLIP embedding, which is only checked; that of ViT-B/32 is 512",
        group="model",
        minimum=1,
        unset="that of the CLIP",
    )
    pooling_type: str = flag(
        "transformer",
        "how frames become a video with clip_baseline: avg is their mean, and what it takes unless told otherwise; topk"
        " the mean of the --k most similar to the text; attention weighs them by a softmax of that similarity;"
        " transformer is --arch=clip_transformer",
        group="model",
        choices=("avg", "topk", "attention", "transformer"),
        archs=BASELINE,
    )
    k: int = flag(
        -1,
        "frames of top-k pooling, 1 to --num_frames",
        group="model",
        archs=BASELINE,
        needs="pooling_type=topk",
        metavar="FRAMES",
    )
    attention_temperature: float = flag(
        0.01, "temperature of attention pooling", group="model", archs=BASELINE, needs="pooling_type=attention"
    )
    num_mha_heads: int = flag(
        1, "heads of the text-frame attention", group="model", minimum=1, archs=CROSS_ATTENTION_ARCHS, metavar="HEADS"
    )
    transformer_dropout: float = flag(
        0.3,
        "dropout of the frame pooling, between 0 and 1",
        group="model",
        minimum=0,
        maximum=1,
        archs=CROSS_ATTENTION_ARCHS,
        metavar="SHARE",
    )

    # diffusion
    diffusion_steps: int = flag(
        10, "T, steps of the text diffusion", group="diffusion", minimum=1, archs=DIFFUSION_ARCHS, metavar="STEPS"
    )
    diffusion_lm: str | None = flag(
        None,
        "folder of the pre-trained Diffusion-LM: what the student starts as, or as published its teacher",
        group="diffusion",
        archs=DIFFUSION_ARCHS,
        metavar="DIR",
        unset="Diffusion-LM/diffusion_models/<dataset_name>, else diffusion_models itself",
    )
    diffusion_text_len: int = flag(
        PUBLISHED_TEXT_LENGTH,
        "L, word tokens of a caption in the diffusion",
        group="diffusion",
        minimum=3,
        maximum=512,
        archs=DIFFUSION_ARCHS,
        metavar="TOKENS",
    )
    read_captions: int = flag(
        5,
        "captions of each video of a batch, where it has so many, that the text diffusion learns to read in it",
        group="diffusion",
        minimum=1,
        archs=DIFFUSION_ARCHS,
        recipe="textdiffs",
        metavar="R",
    )
    potential_lr: float = flag(
        3e-4,
        "learning rate of the network that reads captions and of the encoder of the videos that it reads them with; "
        "small denoisers take more, such as 1e-2",
        group="diffusion",
        minimum=0,
        archs=DIFFUSION_ARCHS,
        recipe="textdiffs",
    )
    hard_negatives: int = flag(
        1,
        "wrong videos of the batch, the most similar ones, with which each caption is also read in training",
        group="diffusion",
        minimum=1,
        archs=DIFFUSION_ARCHS,
        recipe="textdiffs",
        metavar="K",
    )
    sampler: str = flag(
        "ddpm",
        "reverse process at inference",
        group="diffusion",
        choices=("ddpm", "ddim"),
        archs=DIFFUSION_ARCHS,
        recipe="published",
    )
    sampling_steps: int | None = flag(
        None,
        "steps at inference, at most --diffusion_steps",
        group="diffusion",
        minimum=1,
        archs=DIFFUSION_ARCHS,
        recipe="published",
        metavar="STEPS",
        unset="all of them",
    )

    # T-MASS
    support_loss_weight: float = flag(0.8, "weight of the support loss", group="T-MASS", minimum=0, archs=TMASS)
    stochastic_prior: str = flag(
        "uniform01",
        "what the text is sampled with: uniform numbers of [0, 1) or normal ones",
        group="T-MASS",
        choices=("uniform01", "normal"),
        archs=TMASS,
    )
    stochastic_prior_std: float = flag(
        1.0, "spread of the normal prior", group="T-MASS", minimum=0, archs=TMASS, needs="stochastic_prior=normal"
    )
    stochasic_trials: int = flag(
        20,
        "samples of the text for each pair at inference, of which the best counts",
        group="T-MASS",
        aliases=("stochastic_trials",),
        minimum=1,
        archs=TMASS,
        metavar="SAMPLES",
    )

    # training
    loss: str = flag("clip", "retrieval loss: symmetric InfoNCE", group="training", choices=("clip",))
    clip_lr: float = flag(1e-6, "learning rate of CLIP", group="training", minimum=0)
    noclip_lr: float = flag(
        1e-5, "learning rate of everything else", group="training", minimum=0, archs=CROSS_ATTENTION_ARCHS
    )
    batch_size: int = flag(
        32,
        "pairs of a training step in each process; videos or captions of an encoding step in evaluation",
        group="training",
        minimum=1,
        metavar="PAIRS",
    )
    num_epochs: int = flag(5, "passes over the training pairs", group="training", minimum=1, metavar="EPOCHS")
    weight_decay: float = flag(
        0.2, "weight decay of AdamW; biases, norms and scales have none", group="training", minimum=0
    )
    warmup_proportion: float = flag(
        0.1,
        "share of the steps, between 0 and 1, in which the learning rate rises",
        group="training",
        minimum=0,
        maximum=1,
        metavar="SHARE",
    )
    patch_dropout: float = flag(
        0.0,
        "share of the patches of each frame that training leaves out, at random, which makes its steps faster",
        group="training",
        minimum=0,
        maximum=1,
        metavar="SHARE",
    )
    seed: int = flag(24, "seed of everything random", group="training", minimum=0)
    gpu: str | None = flag(
        None,
        "index of the GPU, or cpu",
        group="device",
        metavar="INDEX",
        unset="the first GPU if there is one, else the CPU",
    )
    precision: str = flag(
        "auto",
        "arithmetic: auto is bf16 where the device is fast at it, else fp32",
        group="device",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    compile: bool = flag(
        False, "let torch.compile fuse the networks: slow to start, then faster; needs a C++ compiler", group="device"
    )
    grad_accum: int = flag(
        1,
        "a step takes K x batch_size pairs in the memory of batch_size, with the loss of all of them together",
        group="training",
        minimum=1,
        metavar="K",
    )
    gradient_checkpointing: bool = flag(
        False, "compute the layers of CLIP twice instead of keeping what they hold: less memory", group="training"
    )
    freeze_layer_num: int = flag(
        -1,
        "freeze CLIP's embeddings and its layers below this one; -1 freezes nothing",
        group="training",
        minimum=-1,
        metavar="LAYER",
    )
    resume: str | None = flag(
        None,
        "go on with a run: its checkpoint or folder; alone: the newest of --datetime, else of --exp_name",
        group="training",
        alone="latest",
        metavar="PATH",
        unset="a new run",
    )

    # evaluation
    metric: str = flag("t2v", "direction of the printed table", group="evaluation", choices=("t2v", "v2t"))
    DSL: bool = flag(False, "add rows with the dual softmax, which looks at all queries at once", group="evaluation")
    eval_window_size: int = flag(
        5, "evaluations in the window average of the log", group="evaluation", minimum=1, metavar="EVALUATIONS"
    )
    select_on: str = flag(
        "val",
        "split that chooses model_best.pth: val, that of the data set or training videos that are held out; or test, as"
        " published code does",
        group="evaluation",
        choices=("val", "test"),
    )
    evals_per_epoch: int = flag(
        1, "evaluations per epoch in training", group="evaluation", minimum=1, metavar="EVALUATIONS"
    )
    skip_eval: bool = flag(
        False, "train without evaluations; the last epoch becomes model_best.pth", group="evaluation"
    )
    load_epoch: int | None = flag(
        None,
        "epoch of the checkpoint to evaluate; 0 or -1 is model_best.pth",
        group="checkpoint and more files",
        minimum=-1,
        metavar="EPOCH",
        unset="the untrained model",
    )
    batch_size_split: int | None = flag(
        None,
        "(text, video) pairs diffused at once",
        group="evaluation",
        minimum=1,
        metavar="PAIRS",
        unset="by free memory",
    )
    chunk_size: int | None = flag(
        None,
        "like --batch_size_split, which wins",
        group="evaluation",
        minimum=1,
        metavar="PAIRS",
        unset="by free memory",
    )
    save_memory_mode: bool = flag(
        False, "few pairs at once, and score matrices in files below --output_dir", group="evaluation"
    )
    rerank_topk: int = flag(
        0,
        "rank all pairs with the texts as encoded, then score with the text diffusion, or with samples, only the K best"
        " of each query, in each direction; 0: all pairs",
        group="evaluation",
        minimum=0,
        archs=(*DIFFUSION_ARCHS, *TMASS),
        metavar="K",
    )
    save_embeddings: str | None = flag(
        None, "safetensors file for the text and frame features", group="checkpoint and more files", metavar="FILE"
    )
    load_embeddings: str | None = flag(
        None,
        "file of --save_embeddings: features are taken from there and no video is read",
        group="checkpoint and more files",
        metavar="FILE",
    )
    save_sims: str | None = flag(
        None, "npz file for the score matrices", group="checkpoint and more files", metavar="FILE"
    )
    report: bool = flag(
        False,
        "write report.html beside the results: tables, curves, queries with what was found; and its plots as PNG",
        group="checkpoint and more files",
    )

    # output
    exp_name: str = flag(
        "exp", "name of the experiment: runs lie in <output_dir>/<exp_name>/<datetime>", group="output"
    )
    output_dir: str = flag("./outputs", "folder of all runs", group="output", metavar="DIR")
    datetime: str | None = flag(None, "name of the run's folder", group="output", unset="in train.py the time now")
    save_every: int = flag(
        1, "epochs between checkpoint-epoch<N>.pth files", group="output", minimum=1, metavar="EPOCHS"
    )
    save_steps: int | None = flag(
        None,
        "steps between checkpoints within an epoch",
        group="output",
        minimum=1,
        metavar="STEPS",
        unset="at the end of epochs only",
    )
    keep_last: int | None = flag(
        None,
        "newest checkpoints that are kept beside model_best.pth",
        group="output",
        minimum=1,
        metavar="FILES",
        unset="all",
    )
    log_step: int = flag(10, "steps between log lines", group="output", minimum=1, metavar="STEPS")
    no_tensorboard: bool = flag(False, "write no TensorBoard files", group="output")
    tb_log_dir: str | None = flag(
        None, "folder of the TensorBoard files", group="output", metavar="DIR", unset="tensorboard in the run's folder"
    )
    noloss_record: bool = flag(False, "keep the losses out of TensorBoard", group="output")
    output_json: str | None = flag(
        None, "file for the results", group="output", metavar="FILE", unset="results.json in the run's folder"
    )

    def __post_init__(self) -> None:
        self.explicit: frozenset[str] = frozenset()  # flags that the command line gave, by field name

    @classmethod
    def parse(cls, argv: Sequence[str] | None = None, prog: str = "", description: str = "") -> "Config":
        """Read a command line.

        :param prog: the program, and `description` what it does, for --help.
        :raises InputError: a flag is unknown, or a value is not allowed.
        """
        parser = flag_parser(cls, prog, description)
        given = vars(parser.parse_args(sys.argv[1:] if argv is None else list(argv)))
        config = cls(**given)
        config.explicit = frozenset(given)
        config._resolve()
        return config

    def _resolve(self) -> None:
        """Check ranges and fill in defaults that follow from other flags."""
        self.arch = ARCH_ALIASES.get(self.arch, self.arch)
        for f in fields(self):
            value, meta = getattr(self, f.name), f.metadata
            if value is None:
                continue
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"--{f.name}={value} is not a finite number")
            if meta["minimum"] is not None and value < meta["minimum"]:
                raise InputError(f"--{f.name}={value} is too small: at least {meta['minimum']}")
            if meta["maximum"] is not None and value > meta["maximum"]:
                raise InputError(f"--{f.name}={value} is too large: at most {meta['maximum']}")
        if self.input_res is None and self.clip_path is None:  # else that of the files says it
            self.input_res = CLIP_INPUT_RES[self.clip_arch]
        if self.dataset_name == "custom" and self.annotations is None:
            raise InputError("--annotations is missing: the annotation file of --dataset_name=custom")
        self.check_frame_cache()
        if self.arch == "clip_baseline":
            self._resolve_pooling()
        if self.sampling_steps is None:
            self.sampling_steps = self.diffusion_steps
        if self.sampling_steps > self.diffusion_steps:
            raise InputError(
                f"--sampling_steps={self.sampling_steps} is more than --diffusion_steps={self.diffusion_steps}"
            )

    def check_frame_cache(self) -> None:
        """:raises InputError: it keeps frames that are smaller than the input."""
        if self.frame_cache is not None and self.frame_cache_side < (self.input_res or 0):
            raise InputError(
                f"--frame_cache_side={self.frame_cache_side} is less than the {self.input_res} pixels of the input"
            )

    def _resolve_pooling(self) -> None:
        if self.pooling_type == "transformer":
            if "pooling_type" in self.explicit:
                raise InputError("--pooling_type=transformer is --arch=clip_transformer; clip_baseline has the others")
            self.pooling_type = "avg"
        if self.pooling_type == "topk" and not 1 <= self.k <= self.num_frames:
            raise InputError(f"--pooling_type=topk needs --k of 1 to --num_frames={self.num_frames}, not {self.k}")
        if self.pooling_type == "attention" and self.attention_temperature <= 0:
            raise InputError(f"--attention_temperature={self.attention_temperature} is too small: it divides")

    def notes(self) -> list[str]:
        """One line for every given flag that cannot do anything in this run."""
        lines = []
        for f in fields(self):
            if f.name not in self.explicit:
                continue
            archs = f.metadata["archs"]
            if f.metadata["no_effect"]:
                lines.append(f"--{f.name} has no effect: {f.metadata['no_effect']}")
            elif f.name == "annotations" and self.dataset_name != "custom":
                lines.append("--annotations has no effect without --dataset_name=custom")
            elif archs is not None and self.arch not in archs:
                lines.append(f"--{f.name} has no effect with --arch={self.arch}: it belongs to {', '.join(archs)}")
            elif f.metadata["recipe"] not in ("", self.recipe):
                lines.append(f"--{f.name} has no effect without --recipe={f.metadata['recipe']}")
            elif f.name == "select_on" and self.skip_eval:
                lines.append("--select_on has no effect with --skip_eval: the last epoch becomes model_best.pth")
            elif not self._has(f.metadata["needs"]):
                lines.append(f"--{f.name} has no effect without --{f.metadata['needs']}")
        return lines

    def _has(self, needed: str) -> bool:
        """Whether a flag is set, or has the value of FLAG=VALUE."""
        name, _, value = needed.partition("=")
        return not needed or (getattr(self, name) == value if value else bool(getattr(self, name)))

    @property
    def run_dir(self) -> Path:
        """Folder of the run; gives the run a name by the clock when it has none."""
        if self.datetime is None:
            self.datetime = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        return Path(self.output_dir) / self.exp_name / self.datetime

    @property
    def test_split(self) -> str:
        """The name of the split that is tested on."""
        return "test" if self.split == "usual" or self.dataset_name != "MovingShapes" else f"test-{self.split}"

    @property
    def dataset_dir(self) -> Path:
        """Folder of the annotations of the data set; their file for custom."""
        if self.dataset_name == "custom" and self.annotations is not None:
            return Path(self.annotations)
        return Path(self.data_dir) / self.dataset_name

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """A Config of plain values, which may be older than some flags; names that no version has known are an error
        that lists them."""
        values = up_to_date(values)
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise InputError(f"configuration has unknown settings: {', '.join(unknown)}")
        return cls(**values)

    def save(self, path: Path) -> None:
        """Write config.json."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Config":
        """Read config.json."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ValueError("it holds no settings by name")
            return cls.from_dict(values)
        except (OSError, ValueError) as error:  # ValueError: neither UTF-8 nor JSON, or settings that are not known
            raise InputError(f"{path} is not a configuration: {error}") from error


def up_to_date(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that may be older than some flags: without those that are no more, and with what others meant then."""
    return BEFORE_THE_FLAG | {name: value for name, value in values.items() if name not in REMOVED}


def flag_parser(
    cls: type[Config],
    prog: str,
    description: str,
    usage: str = MANY_FLAGS,
    names: Container[str] | None = None,
    groups: Mapping[str, str] = GROUPS,
) -> Parser:
    """The parser of a command line, by groups of flags.

    :param names: the fields of `cls` that are its flags; None: all of them.
    :param groups: title of each group and what its flags are for; those without flags are left out.
    """
    parser = Parser(prog, description, usage)
    flags = [f for f in fields(cls) if names is None or f.name in names]
    used = {f.metadata["group"] for f in flags}
    parts = {title: parser.add_argument_group(title, said) for title, said in groups.items() if title in used}
    for f in flags:
        meta, group = f.metadata, parts[f.metadata["group"]]
        names = [f"--{name}" for name in (f.name, *meta["aliases"])]
        options: dict[str, Any] = {"dest": f.name, "default": argparse.SUPPRESS, "help": _help_of(f)}
        if f.type is bool:
            group.add_argument(*names, action="store_true", **options)
            continue
        value_type = next((t for t in get_args(f.type) if t is not type(None)), f.type)
        if meta["alone"]:
            options |= {"nargs": "?", "const": meta["alone"]}
        options |= {"choices": meta["choices"] or None, "metavar": _metavar_of(f, value_type)}
        group.add_argument(*names, type=at_home if meta["metavar"] in PLACES else value_type, **options)
    return parser


def _help_of(f: Field) -> str:
    """The help of a flag: what it is, its choices where they are too many to stand beside its name, its default."""
    help, choices = f.metadata["help"], f.metadata["choices"]
    if not _fit_beside_the_name(choices) and not all(choice in help for choice in choices):
        help += f"; one of {', '.join(choices)}"
    if f.metadata["no_effect"]:
        help += f"; no effect: {f.metadata['no_effect']}"
    default = f.metadata["unset"] if f.default is None else "off" if f.default is False else f.default
    return f"{help} (default: {default})".replace("%", "%%")


def _metavar_of(f: Field, value_type: type) -> str | None:
    """What the help calls the value of a flag; None: its choices."""
    if f.metadata["choices"] and _fit_beside_the_name(f.metadata["choices"]):
        return None
    return f.metadata["metavar"] or {int: "N", float: "X"}.get(value_type, "NAME")


def _fit_beside_the_name(choices: Sequence[str]) -> bool:
    return len(",".join(choices)) <= CHOICES_WIDTH
