"""The endpoint without a server: a batch of requests in, an answer for each of them out."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from mapstack.endpoint.answers import Answer, answer_logits, answer_maps, check_size, refuse
from mapstack.endpoint.instances import join, split
from mapstack.endpoint.maps import MapMaker, Mapped, MapSettings, Order
from mapstack.endpoint.refusals import Refusal, refusal_of
from mapstack.endpoint.requests import Raw, Request, parse
from mapstack.endpoint.settings import EndpointConfig
from mapstack.endpoint.stack_cache import CacheCounts, StackCache
from mapstack.endpoint.subjects import StoredSamples, Subject, embed, find_subject
from mapstack.endpoint.texts import RememberingText
from mapstack.errors import ConfigError, ImageError
from mapstack.images import read
from mapstack.methods import GradientShap
from mapstack.models import EmbeddingModel
from mapstack.prompts import PromptSet
from mapstack.readouts import TextReadout, truncated_groups
from mapstack.threads import one_thread

T = TypeVar("T")

_JOINT_BYTES = 64  # what an answer to several requests holds beside theirs, for each


@dataclass(frozen=True)
class CacheReport:
    """What the cache did in a batch, and how large it was when any worker last added to it [bytes]."""

    hits: int
    misses: int
    n_bytes: int


@dataclass(eq=False)
class _Job:
    """One request on its way: it has an answer as soon as something is wrong with it.

    Of a call's limits each of its requests has its share.
    """

    max_answer_bytes: int
    max_passes: int
    request: Request | None = None
    subject: Subject | None = None
    answer: Answer | None = None


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a client: one request, or several in KServe's form; `wants_maps` is None for the former."""

    jobs: list[_Job]
    wants_maps: bool | None

    def answer(self) -> Answer:
        answers = [_answered(job) for job in self.jobs]
        return answers[0] if self.wants_maps is None else join(answers, wants_maps=self.wants_maps)


class Endpoint:
    """A model behind two calls: logits, and maps.

    Args:
        model: Frozen. Its text tower is replaced by one that remembers.
        config: What is served.
        prompt_set: The classes that a request without prompts is answered for; None for none.
        cache_folder: In place of the configured one.

    Raises:
        ConfigError: The cache's folder, the stack store or the size of the maps does not fit, or a reference picture
            of a method cannot be read.
        StoreError: The stack store is damaged.
    """

    def __init__(
        self,
        model: EmbeddingModel,
        config: EndpointConfig,
        prompt_set: PromptSet | None = None,
        cache_folder: Path | None = None,
    ) -> None:
        _require_map_size(config.map_size, model.preprocessing.image_size)
        _require_references(config)
        model.text = RememberingText(model.text)
        self._model = model
        self._config = config
        self._prompt_set = prompt_set
        folder = cache_folder or (Path(config.cache.folder) if config.cache.folder else None)
        self._cache = StackCache(folder, config.cache.max_bytes, config.cache.max_open)
        self._stored = None if config.store is None else StoredSamples(Path(config.store), model.fingerprint)
        settings = MapSettings(config.map_size, config.seed, config.span_tolerance)
        self._maps = MapMaker(model, self._cache, self._stored, settings)

    def answer(self, raws: Sequence[Raw]) -> list[Answer]:
        """Answer a batch of requests; one that is wrong, or fails, takes nothing from the others."""
        start = time.perf_counter()
        calls = [self._begin_call(raw) for raw in raws]
        jobs = [job for call in calls for job in call.jobs]
        self._predict([job for job in jobs if job.answer is None and job.request and not job.request.wants_maps])
        self._explain([job for job in jobs if job.answer is None], start)
        seconds = time.perf_counter() - start
        return [replace(call.answer(), seconds=seconds) for call in calls]

    def report_cache(self) -> CacheReport:
        """Return what the cache did since the last report."""
        counts, self._cache.counts = self._cache.counts, CacheCounts()
        folder = self._cache.folder
        return CacheReport(counts.hits, counts.misses, 0 if folder is None else folder.n_bytes())

    @property
    def _map_size(self) -> int:
        return self._config.map_size or self._model.preprocessing.image_size

    def _begin_call(self, raw: Raw) -> "_Call":
        """Take a call apart into its requests, each of which may fill and cost its share of the answer."""
        limits = self._config.limits
        whole = _Job(limits.max_answer_bytes, limits.max_passes)
        try:
            instances = split(raw, limits.max_instances)
        except Refusal as refusal:
            return _Call([replace(whole, answer=refuse(refusal))], None)
        if instances is None:
            return _Call([self._begin(raw, whole)], None)
        n_bytes = limits.max_answer_bytes // len(instances) - _JOINT_BYTES
        n_passes = max(1, limits.max_passes // len(instances))
        return _Call([self._begin(each, _Job(n_bytes, n_passes)) for each in instances], raw.wants_maps)

    def _begin(self, raw: Raw, job: _Job) -> _Job:
        """Check a request and find its picture."""
        limits = self._config.limits
        try:
            job.request = parse(raw, self._config, self._prompt_set)
            job.subject = find_subject(
                job.request, self._model, self._cache, self._stored, max_pixels=limits.max_pixels
            )
            check_size(job.request, job.subject, self._map_size, job.max_answer_bytes)
        except Exception as error:
            job.answer = refuse(refusal_of(error))
        return job

    def _predict(self, jobs: Sequence[_Job]) -> None:
        subjects = [job.subject for job in jobs if job.subject is not None]
        try:
            embeddings = embed(subjects, self._model)
        except Exception as error:
            if len(jobs) > 1:  # each alone, so that the fault stays with its own request
                for job in jobs:
                    self._predict([job])
                return
            jobs[0].answer = refuse(refusal_of(error))
            return
        for job, subject, embedding in zip(jobs, subjects, embeddings, strict=True):
            job.answer = self._logits(job, subject, embedding)

    def _logits(self, job: _Job, subject: Subject, embedding: torch.Tensor) -> Answer:
        try:
            request = _known(job.request)
            readout = TextReadout(request.groups, self._model.text, device=embedding.device, dtype=embedding.dtype)
            logits = readout.logits(embedding[None])[0].cpu()
            truncated = [group.name for group in truncated_groups(request.groups, self._model.text)]
            return answer_logits(request, subject, logits, self._model.note, truncated)
        except Exception as error:
            return refuse(refusal_of(error))

    def _explain(self, jobs: Sequence[_Job], start: float) -> None:
        orders = [Order(i, _known(job.request), _known(job.subject), job.max_passes) for i, job in enumerate(jobs)]
        outcomes = self._maps.make(orders)
        for order, job in zip(orders, jobs, strict=True):
            job.answer = self._finish(order, outcomes[order.index], job.max_answer_bytes, start)

    @staticmethod
    def _finish(order: Order, outcome: Mapped | Exception, max_bytes: int, start: float) -> Answer:
        try:
            if isinstance(outcome, Exception):
                raise outcome
            seconds = time.perf_counter() - start
            with one_thread():
                return answer_maps(order.request, order.subject, outcome, max_bytes, seconds)
        except Exception as error:
            return refuse(refusal_of(error))


def _require_map_size(map_size: int | None, image_size: int) -> None:
    """Refuse, before the first request does, a size of maps that the model's frame cannot be reduced to."""
    if map_size is not None and image_size % map_size:
        raise ConfigError(
            f"endpoint.map_size is {map_size}; it must divide the model's frame of {image_size} px; choose a divisor, "
            "or null for the frame itself."
        )


def _require_references(config: EndpointConfig) -> None:
    """Read the pictures that methods draw from, before the first request does."""
    for name, method in config.methods.items():
        for path in method.reference_pictures if isinstance(method, GradientShap) else ():
            try:
                read(path)
            except ImageError as error:
                raise ConfigError(f"a reference picture of endpoint.methods.{name} cannot be used: {error}") from None


def _known(value: T | None) -> T:
    if value is None:
        raise RuntimeError("a request lost a part on its way.")
    return value


def _answered(job: _Job) -> Answer:
    if job.answer is None:
        return refuse(Refusal("internal_error", "the server made no answer; this is its fault; tell its keeper."))
    return job.answer
