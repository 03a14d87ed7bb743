"""The paper's Fig. 1 and Fig. 2 of test pictures, by the methods that were evaluated."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mapstack.explainer import Explainer, Explanation
from mapstack.figures import figure_1, figure_2, save
from mapstack.methods import Method, Saliency
from mapstack.prompts import TextGroup
from mapstack.store import member_name
from train_like.evaluation.cases import Case
from train_like.evaluation.choice import Choice
from train_like.evaluation.gallery import box_of
from train_like.evaluation.scorer import Scorer
from train_like.evaluation.settings import members
from train_like.evaluation.texts import TextKey
from train_like.project import map_unit

_RAW = "The paper's wording: absolute gradients of each dimension of the raw embedding."
_NORMALISED = "Signed, of the normalised embedding: the map of the logit itself."


def draw_paper_figures(scorer: Scorer, keys: Sequence[str], choice: Choice, folder: Path) -> list[str]:
    """Draw for some test pictures Fig. 1, and Fig. 2 in the paper's wording and by the best candidate.

    Fig. 1 has saliency and the chosen candidates; the best candidate of an aggregate is its first.

    Returns:
        The names of the pictures.
    """
    names = []
    for key in keys:
        drawing = _Drawing(scorer, scorer.test.read(key))
        methods = {"saliency": Saliency()} | {name: scorer.maker.methods[name] for name in choice.methods}
        figures = {
            "figure-1": drawing.figure_1(methods),
            "figure-2-raw-saliency": drawing.figure_2("saliency", Saliency(), normalize=False),
        }
        best = members(choice.best.method)[0]
        figures["figure-2"] = drawing.figure_2(best, scorer.maker.methods[best], normalize=True)
        for name, figure in figures.items():
            names.append(f"{member_name(key)}.{name}")
            save(figure, folder / f"{names[-1]}.png")
    return names


class _Drawing:
    """The figures of one picture."""

    def __init__(self, scorer: Scorer, case: Case) -> None:
        texts, labels = scorer.texts, scorer.texts.labels
        self._model, self._seed = scorer.maker.model, scorer.maker.seed
        self._case = case
        self._pixels = np.array(case.picture.image)
        self._boxes = [box_of(region.mask) for region in case.regions]
        sentences = texts.of(case, labels)
        self._labels = [TextGroup(label, (label,)) for label in labels]
        self._ensembles = [TextGroup(label, sentences[TextKey("ensemble", label)]) for label in labels]
        firsts = [group.texts[0] for group in self._ensembles]
        self._prompts = [TextGroup(sentence, (sentence,)) for sentence in firsts]

    def figure_1(self, methods: dict[str, Method]) -> Any:
        """Apply each method to the final output, MedCLIP's PromptClassifier with its mean ensemble."""
        explainers = [Explainer(self._model, method, seed=self._seed) for method in methods.values()]
        rows = [each.explain_conventionally([self._case.prepared], self._ensembles)[0] for each in explainers]
        return figure_1(
            self._pixels,
            list(methods),
            [group.name for group in self._ensembles],
            [_on_picture(row) for row in rows],
            unit=[map_unit(method.name) for method in methods.values()],
            signed=[name != "saliency" for name in methods],
            boxes=self._boxes,
            caption=self._model.note or None,
        )

    def figure_2(self, name: str, method: Method, *, normalize: bool) -> Any:
        """Project one stack along the axes on the first prompt and on the label of each class."""
        explainer = Explainer(self._model, method, normalize=normalize, seed=self._seed)
        (found,) = explainer.explain([self._case.prepared], [*self._prompts, *self._labels], "axes")
        maps = _on_picture(found)
        return figure_2(
            self._pixels,
            [prompt.name for prompt in self._prompts],
            maps[: len(self._prompts)],
            [label.name for label in self._labels],
            maps[len(self._prompts) :],
            method=name,
            unit=map_unit(method.name),
            boxes=self._boxes,
            caption=f"{_NORMALISED if normalize else _RAW} {self._model.note.capitalize()}".strip(),
        )


def _on_picture(found: Explanation) -> list[Any]:
    return list(found.density * found.original_maps().numpy())
