"""The stages of an evaluation, each a function from a picture to its scores."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mapstack.baselines import baseline
from mapstack.metrics.body import body_mask, share_outside_body
from mapstack.metrics.chexlocalize import hit, segment, threshold_ious
from mapstack.metrics.faithfulness import max_sensitivity
from mapstack.metrics.rle import encode_mask
from mapstack.metrics.similarity import pearson
from mapstack.models.base import normalised
from mapstack.readouts import DirectionReadout
from train_like.evaluation.cases import Case, Region
from train_like.evaluation.choice import Choice
from train_like.evaluation.maps import AggregateMaps, MapMaker, TextMaps, agreement
from train_like.evaluation.pairs import pair_scores
from train_like.evaluation.references import frame_brightness, frame_references, reference_maps
from train_like.evaluation.scores import (
    faithfulness,
    likeness,
    logit_of,
    mean_ssim,
    none_for_nan,
    overlap,
    pointing,
)
from train_like.evaluation.settings import FORMS, REFERENCE, Route, Setting, Sign, family, members, settings_of
from train_like.evaluation.texts import CONTROLS, TextKey, Texts

Scores = dict[str, Any]

MeanMasks = Mapping[str, Float[Tensor, "height width"]]

SENSITIVITY_DRAWS = 6


class Stages:
    """Scores pictures.

    Args:
        maker: Makes the maps.
        texts: What is explained.
        smoothings_px: Of each setting; the first is 0.
        seed: Of every random draw.
        aggregates: Names of aggregates of candidates.
    """

    def __init__(
        self,
        maker: MapMaker,
        texts: Texts,
        smoothings_px: Sequence[float],
        seed: int,
        aggregates: Sequence[str] = (),
    ) -> None:
        self._maker = maker
        self._aggregates = tuple(aggregates)
        self._texts = texts
        self._smoothings_px = smoothings_px
        self._seed = seed

    def tune(self, case: Case, mean_masks: MeanMasks) -> Scores:
        """Score every candidate at every setting of the conventional route, to choose among them.

        Of reference methods the overlaps, for a threshold.
        """
        located = self._texts.located(case)
        scores: Scores = {}
        methods = (*self._maker.methods, *self._aggregates) if located else ()
        for method, maps in self._maker.conventional(methods, case, self._texts.of(case, located)).items():
            for setting in self._conventional(method):
                scores[setting.key] = {
                    region.label: {
                        "hit": hit(attribution, region.mask),
                        "ious": none_for_nan(threshold_ious(attribution, region.mask)),
                    }
                    for region, attribution in self._attributions(case, maps, setting)
                }
        for key, region, attribution in self._references(case, mean_masks):
            ious = none_for_nan(threshold_ious(attribution, region.mask))
            scores.setdefault(key, {})[region.label] = {"ious": ious}
        return scores

    def localise(self, case: Case, choice: Choice, mean_masks: MeanMasks) -> Scores:
        """Score the chosen candidates at every setting by their peaks, the chosen settings and references in full."""
        located, chosen = self._texts.located(case), choice.thresholds
        scores: Scores = {}
        predicted: dict[str, str] = {}
        pairs: dict[str, Any] = {}
        methods = list(dict.fromkeys(setting.method for setting in chosen)) if located else []
        for method, maps in self._maker.conventional(methods, case, self._texts.of(case, located)).items():
            for setting in self._conventional(method):
                scores[setting.key] = {
                    region.label: pointing(attribution, region)
                    | (overlap(attribution, region) if setting in chosen else {})
                    for region, attribution in self._attributions(case, maps, setting)
                }
                if setting in chosen and setting.sign != "absolute":
                    pairs[setting.key] = pair_scores(case, self._regions(case), maps, setting, self._texts)
                if setting == choice.best:
                    predicted = {
                        region.label: encode_mask(
                            segment(attribution, case.picture.size, chosen[setting].get(region.label))
                        ).counts
                        for region, attribution in self._attributions(case, maps, setting)
                    }
        for key, region, attribution in self._references(case, mean_masks):
            scores.setdefault(key, {})[region.label] = pointing(attribution, region) | overlap(attribution, region)
        return {"settings": scores, "predicted": predicted, "pairs": pairs, "zero_shot": self._zero_shot(case)}

    def matrix(self, case: Case, methods: Sequence[str], best: Setting) -> Scores:
        """Score methods by every route and sign that needs no stack along the axes of a path method.

        The best setting is scored beside them where that needs its map only: by faithfulness.
        """
        texts = self._texts.of(case, self._texts.labels) | CONTROLS
        found: dict[tuple[str, Route, Sign], TextMaps] = {}
        agreements: dict[str, float] = {}
        for method in methods:
            conventional = self._maker.direct(method, case, texts)
            found[method, "conventional", "signed"] = found[method, "conventional", "absolute"] = conventional
            if self._maker.serves_both(method):
                made = self._from_one_stack(method, case, texts)
                agreements[method] = agreement(conventional, made[method, "stack_normalised", "signed"])
                found |= made
            else:
                found[method, "stack_normalised", "signed"] = conventional
                found[method, "stack_raw", "signed"] = self._maker.direct(method, case, texts, normalize=False)
        return {
            "agreement": agreements,
            "settings": {key: value for way, maps in found.items() for key, value in self._located(case, way, maps)},
            "texts": {self._way_key(way): self._specificity(case, way, maps) for way, maps in found.items()},
            "faithfulness": self._faithful(case, found, best),
        }

    def axes(self, case: Case, methods: Sequence[str]) -> Scores:
        """Score the stacks along the axes of path methods, and how repeatable each method is."""
        texts = self._texts.of(case, self._texts.labels) | CONTROLS
        found: dict[tuple[str, Route, Sign], TextMaps] = {}
        agreements: dict[str, float] = {}
        for method in methods:
            if not self._maker.serves_both(method):
                stack = self._maker.stack(method, case)
                conventional = self._maker.direct(method, case, texts)
                agreements[method] = agreement(conventional, self._maker.projected(stack, texts))
                found[method, "stack_normalised", "absolute"] = self._maker.projected_absolute(stack, texts)
                # The norm moves along the path: the paper's own stack, of the raw embedding, is another.
                stack = self._maker.stack(method, case, normalize=False)
                found[method, "stack_raw", "absolute"] = self._maker.projected_absolute(stack, texts)
        return {
            "agreement": agreements,
            "settings": {key: value for way, maps in found.items() for key, value in self._located(case, way, maps)},
            "texts": {self._way_key(way): self._specificity(case, way, maps) for way, maps in found.items()},
            "sensitivity": {method: self._sensitivity(method, case) for method in methods},
            "repeat": {method: self._repeatability(method, case) for method in methods},
        }

    def _conventional(self, method: str) -> list[Setting]:
        signs: tuple[Sign, ...] = ("positive",) if method in self._aggregates else ("signed", "absolute")
        return [setting for sign in signs for setting in settings_of(method, "conventional", sign, self._smoothings_px)]

    def _regions(self, case: Case) -> list[Region]:
        located = self._texts.located(case)
        return [region for region in case.regions if region.label in located]

    def _references(self, case: Case, mean_masks: MeanMasks) -> Iterator[tuple[str, Region, Tensor]]:
        for region in self._regions(case):
            for name, attribution in reference_maps(case, region.label, mean_masks, self._seed).items():
                yield Setting(name, REFERENCE).key, region, attribution

    def _attributions(
        self, case: Case, maps: TextMaps | AggregateMaps, setting: Setting
    ) -> list[tuple[Region, Tensor]]:
        return [
            (region, case.on_picture(maps.setting_map(setting, region.label, self._texts)))
            for region in self._regions(case)
        ]

    def _from_one_stack(
        self, method: str, case: Case, texts: Mapping[TextKey, tuple[str, ...]]
    ) -> dict[tuple[str, Route, Sign], TextMaps]:
        """Make the four maps of a stack that serves the raw and the normalised embedding."""
        stack = self._maker.stack(method, case)
        found: dict[tuple[str, Route, Sign], TextMaps] = {}
        routes: tuple[tuple[Route, bool], ...] = (("stack_normalised", True), ("stack_raw", False))
        for route, normalize in routes:
            one = stack.explaining(normalize=normalize)
            found[method, route, "signed"] = self._maker.projected(one, texts)
            found[method, route, "absolute"] = self._maker.projected_absolute(one, texts)
        return found

    @staticmethod
    def _way_key(way: tuple[str, Route, Sign]) -> str:
        return Setting(*way).key

    def _located(self, case: Case, way: tuple[str, Route, Sign], maps: TextMaps) -> list[tuple[str, Scores]]:
        """Score every setting of a way by its peaks, and the plain class ensemble in full."""
        return [
            (
                setting.key,
                {
                    region.label: pointing(attribution, region)
                    | (overlap(attribution, region) if setting == Setting(*way) else {})
                    for region, attribution in self._attributions(case, maps, setting)
                },
            )
            for setting in settings_of(*way, self._smoothings_px)
        ]

    def _specificity(self, case: Case, way: tuple[str, Route, Sign], maps: TextMaps) -> Scores:
        """Compare the maps of all texts of a picture, and those of controls with those of what is there."""
        by_form = {
            form: torch.stack(
                [maps.setting_map(Setting(*way, text=form), label, self._texts) for label in self._texts.labels]
            )
            for form in FORMS
        }
        content = case.prepared.geometry.content_mask()
        body = body_mask(frame_brightness(case)) & content
        answered: Scores = {
            "correlation": {form: likeness(maps_of_form) for form, maps_of_form in by_form.items()},
            "ssim": mean_ssim(by_form["ensemble"]),
            "controls": {},
        }
        outside = []
        masks = {region.label: region for region in self._regions(case)}
        for label in self._texts.explained(case):
            true = by_form["ensemble"][self._texts.labels.index(label)]
            outside.append(share_outside_body(true, body))
            for control in CONTROLS:
                other = maps.map_of(control)
                if way[1:] == ("conventional", "absolute"):
                    other = other.abs()
                peak = pointing(case.on_picture(other), masks[label])["hit"] if label in masks else None
                answered["controls"].setdefault(control.form, []).append([pearson(true, other), peak])
        answered["outside_body"] = outside
        return answered

    def _faithful(self, case: Case, found: Mapping[tuple[str, Route, Sign], TextMaps], best: Setting) -> Scores:
        """Score the maps of the first finding, and the best setting's of it; equal maps are scored once."""
        label = self._texts.explained(case)[0]
        key = TextKey("ensemble", label)
        inputs = self._maker.inputs(case)
        direction = self._maker.directions({key: self._texts.of(case, [label])[key]})[0]
        common: dict[str, Any] = {
            "score": logit_of(self._maker.model.embed_images, direction),
            "pixel_values": inputs.pixel_values[0],
            "baseline": baseline("blur", inputs, self._maker.model.preprocessing, self._seed)[0],
            "sha256": case.prepared.sha256,
        }
        scores: Scores = {}
        for (method, route, sign), maps in found.items():
            if route == "stack_normalised" and sign == "signed":
                continue  # the conventional map again
            is_complete = maps.difference is not None and route == "conventional" and sign == "signed"
            scores[Setting(method, route, sign).key] = faithfulness(
                **common,
                attribution=maps.setting_map(Setting(method, route, sign), label, self._texts).to(direction),
                multiply_by_inputs=family(method) != "gradient",
                difference=float(maps.difference[maps.rows[key]]) if is_complete else None,  # type: ignore[index]
            )
        if best.key not in scores:
            scores[best.key] = faithfulness(
                **common,
                attribution=self._best_maps(case, found, best).setting_map(best, label, self._texts).to(direction),
                multiply_by_inputs=family(best.method) != "gradient",
                difference=None,
            )
        for name, attribution in frame_references(case, self._seed).items():
            scores[Setting(name, REFERENCE).key] = faithfulness(
                **common, attribution=attribution.to(direction), multiply_by_inputs=True, difference=None
            )
        return scores

    def _best_maps(
        self, case: Case, found: Mapping[tuple[str, Route, Sign], TextMaps], best: Setting
    ) -> TextMaps | AggregateMaps:
        """Return the best setting's maps, of those that are made already where they are."""
        if all((method, "conventional", "signed") in found for method in members(best.method)):
            made = tuple(found[method, "conventional", "signed"] for method in members(best.method))
            return made[0] if len(made) == 1 else AggregateMaps(made)
        texts = self._texts.of(case, self._texts.explained(case))
        return self._maker.conventional([best.method], case, texts)[best.method]

    def _zero_shot(self, case: Case) -> bool:
        texts = {
            TextKey("ensemble", label): self._texts.of(case, [label])[TextKey("ensemble", label)]
            for label in self._texts.labels
        }
        with torch.no_grad():
            embedding = normalised(self._maker.model.embed_images(self._maker.inputs(case).pixel_values))[0]
        best = int((self._maker.directions(texts) @ embedding).argmax())
        return self._texts.labels[best] in (case.labels or (self._texts.against,))

    def _sensitivity(self, method: str, case: Case) -> float:
        """Return how much the conventional map changes under noise too weak to see, with the same draws."""
        label = self._texts.explained(case)[0]
        key = TextKey("ensemble", label)
        readout = DirectionReadout(
            self._maker.directions({key: self._texts.of(case, [label])[key]}), embed_dim=self._maker.model.embed_dim
        )
        inputs = self._maker.inputs(case)

        def explain(pixel_values: Tensor) -> Tensor:
            rows = [
                self._maker.methods[method].attribute(
                    self._maker.model,
                    type(inputs)(picture[None], inputs.content, inputs.sha256),
                    readout,
                    seed=self._seed,
                )
                for picture in pixel_values
            ]
            return torch.cat([row.values[:, 0] for row in rows])

        return max_sensitivity(
            explain, inputs.pixel_values[0], sha256=case.prepared.sha256, n_perturb_samples=SENSITIVITY_DRAWS
        )

    def _repeatability(self, method: str, case: Case) -> dict[str, float]:
        """Compare the maps of two runs with one seed, and with two."""
        label = self._texts.explained(case)[0]
        key = TextKey("ensemble", label)
        texts = {key: self._texts.of(case, [label])[key]}
        first, again, other = (
            self._maker.direct(method, case, texts, seed=seed) for seed in (self._seed, self._seed, self._seed + 1)
        )
        return {
            "same_seed": agreement(first, again),
            "other_seed": pearson(first.map_of(key), other.map_of(key)),
        }
