"""Pre-train a Diffusion-LM for TextDiffs: `python Diffusion-LM/train.py --dataset_name=MSRVTT`."""

import logging
import sys
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch

from config.pretraining import PretrainingConfig
from datasets.annotations import load_captions
from diffusion_lm import weights
from diffusion_lm.denoiser import DENOISERS, Denoiser
from diffusion_lm.gaussian_diffusion import GaussianDiffusion
from diffusion_lm.sampling import sample_captions
from diffusion_lm.training import split_held_out, spread_word_table
from diffusion_lm.vocabulary import SPECIAL_TOKENS, Vocabulary
from trainer.checkpoints import delete_old
from trainer.loop import GRADIENT_NORM
from trainer.pretraining import RUN, Pretraining, earlier_run, settings_of
from trainer.run_folder import MetricsWriter, logged_to
from utils import distributed
from utils.device import choose_device, choose_precision, set_up
from utils.errors import InputError
from utils.program import run_program

logger = logging.getLogger(__name__)


def main() -> None:
    config = PretrainingConfig.parse(__doc__)
    here = distributed.find_processes()
    device = choose_device(config.gpu, here)
    with distributed.process_group(here, device):
        run(config, here, device)


def run(config: PretrainingConfig, here: distributed.Processes, device: torch.device) -> None:
    """The training run, in one of its processes."""
    # 1. the run that goes on, captions
    config, earlier = earlier_run(config)
    with distributed.main_first():
        all_captions = read_captions(config)
    settings = settings_of(config, all_captions, earlier)
    if earlier and earlier.checkpoint is None:
        logger.info("--resume: the run is finished, there is nothing to do: %s", earlier.path)
        return
    captions, held_out_captions = split_held_out(all_captions, config.held_out, config.seed)
    vocabulary = Vocabulary.from_captions(captions, config.min_count)
    if len(vocabulary) == len(SPECIAL_TOKENS):
        raise InputError(f"--min_count={config.min_count}: no word occurs so often")
    word_ids, held_out_ids = (vocabulary.encode(texts, config.text_len) for texts in (captions, held_out_captions))

    # 2. model
    dtype = choose_precision(config.precision, device)
    set_up(device, config.seed, trains=True)
    denoiser = Denoiser(replace(DENOISERS[config.denoiser], dropout=config.dropout), len(vocabulary))
    spread_word_table(denoiser)
    random_table = torch.randn_like(denoiser.word_embedding.weight)
    denoiser, diffusion = denoiser.to(device), GaussianDiffusion.sqrt(config.diffusion_steps).to(device)

    # 3. training
    checkpoint = earlier and earlier.checkpoint
    with logged_to(config.folder, anew=not config.resume) if here.is_main else nullcontext():
        unknown = vocabulary.unknown_share(held_out_captions)
        logger.info("%d captions and %d held out, L = %d", len(captions), len(held_out_captions), config.text_len)
        logger.info("%d words; %.1f %% of the held-out words are not among them", len(vocabulary), 100 * unknown)
        logger.info("denoiser %s on %s, %s", config.denoiser, device, dtype)
        logger.info("batch of %d captions: %d processes x %d", settings["batch_size"], here.size, config.batch_size)
        step = checkpoint["step"] if checkpoint else 0
        with closing(MetricsWriter(config.folder, None, step)) if here.is_main else nullcontext() as writer:
            data = (word_ids, held_out_ids)
            training = Pretraining(denoiser, diffusion, *data, config, dtype, settings, writer, checkpoint)
            del earlier, checkpoint  # of a base denoiser 1.4 GB
            seconds = training.train()
        if not here.is_main:
            return

        # 4. files
        averaged = training.average.module
        training_args = published_names(config, denoiser) | {
            "held_out": {"captions": len(held_out_captions), "unknown_words": unknown, **asdict(training.held_out)},
            "batch_size": settings["batch_size"],
            "seconds": round(seconds, 1),
            RUN: settings,
        }
        state = {name: tensor.cpu() for name, tensor in averaged.state_dict().items()}
        path = weights.save(config.folder, state, random_table.cpu(), vocabulary, training_args)
        delete_old(config.folder, 0, training.checkpoint_name)
        logger.info("%.0f s; %s", seconds, path)

        # 5. samples
        for caption in sample_captions(averaged, diffusion, vocabulary, config.samples, config.text_len, config.seed):
            logger.info("%s", caption)


def read_captions(config: PretrainingConfig) -> list[str]:
    """The captions to learn from, one blank between words."""
    if config.dataset_name:
        custom = config.dataset_name == "custom"
        place = Path(config.annotations if custom else Path(config.data_dir) / config.dataset_name)
        return load_captions(config.dataset_name, place, config.msrvtt_train_file)
    try:
        lines = Path(config.captions).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"--captions={config.captions} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--captions={config.captions} is not UTF-8 text (byte {error.start})") from error
    return [caption for line in lines if (caption := " ".join(line.split()))]


def published_names(config: PretrainingConfig, denoiser: Denoiser) -> dict:
    """Hyper-parameters for training_args.json, under the published names where there are any."""
    kept = ("dropout", "diffusion_steps", "text_len", "min_count", "steps", "lr", "ema_rate", "seed")
    return {name: getattr(config, name) for name in kept} | {
        "dataset_name": config.source,
        "denoiser": denoiser.config.to_dict(),
        "vocab_size": denoiser.vocabulary_size,
        "in_channel": denoiser.config.channels,
        "out_channel": denoiser.config.channels,
        "noise_schedule": "sqrt",
        "predict_xstart": True,
        "learn_sigma": False,
        "sigma_small": False,
        "training_mode": "e2e",
        "lr_anneal_steps": config.steps,
        "weight_decay": 0.0,
        "gradient_clipping": GRADIENT_NORM,
    }


if __name__ == "__main__":
    sys.exit(run_program("train.py", main))
