"""Map generation as a predict loop: a LightningModule whose step makes stacks."""

from collections.abc import Iterator, Sequence
from typing import Any

import lightning
import torch

from mapstack.basis import Basis
from mapstack.codecs import Encoding
from mapstack.errors import InputError
from mapstack.explainer import Explainer
from mapstack.images import Inputs
from mapstack.readouts import TextReadout
from mapstack.stack import OcclusionStack, Stack
from mapstack.store import Failure, Record
from mapstack.stored_stack import stack_arrays, stack_info
from train_like.batch import Batch, Item


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

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> list[Record | Failure]:
        """Return the record of every sample whose stack could be made, and the failure of the others."""
        results: list[Record | Failure] = list(batch.failures)
        if batch.inputs is not None:
            results.extend(self._explain(batch.items, self._explainer.cast(batch.inputs)))
        return results

    def _explain(self, items: Sequence[Item], inputs: Inputs) -> Iterator[Record | Failure]:
        basis = None if self._basis is None else self._basis.to(inputs.pixel_values)
        stack = self._explainer.stack(inputs, basis, check=self.readout)
        logits = None if self.readout is None else self.readout.logits(stack.embedding)
        for i, item in enumerate(items):
            own = stack[i : i + 1]
            info = self._describe(item, own, None if logits is None else logits[i])
            try:
                yield Record(item.key, stack_arrays(own, self._encoding), info)
            except InputError as error:
                yield Failure(item.key, item.shard, str(error))

    def _describe(self, item: Item, stack: Stack | OcclusionStack, logits: torch.Tensor | None) -> dict[str, Any]:
        info = {
            "shard": item.shard,
            "sha256": item.prepared.sha256,
            "geometry": item.prepared.geometry.to_dict(),
            "route": "axes" if self._basis is None else self._basis.name,
            **stack_info(stack),
        }
        if logits is not None and self.readout is not None:
            info["logits"] = logits.tolist()
        return info
