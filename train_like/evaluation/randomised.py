"""The sanity check: the same maps while the weights that they explain are randomised stage by stage."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from mapstack.metrics.sanity import cascade
from mapstack.metrics.similarity import mean_off_diagonal, pearson, similarity_matrix, spearman
from mapstack.models import EmbeddingModel
from train_like.evaluation.cases import Case
from train_like.evaluation.maps import MapMaker, TextMaps
from train_like.evaluation.scores import map_ssim, pointing
from train_like.evaluation.settings import Route, Setting, Sign
from train_like.evaluation.texts import Texts

TRAINED = "trained"

_Scores = dict[str, dict[str, float | None]]
_ClassMaps = Mapping[Setting, Float[Tensor, "n_labels height width"]]


def run_cascade(maker: MapMaker, texts: Texts, case: Case) -> dict[str, _Scores]:
    """Score the maps of a picture under each step of the cascade: by stage, setting and metric."""
    trained = _class_maps(maker, texts, case)
    scores = {TRAINED: _compare(texts, case, trained, trained)}
    for name, model in cascade(maker.model, maker.seed):
        randomised = _class_maps(maker.explaining(model), texts, case)
        scores[name] = _compare(texts, case, randomised, trained)
    return scores


def run_randomised(maker: MapMaker, randomised: EmbeddingModel, texts: Texts, case: Case) -> dict[str, float]:
    """Score how alike the maps of different texts are when nothing was learned: by setting.

    Args:
        maker: Its methods are taken; those with a stack that is cheap along the axes.
        randomised: The model with every weight of the image half random.
        texts: Their class ensembles are explained.
        case: The picture.
    """
    cheap = maker.only([name for name in maker.methods if maker.serves_both(name)])
    maps = _class_maps(cheap.explaining(randomised), texts, case)
    return {setting.key: mean_off_diagonal(similarity_matrix(each)) for setting, each in maps.items()}


def fully_randomised(model: EmbeddingModel, seed: int) -> EmbeddingModel:
    """Return the last step of the cascade."""
    for _, last in cascade(model, seed):
        randomised = last
    return randomised


def _class_maps(maker: MapMaker, texts: Texts, case: Case) -> _ClassMaps:
    """Return the maps of the class ensembles by each method, signed and absolute."""
    wanted = {key: value for key, value in texts.of(case, texts.labels).items() if key.form == "ensemble"}
    maps: dict[Setting, Tensor] = {}
    for method in maker.methods:
        stack = maker.stack(method, case) if maker.serves_both(method) else None
        # Projected it is the direct map again (the matrix measures their agreement), without a second run of the model.
        conventional = maker.direct(method, case, wanted) if stack is None else maker.projected(stack, wanted)
        ways: list[tuple[Route, Sign, TextMaps]] = [
            ("conventional", "signed", conventional),
            ("conventional", "absolute", conventional),
        ]
        if stack is not None:
            ways.append(("stack_normalised", "absolute", maker.projected_absolute(stack, wanted)))
            raw = stack.explaining(normalize=False)
            ways.append(("stack_raw", "absolute", maker.projected_absolute(raw, wanted)))
        for route, sign, made in ways:
            setting = Setting(method, route, sign)
            maps[setting] = torch.stack([made.setting_map(setting, label, texts) for label in texts.labels])
    return maps


def _compare(texts: Texts, case: Case, randomised: _ClassMaps, trained: _ClassMaps) -> _Scores:
    """Compare the map of the first finding with that of the trained model, and the maps of all classes."""
    label = texts.explained(case)[0]
    region = next((region for region in case.regions if region.label == label), None)
    row = texts.labels.index(label)
    scores: _Scores = {}
    for setting, maps in randomised.items():
        before, now = trained[setting][row], maps[row]
        scores[setting.key] = {
            "pearson": pearson(before, now),
            "spearman": spearman(before, now),
            "ssim": map_ssim(before, now),
            "between_texts": mean_off_diagonal(similarity_matrix(maps)),
            "hit": None if region is None else pointing(case.on_picture(now), region)["hit"],
        }
    return scores
