"""Evaluate a checkpoint: `python test.py --datetime=RUN --load_epoch=0 --dataset_name=MSRVTT --videos_dir=DIR`.

Without --load_epoch the untrained model is evaluated. torchrun or mpirun share the work over several processes.
"""

import logging
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from config import Config
from trainer.run_folder import RESULTS_FILE
from utils.files import check_writable
from utils.program import run_program

if TYPE_CHECKING:
    from datasets.annotations import Split
    from evaluation.embeddings import Embeddings
    from evaluation.evaluator import Evaluator
    from evaluation.results import Evaluation
    from model.retrieval import RetrievalModel

logger = logging.getLogger(__name__)


def main() -> None:
    # 1. settings
    config = Config.parse(program="test", description=__doc__)
    # imported after parsing, so that --help and bad flags answer at once
    from datasets.video_kind import warn_of_others
    from evaluation.evaluator import Evaluator
    from evaluation.results import format_table, write_results
    from trainer.checkpoints import chosen_model
    from utils import distributed
    from utils.device import check_compiler, choose_device, choose_precision, set_up

    here = distributed.find_processes()
    device = choose_device(config.gpu, here)
    dtype = choose_precision(config.precision, device)
    with distributed.process_group(here, device):
        set_up(device, config.seed)
        if config.compile:
            check_compiler(device)

        # 2. model
        path, model, selection, trained_on = chosen_model(config)
        config = config.of_model(model.model_config)
        for note in config.notes("test"):  # now that the checkpoint has told its arch and recipe
            logger.info(note)
        logger.info(f"checkpoint {path}" if path else "no --load_epoch: this is the model before training")
        output = Path(config.output_json or (path.parent if path else config.named().run_dir) / RESULTS_FILE)
        if here.is_main:
            check_writable(output, config.save_embeddings, config.save_sims)
        model.to(device).eval()

        # 3. data
        with distributed.main_first():
            split = read_split(config)
        if here.is_main and not config.load_embeddings:
            warn_of_others(trained_on, split)
        evaluator = Evaluator(split, config, device, dtype, model.preprocessing)

        report = None
        if config.report and here.is_main:
            from report.page import Report  # with matplotlib, slow to import and not always wanted

            report = Report(split, config, path, selection, device)

        # 4. features
        started = time.perf_counter()
        embeddings = encoded(config, model, evaluator, here.is_main)

        # 5. evaluation
        sims = config.save_sims and Path(config.save_sims)
        evaluation = evaluator.evaluate(model, embeddings, sims=sims, look=report and report.look)
        evaluation = replace(evaluation, seconds=time.perf_counter() - started)
        logger.info(format_table(evaluation, config.metric, config.DSL, selection))
        if here.is_main:
            write_results(output, evaluation, config, path and str(path), selection)
        logger.info(f"{counts(evaluation, split)}, results in {output}")

        # 6. the page
        if report:
            report.read_words(evaluator, model, embeddings)
            logger.info("report: %s", report.write(output.parent, evaluation))


def counts(evaluation: "Evaluation", split: "Split") -> str:
    """How much was evaluated, and how long it took."""
    seconds = f"{evaluation.seconds:.1f} s of which {evaluation.similarity_seconds:.1f} s"
    pairs = f"{seconds} for {evaluation.pairs_diffused} diffused pairs"
    return f"{len(split.captions)} texts, {len(split.segments)} videos, {pairs}"


def read_split(config: Config) -> "Split":
    """The test split; with --load_embeddings its videos are not needed."""
    from datasets.annotations import load_annotations, load_split
    from evaluation.embeddings import without_missing

    of = (config.dataset_name, config.test_split, config.dataset_dir)
    if not config.load_embeddings:
        return load_split(*of, config.videos_dir, config.msrvtt_train_file, config.allow_missing)
    split = load_annotations(*of, config.msrvtt_train_file)
    return without_missing(Path(config.load_embeddings), split) if config.allow_missing else split


def encoded(config: Config, model: "RetrievalModel", evaluator: "Evaluator", is_main: bool) -> "Embeddings":
    """Features of the split, computed or those of --load_embeddings; kept where --save_embeddings says so."""
    from evaluation.embeddings import fingerprint, load_embeddings, save_embeddings

    split, loads, saves = evaluator.split, config.load_embeddings, config.save_embeddings
    marks = fingerprint(model, split, config, evaluator.dtype) if loads or saves else {}
    embeddings = load_embeddings(Path(loads), split, marks) if loads else evaluator.encode(model)
    if saves and is_main:
        save_embeddings(Path(saves), embeddings, split, marks)
    return embeddings


if __name__ == "__main__":
    sys.exit(run_program("test.py", main))
