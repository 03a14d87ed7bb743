"""Pictures of the evaluation: where the best setting points."""

from pathlib import Path

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from mapstack.figures import overlay_figure, save
from train_like.evaluation.cases import Case, Cases, Region
from train_like.evaluation.maps import MapMaker
from train_like.evaluation.scores import pointing
from train_like.evaluation.settings import Setting
from train_like.evaluation.texts import Texts

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


def _draw(maker: MapMaker, texts: Texts, case: Case, region: Region, setting: Setting, path: Path) -> None:
    maps = maker.conventional([setting.method], case, texts.of(case, [region.label]))
    attribution = case.on_picture(maps[setting.method].setting_map(setting, region.label, texts))
    is_hit = pointing(attribution, region)["hit"] == 1
    figure = overlay_figure(
        np.array(case.picture.image),
        attribution.numpy(),
        title=f"{region.label}: {'hit' if is_hit else 'missed'}",
        unit="share per pixel" if setting.sign == "positive" else "logit per pixel",
        boxes=[box_of(region.mask)],
        caption=f"{setting.name}. {maker.model.note.capitalize()}.",
        signed=setting.sign == "signed",
        peak=True,
    )
    save(figure, path)


def box_of(mask: Bool[Tensor, "height width"]) -> tuple[int, int, int, int]:
    """Return the box around a region: row0, column0, row1, column1, half-open."""
    rows, columns = (mask.any(dim=dim).nonzero().flatten().tolist() for dim in (1, 0))
    return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
