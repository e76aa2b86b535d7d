"""The training loop."""

import logging
import math
import time
from collections import deque
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from config import Config
from datasets.annotations import Split
from datasets.failures import FailedVideos
from datasets.frame_cache import CacheSettings
from datasets.loading import TrainPairs, batches, train_loader
from diffusion_lm.errors import RunError
from model.xpool import XPool
from trainer.checkpoints import BEST, epoch_file, save_checkpoint
from trainer.device import autocast
from trainer.evaluation import Evaluation, Evaluator, format_table, write_results
from trainer.run_folder import RESULTS_FILE, MetricsWriter

logger = logging.getLogger(__name__)

GRADIENT_NORM = 1.0
ADAM_BETAS, ADAM_EPS = (0.9, 0.98), 1e-6  # CLIP's (Radford et al. 2021, table 18)
WINDOW_COLUMNS = ("R1", "R5", "R10", "MedR", "MeanR")


def parameter_groups(model: XPool, config: Config) -> list[dict]:
    """CLIP parameters at clip_lr, the rest at noclip_lr; no weight decay on biases, norms, tables and scales."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and id(parameter) not in tables
            groups.setdefault((name.startswith("clip."), decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": config.clip_lr if is_clip else config.noclip_lr,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (is_clip, decays), parameters in groups.items()
    ]


class Trainer:
    """Trains a model on pairs of a split, evaluates it on the way and keeps the best.

    :param model: on its device.
    :param split: the training split.
    :param evaluator: of the test split; None trains without evaluations.
    :param folder: of the run.
    :param writer: of the metrics.
    """

    def __init__(
        self,
        model: XPool,
        config: Config,
        split: Split,
        evaluator: Evaluator | None,
        device: torch.device,
        dtype: torch.dtype,
        folder: Path,
        writer: MetricsWriter,
    ) -> None:
        self.model, self.config, self.evaluator = model, config, evaluator
        self.device, self.dtype, self.folder, self.writer = device, dtype, folder, writer
        cache = CacheSettings.of(config)
        pairs = TrainPairs(split, config.num_frames, config.input_res, config.video_sample_type, config.seed, cache)
        self.loader = train_loader(
            pairs, config.batch_size, config.num_workers, config.seed, pin_memory=device.type == "cuda"
        )
        self.tokens = model.tokenize(split.captions)
        self.optimizer = AdamW(
            parameter_groups(model, config), betas=ADAM_BETAS, eps=ADAM_EPS, fused=device.type == "cuda"
        )
        total = len(self.loader) * config.num_epochs
        warmup = math.ceil(total * config.warmup_proportion)
        self.scheduler = get_cosine_schedule_with_warmup(self.optimizer, warmup, total)
        self.step = 0
        self.best = -1.0
        self.window: deque[dict[str, float]] = deque(maxlen=config.eval_window_size)

    def train(self) -> None:
        """All epochs."""
        for epoch in range(1, self.config.num_epochs + 1):
            self._train_epoch(epoch)
            if epoch % self.config.save_every == 0:
                self._save(epoch_file(epoch), epoch)
        if self.evaluator is None:
            self._save(BEST, self.config.num_epochs)
            logger.info("no evaluation was wanted: the last epoch is %s", self.folder / BEST)

    def _train_epoch(self, epoch: int) -> None:
        steps = len(self.loader)
        evaluate_after = {
            round(steps * (i + 1) / self.config.evals_per_epoch) for i in range(self.config.evals_per_epoch)
        }
        self.loader.sampler.set_epoch(epoch)
        self.model.train()
        started, running, since = time.perf_counter(), {}, 0
        failed = FailedVideos(steps * self.config.batch_size)
        bar = tqdm(
            batches(self.loader, failed), total=steps, desc=f"epoch {epoch}", unit="step", leave=False, disable=None
        )
        for done, (frames, index) in enumerate(bar, start=1):
            losses = self._train_step(frames, index)
            for name, value in losses.items():  # summed on the device: reading them would wait for it
                running[name] = running.get(name, 0.0) + value
            since += 1
            if done % self.config.log_step == 0 or done == steps:
                self._log_step(epoch, done, running, since)
                running, since = {}, 0
            if self.evaluator is not None and done in evaluate_after:
                self._evaluate(epoch)
        seconds = time.perf_counter() - started
        logger.info("epoch %d took %.1f s", epoch, seconds)
        if failed.replaced:
            logger.warning("epoch %d: %s", epoch, failed.summary())

    def _train_step(self, frames: Tensor, index: Tensor) -> dict[str, Tensor]:
        """One optimizer step on B pairs. Frames uint8 (B, F, 3, R, R), caption indices (B,), both on the CPU."""
        noise = self.model.draw_noise(self.step, len(index))
        chosen = self.model.select(self.tokens, index)
        tokens = {name: rows.to(self.device, non_blocking=True) for name, rows in chosen.items()}
        with autocast(self.device, self.dtype):
            frame_features = self.model.encode_videos(frames.to(self.device, non_blocking=True))
            text_features = self.model.encode_texts(tokens.pop("token_ids"))
            on_device = None if noise is None else tuple(part.to(self.device) for part in noise)
            losses = self.model.losses(text_features, frame_features, noise=on_device, **tokens)
            loss = torch.stack(list(losses.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_NORM)
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1
        return {name: value.detach() for name, value in losses.items()} | {"loss": loss.detach()}

    def _log_step(self, epoch: int, done: int, running: dict[str, Tensor], count: int) -> None:
        means = {f"train/{name}": float(total) / count for name, total in running.items()}
        if not math.isfinite(means["train/loss"]):
            raise RunError(
                f"the loss is {means['train/loss']} at epoch {epoch}, step {done}: lower --clip_lr or --noclip_lr, or "
                f"give --precision=fp32"
            )
        rates = self.scheduler.get_last_lr()
        self.writer.write(
            self.step, epoch, means | {"train/lr_max": max(rates)}, tensorboard=not self.config.noloss_record
        )
        shown = ", ".join(f"{name.removeprefix('train/')} {value:.4f}" for name, value in means.items())
        logger.info("epoch %d, step %d of %d: %s", epoch, done, len(self.loader), shown)

    def _evaluate(self, epoch: int) -> None:
        evaluation = self.evaluator(self.model)
        metric = self.config.metric
        row = evaluation.row(metric)
        self.window.append(row)
        window = {name: sum(r[name] for r in self.window) / len(self.window) for name in WINDOW_COLUMNS}
        logger.info(
            "epoch %d, evaluation in %.1f s\n%s",
            epoch,
            evaluation.seconds,
            format_table(evaluation, metric, self.config.DSL),
        )
        logger.info(
            "%s strict, average of the last %d: %s",
            metric, len(self.window), ", ".join(f"{name} {value:.1f}" for name, value in window.items()),
        )  # fmt: skip
        self._record(epoch, evaluation, window)
        if row["R1"] > self.best:
            self.best = row["R1"]
            self._save(BEST, epoch, metrics=row)
            output = self.config.output_json
            write_results(
                Path(output) if output else self.folder / RESULTS_FILE, evaluation, self.config, str(self.folder / BEST)
            )
        logger.info("best %s strict R@1 so far: %.1f", metric, self.best)

    def _record(self, epoch: int, evaluation: Evaluation, window: dict[str, float]) -> None:
        values = {
            f"eval/{row['metric']}_{row['protocol']}{'_dsl' if row['dsl'] else ''}/{name}": row[name]
            for row in evaluation.results
            for name in WINDOW_COLUMNS
        }
        values |= {f"eval_window/{name}": value for name, value in window.items()}
        self.writer.write(self.step, epoch, values | {"eval/seconds": evaluation.seconds})

    def _save(self, name: str, epoch: int, metrics: dict | None = None) -> None:
        save_checkpoint(
            self.folder / name, self.model, self.config, epoch, self.step, self.optimizer, self.scheduler, metrics
        )
