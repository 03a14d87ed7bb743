"""What an attribution method is: readout and pictures in, one signed map per row out."""

import abc
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from mapstack.images import Inputs
from mapstack.models.base import EmbeddingModel
from mapstack.models.precision import float32_convolutions
from mapstack.readouts import Readout

Completeness = Literal["in the limit of n_steps", "in expectation", "no"]


@dataclass(frozen=True)
class Attribution:
    """The attributions of every row of a readout, for a batch of pictures.

    Attributes:
        values: Signed scores, summed over colour channels, model-input frame, in the unit of the readout.
        embedding: Raw `I_p` of each picture.
        baseline_readout: The readout at the baseline; its mean over the draws where a method draws baselines; None
            for a method without a baseline.
        baseline_embedding: What the readout reads at the baseline (unit length where it normalises, mean over the
            draws), so that completeness can be told later for any direction. None without a baseline.
        n_steps: Points used for each picture, for path methods.
        is_converged: Whether `n_steps: auto` met its tolerance for each picture before its cap.
    """

    values: Float[Tensor, "batch rows height width"]
    embedding: Float[Tensor, "batch embed_dim"]
    baseline_readout: Float[Tensor, "batch rows"] | None = None
    baseline_embedding: Float[Tensor, "batch embed_dim"] | None = None
    n_steps: tuple[int, ...] = field(default=())
    is_converged: tuple[bool, ...] = field(default=())


# Parameters that decide how the work is cut into passes, and nothing about the maps beyond rounding.
EXECUTION_PARAMETERS = frozenset({"internal_batch_size", "perturbations_per_eval", "rows_per_pass"})


class Method(abc.ABC):
    """An attribution method: a frozen dataclass of its parameters.

    Attributes:
        name: Its name in configurations.
        is_linear: Whether the map of `a u + b v` is `a` times the map of `u` plus `b` times that of `v`. Only then may
            a stack along few directions replace the one along all axes.
        completeness: Whether the map of a readout sums to its value at the picture less that at the baseline.
        one_stack_serves_both: Whether a stack of the raw embedding also gives the maps of the normalised one.
    """

    name: ClassVar[str]
    is_linear: bool = True
    completeness: ClassVar[Completeness] = "no"
    one_stack_serves_both: ClassVar[bool] = False

    @property
    def density(self) -> float:
        """What a map is multiplied by for its sum to be in the unit of the readout: logits per pixel."""
        return 1.0

    def describe(self) -> dict[str, Any]:
        """Return the name and every parameter that decides the maps, as JSON can carry them."""
        parameters = {each.name: getattr(self, each.name) for each in fields(cast(Any, self))}
        kept = {name: value for name, value in parameters.items() if name not in EXECUTION_PARAMETERS}
        return {"name": self.name, **kept}

    def attribute(
        self,
        model: EmbeddingModel,
        inputs: Inputs,
        readout: Readout,
        *,
        seed: int = 0,
        check: Readout | None = None,
    ) -> Attribution:
        """Attribute every row of a readout.

        It may be called in inference mode. Lightning's predict loop and TorchServe both run there, and
        `torch.enable_grad` does not undo it: gradients would silently come back zero (Lightning issue 16838).

        Args:
            model: Frozen.
            inputs: A batch of preprocessed pictures.
            readout: What is explained.
            seed: Seed of every random draw, together with each picture's bytes.
            check: The numbers on which a tolerance is measured, where the rows are not themselves in logits.
        """
        with torch.inference_mode(False), torch.enable_grad(), float32_convolutions():
            pixel_values = inputs.pixel_values
            if pixel_values.is_inference():  # autograd refuses tensors made in inference mode, but not their copies
                inputs = replace(inputs, pixel_values=pixel_values.clone())
            return self._attribute(model, inputs, readout, seed=seed, check=check or readout)

    @abc.abstractmethod
    def _attribute(
        self, model: EmbeddingModel, inputs: Inputs, readout: Readout, *, seed: int, check: Readout
    ) -> Attribution:
        """Do what `attribute` says, with gradients on and outside inference mode."""
