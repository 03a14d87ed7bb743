"""Map generation as a predict loop: a LightningModule whose step makes stacks."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import lightning
import torch

from mapstack.basis import Basis
from mapstack.errors import InputError
from mapstack.explainer import Explainer
from mapstack.images import Inputs
from mapstack.readouts import TextReadout
from mapstack.stack import OcclusionStack, Stack
from mapstack.store import Encoding, Failure, Record
from mapstack.stored_stack import Arrays, encode_arrays, plain_arrays, stack_info
from train_like.background import Pending
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

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> list[Pending]:
        """Return what makes the record of every sample whose stack could be made, and the failure of the others.

        What is left to do needs no model, and is done beside the next batch.
        """
        results: list[Pending] = [partial(_fail, failure) for failure in batch.failures]
        if batch.inputs is not None:
            results.extend(self._explain(batch.items, self._explainer.cast(batch.inputs)))
        return results

    def _explain(self, items: Sequence[Item], inputs: Inputs) -> Iterator[Pending]:
        basis = None if self._basis is None else self._basis.to(inputs.pixel_values)
        stack = self._explainer.stack(inputs, basis, check=self.readout)
        logits = None if self.readout is None else self.readout.logits(stack.embedding)
        for i, item in enumerate(items):
            own = stack[i : i + 1]
            info = self._describe(item, own, None if logits is None else logits[i])
            yield partial(_make_record, item, plain_arrays(own), info, self._encoding)

    def _describe(self, item: Item, stack: Stack | OcclusionStack, logits: torch.Tensor | None) -> dict[str, Any]:
        info = {
            "shard": item.shard,
            "sha256": item.prepared.sha256,
            "geometry": item.prepared.geometry.to_dict(),
            "route": "axes" if self._basis is None else "prompts",
            **stack_info(stack),
        }
        if logits is not None and self.readout is not None:
            info["logits"] = logits.tolist()
        return info


def _fail(failure: Failure) -> Failure:
    return failure


def _make_record(item: Item, arrays: Arrays, info: dict[str, Any], encoding: Encoding) -> Record | Failure:
    try:
        return Record(item.key, encode_arrays(arrays, encoding), info)
    except InputError as error:
        return Failure(item.key, item.shard, str(error))
