"""The one door through which the offline job, the endpoint and a notebook explain a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mapstack.basis import Basis
from mapstack.errors import ConfigError, InputError
from mapstack.geometry import Geometry, reduce_area
from mapstack.images import Inputs, Picture, Prepared, collate, decode, from_array, prepare, read
from mapstack.methods import Attribution, Completeness, Method, Occlusion, make_method
from mapstack.models import EmbeddingModel, load_model
from mapstack.prompts import TextGroup, text_groups
from mapstack.readouts import DirectionReadout, Readout, TextReadout, direction_readout, truncated_groups
from mapstack.routes import Plan, Route, plan_route
from mapstack.stack import OcclusionStack, Stack


@dataclass(frozen=True)
class Explanation:
    """The maps of one picture, and what is needed to trust them.

    Attributes:
        names: What each map explains.
        maps: Signed attributions, model-input frame, in logits (per unit of normalised brightness for gradients).
        logits: The model's logit of each text.
        difference: What a complete map sums to: the explained number at the picture less that at the baseline. None
            for a method without a baseline.
        residual: The map's sum, times `density`, less `difference` [logit].
        density: What a map is multiplied by to be in logits per pixel: each pixel of an occlusion map carries the
            whole score of its windows. 1 for the other methods.
        completeness: Whether the residual can be expected to vanish.
        method: Name of the attribution method.
        route: Which way the maps were made: "direct", "prompts" or "axes"; "conventional" for the final output.
        is_linear: Whether every route would give the same maps.
        normalize: Whether the maps explain the normalised embedding, hence the logit itself.
        n_steps: Points of the path; 0 for a method without one.
        is_converged: Whether `n_steps: auto` met its tolerance; None where the points were fixed.
        geometry: The way back onto the original picture.
        picture: The picture, where it was at hand.
        note: What the checkpoint says of itself.
        truncated: Those of `names` with a text of which the model reads the beginning only, because it is too long.
        costs: Rows that each route open to the method would have taken: see `mapstack.routes.Plan`. Empty where no
            route was planned.
    """

    names: tuple[str, ...]
    maps: Float[Tensor, "n_prompts height width"]
    logits: Float[Tensor, " n_prompts"]
    difference: Float[Tensor, " n_prompts"] | None
    residual: Float[Tensor, " n_prompts"] | None
    density: float
    completeness: Completeness
    method: str
    route: str
    is_linear: bool
    normalize: bool
    n_steps: int
    is_converged: bool | None
    geometry: Geometry
    picture: Picture | None = None
    note: str = ""
    truncated: tuple[str, ...] = ()
    costs: Mapping[str, int] = field(default_factory=dict)

    def original_maps(self) -> Float[Tensor, "n_prompts height width"]:
        """Return the maps on the original picture, padding undone, totals kept."""
        return self.geometry.to_original(self.maps)


@dataclass(frozen=True)
class Explainer:
    """A model and a method, ready to explain batches of pictures.

    Attributes:
        model: Frozen.
        method: The attribution method.
        normalize: True explains the logit, of the normalised embedding; False the raw one, the paper's wording.
        map_size: Side of the maps [px]; None keeps the model's frame. It must divide that.
        seed: Seed of every random draw, together with each picture's bytes.
    """

    model: EmbeddingModel
    method: Method
    normalize: bool = True
    map_size: int | None = None
    seed: int = 0

    @property
    def frame_size(self) -> int:
        """Side of the maps [px]."""
        return self.map_size or self.model.preprocessing.image_size

    def readout(self, groups: Sequence[TextGroup]) -> TextReadout:
        """Return the numbers that text groups stand for, on the model's device."""
        return TextReadout(
            groups, self.model.text, normalize=self.normalize, device=self.model.device, dtype=self.model.dtype
        )

    def stack(
        self, inputs: Inputs, basis: Basis | None = None, check: TextReadout | None = None
    ) -> Stack | OcclusionStack:
        """Attribute every row of a basis: step 1 of the paper.

        Occlusion keeps its factored form, which serves every text whatever the basis.

        Args:
            inputs: A batch of pictures.
            basis: None for the D unit axes.
            check: The texts on which `n_steps: auto` measures its tolerance, where they are known.

        Raises:
            InputError: A method that is not linear was given another basis than the axes.
        """
        if isinstance(self.method, Occlusion):
            sweep = self.method.sweep(self.model, inputs, seed=self.seed)
            return OcclusionStack(sweep.embedding, self.normalize, sweep, self.frame_size)
        if basis is not None and not self.method.is_linear:
            raise InputError(
                f"method '{self.method.name}' is not linear; only the axes make its stack; use basis=axes."
            )
        # The raw gradient stack along the axes gives the normalised maps too, so one is kept for both.
        is_raw = self.method.one_stack_serves_both and basis is None
        readout = DirectionReadout(
            None if basis is None else basis.rows_and_residual(),
            embed_dim=self.model.embed_dim,
            normalize=self.normalize and not is_raw,
        )
        found = self._attribute(inputs, readout, check)
        values, map_error = (found.values, ()) if basis is None else basis.split_off_residual(found.values)
        return Stack(
            found.embedding,
            self.normalize,
            values,
            basis=basis,
            baseline_embedding=found.baseline_embedding,
            is_raw=is_raw,
            n_steps=found.n_steps,
            is_converged=found.is_converged,
            map_error=map_error,
        )

    def plan(self, readout: TextReadout, route: Route = "auto") -> Plan:
        """Choose the route for texts, or check it, and say what each would cost.

        Raises:
            InputError: The route does not fit the method.
        """
        return plan_route(self.method, readout, self.model.embed_dim, route)

    @torch.inference_mode(False)
    def explain(
        self, pictures: Sequence[Prepared], groups: Sequence[TextGroup], route: Route = "auto"
    ) -> list[Explanation]:
        """Explain text groups on pictures.

        Args:
            pictures: Preprocessed by this model's `preprocessing`.
            groups: What is explained.
            route: "axes" is the paper's; "prompts" and "direct" give the same maps for a linear method at less cost;
                "auto" takes the way of fewest rows.

        Raises:
            InputError: The route does not fit the method.
        """
        inputs, readout = self.cast(collate(pictures)), self.readout(groups)
        plan = self.plan(readout, route)
        if plan.route == "direct":
            direct = self._explain_final_output(pictures, inputs, readout, "direct")
            return [replace(explanation, costs=plan.costs) for explanation in direct]
        basis = Basis.of(readout.span) if plan.route == "prompts" else None
        # The paper's three steps.
        stack = self.stack(inputs, basis, check=readout)
        directions = readout.directions_at(stack.embedding)
        maps = stack.project(directions)
        along_rows = self._explanations(
            pictures,
            readout,
            maps,
            logits=stack.logits(directions),
            difference=stack.difference(directions),
            route=plan.route,
            n_steps=stack.n_steps,
            is_converged=stack.is_converged,
        )
        return [replace(explanation, costs=plan.costs) for explanation in along_rows]

    @torch.inference_mode(False)
    def explain_conventionally(self, pictures: Sequence[Prepared], groups: Sequence[TextGroup]) -> list[Explanation]:
        """Explain the final output, as the paper's Fig. 1 does: any method, the true maximum, always normalised."""
        explainer = replace(self, normalize=True)
        return explainer._explain_final_output(
            pictures, self.cast(collate(pictures)), explainer.readout(groups), "conventional"
        )

    def _explain_final_output(
        self, pictures: Sequence[Prepared], inputs: Inputs, readout: TextReadout, route: str
    ) -> list[Explanation]:
        found = self._attribute(inputs, direction_readout(readout), None)
        at_baseline = found.baseline_readout
        return self._explanations(
            pictures,
            readout,
            found.values,
            logits=readout.logits(found.embedding),
            difference=None if at_baseline is None else readout(found.embedding) - at_baseline,
            route=route,
            n_steps=found.n_steps,
            is_converged=found.is_converged,
        )

    def cast(self, inputs: Inputs) -> Inputs:
        """Return a batch on the model's device and in its precision."""
        moved = inputs.to(self.model.device)
        return replace(moved, pixel_values=moved.pixel_values.to(self.model.dtype))

    def _attribute(self, inputs: Inputs, readout: Readout, check: Readout | None) -> Attribution:
        found = self.method.attribute(self.model, inputs, readout, seed=self.seed, check=check)
        return replace(found, values=reduce_area(found.values, self.frame_size))

    def _explanations(
        self,
        pictures: Sequence[Prepared],
        readout: TextReadout,
        maps: Float[Tensor, "batch n_prompts height width"],
        *,
        logits: Float[Tensor, "batch n_prompts"],
        difference: Float[Tensor, "batch n_prompts"] | None,
        route: str,
        n_steps: tuple[int, ...],
        is_converged: tuple[bool, ...],
    ) -> list[Explanation]:
        residual = None if difference is None else self.method.density * maps.sum(dim=(-2, -1)) - difference
        truncated = tuple(group.name for group in truncated_groups(readout.groups, self.model.text))
        return [
            Explanation(
                names=tuple(group.name for group in readout.groups),
                maps=maps[i].cpu(),
                logits=logits[i].cpu(),
                difference=None if difference is None else difference[i].cpu(),
                residual=None if residual is None else residual[i].cpu(),
                density=self.method.density,
                completeness=self.method.completeness,
                method=self.method.name,
                route=route,
                is_linear=self.method.is_linear and readout.is_linear,
                normalize=readout.normalize,
                n_steps=n_steps[i] if n_steps else 0,
                is_converged=is_converged[i] if is_converged else None,
                geometry=picture.geometry,
                note=self.model.note,
                truncated=truncated,
            )
            for i, picture in enumerate(pictures)
        ]


@torch.inference_mode(False)  # which the caller may be in, and in which nothing has a gradient
def explain(
    image: str | Path | bytes | np.ndarray,
    prompts: Sequence[str],
    *,
    checkpoint: str | Path | None = None,
    model: str | EmbeddingModel = "medclip-vit",
    method: str | Mapping[str, Any] | Method = "integrated_gradients",
    route: Route = "auto",
    against: str | None = None,
    normalize: bool = True,
    seed: int = 0,
    device: str = "cpu",
) -> Explanation:
    """Show which pixels of an X-ray made the logit of each prompt.

    Args:
        image: A PNG or JPEG file's path or bytes, or an array `[height, width]` of uint8 or uint16.
        prompts: Texts to be explained, one map each.
        checkpoint: The checkpoint folder; needed where `model` is a name.
        model: A name of `mapstack.models`, or a loaded model.
        method: A method's name, a mapping with `name` and its parameters, or a method.
        route: See `Explainer.explain`.
        against: A text that each prompt is contrasted with: the map explains logit(prompt) - logit(against).
        normalize: See `Explainer`.
        seed: See `Explainer`.
        device: Where a model given by name runs.

    Raises:
        ConfigError: A model's or method's name is unknown, or there is no checkpoint.
        CheckpointError: The checkpoint is missing, damaged, or does not fit.
        ImageError: The picture cannot be read.
        InputError: A prompt is blank or too long, or the route does not fit the method.
    """
    loaded = _load(model, checkpoint, device)
    picture = _read_picture(image)
    groups = text_groups(prompt_set=None, texts=prompts, use="prompts", ensemble="none", classes=None, against=against)
    explainer = Explainer(loaded, _make_method(method), normalize=normalize, seed=seed)
    (explanation,) = explainer.explain([prepare(picture, loaded.preprocessing)], groups, route)
    return replace(explanation, picture=picture)


def _load(model: str | EmbeddingModel, checkpoint: str | Path | None, device: str) -> EmbeddingModel:
    if isinstance(model, EmbeddingModel):
        return model
    if checkpoint is None:
        raise ConfigError(f"model '{model}' was named without a checkpoint; give checkpoint=FOLDER.")
    return load_model(model, checkpoint).to(device)


def _make_method(method: str | Mapping[str, Any] | Method) -> Method:
    if isinstance(method, Method):
        return method
    return make_method(method) if isinstance(method, str) else make_method(**method)


def _read_picture(image: str | Path | bytes | np.ndarray) -> Picture:
    if isinstance(image, bytes):
        return decode(image)
    return from_array(image) if isinstance(image, np.ndarray) else read(image)
