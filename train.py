"""Train a text-video retrieval model: `python train.py --dataset_name=MSRVTT --videos_dir=DIR`.

Several processes: `torchrun --nproc_per_node=N train.py FLAGS`, `mpirun -n N python train.py FLAGS`, or srun.
"""

import logging
import sys
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from config import Config
from utils.program import run_program

if TYPE_CHECKING:
    from model.retrieval import RetrievalModel

logger = logging.getLogger(__name__)


def main(build: "Callable[[Config], RetrievalModel] | None" = None) -> None:
    """Train.

    :param build: makes another model than the one that the flags name.
    """
    # 1. settings
    config = Config.parse(program="train", description=__doc__)
    from datasets.data_record import same_data
    from datasets.holdout import training_splits  # after parsing, so that --help and bad flags answer at once
    from model.factory import create_model, restore_model
    from trainer.model_card import write_card
    from trainer.resume import resume_together
    from trainer.run_folder import MetricsWriter, training_folder
    from trainer.trainer import Trainer
    from utils import distributed
    from utils.device import choose_device, choose_precision, set_up
    from utils.files import check_writable

    for note in config.notes("train"):
        logger.info(note)
    here = distributed.find_processes()
    device = choose_device(config.gpu, here)

    with distributed.process_group(here, device):
        config, path, checkpoint = resume_together(config)
        config = replace(config, datetime=distributed.broadcast_object(config.named().datetime))
        if here.is_main:
            check_writable(config.output_json)
        dtype = choose_precision(config.precision, device)
        set_up(device, config.seed, trains=True)

        # 2. data
        with distributed.main_first():
            splits = training_splits(config)
        data = same_data(checkpoint, path, splits.train, splits.val or splits.test) if here.is_main else None

        # 3. model
        with distributed.main_first():
            if build is not None:
                model = build(config)
                if checkpoint:
                    model.load_state_dict(checkpoint["state_dict"])
            else:
                model = restore_model(config, checkpoint, path) if checkpoint else create_model(config)
        config = config.of_model(model.model_config)
        model.to(device)

        # 4. training
        writes = training_folder(config, config.resume is not None) if here.is_main else nullcontext(config.run_dir)
        with writes as folder:
            logger.info("run folder %s, device %s, %s", folder, device, dtype)
            logger.info("%d training pairs of %d videos", len(splits.train.captions), len(splits.train.segments))
            logger.info("model_best.pth is %s", splits.selection)
            tensorboard = None if config.no_tensorboard else Path(config.tb_log_dir or folder / "tensorboard")
            done = (checkpoint["step"], checkpoint.get("evaluated", True)) if checkpoint else ()
            with closing(MetricsWriter(folder, tensorboard, *done)) if here.is_main else nullcontext() as writer:
                Trainer(model, config, splits, device, dtype, folder, writer, checkpoint, data).train()
            if here.is_main:
                write_card(folder, config, model.model_config, splits.train)
            logger.info("checkpoints are in %s", folder)


if __name__ == "__main__":
    sys.exit(run_program("train.py", main))
