"""From requests to maps: what a stack in the cache answers is projected, the rest is computed together."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mapstack.basis import Basis
from mapstack.endpoint.choice import require_affordable
from mapstack.endpoint.refusals import Refusal
from mapstack.endpoint.requests import Request
from mapstack.endpoint.stack_cache import AnyStack, StackCache, stack_name
from mapstack.endpoint.subjects import StoredSamples, Subject
from mapstack.errors import InputError
from mapstack.explainer import Explainer, Explanation
from mapstack.geometry import Geometry
from mapstack.images import Prepared, collate
from mapstack.methods import Completeness, IntegratedGradients
from mapstack.models import EmbeddingModel
from mapstack.prompts import TextGroup
from mapstack.readouts import TextReadout, truncated_groups
from mapstack.routes import Plan, Route
from mapstack.stack import Stack
from mapstack.store import Record
from mapstack.stored_stack import describe_maps
from mapstack.threads import one_thread


@dataclass(frozen=True)
class Mapped:
    """The maps of one request.

    Attributes:
        explanation: The maps.
        is_cached: Whether no model was run for them.
        losses: Of a stored stack, what its basis loses: see `mapstack.stored_stack.describe_maps`.
    """

    explanation: Explanation
    is_cached: bool
    losses: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Order:
    """One request for maps.

    Attributes:
        index: By which its maps are handed back.
        request: What is asked.
        subject: Of which picture.
        max_passes: How many gradients or runs of the image model it may cost.
    """

    index: int
    request: Request
    subject: Subject
    max_passes: int


@dataclass(frozen=True, eq=False)
class _Task:
    """One request that needs maps, and the stack that will give them; `stack_key` is None for the route "direct"."""

    index: int
    subject: Subject
    prepared: Prepared
    explainer: Explainer
    readout: TextReadout
    basis: Basis | None
    stack_key: str | None
    tag: str
    costs: Mapping[str, int]


Outcome = Mapped | Exception


class MapMaker:
    """Makes the maps of a batch of requests.

    Args:
        model: Frozen.
        cache: Of stacks.
        stored: The stack store that keys belong to; None for none.
        settings: Form of the maps.
    """

    def __init__(
        self, model: EmbeddingModel, cache: StackCache, stored: StoredSamples | None, settings: "MapSettings"
    ) -> None:
        self._model = model
        self._cache = cache
        self._stored = stored
        self._settings = settings

    def make(self, orders: Sequence[Order]) -> dict[int, Outcome]:
        """Make the maps of requests; what goes wrong with one is told for that one."""
        outcomes: dict[int, Outcome] = {}
        tasks: list[_Task] = []
        for order in orders:
            try:
                planned = self._plan(order)
            except Exception as error:  # told to the request that caused it, never to its batch-mates
                outcomes[order.index] = error
                continue
            if isinstance(planned, Mapped):
                outcomes[order.index] = planned
            else:
                tasks.append(planned)
        for together in _grouped(tasks):
            outcomes |= self._run(together)
        return outcomes

    def _plan(self, order: Order) -> Mapped | _Task:
        """Answer from the store or the cache, or say what must be computed."""
        settings, request, subject = self._settings, order.request, order.subject
        explainer = Explainer(self._model, request.method, request.normalize, settings.map_size, settings.seed)
        if subject.record is not None:
            return self._from_store(request, subject.record, subject.geometry, explainer)
        if subject.prepared is None or subject.sha256 is None:
            raise RuntimeError("a request without a picture was let pass.")
        readout = explainer.readout(request.groups)
        tag = _tag(explainer, request.groups)
        with one_thread():
            # A maximum is attributed by the route "direct" itself; a stack takes the winner at the picture.
            may_take_any_stack = request.route == "auto" and (
                readout.is_linear or _plan_route(explainer, readout, "auto").route != "direct"
            )
            stack = self._cache.find(explainer, subject.sha256, readout.span, tag) if may_take_any_stack else None
            if stack is not None:
                self._cache.counts.hits += 1
                return Mapped(_project(stack, request.groups, explainer, subject.geometry), is_cached=True)
            plan = _plan_route(explainer, readout, request.route)
        chosen: str = plan.route
        if may_take_any_stack and chosen == "direct":
            chosen = "prompts"  # no more rows, the same maps up to rounding, and a stack that can be kept
        basis = Basis.of(readout.span) if chosen == "prompts" else None
        n_rows = {"direct": readout.n_rows, "axes": self._model.embed_dim}.get(chosen, len(basis or ()))
        image_size = self._model.preprocessing.image_size
        require_affordable(request.method, n_rows, image_size=image_size, max_passes=order.max_passes)
        key = None if chosen == "direct" else stack_name(explainer, subject.sha256, basis, tag)
        return _Task(order.index, subject, subject.prepared, explainer, readout, basis, key, tag, plan.costs)

    @one_thread()
    def _from_store(self, request: Request, record: Record, geometry: Geometry, explainer: Explainer) -> Mapped:
        if self._stored is None:
            raise RuntimeError("a key without a store was let pass.")
        manifest = self._stored.manifest
        _require_stored(request, manifest["identity"]["method"], record.info["route"])
        stack = self._stored.stack(record, normalize=request.normalize, map_size=self._settings.map_size)
        readout = _readout_beside(stack, request.groups, explainer)
        if self._stored.basis is not None:
            self._stored.basis.require(readout.span, self._settings.span_tolerance)
        told = describe_maps(record, manifest, stack, readout)
        explanation = _explain_stack(
            stack,
            readout,
            geometry=geometry,
            method=told["method"],
            completeness=told["completeness"],
            is_linear=told["linear"],
            route=told["route"],
            model=self._model,
        )
        kept = {name: told[name] for name in ("n_steps", "is_converged") if name in told}
        losses: dict[str, Any] = {
            name: told[name] for name in ("map_error", "share_outside_span", "missing_share") if name in told
        }
        return Mapped(replace(explanation, **kept), is_cached=True, losses=losses)

    def _run(self, tasks: list[_Task]) -> dict[int, Outcome]:
        """Compute tasks together; where that fails, each alone, so that the fault stays with its own request."""
        try:
            return dict(self._direct(tasks) if tasks[0].stack_key is None else self._along_rows(tasks))
        except Exception as error:
            if len(tasks) == 1:
                return {tasks[0].index: error}
        return {index: outcome for task in tasks for index, outcome in self._run([task]).items()}

    def _direct(self, tasks: list[_Task]) -> dict[int, Outcome]:
        pictures = {task.prepared.sha256: task.prepared for task in tasks}
        first = tasks[0]
        made = first.explainer.explain(list(pictures.values()), first.readout.groups, "direct")
        by_picture = dict(zip(pictures, made, strict=True))
        self._cache.counts.misses += len(pictures)
        return {task.index: Mapped(by_picture[task.prepared.sha256], is_cached=False) for task in tasks}

    def _along_rows(self, tasks: list[_Task]) -> dict[int, Outcome]:
        keys = {task.stack_key: task for task in tasks if task.stack_key is not None}
        with self._cache.computing(keys):
            # Another worker may have made some while this one waited.
            normalize = tasks[0].explainer.normalize
            found = {key: self._cache.get(key, normalize=normalize) for key in keys}
            missing = {key: keys[key] for key, stack in found.items() if stack is None}
            made = self._compute(list(missing.values())) if missing else []
            for key, stack in zip(missing, made, strict=True):
                self._cache.put(key, stack)
        self._cache.counts.misses += len(missing)
        self._cache.counts.hits += len(tasks) - len(missing)
        stacks = {key: stack for key, stack in found.items() if stack is not None} | dict(
            zip(missing, made, strict=True)
        )
        outcomes: dict[int, Outcome] = {}
        for task in tasks:
            stack, is_cached = stacks[task.stack_key or ""], task.stack_key not in missing
            explanation = _project(stack, task.readout.groups, task.explainer, task.subject.geometry)
            outcomes[task.index] = Mapped(replace(explanation, costs={} if is_cached else task.costs), is_cached)
        return outcomes

    def _compute(self, tasks: list[_Task]) -> list[AnyStack]:
        first = tasks[0]
        inputs = first.explainer.cast(collate([task.prepared for task in tasks]))
        stacks = first.explainer.stack(inputs, first.basis, check=first.readout)
        return [stacks[i : i + 1] for i in range(len(tasks))]


@dataclass(frozen=True)
class MapSettings:
    """Form of the maps; see `EndpointConfig`."""

    map_size: int | None
    seed: int
    span_tolerance: float


def _tag(explainer: Explainer, groups: tuple[TextGroup, ...]) -> str:
    """Tell stacks apart whose points were chosen for their texts: no answer may depend on other texts."""
    method = explainer.method
    if not (isinstance(method, IntegratedGradients) and method.n_steps == "auto"):
        return ""
    return hashlib.sha256(repr([(group.texts, group.ensemble, group.against) for group in groups]).encode()).hexdigest()


def _grouped(tasks: Sequence[_Task]) -> list[list[_Task]]:
    """Put together what one run of a method can do: same method, same rows, and where rows are texts the same texts."""
    groups: dict[object, list[_Task]] = {}
    for task in _merged(tasks):
        rows = None if task.basis is None else task.basis.rows.numpy(force=True).tobytes()
        texts = task.readout.groups if task.stack_key is None or task.tag else None
        # By its words, since the parameters of a method need not be hashable.
        key = (repr(task.explainer.method), task.explainer.normalize, task.stack_key is None, rows, texts)
        groups.setdefault(key, []).append(task)
    return list(groups.values())


def _merged(tasks: Sequence[_Task]) -> list[_Task]:
    """Let requests about one picture share one basis that spans the texts of all of them."""
    sharing: dict[object, list[_Task]] = {}
    for task in tasks:
        may_share = task.basis is not None and not task.tag
        key = (repr(task.explainer.method), task.explainer.normalize, task.prepared.sha256) if may_share else task.index
        sharing.setdefault(key, []).append(task)
    merged = []
    for together in sharing.values():
        if len({task.stack_key for task in together}) > 1:
            basis = Basis.of(torch.cat([task.readout.span for task in together]))
            name = stack_name(together[0].explainer, together[0].prepared.sha256, basis)
            together = [replace(task, basis=basis, stack_key=name) for task in together]
        merged.extend(together)
    return merged


def _readout_beside(stack: AnyStack, groups: Sequence[TextGroup], explainer: Explainer) -> TextReadout:
    """Return the readout where the stack lies: a stack from the cache is not on the model's device."""
    embedding = stack.embedding
    return TextReadout(
        groups,
        explainer.model.text,
        normalize=explainer.normalize,
        device=embedding.device,
        dtype=embedding.dtype,
    )


def _project(stack: AnyStack, groups: Sequence[TextGroup], explainer: Explainer, geometry: Geometry) -> Explanation:
    return _explain_stack(
        stack,
        _readout_beside(stack, groups, explainer),
        geometry=geometry,
        method=explainer.method.name,
        completeness=explainer.method.completeness,
        is_linear=explainer.method.is_linear,
        route=stack.basis.name if isinstance(stack, Stack) and stack.basis is not None else "axes",
        model=explainer.model,
    )


def _explain_stack(
    stack: AnyStack,
    readout: TextReadout,
    *,
    geometry: Geometry,
    method: str,
    completeness: Completeness,
    is_linear: bool,
    route: str,
    model: EmbeddingModel,
) -> Explanation:
    """Make the maps of texts from the stack of one picture: steps 2 and 3 of the paper."""
    directions = readout.directions_at(stack.embedding)
    maps = stack.project(directions)
    difference, residual = stack.difference(directions), stack.residual(maps, directions)
    return Explanation(
        names=tuple(group.name for group in readout.groups),
        maps=maps[0].cpu(),
        logits=stack.logits(directions)[0].cpu(),
        difference=None if difference is None else difference[0].cpu(),
        residual=None if residual is None else residual[0].cpu(),
        density=stack.density,
        completeness=completeness,
        method=method,
        route=route,
        is_linear=is_linear and readout.is_linear,
        normalize=readout.normalize,
        n_steps=stack.n_steps[0] if stack.n_steps else 0,
        is_converged=stack.is_converged[0] if stack.is_converged else None,
        geometry=geometry,
        note=model.note,
        truncated=tuple(group.name for group in truncated_groups(readout.groups, model.text)),
    )


def _require_stored(request: Request, method: Mapping[str, Any], route: str) -> None:
    """Refuse a method or route that a stored sample was not made by: its maps would be taken for that one's.

    Raises:
        Refusal: The request sets another.
    """
    # As JSON, since the store's is: there a tuple is a list.
    if "method" in request.given and json.loads(json.dumps(request.method.describe())) != method:
        raise Refusal(
            "bad_request",
            f"method is not that of the stored samples, {json.dumps(method)}; a key is answered by the method that its "
            "stack was made with; leave method out, or send the image instead of the key.",
            field="method",
        )
    if request.route not in ("auto", route):
        raise Refusal(
            "bad_route",
            f"the stored sample was made by the route '{route}', and a key is answered by no other; leave route out, "
            "or send the image instead of the key.",
            field="route",
        )


def _plan_route(explainer: Explainer, readout: TextReadout, route: Route) -> Plan:
    try:
        return explainer.plan(readout, route)
    except InputError as error:
        raise Refusal("bad_route", str(error), field="route") from None
