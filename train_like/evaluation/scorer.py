"""Scoring pictures, in this process or in several."""

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mapstack.errors import ConfigError
from mapstack.job_configs import EvaluateConfig
from mapstack.models import EmbeddingModel, load_model
from mapstack.prompts import load_prompt_set
from train_like.evaluation.cases import Cases, read_ground_truth
from train_like.evaluation.choice import Choice
from train_like.evaluation.maps import MapMaker
from train_like.evaluation.randomised import fully_randomised, run_cascade, run_randomised
from train_like.evaluation.references import mean_masks_of
from train_like.evaluation.settings import aggregate_name, method_names
from train_like.evaluation.stages import Scores, Stages
from train_like.evaluation.texts import Texts

TUNE, LOCALISE, MATRIX, AXES, CASCADE, RANDOMISED = "tune", "localise", "matrix", "axes", "cascade", "randomised"


class Scorer:
    """All that a process needs to score pictures: the model, the texts and both splits.

    Args:
        config: Of the evaluation.

    Raises:
        ConfigError: A key is missing or wrong.
        CheckpointError: The checkpoint is missing, damaged, or does not fit.
        ShardError: There are no shards.
    """

    def __init__(self, config: EvaluateConfig) -> None:
        model = load_model(config.model.name, config.model.checkpoint).to(device_of(config))
        self.maker = MapMaker(model, method_names(config.candidates), config.seed)
        self.texts = Texts(load_prompt_set(prompt_file(config)), config.prompts.against, config.prompts.classes)
        truth = read_ground_truth(config.ground_truth)
        self.has_regions = config.regions == "required"
        self.test = Cases(config.data, model.preprocessing, truth, config.n, has_regions=self.has_regions)
        self.validation = self.test  # which is not read where nothing is chosen
        if self.has_regions:
            self.validation = Cases(config.validation, model.preprocessing, truth, config.n_validation)
        self._stages = Stages(self.maker, self.texts, config.smoothing_px, config.seed, aggregates_of(config))

    def score(self, stage: str, key: str, choice: Choice | None) -> Scores:
        """Score a picture: of the validation split for "tune", which makes the choice, of the test split otherwise."""
        if choice is None:
            return self._stages.tune(self.validation.read(key), self._mean_masks)
        case = self.test.read(key)
        if stage == LOCALISE:
            return self._stages.localise(case, choice, self._mean_masks)
        if stage == MATRIX:
            return self._stages.matrix(case, choice.methods, choice.best)
        if stage == AXES:
            return self._stages.axes(case, choice.methods)
        maker = self.maker.only(choice.methods)
        if stage == RANDOMISED:
            return run_randomised(maker, self._randomised, self.texts, case)
        return run_cascade(maker, self.texts, case)

    @cached_property
    def _randomised(self) -> EmbeddingModel:
        return fully_randomised(self.maker.model, self.maker.seed)

    @cached_property
    def _mean_masks(self) -> dict[str, Float[Tensor, "height width"]]:
        return mean_masks_of(self.validation) if self.has_regions else {}


class Workers:
    """Processes that score pictures; none where `workers` is 0, and then this one does.

    Args:
        config: Of the evaluation.
        scorer: This process's own.
    """

    def __init__(self, config: EvaluateConfig, scorer: Scorer) -> None:
        self._scorer = scorer
        n_cores = os.cpu_count() or 1
        n_workers = config.workers
        if n_workers is None:
            n_workers = n_cores if device_of(config) == "cpu" else 0
        self._pool: ProcessPoolExecutor | None = None
        if n_workers > 0:
            # A picture is too little work for the threads of one process to share.
            self._pool = ProcessPoolExecutor(
                n_workers,
                mp_context=multiprocessing.get_context("forkserver"),
                initializer=_start,
                initargs=(config, max(1, n_cores // n_workers)),
            )

    def __enter__(self) -> "Workers":
        """Be used in a `with` block."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes; what was not begun is left."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def score(self, stage: str, keys: Sequence[str], choice: Choice | None) -> Iterator[tuple[str, Scores]]:
        """Score pictures and yield each as it is done."""
        if self._pool is None:
            for key in keys:
                yield key, self._scorer.score(stage, key, choice)
            return
        futures: dict[Future[Scores], str] = {self._pool.submit(_score, stage, key, choice): key for key in keys}
        for future in as_completed(futures):
            yield futures[future], future.result()


def device_of(config: EvaluateConfig) -> str:
    """Return where the model runs."""
    if config.device != "auto":
        return config.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def aggregates_of(config: EvaluateConfig) -> list[str]:
    """Return the names of the aggregates.

    Raises:
        ConfigError: One names what is no candidate.
    """
    candidates = method_names(config.candidates)
    for names in config.aggregates:
        unknown = [name for name in names if name not in candidates]
        if unknown or len(set(names)) < 2:
            raise ConfigError(
                f"aggregates holds {list(names)}; each lists two candidates or more, by their names in the report: "
                f"{', '.join(candidates)}; correct it."
            )
    return [aggregate_name(names) for names in config.aggregates]


def prompt_file(config: EvaluateConfig) -> str:
    """Return the prompt set's path.

    Raises:
        ConfigError: None is configured.
    """
    if config.prompts.file is None:
        raise ConfigError("prompts.file is not set; the evaluation needs classes and their prompts; name a prompt set.")
    return config.prompts.file


_here: Any = None  # the scorer of a worker process


def _start(config: EvaluateConfig, n_threads: int) -> None:
    global _here
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(n_threads)
    _here = Scorer(config)


def end_with_parent() -> None:
    """End this process with the one that asked for it: a killed evaluation must not leave workers at work."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _score(stage: str, key: str, choice: Choice | None) -> Scores:
    scores: Scores = _here.score(stage, key, choice)
    return scores
