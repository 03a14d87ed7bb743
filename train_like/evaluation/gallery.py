"""Pictures of the evaluation: where the best setting points, and the paper's two figures."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from mapstack.config import PromptsConfig
from mapstack.figures import overlay_figure, save
from mapstack.job_configs import EvaluateConfig, FiguresConfig
from train_like.evaluation.cases import Case, Cases, Region
from train_like.evaluation.choice import Choice
from train_like.evaluation.maps import MapMaker
from train_like.evaluation.scores import pointing
from train_like.evaluation.settings import Setting, members
from train_like.evaluation.texts import Texts
from train_like.paper_figures import draw_figures

_N_EACH = 2


def draw_gallery(maker: MapMaker, texts: Texts, test: Cases, best: Setting, folder: Path) -> list[str]:
    """Draw the best setting's maps on the first test pictures of each finding, hit or missed; return their names."""
    folder.mkdir(exist_ok=True)
    n_drawn = dict.fromkeys(texts.findings, 0)
    names = []
    for case in test:
        for region in case.regions:
            if n_drawn.get(region.label, _N_EACH) < _N_EACH:
                n_drawn[region.label] += 1
                names.append(f"{region.label.lower().replace(' ', '-')}-{n_drawn[region.label]}")
                _draw(maker, texts, case, region, best, folder / f"{names[-1]}.png")
        if min(n_drawn.values()) == _N_EACH:
            break
    return sorted(names)


def draw_paper_figures(config: EvaluateConfig, choice: Choice, maker: MapMaker, folder: Path) -> None:
    """Draw Fig. 1 with the chosen candidates and saliency, and Fig. 2 with the best one, or an aggregate's first."""
    methods = {name: maker.methods[name] for name in choice.methods}
    draw_figures(
        FiguresConfig(
            model=config.model,
            data=replace(config.data, limit=_N_EACH),
            prompts=PromptsConfig(file=config.prompts.file, classes=config.prompts.classes),
            figure_1=[{"name": "saliency"}, *methods.values()],
            figure_2=maker.methods[members(choice.best.method)[0]],
            output=str(folder),
            seed=config.seed,
        )
    )


def _draw(maker: MapMaker, texts: Texts, case: Case, region: Region, setting: Setting, path: Path) -> None:
    maps = maker.conventional([setting.method], case, texts.of(case, [region.label]))
    attribution = case.on_picture(maps[setting.method].setting_map(setting, region.label, texts))
    is_hit = pointing(attribution, region)["hit"] == 1
    figure = overlay_figure(
        np.array(case.picture.image),
        attribution.numpy(),
        title=f"{region.label}: {'hit' if is_hit else 'missed'}",
        unit="share per pixel" if setting.sign == "positive" else "logit per pixel",
        boxes=[_box(region.mask)],
        caption=f"{setting.name}. {maker.model.note.capitalize()}.",
        signed=setting.sign == "signed",
        peak=True,
    )
    save(figure, path)


def _box(mask: Bool[Tensor, "height width"]) -> tuple[int, int, int, int]:
    rows, columns = (mask.any(dim=dim).nonzero().flatten().tolist() for dim in (1, 0))
    return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
