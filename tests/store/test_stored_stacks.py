"""Stacks as records and back: what is projected from a record, and what decides that a store is gone on with."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mapstack.basis import Basis
from mapstack.codecs import Encoding
from mapstack.errors import SpanError, StoreError
from mapstack.explainer import Explainer
from mapstack.methods import Gradient, IntegratedGradients, Method, Occlusion
from mapstack.prompts import TextGroup
from mapstack.stack import Stack
from mapstack.store import Record, open_store_for_writing
from mapstack.stored_stack import describe_store, read_basis, read_stack, stack_arrays, stack_info
from tests.store.few_features import FewFeatures
from tests.toys import random_inputs

TEXTS = tuple(f"text {number}" for number in range(12))
IG = IntegratedGradients(n_steps=3)


def made_and_read(
    method: Method, encoding: Encoding, *, along_prompts: bool = False, map_size: int = 16, normalize: bool = True
) -> tuple[Stack, Stack, Tensor]:
    """The stack of a picture as it was made, as it is read from its record, and directions."""
    model = FewFeatures().float()
    explainer = Explainer(model, method, map_size=map_size)
    readout = explainer.readout([TextGroup(text, (text,)) for text in TEXTS])
    basis = Basis.of(readout.directions) if along_prompts else None
    made = explainer.stack(random_inputs(1, model), basis)
    manifest = describe_store(explainer, basis, encoding=encoding, shards_digest="")
    record = Record("k", stack_arrays(made, encoding), {})
    read = read_stack(record, manifest, basis, normalize=normalize)
    assert isinstance(made, Stack)
    assert isinstance(read, Stack)
    return made.explaining(normalize=normalize), read, readout.directions


@pytest.mark.parametrize("max_error", [0.3, 0.03, 0.003])
@pytest.mark.parametrize(("method", "along_prompts"), [(IG, False), (IG, True), (Gradient(), False)])
def test_factors_are_projected_within_the_stated_error(method: Method, along_prompts: bool, max_error: float) -> None:
    made, read, directions = made_and_read(method, Encoding("lowrank", max_error), along_prompts=along_prompts)
    assert read.mixing is not None
    assert read.values.shape[1] == read.mixing.shape[2] <= 6  # a map costs as many terms, and the stack is never made
    expected, found = made.project(directions), read.project(directions)
    assert (found - expected).norm() <= 2 * max_error * expected.norm()  # these texts are not all texts
    if not (made.is_raw or along_prompts):
        lost, whole = read.axis_maps() - made.axis_maps(), made.axis_maps()
        assert lost.norm() <= max_error * whole.norm()
        assert lost.norm() > 0


@pytest.mark.parametrize("normalize", [True, False])
def test_factors_of_raw_gradients_serve_both_embeddings(normalize: bool) -> None:
    made, read, directions = made_and_read(Gradient(), Encoding("lowrank", 1e-4), normalize=normalize)
    assert read.mixing is not None
    for of in (made, read):
        torch.testing.assert_close(of.axis_maps(), of.project(torch.eye(40)), rtol=1e-3, atol=1e-6)
    for expected, found in (
        (made.project(directions), read.project(directions)),
        (made.axis_maps(), read.axis_maps()),
    ):
        assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()


def test_each_picture_of_a_batch_has_factors_of_its_own() -> None:
    numbers = torch.Generator().manual_seed(0)
    embedding, values, mixing = (torch.randn(2, *shape, generator=numbers) for shape in ((40,), (3, 4, 4), (40, 3)))
    factors = Stack(embedding, True, values, mixing=mixing)
    dense = Stack(embedding, True, torch.einsum("brk,bkhw->brhw", mixing, values))
    directions = torch.randn(5, 40, generator=numbers)
    torch.testing.assert_close(factors.project(directions), dense.project(directions))
    torch.testing.assert_close(factors[1:2].project(directions), dense.project(directions)[1:2])


def test_the_residual_of_factors_counts_what_the_codec_lost() -> None:
    made, read, directions = made_and_read(IG, Encoding("lowrank", 0.3))
    residuals = [of.residual(of.project(directions), directions) for of in (made, read)]
    sums = [of.project(directions).sum(dim=(-2, -1)) for of in (made, read)]
    assert residuals[0] is not None
    assert residuals[1] is not None
    torch.testing.assert_close(residuals[1] - residuals[0], sums[1] - sums[0], rtol=1e-4, atol=1e-5)
    assert (residuals[1] - residuals[0]).abs().max() > 1e-4


@pytest.mark.parametrize("codec", ["float32", "float16", "int8", "lowrank"])
@pytest.mark.parametrize("map_size", [16, 8, 4])
def test_a_reduced_stack_keeps_the_totals_of_its_maps(codec: str, map_size: int) -> None:
    whole, _, directions = made_and_read(IG, Encoding("float32"))
    _, read, _ = made_and_read(IG, Encoding(codec, 0.001), map_size=map_size)
    expected, found = whole.project(directions), read.project(directions)
    assert found.shape == (1, len(TEXTS), map_size, map_size)
    tolerance = {"float32": 1e-5, "float16": 1e-3, "int8": 0.05, "lowrank": 0.01}[codec]
    largest = expected.abs().sum(dim=(-2, -1)).max()
    assert (found.sum(dim=(-2, -1)) - expected.sum(dim=(-2, -1))).abs().max() <= tolerance * largest


@pytest.mark.fault("W6")
def test_w6_a_store_is_gone_on_with_in_the_same_form_only(tmp_path: Path, figure: Callable[[str], None]) -> None:
    explainer = Explainer(FewFeatures().float(), IG)

    def open_with(encoding: Encoding) -> None:
        open_store_for_writing(tmp_path, describe_store(explainer, None, encoding=encoding, shards_digest="")).close()

    open_with(Encoding("lowrank"))
    others = {
        Encoding("int8"): 'codec = "lowrank", this run has "int8"',
        Encoding("lowrank", 0.1): "max_error = 0.01, this run has 0.1",
        Encoding("lowrank", compress="zstd"): 'compress = "none", this run has "zstd"',
    }
    for encoding, message in others.items():
        with pytest.raises(StoreError, match=message):
            open_with(encoding)
    open_with(Encoding("lowrank", 0.01, "none"))
    figure(f"{len(others)} of {len(others)} other codecs, errors and compressions refused, the field named")


def test_a_shortened_basis_answers_its_own_texts_and_says_what_it_loses() -> None:
    model = FewFeatures().float()
    explainer = Explainer(model, IG, map_size=16)
    directions = explainer.readout([TextGroup(text, (text,)) for text in TEXTS]).directions
    basis = Basis.of(directions, 0.5)
    assert len(basis) < len(Basis.of(directions))
    stack = explainer.stack(random_inputs(1, model), basis)
    manifest = describe_store(explainer, basis, encoding=Encoding("float32"), shards_digest="")
    read = read_basis(manifest, basis.rows.numpy())
    assert read is not None
    read.require(directions, 0.0)
    with pytest.raises(SpanError):
        read.require(model.text.text_directions(["a stranger"]), 0.0)
    assert stack_info(stack)["map_error"] == stack.map_error[0] > 0


def test_what_does_not_change_the_records_is_no_part_of_the_identity() -> None:
    model = FewFeatures().float()

    def identity(method: Method, encoding: Encoding) -> object:
        return describe_store(Explainer(model, method), None, encoding=encoding, shards_digest="")["identity"]

    assert identity(IG, Encoding("int8", 0.1)) == identity(IG, Encoding("int8", 0.2))
    occlusion = Occlusion(4, 4)
    for other in (Encoding("float32"), Encoding("lowrank", 0.1)):
        assert identity(occlusion, other) == identity(occlusion, Encoding("int8"))
    assert identity(occlusion, Encoding(compress="zstd")) != identity(occlusion, Encoding())


def test_the_scores_of_a_sweep_are_exact_whatever_the_codec() -> None:
    model = FewFeatures().float()
    explainer = Explainer(model, Occlusion(4, 4))
    stack = explainer.stack(random_inputs(1, model))
    directions = model.text.text_directions(TEXTS)
    for encoding in (Encoding("int8"), Encoding("lowrank", 0.5, "zstd")):
        manifest = describe_store(explainer, None, encoding=encoding, shards_digest="")
        record = Record("k", stack_arrays(stack, encoding), {})
        read = read_stack(record, manifest, None, normalize=True)
        assert np.array_equal(record.arrays["scores"], stack.sweep.occluded[0])
        assert torch.equal(read.project(directions), replace(stack, map_size=16).project(directions))
