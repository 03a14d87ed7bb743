"""Map generation as a predict loop: a LightningModule whose step makes stacks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lightning
import numpy as np
import torch

from mapstack.basis import Basis
from mapstack.errors import InputError
from mapstack.explainer import Explainer
from mapstack.images import Inputs
from mapstack.readouts import TextReadout
from mapstack.stack import OcclusionStack, Stack
from mapstack.store import Encoding
from mapstack.stored_stack import Arrays, stack_arrays, stack_info
from train_like.batch import Batch, Item
from train_like.source import Failure


@dataclass(frozen=True, slots=True)
class StackRecord:
    """One sample, ready for the store."""

    key: str
    arrays: Arrays
    info: dict[str, Any]


class StackModule(lightning.LightningModule):
    """Makes the stacks of a batch.

    Args:
        explainer: Model and method.
        basis: What stacks are made along; None for the axes.
        readout: The configured texts: their logits go into each record, and `n_steps: auto` is measured on them.
        encoding: How stacks are kept.
    """

    def __init__(
        self, explainer: Explainer, basis: Basis | None, readout: TextReadout | None, encoding: Encoding
    ) -> None:
        super().__init__()
        self.model = explainer.model
        self.readout = readout
        self._explainer = explainer
        self._basis = basis
        self._encoding = encoding

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> list[StackRecord | Failure]:
        """Return a record for every sample whose stack could be made, a failure for the others."""
        results: list[StackRecord | Failure] = list(batch.failures)
        if batch.inputs is not None:
            results.extend(self._explain(batch.items, self._explainer.cast(batch.inputs)))
        return results

    def _explain(self, items: Sequence[Item], inputs: Inputs) -> Iterator[StackRecord | Failure]:
        basis = None if self._basis is None else self._basis.to(inputs.pixel_values)
        stack = self._explainer.stack(inputs, basis, check=self.readout)
        logits = None if self.readout is None else self.readout.logits(stack.embedding)
        for i, item in enumerate(items):
            yield self._record(item, stack[i : i + 1], None if logits is None else logits[i])

    def _record(self, item: Item, stack: Stack | OcclusionStack, logits: torch.Tensor | None) -> StackRecord | Failure:
        try:
            arrays = _require_finite(stack_arrays(stack, self._encoding))
        except InputError as error:
            return Failure(item.key, item.shard, str(error))
        info = {
            "shard": item.shard,
            "sha256": item.prepared.sha256,
            "geometry": item.prepared.geometry.to_dict(),
            "route": "axes" if self._basis is None else "prompts",
            **stack_info(stack),
        }
        if logits is not None and self.readout is not None:
            info["logits"] = logits.tolist()
        return StackRecord(item.key, arrays, info)


def _require_finite(arrays: Arrays) -> Arrays:
    """Return the arrays, which a store takes only without NaN and infinity."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise InputError(
                f"its {name} holds NaN or infinity, which is never stored; check the model and the sample."
            )
    return arrays
