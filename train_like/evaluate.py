"""`evaluate`: how well maps locate what is known to be there, and how much they mean."""

import json
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mapstack import __version__
from mapstack.job_configs import EvaluateConfig
from train_like.errors import DONE
from train_like.evaluation.charts import draw_charts
from train_like.evaluation.choice import Choice, choose, configured
from train_like.evaluation.exchange import write_exchange
from train_like.evaluation.gallery import draw_gallery
from train_like.evaluation.intervals import MIN_PICTURES
from train_like.evaluation.journal import Journal
from train_like.evaluation.paper import draw_paper_figures
from train_like.evaluation.report import write_report
from train_like.evaluation.scorer import (
    AXES,
    CASCADE,
    LOCALISE,
    MATRIX,
    RANDOMISED,
    TUNE,
    Scorer,
    Workers,
    prompt_file,
)
from train_like.evaluation.summary import summarise
from train_like.result import Result

_N_PAPER = 2  # pictures of the paper's figures
_FORMAT = 2  # of the scores in a journal


def evaluate(config: EvaluateConfig) -> Result:
    """Choose settings on the validation split, score them on the test split, and write what was found.

    It writes metrics.json, report.md, figures/ and, in CheXlocalize's form, chexlocalize/. Scores are kept picture by
    picture, so that an evaluation which was stopped goes on, and one of more pictures adds to what is there. With
    `regions=none` nothing is chosen and nothing located.

    Raises:
        ConfigError: A key is missing or wrong.
        InputError: A split has no picture on which something can be located.
        ShardError: A sample is damaged, or a mask does not fit its picture.
        StoreError: The output holds an evaluation of another configuration.
    """
    started = time.perf_counter()
    run = _Run(config)
    choice = run.score()
    summary = summarise(run.journal, run.keys(), choice, run.describe(choice))
    summary["seconds"] = round(time.perf_counter() - started)
    output, scorer = Path(config.output), run.scorer
    figures = output / "figures"
    figures.mkdir(exist_ok=True)
    summary["charts"] = draw_charts(summary, figures)
    summary["paper"] = draw_paper_figures(scorer, run.first_keys(), choice, figures)
    summary["gallery"] = []
    if scorer.has_regions:
        summary["gallery"] = draw_gallery(scorer.maker, scorer.texts, scorer.test, choice.best, figures / "best")
        write_exchange(scorer.test, run.journal.stage(LOCALISE), output / "chexlocalize")
    (output / "metrics.json").write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    write_report(summary, output / "report.md")
    best = choice.best.name if scorer.has_regions else None
    told = {"output": config.output, "pictures": len(scorer.test.keys), "best": best, "seconds": summary["seconds"]}
    return Result(DONE, told)


class _Run:
    """One evaluation: its scorer and its journal."""

    def __init__(self, config: EvaluateConfig) -> None:
        self._config = config
        self.scorer = Scorer(config)
        self.journal = Journal(Path(config.output), self._signature(), overwrite=config.overwrite)

    def score(self) -> Choice:
        """Choose on the validation split, then score the test split.

        All of it by its peaks, some of it in full, a few pictures at great cost.
        """
        if self.scorer.has_regions:
            self.scorer.validation.require_region(self.scorer.texts.findings, "validation")
            self.scorer.test.require_region(self.scorer.texts.findings, "test")
        with Workers(self._config, self.scorer) as workers:
            choice = self._choose(workers)
            for stage in (LOCALISE, MATRIX, AXES, CASCADE, RANDOMISED):
                self._each(workers, stage, self.keys()[stage], choice)
        return choice

    def _choose(self, workers: Workers) -> Choice:
        if not self.scorer.has_regions:
            return configured(list(self.scorer.maker.methods))
        validation = self.scorer.validation.keys
        self._each(workers, TUNE, validation, None)
        return choose({key: self.journal.stage(TUNE)[key] for key in validation})

    def describe(self, choice: Choice) -> dict[str, Any]:
        """Return what the numbers rest on."""
        model = self.scorer.maker.model
        return {
            "version": __version__,
            "model": self._config.model.checkpoint,
            "fingerprint": model.fingerprint,
            "note": model.note,
            "labels": list(self.scorer.texts.labels),
            "against": self.scorer.texts.against,
            "candidates": {name: method.describe() for name, method in self.scorer.maker.methods.items()},
            "smoothing_px": list(self._config.smoothing_px),
            "seed": self._config.seed,
            "ground_truth": bool(self._config.ground_truth),
            "pictures": {
                "validation": len(self.scorer.validation.keys) if self.scorer.has_regions else 0,
                "validation_with_regions": choice.n_pictures,
                "test": len(self.scorer.test.keys),
                "test_with_regions": len(self._located()) if self.scorer.has_regions else 0,
                "matrix": len(self.keys()[MATRIX]),
                "axes": len(self.keys()[AXES]),
            },
        }

    def keys(self) -> dict[str, list[str]]:
        """Return the test pictures of each stage: the costly ones take the first on which something can be located."""
        some, few = (self._located()[:n] for n in (self._config.n_matrix, self._config.n_axes))
        enough = some[: max(MIN_PICTURES, self._config.n_axes)]
        return {LOCALISE: list(self.scorer.test.keys), MATRIX: some, AXES: few, CASCADE: few, RANDOMISED: enough}

    def first_keys(self) -> list[str]:
        """Return the pictures that the paper's figures are drawn of."""
        return list(islice(self._located(), _N_PAPER))

    def _located(self) -> list[str]:
        """Return the test pictures on which something can be located; all, where nothing is."""
        scores, every = self.journal.stage(LOCALISE), self.scorer.test.keys
        return [key for key in every if not self.scorer.has_regions or (key in scores and scores[key]["settings"])]

    def _each(self, workers: Workers, stage: str, keys: Sequence[str], choice: Choice | None) -> None:
        """Score the pictures that the journal does not hold."""
        cases = self.scorer.test if choice else self.scorer.validation
        digests = {key: cases.digest(key) for key in keys}
        missing = [key for key in keys if not self.journal.holds(stage, key, digests[key])]
        with tqdm(
            total=len(keys),
            initial=len(keys) - len(missing),
            desc=stage,
            unit="image",
            file=sys.stderr,
            dynamic_ncols=True,
        ) as bar:
            for key, scores in workers.score(stage, missing, choice):
                self.journal.add(stage, key, digests[key], scores)
                bar.update()

    def _signature(self) -> dict[str, Any]:
        """Return what scores depend on: everything but the number of pictures."""
        config = self._config
        return {
            "version": __version__,
            "format": _FORMAT,
            "weights": self.scorer.maker.model.fingerprint,
            "shards": [str(config.validation.shards), str(config.data.shards), *config.ground_truth],
            "regions": config.regions,
            "prompts": [Path(prompt_file(config)).read_text(encoding="utf-8"), config.prompts.against],
            "classes": list(self.scorer.texts.labels),
            "candidates": {name: method.describe() for name, method in self.scorer.maker.methods.items()},
            "aggregates": [list(names) for names in config.aggregates],
            "smoothing_px": list(config.smoothing_px),
            "n_validation": config.n_validation,
            "seed": config.seed,
        }
