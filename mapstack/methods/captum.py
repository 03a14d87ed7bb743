"""Any off-the-shelf attribution method: a Captum class, or a user's own of the same shape, by its dotted path."""

import contextlib
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mapstack.baselines import baseline
from mapstack.errors import ConfigError, InputError
from mapstack.images import Inputs
from mapstack.methods.base import Attribution, Method
from mapstack.models.base import EmbeddingModel, normalised
from mapstack.randomness import generator
from mapstack.readouts import DirectionReadout, Readout

_LINEARITY_TOLERANCE = 1e-3  # Captum's Occlusion casts to float32; a method that is not linear is off by 1

# The arguments by which Captum's classes run the model several times: path methods, NoiseTunnel, sampling.
_COUNTS = ("n_steps", "nt_samples", "n_samples")


class ExplainedModule(nn.Module):
    """Picture in, one number a row out: the form of model that Captum's classes expect."""

    def __init__(self, model: EmbeddingModel, readout: Readout) -> None:
        super().__init__()
        self.model = model
        self.readout = readout

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return `[batch, rows]`."""
        output: Tensor = self.readout(self.model.embed_images(pixel_values))
        return output


@dataclass(frozen=True)
class CaptumMethod(Method):
    """Runs `ATTRIBUTION(module).attribute(picture, target=row, ...)` for every picture and row.

    Methods that draw at random are seeded from the picture's bytes before every row, so that rows share their draws.

    Attributes:
        attribution: Dotted path of a class that is made from a module and has Captum's `attribute`.
        init: Further keyword arguments of its constructor.
        kwargs: Keyword arguments of `attribute`.
        baseline: "black", "white", "mean", "noise" or "blur", handed over as `baselines` where `attribute`
            takes that.
        linear: Whether the method is linear in the output. It is tested on the first picture of every batch.
    """

    attribution: str = "captum.attr.Saliency"
    init: dict[str, Any] = field(default_factory=dict)
    kwargs: dict[str, Any] = field(default_factory=dict)
    baseline: str = "black"
    linear: bool = False

    name = "captum"

    def __post_init__(self) -> None:
        """Fail at configuration time when the class is not there."""
        self._load()

    @property
    def is_linear(self) -> bool:  # type: ignore[override]
        """What the configuration states; `attribute` tests it and raises InputError where it is not so."""
        return self.linear

    @property
    def n_points(self) -> int:
        """How many points or samples a row takes, by the arguments or the defaults of `attribute`; 1 without any."""
        known = inspect.signature(self._load().attribute).parameters
        n_points = 1
        for name in _COUNTS:
            given = self.kwargs.get(name, known[name].default if name in known else 1)
            n_points *= given if isinstance(given, int) else 1
        return n_points

    def _load(self) -> Any:
        module_name, _, class_name = self.attribution.rpartition(".")
        try:
            found = getattr(importlib.import_module(module_name), class_name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(
                f"method.attribution '{self.attribution}' cannot be imported ({error}); it is a dotted path such as "
                "captum.attr.DeepLift; correct it."
            ) from None
        if not inspect.isclass(found) or not hasattr(found, "attribute"):
            raise ConfigError(
                f"method.attribution '{self.attribution}' has no method 'attribute'; name a class like those of "
                "captum.attr."
            )
        return found

    def _attribute(
        self, model: EmbeddingModel, inputs: Inputs, readout: Readout, *, seed: int, check: Readout
    ) -> Attribution:
        end = inputs.pixel_values
        start = baseline(self.baseline, inputs, model.preprocessing, seed).to(end)
        seeds = [generator(seed, sha256, self.attribution).initial_seed() for sha256 in inputs.sha256]
        if self.linear:
            self._test_linearity(model, end[:1], start[:1], readout, seeds[0])
        values = torch.stack(
            [self._rows(model, end[i : i + 1], start[i : i + 1], readout, seeds[i]) for i in range(len(end))]
        )
        with torch.no_grad():
            embedding, at_start = model.embed_images(end), model.embed_images(start)
        if not self._takes_baseline():
            return Attribution(values, embedding)
        return Attribution(
            values,
            embedding,
            baseline_readout=readout(at_start),
            baseline_embedding=normalised(at_start) if readout.normalize else at_start,
        )

    def _takes_baseline(self) -> bool:
        return "baselines" in inspect.signature(self._load().attribute).parameters and "baselines" not in self.kwargs

    def _rows(
        self, model: EmbeddingModel, end: Tensor, start: Tensor, readout: Readout, seed: int
    ) -> Float[Tensor, "rows height width"]:
        explain = self._load()(ExplainedModule(model, readout), **self.init)
        baselines = {"baselines": start} if self._takes_baseline() else {}
        rows = []
        for row in range(readout.n_rows):
            with _seeded(seed, end.device):
                answer = explain.attribute(end.clone().requires_grad_(), target=row, **baselines, **self.kwargs)
            if not isinstance(answer, Tensor) or answer.shape != end.shape:
                raise InputError(
                    f"{self.attribution} answered {_describe(answer)} for a picture of shape {tuple(end.shape)}; a "
                    "method for a stack scores every pixel; choose one that attributes to the input."
                )
            rows.append(answer.detach()[0].sum(dim=0))
        return torch.stack(rows).to(end.dtype)

    def _test_linearity(self, model: EmbeddingModel, end: Tensor, start: Tensor, readout: Readout, seed: int) -> None:
        """Compare the map of a mixture of two directions with the mixture of their maps, on the first picture."""
        pair = torch.randn(2, model.embed_dim, generator=torch.Generator().manual_seed(seed)).to(end)
        mixed = torch.cat([pair, 0.6 * pair[:1] - 0.8 * pair[1:]])
        probe = DirectionReadout(mixed, embed_dim=model.embed_dim, normalize=readout.normalize)
        first, second, both = self._rows(model, end, start, probe, seed)
        error = (0.6 * first - 0.8 * second - both).norm() / both.norm().clamp(min=torch.finfo(end.dtype).tiny)
        if not error <= _LINEARITY_TOLERANCE:
            raise InputError(
                f"{self.attribution} is stated to be linear and is off by {float(error):.2g} of its map on this "
                "picture; only a linear method may take other directions than the axes; set method.linear=false."
            )


def _describe(answer: object) -> str:
    return f"shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's and numpy's global generators for a block, and put them back: Captum draws from both."""
    numpy_state = np.random.get_state()
    # `torch.manual_seed` would seed every GPU of the machine, and leave them so.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
