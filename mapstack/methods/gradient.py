"""Gradient backpropagation, signed and absolute."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mapstack.images import Inputs
from mapstack.methods.base import Attribution, Method
from mapstack.methods.engine import gradients_of_parts
from mapstack.models.base import EmbeddingModel
from mapstack.readouts import Readout


@dataclass(frozen=True)
class Gradient(Method):
    """The gradient of each row with respect to the picture, with its sign, summed over colour channels.

    A slope, in readout per unit of normalised brightness; it has no baseline and no completeness.

    Attributes:
        rows_per_pass: Rows that one batched vector-Jacobian product takes; None takes what the device does best with.

    Source:
        Simonyan, Vedaldi, Zisserman, "Deep inside convolutional networks", ICLR workshop 2014, without the absolute
        value. Equals `captum.attr.Saliency` with `abs=False`.
    """

    rows_per_pass: int | None = None

    name = "gradient"
    one_stack_serves_both = True

    def _attribute(
        self, model: EmbeddingModel, inputs: Inputs, readout: Readout, *, seed: int, check: Readout
    ) -> Attribution:
        embeddings, values = [], []
        parts = gradients_of_parts(model, inputs.pixel_values, readout, rows_per_pass=self.rows_per_pass)
        for _, (embedding, chunks) in parts:
            embeddings.append(embedding)
            values.append(torch.cat([self._combine(gradient) for _, gradient in chunks]).transpose(0, 1))
        if len(values) == 1:  # as nearly always; a stack is not copied for nothing
            return Attribution(values[0], embeddings[0])
        return Attribution(torch.cat(values), torch.cat(embeddings))

    def _combine(self, gradient: Tensor) -> Tensor:
        return gradient.sum(dim=2)


@dataclass(frozen=True)
class Saliency(Gradient):
    """The absolute gradient of each row, summed over colour channels.

    Not linear: the sum of absolute values is not the absolute value of the sum, so only the axes make the paper's map.

    Source:
        As `Gradient`; `captum.attr.Saliency` with its default `abs=True`.
    """

    name = "saliency"
    is_linear = False
    one_stack_serves_both = False

    def _combine(self, gradient: Tensor) -> Tensor:
        return gradient.abs().sum(dim=2)
