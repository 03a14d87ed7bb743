"""`evaluate`: how well maps locate what is known to be there, and how much they mean."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mapstack import __version__
from mapstack.config import EvaluateConfig
from mapstack.errors import ConfigError
from mapstack.metrics.sanity import stage_names
from mapstack.models import EmbeddingModel, load_model
from mapstack.prompts import load_prompt_set
from train_like.errors import DONE
from train_like.evaluation.cases import Case, Cases, read_ground_truth
from train_like.evaluation.charts import draw_charts
from train_like.evaluation.choice import Choice, choose
from train_like.evaluation.exchange import write_exchange
from train_like.evaluation.gallery import draw_gallery, draw_paper_figures
from train_like.evaluation.journal import Journal
from train_like.evaluation.maps import MapMaker
from train_like.evaluation.randomised import run_cascade
from train_like.evaluation.report import write_report
from train_like.evaluation.settings import method_names
from train_like.evaluation.stages import Stages, mean_masks_of
from train_like.evaluation.summary import summarise
from train_like.evaluation.texts import Texts
from train_like.result import Result


def evaluate(config: EvaluateConfig) -> Result:
    """Choose settings on the validation split, score them on the test split, and write what was found.

    It writes metrics.json, report.md, figures/ and, in CheXlocalize's form, chexlocalize/. Scores are kept picture by
    picture, so that an evaluation which was stopped goes on, and one of more pictures adds to what is there.

    Raises:
        ConfigError: A key is missing or wrong.
        InputError: A split has no picture on which something can be located.
        ShardError: A sample is damaged, or a mask does not fit its picture.
        StoreError: The output holds an evaluation of another configuration.
    """
    started = time.perf_counter()
    run = _Run(config)
    choice = run.choose()
    run.score(choice)
    output = Path(config.output)
    summary = summarise(run.journal, choice, run.describe(choice))
    summary["seconds"] = round(time.perf_counter() - started)
    figures = output / "figures"
    figures.mkdir(exist_ok=True)
    draw_charts(summary, figures)
    summary["gallery"] = draw_gallery(run.maker, run.texts, run.test, choice.best, figures / "best")
    draw_paper_figures(config, choice, run.maker, figures)
    write_exchange(run.test, run.journal.stage("localise"), output / "chexlocalize")
    (output / "metrics.json").write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    write_report(summary, output / "report.md")
    best = summary["localisation"]["best"]
    told = {"output": config.output, "pictures": len(run.test.keys), "best": best, "seconds": summary["seconds"]}
    return Result(DONE, told)


class _Run:
    """One evaluation: its model, its pictures and its journal."""

    def __init__(self, config: EvaluateConfig) -> None:
        self._config = config
        model = load_model(config.model.name, config.model.checkpoint).to(_device(config.device))
        self.maker = MapMaker(model, method_names(config.candidates), config.seed)
        self.texts = Texts(load_prompt_set(_required(config.prompts.file)), config.prompts.against)
        truth = read_ground_truth(config.ground_truth)
        self.validation = Cases(config.validation, model.preprocessing, truth, config.n_validation)
        self.test = Cases(config.data, model.preprocessing, truth, config.n)
        self._stages = Stages(self.maker, self.texts, config.smoothing_px, config.seed)
        self.journal = Journal(Path(config.output), _signature(config, model), overwrite=config.overwrite)

    def choose(self) -> Choice:
        """Score the validation split and choose."""
        self._each("tune", self.validation.keys, self.validation, self._stages.tune)
        return choose({key: self.journal.stage("tune")[key] for key in self.validation.keys})

    def score(self, choice: Choice) -> None:
        """Score the test split: all of it by its peaks, some of it in full, a few pictures at great cost."""
        masks = mean_masks_of(self.validation)
        self._each("localise", self.test.keys, self.test, lambda case: self._stages.localise(case, choice, masks))
        some = self.some(self._config.n_matrix)
        self._each("matrix", some, self.test, lambda case: self._stages.matrix(case, choice.methods))
        few = some[: self._config.n_axes]
        self._each("axes", few, self.test, lambda case: self._stages.axes(case, choice.methods))
        n_stages = len(stage_names(self.maker.model)) + 1
        maker = MapMaker(
            self.maker.model, {name: self.maker.methods[name] for name in choice.methods}, self._config.seed
        )
        with _bar("cascade", n_stages, "stage") as bar:
            run_cascade(maker, self.texts, [self.test.read(key) for key in few], self.journal, bar, n_stages)

    def describe(self, choice: Choice) -> dict[str, Any]:
        """Return what the numbers rest on."""
        model = self.maker.model
        return {
            "version": __version__,
            "model": self._config.model.checkpoint,
            "fingerprint": model.fingerprint,
            "note": model.note,
            "labels": list(self.texts.labels),
            "against": self.texts.against,
            "candidates": {name: method.describe() for name, method in self.maker.methods.items()},
            "smoothing_px": list(self._config.smoothing_px),
            "seed": self._config.seed,
            "pictures": {
                "validation": len(self.validation.keys),
                "validation_with_regions": choice.n_pictures,
                "test": len(self.test.keys),
                "matrix": len(self.some(self._config.n_matrix)),
                "axes": len(self.some(self._config.n_axes)),
            },
        }

    def some(self, n: int) -> list[str]:
        """Return the keys of the first n test pictures on which something can be located."""
        scores = self.journal.stage("localise")
        return [key for key in self.test.keys if scores[key]["settings"]][:n]

    def _each(self, stage: str, keys: Sequence[str], cases: Cases, score: Callable[[Case], dict[str, Any]]) -> None:
        """Score the pictures that the journal does not hold."""
        done = self.journal.stage(stage)
        with _bar(stage, len(keys), "image") as bar:
            for key in keys:
                if key not in done:
                    self.journal.add(stage, key, score(cases.read(key)))
                bar.update()


def _bar(stage: str, total: int, unit: str) -> "tqdm[Any]":
    return tqdm(total=total, desc=stage, unit=unit, file=sys.stderr, dynamic_ncols=True)


def _device(name: str) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _required(file: str | None) -> str:
    if file is None:
        raise ConfigError("prompts.file is not set; the evaluation needs classes and their prompts; name a prompt set.")
    return file


def _signature(config: EvaluateConfig, model: EmbeddingModel) -> dict[str, Any]:
    """Return what scores depend on: everything but the number of pictures."""
    return {
        "version": __version__,
        "weights": model.fingerprint,
        "shards": [str(config.validation.shards), str(config.data.shards), *config.ground_truth],
        "prompts": [Path(_required(config.prompts.file)).read_text(encoding="utf-8"), config.prompts.against],
        "candidates": {name: method.describe() for name, method in method_names(config.candidates).items()},
        "smoothing_px": list(config.smoothing_px),
        "n_validation": config.n_validation,
        "seed": config.seed,
    }
