"""The training loop."""

import functools
import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

from config import Config
from datasets.data_record import Record
from datasets.failures import FailedVideos, TimesBeyond
from datasets.frame_cache import CacheSettings
from datasets.holdout import TrainingSplits
from datasets.loading import TrainPairs, batch_that_fits, batches, train_loader
from datasets.video_kind import VideoKind, warn_of_others
from evaluation.evaluator import Evaluator
from evaluation.results import Evaluation, format_table, write_results
from model.retrieval import RetrievalModel
from modules.losses import clamp_logit_scale
from trainer.captions import TrainingCaptions
from trainer.checkpoints import BEST, delete_old, epoch_file, load_checkpoint, save_checkpoint, step_file
from trainer.loop import Loop
from trainer.optimizer import make_optimizer
from trainer.resume import how_to_go_on, how_to_test, what_is_kept
from trainer.run_folder import EVALUATION, RESULTS_FILE, TEST, MetricsWriter, TrainedError
from trainer.throughput import SLOW_LOADING, Stopwatch, how_to_load_faster, memory_gb
from trainer.training_step import TrainingStep
from utils import distributed
from utils.device import random_state, seed_process, set_random_state
from utils.errors import InputError
from utils.progress import progress
from utils.stop import Interrupted

logger = logging.getLogger(__name__)

WINDOW_COLUMNS = ("R1", "R5", "R10", "MedR", "MeanR")
SHOWN_PAIRS = 8  # of a batch, in an error


def _figures(evaluation: Evaluation, prefix: str) -> dict[str, float]:
    """The figures of an evaluation by name, for curves."""
    return {
        f"{prefix}/{row['metric']}_{row['protocol']}{'_dsl' if row['dsl'] else ''}/{name}": row[name]
        for row in evaluation.results
        for name in WINDOW_COLUMNS
    }


class Trainer(Loop):
    """Trains a model on pairs of a split, evaluates it on the way and keeps the best.

    :param model: on its device.
    :param splits: of the run.
    :param folder: of the run.
    :param writer: of the metrics; None in all processes but the main one.
    :param resumed: the checkpoint to go on from, whose weights the model has already.
    :param data: what `same_data` gave, for the checkpoints that the main process writes.
    """

    remedy = "lower --clip_lr or --noclip_lr, or give --precision=fp32"
    model: RetrievalModel

    def __init__(
        self,
        model: RetrievalModel,
        config: Config,
        splits: TrainingSplits,
        device: torch.device,
        dtype: torch.dtype,
        folder: Path,
        writer: MetricsWriter | None,
        resumed: dict[str, Any] | None = None,
        data: Record | None = None,
    ) -> None:
        super().__init__(model, folder, device, dtype, config.seed)
        self.config, self.split, self.selection = config, splits.train, splits.selection
        self.writer, self.data = writer, data
        self.videos = VideoKind.of(splits.train) if distributed.is_main() else None
        chooses = splits.val or splits.test  # None: the last epoch is taken
        evaluator = functools.partial(
            Evaluator, config=config, device=device, dtype=dtype, preprocessing=model.preprocessing
        )
        self.evaluator = chooses and evaluator(chooses)
        self.tester = splits.val and evaluator(splits.test)  # of the best model, once
        rank, size = distributed.rank(), distributed.size()
        cache = CacheSettings.of(config)
        frames = (config.num_frames, config.input_res, config.video_sample_type, config.seed)
        pairs = TrainPairs(self.split, *frames, cache, model.preprocessing)
        batch_size = batch_that_fits(pairs, config.batch_size, size * config.grad_accum)
        own = batch_size * config.grad_accum
        self.rows, self.batch_size = range(rank * own, (rank + 1) * own), own * size
        self.loader = train_loader(pairs, own, config.num_workers, config.seed, device.type == "cuda", rank, size)
        self.steps_of_epoch = self.loader.sampler.steps
        self.epoch, self.epoch_step = 1, 0  # the epoch being trained, steps done of it
        self.captions = TrainingCaptions(self.split, model, config.seed)
        clamp_logit_scale(model.clip.logit_scale)  # weights of others may come with more
        model.train()
        model.prepare(config.gradient_checkpointing, config.compile)
        self.training_step = distributed.synchronised(TrainingStep(model, config.grad_accum, device, dtype))
        self.optimizer = make_optimizer(model, config)
        total = self.steps_of_epoch * config.num_epochs
        warmup = math.ceil(total * config.warmup_proportion)
        self.scheduler = get_cosine_schedule_with_warmup(self.optimizer, warmup, total)
        self.evaluated = True  # unless an evaluation is due at this step
        self.best = -1.0
        self.window: deque[dict[str, float]] = deque(maxlen=config.eval_window_size)
        self.watch = Stopwatch()
        if resumed is not None:
            self._restore(resumed)
        elif size > 1:
            seed_process(config.seed, rank, 0)
        logger.info("batch of %d pairs: %d processes x %d%s", self.batch_size, size, batch_size,
                    f" x {config.grad_accum} chunks" if config.grad_accum > 1 else "")  # fmt: skip

    def train(self) -> None:
        """All epochs, from where the run is.

        :raises RunStopped: a signal came; the run is saved.
        :raises RunError: the loss is not finite.
        :raises TrainedError: bad input was met after the first step.
        """
        with self.stop:
            try:
                self._train_epochs()
                self._test()
            except TrainedError:
                raise
            except InputError as error:
                if not self.step:
                    raise
                raise TrainedError(f"{error}; {what_is_kept(self.folder)}") from error

    def _train_epochs(self) -> None:
        if not self.evaluated:
            self._evaluate(self._checkpoint_file())
        for epoch in range(self.epoch, self.config.num_epochs + 1):
            if epoch > self.epoch:
                self.epoch, self.epoch_step = epoch, 0
            self._train_epoch()
        if self.evaluator is None:
            self._save(BEST)
            logger.info("no evaluation was wanted: the last epoch is %s", self.folder / BEST)

    def _train_epoch(self) -> None:
        steps, parts = self.steps_of_epoch, self.config.evals_per_epoch
        evaluate_after = {round(steps * (i + 1) / parts) for i in range(parts)} if self.evaluator is not None else set()
        self.loader.sampler.set_epoch(self.epoch, self.epoch_step)
        self.model.train()
        self.told_slow = False
        started = time.perf_counter()
        self.watch.restart()
        failed, beyond = FailedVideos(steps * len(self.rows)), TimesBeyond(self.split)
        loaded = self.watch.waiting(batches(self.loader, failed, beyond.of_caption))
        for frames, index in self._progress(self._until_the_end(loaded)):
            self._train_step(frames, index)
            if self.epoch_step % self.config.log_step == 0 or self.epoch_step == steps:
                self._log_step()
            with self.watch.paused():
                self._save_and_evaluate(self.epoch_step in evaluate_after)
        logger.info("epoch %d took %.1f s", self.epoch, time.perf_counter() - started)
        if failed.replaced:
            logger.warning("epoch %d: %s", self.epoch, failed.summary())
        if beyond.reasons:
            logger.warning("epoch %d: %s", self.epoch, beyond.summary())

    def _progress(self, steps: Iterable) -> Iterable:
        return progress(
            steps, f"epoch {self.epoch}", self.steps_of_epoch, "steps",
            shown=distributed.is_main(), done=self.epoch_step,
        )  # fmt: skip

    def _train_step(self, frames: Tensor, index: Tensor) -> None:
        """One optimizer step on the pairs of this process.

        :param frames: uint8 (B, F, 3, R, R), on the CPU.
        :param index: captions (B,), on the CPU.
        """
        noise = self.model.draw_noise(self.step, self.rows)
        tokens = self.captions.take(index, self.step, self.rows)
        losses = self.training_step(frames, tokens, noise)
        loss = torch.stack(list(losses.values())).sum()
        self._descend(losses | {"loss": loss})
        self.epoch_step += 1
        clamp_logit_scale(self.model.clip.logit_scale)
        self.watch.pairs += self.batch_size

    def _where(self, step: int) -> str:
        """The epoch and step, and which pairs they were."""
        epoch_step = step - self.step + self.epoch_step
        index = self.loader.sampler.batches()[epoch_step - 1].tolist()
        segments = self.split.segment_of_caption
        pairs = [f"{self.split.segments[segments[i]].video_id} (caption {i})" for i in index]
        logger.error("pairs of the step that is not finite: %s", ", ".join(pairs))
        more = f" and {len(pairs) - SHOWN_PAIRS} more" if pairs[SHOWN_PAIRS:] else ""
        shown = ", ".join(pairs[:SHOWN_PAIRS]) + more
        return f"epoch {self.epoch}, step {epoch_step} ({step} of the run), with the pairs {shown}"

    def _log_step(self) -> None:
        means = self._read_recent().mean(0).tolist()
        self.recent.clear()
        values = {f"train/{name}": value for name, value in zip(self.names, means, strict=True)}
        values["train/lr_max"] = max(self.scheduler.get_last_lr())
        speed, waited = self.watch.read()
        self.watch.restart()
        if self.writer is None:
            return
        memory = memory_gb(self.device)
        figures = {"speed/pairs_per_s": speed, "speed/data_wait": waited, "speed/memory_gb": memory}
        self.writer.write(self.step, self.epoch, values | figures, tensorboard=not self.config.noloss_record)
        logger.info(
            "epoch %d, step %d of %d: %s; %.3g pairs/s, %.0f %% waiting for data, %.2f GB",
            self.epoch, self.epoch_step, self.steps_of_epoch,
            ", ".join(f"{name} {value:.4f}" for name, value in zip(self.names, means, strict=True)),
            speed, 100 * waited, memory,
        )  # fmt: skip
        if waited > SLOW_LOADING and self.epoch_step > self.config.log_step and not self.told_slow:
            self.told_slow = True
            logger.warning(how_to_load_faster(waited, self.config.num_workers))

    def _place(self) -> str:
        return f"step {self.epoch_step} of epoch {self.epoch}"

    def _how_to_go_on(self) -> str:
        return how_to_go_on(self.folder)

    def _save_step(self) -> None:
        self._save(self._checkpoint_file())

    def _checkpoint_file(self) -> str:
        whole = self.epoch_step == self.steps_of_epoch and self.epoch % self.config.save_every == 0
        return epoch_file(self.epoch) if whole else step_file(self.epoch, self.epoch_step)

    def _save_and_evaluate(self, evaluate: bool) -> None:
        """What is due after a step. An evaluation comes after a checkpoint, so that it may fail, or be interrupted; as
        does the test, after the last step."""
        name = self._checkpoint_file()
        self.evaluated = not evaluate
        if evaluate or self._is_due():
            self._save(name, counts=self._is_due())
        if evaluate:
            if distributed.any_process(self.stop.number != 0):
                self._end()
            last = self.step == self.steps_of_epoch * self.config.num_epochs
            stays = self._is_due() or (last and self.tester is not None)
            self._evaluate(name if stays else None)
            if not stays:
                self._remove_checkpoint()

    def _is_due(self) -> bool:
        """Whether --save_every or --save_steps want a checkpoint of this step."""
        steps = self.config.save_steps
        return self._checkpoint_file() == epoch_file(self.epoch) or (steps is not None and self.step % steps == 0)

    def _remove_checkpoint(self) -> None:
        """That of this step, which was only for an evaluation."""
        if distributed.is_main():
            (self.folder / self._checkpoint_file()).unlink(missing_ok=True)

    def _evaluate(self, name: str | None) -> None:
        """Evaluate, and keep the model if it is the best so far.

        :param name: of the checkpoint of this step, which is written again with what was found; None leaves it.
        :raises RunStopped: a signal came.
        """
        self._read_recent()
        before = random_state(self.device)  # how many numbers loaders draw depends on their workers
        metric = self.config.metric
        evaluation, row = self._evaluation(self.evaluator, mix=self.tester is not None)
        set_random_state(before, self.device)
        self.window.append(row)
        window = {name: sum(r[name] for r in self.window) / len(self.window) for name in WINDOW_COLUMNS}
        better = row["R1"] > self.best
        self.best = max(self.best, row["R1"])
        self.evaluated = True
        if distributed.is_main():
            self._tell(evaluation, window)
        if better:
            self._save(BEST, metrics=row)
            if self.tester is None and distributed.is_main():
                self._write_results(evaluation)
        logger.info("best %s strict R@1 so far: %.1f", metric, self.best)
        if name is not None:
            self._save(name, counts=self._is_due())

    def _evaluation(self, evaluator: Evaluator, mix: bool = False) -> tuple[Evaluation, dict[str, Any]]:
        """Evaluate the model as it is; and the strict row of --metric.

        :param mix: as in `Evaluator`; not by the split that is tested.
        :raises RunStopped: a signal came.
        """
        try:
            with self.stop.at_once():
                evaluation = evaluator(self.model, mix)
                row = evaluation.row(self.config.metric) if distributed.is_main() else None
                return evaluation, distributed.broadcast_object(row)
        except Interrupted:
            self.stop.end_run(self._place(), self._how_to_go_on(), together=False)

    def _test(self) -> None:
        """Evaluate the best model on the test split, once, where that split has not chosen it."""
        if self.tester is None or self._is_tested():
            return
        best = self.folder / BEST
        distributed.barrier()  # until it is written
        self.model.load_state_dict(load_checkpoint(best)["state_dict"])
        try:
            evaluation, _ = self._evaluation(self.tester)
            if distributed.is_main():
                self._write_results(evaluation)
                table = format_table(evaluation, self.config.metric, self.config.DSL, self.selection)
                logger.info("test of %s in %.1f s\n%s", best, evaluation.seconds, table)
                values = _figures(evaluation, "test") | {TEST: evaluation.seconds}
                self.writer.write(self.step, self.epoch, values)
        except InputError as error:
            raise TrainedError(
                f"{error}; the training is complete, and {best} is kept: evaluate it with {how_to_test(self.config)}"
            ) from error
        if not self._is_due():
            self._remove_checkpoint()

    def _is_tested(self) -> bool:
        """Whether the run, which goes on, had got to its end."""
        tested = self.writer is not None and self.writer.tested and self._results_file().exists()
        tested = distributed.broadcast_object(tested)
        if tested:
            logger.info("the run has ended before, its results are in %s", self._results_file())
        return tested

    def _results_file(self) -> Path:
        return Path(self.config.output_json or self.folder / RESULTS_FILE)

    def _write_results(self, evaluation: Evaluation) -> None:
        write_results(self._results_file(), evaluation, self.config, str(self.folder / BEST), self.selection)

    def _tell(self, evaluation: Evaluation, window: dict[str, float]) -> None:
        metric = self.config.metric
        table = format_table(evaluation, metric, self.config.DSL)
        logger.info(
            "epoch %d, evaluation on the %s split in %.1f s\n%s",
            self.epoch, evaluation.split, evaluation.seconds, table,
        )  # fmt: skip
        averages = ", ".join(f"{name} {value:.1f}" for name, value in window.items())
        logger.info("%s strict, average of the last %d: %s", metric, len(self.window), averages)
        values = _figures(evaluation, "eval")
        values |= {f"eval_window/{name}": value for name, value in window.items()}
        self.writer.write(self.step, self.epoch, values | {EVALUATION: evaluation.seconds})

    def _save(self, name: str, metrics: dict | None = None, counts: bool = True) -> None:
        """Write a checkpoint; only of finite losses.

        :param counts: as one of --keep_last.
        """
        training = self._training_state()
        if training is None:
            return
        training |= {
            "epoch_step": self.epoch_step,
            "evaluated": self.evaluated,
            "batch_size": self.batch_size,
            "best": self.best,
            "window": list(self.window),
            "names": self.names,
            "recent": [values.cpu() for values in self.recent],
            "metrics": metrics,
            "selected_on": self.selection.to_dict(),
            "videos": self.videos and self.videos.to_dict(),
            "data": self.data,
        }
        self.writer.flush()
        save_checkpoint(self.folder / name, self.model, self.config, self.epoch, self.step, training)
        delete_old(self.folder, self.config.keep_last if counts else None)

    def _restore(self, checkpoint: Mapping[str, Any]) -> None:
        if checkpoint["batch_size"] != self.batch_size:
            now = f"{distributed.size()} processes x --batch_size={self.config.batch_size}"
            raise InputError(
                f"--resume: a batch of the run has {checkpoint['batch_size']} pairs, but {now} "
                f"x --grad_accum={self.config.grad_accum} are {self.batch_size}"
            )
        super()._restore(checkpoint)
        self.epoch, self.epoch_step = checkpoint["epoch"], checkpoint["epoch_step"]
        self.best, self.names = checkpoint["best"], checkpoint["names"]
        if self.videos and (videos := checkpoint.get("videos")):
            warn_of_others(VideoKind(**videos), self.split)
        self.evaluated = checkpoint.get("evaluated", True)  # older ones were written after it
        self.window.extend(checkpoint["window"])
        self.recent = [values.to(self.device) for values in checkpoint["recent"]]
        logger.info("the run goes on at epoch %d after step %d", self.epoch, self.epoch_step)
