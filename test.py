"""Evaluate a checkpoint: `python test.py --datetime=RUN --load_epoch=0 --dataset_name=MSRVTT --videos_dir=DIR ...`.

Without --load_epoch the untrained model is evaluated.
"""

import logging
import sys
from pathlib import Path

from config import Config
from trainer.run_folder import RESULTS_FILE, run_program

logger = logging.getLogger(__name__)


def main() -> None:
    # 1. settings
    config = Config.parse(prog="test.py")
    from datasets.annotations import load_split  # after parsing, so that --help and bad flags answer at once
    from model.factory import create_model, restore_model
    from trainer.checkpoints import find_checkpoint, load_checkpoint
    from trainer.device import choose_device, choose_precision, set_up
    from trainer.evaluation import Evaluator, format_table, write_results

    for note in config.notes():
        logger.info(note)
    device = choose_device(config.gpu)
    dtype = choose_precision(config.precision, device)
    set_up(device, config.seed)

    # 2. model
    if config.load_epoch is None:
        path, model = None, create_model(config)
        logger.info("no --load_epoch: this is the model before training")
    else:
        path = find_checkpoint(config)
        model = restore_model(config, load_checkpoint(path), path)
        logger.info("checkpoint %s", path)

    # 3. data
    places = (config.dataset_dir, config.videos_dir, config.msrvtt_train_file, config.allow_missing)
    split = load_split(config.dataset_name, "test", *places)

    # 4. evaluation
    evaluation = Evaluator(split, config, device, dtype)(model.to(device))
    logger.info(format_table(evaluation, config.metric, config.DSL))
    output = (
        Path(config.output_json) if config.output_json else (path.parent if path else config.run_dir) / RESULTS_FILE
    )
    write_results(output, evaluation, config, path and str(path))
    logger.info(
        "%d texts, %d videos, %.1f s, results in %s", len(split.captions), len(split.clips), evaluation.seconds, output
    )


if __name__ == "__main__":
    sys.exit(run_program("test.py", main))
