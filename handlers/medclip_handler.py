"""The TorchServe door to `mapstack.endpoint`: it hands batches over, and answers back.

TorchServe imports this file by its bare name from the unpacked archive, which holds mapstack too, and allows it one
class. It is no `BaseHandler`: importing that changes the precision of matrix products on newer GPUs, and a served map
would differ from the offline one.
"""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mapstack.endpoint import Answer, Endpoint, Raw
from mapstack.endpoint.packed import BUSY_VARIABLE, CACHE_VARIABLE, LOAD_FAILED, open_endpoint


class MedCLIPHandler:
    """Answers `/predictions` with logits and `/explanations` with maps."""

    endpoint: Endpoint

    def initialize(self, context: Any) -> None:
        """Load the archive; the reason of a failure goes out on one line, where `serve start` finds it."""
        properties = context.system_properties
        gpu = properties.get("gpu_id")
        device = f"cuda:{gpu}" if gpu is not None and torch.cuda.is_available() else "cpu"
        cache = os.environ.get(CACHE_VARIABLE)
        try:
            self.endpoint = open_endpoint(
                Path(properties["model_dir"]), device=device, cache_folder=Path(cache) if cache else None
            )
        except Exception as error:
            print(f"{LOAD_FAILED}{type(error).__name__}: {' '.join(str(error).split())}", flush=True)
            raise

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """Answer a batch; every item gets its own status."""
        with self._busy():
            raws = [self._raw(parts, context.get_all_request_header(i)) for i, parts in enumerate(data)]
            answers = self.endpoint.answer(raws)
        for i, (raw, answer) in enumerate(zip(raws, answers, strict=True)):
            context.set_response_status(answer.status, answer.code, i)
            context.set_response_content_type(i, answer.content_type)
            for name, value in answer.headers.items():
                context.set_response_header(i, name, value)
            self._count(raw, answer, context.metrics)
        self._count_cache(context.metrics)
        return [answer.body for answer in answers]

    @staticmethod
    def _raw(parts: Mapping[str, Any], headers: Mapping[str, Any]) -> Raw:
        # A part of a form may be called like a header, and then stands in its place until the header itself comes.
        known = {name.lower(): value for name, value in headers.items() if isinstance(value, str)}
        return Raw(parts, known.get("accept", "*/*"), wants_maps=known.get("explain") == "True")

    def _count(self, raw: Raw, answer: Answer, metrics: Any) -> None:
        """Count by words of our own: nothing of a request reaches a metric."""
        call = "explanations" if raw.wants_maps else "predictions"
        if answer.code:
            self._add(metrics, "mapstack_refused", 1, [call, answer.code])
            return
        labels = [call, answer.method or "none", answer.route or "none"]
        self._add(metrics, "mapstack_answered", 1, labels)
        self._add(metrics, "mapstack_seconds", answer.seconds, labels)

    def _count_cache(self, metrics: Any) -> None:
        report = self.endpoint.report_cache()
        self._add(metrics, "mapstack_cache_hits", report.hits, [])
        self._add(metrics, "mapstack_cache_misses", report.misses, [])
        self._add(metrics, "mapstack_cache_bytes", report.n_bytes, [])

    @staticmethod
    def _add(metrics: Any, name: str, value: float, labels: list[str]) -> None:
        """Update a metric, if the host's metrics file declares it."""
        for known in metrics.cache.values():
            if name in known:
                known[name].add_or_update(value, labels)

    @staticmethod
    @contextmanager
    def _busy() -> Iterator[None]:
        """Hold a shared lock while a batch is being answered, so that `serve stop` can wait for it."""
        path = os.environ.get(BUSY_VARIABLE)
        if not path:
            yield
            return
        with open(path, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            yield
