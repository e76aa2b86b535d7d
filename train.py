"""Train a text-video retrieval model: `python train.py --dataset_name=MSRVTT --videos_dir=DIR ...`."""

import logging
import sys
from pathlib import Path

from config import Config
from trainer.run_folder import run_program

logger = logging.getLogger(__name__)


def main() -> None:
    # 1. settings
    config = Config.parse(prog="train.py")
    from datasets.annotations import load_split  # after parsing, so that --help and bad flags answer at once
    from model.factory import create_model
    from trainer.device import choose_device, choose_precision, set_up
    from trainer.evaluation import Evaluator
    from trainer.run_folder import MetricsWriter, training_folder
    from trainer.trainer import Trainer

    for note in config.notes():
        logger.info(note)
    if config.load_epoch is not None:
        logger.info("--load_epoch has no effect in train.py: it is for test.py")
    device = choose_device(config.gpu)
    dtype = choose_precision(config.precision, device)
    set_up(device, config.seed)

    # 2. data
    places = (config.dataset_dir, config.videos_dir, config.msrvtt_train_file, config.allow_missing)
    train_split = load_split(config.dataset_name, "train", *places)
    test_split = None if config.skip_eval else load_split(config.dataset_name, "test", *places)

    # 3. model
    model = create_model(config).to(device)

    # 4. training
    with training_folder(config) as folder:
        logger.info("run folder %s, device %s, %s", folder, device, dtype)
        logger.info("%d training pairs of %d videos", len(train_split.captions), len(train_split.clips))
        tensorboard = None if config.no_tensorboard else Path(config.tb_log_dir or folder / "tensorboard")
        writer = MetricsWriter(folder, tensorboard)
        evaluator = test_split and Evaluator(test_split, config, device, dtype)
        try:
            Trainer(model, config, train_split, evaluator, device, dtype, folder, writer).train()
        finally:
            writer.close()
        logger.info("checkpoints are in %s", folder)


if __name__ == "__main__":
    sys.exit(run_program("train.py", main))
