"""What a stack of the demo model takes on the disk, and what its maps keep."""

import pytest
import torch

from benchmarks.setting import CHECKPOINT
from benchmarks.store_size import FIRST_SEED, METHODS, Bench, Form, measure
from mapstack.codecs import Encoding
from mapstack.models import load_model
from mapstack.phantom import phantom


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(load_model("medclip-vit", CHECKPOINT), [phantom(FIRST_SEED)])


def forms(bench: Bench, name: str, *encodings: Encoding) -> list[Form]:
    """Keep the stacks of a method in several forms, at full map size, and compare all maps."""
    stacks = bench.stacks(METHODS[name])
    expected = torch.cat([each.project(bench.readout.directions) for each in stacks])
    return [measure(bench, METHODS[name], stacks, encoding, 224, expected) for encoding in encodings]


def test_a_stack_is_small_and_keeps_its_maps(bench: Bench) -> None:
    usual, small = forms(bench, "gradient", Encoding(), Encoding("lowrank", 0.04))
    assert usual.megabytes <= 4
    assert usual.worst_cosine >= 0.999
    assert small.megabytes <= 1
    assert small.cosine >= 0.995


def test_an_occlusion_stack_is_smaller_and_exact(bench: Bench) -> None:
    (factored,) = forms(bench, "occlusion", Encoding())
    assert factored.megabytes <= 0.5
    assert factored.largest_error == 0
