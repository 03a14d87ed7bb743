import numpy as np
import pytest
import torch

from mapstack.baselines import (
    BASELINES,
    BLUR_SIGMA_PX,
    DEFAULT_DISTRIBUTION,
    baseline,
    baseline_distribution,
    reference_baselines,
)
from mapstack.errors import ConfigError, InputError
from mapstack.images import MEDCLIP, Inputs, Prepared, Preprocessing, collate, from_array, prepare
from mapstack.randomness import generator

RGB = Preprocessing(48, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "pad")
GREY = Preprocessing(48, (0.5,), (0.25,), "pad")


def prepared(height: int, width: int, preprocessing: Preprocessing = GREY, seed: int = 0) -> Prepared:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return prepare(from_array(values), preprocessing)


def mixed_batch(preprocessing: Preprocessing) -> Inputs:
    return collate([prepared(*shape, preprocessing) for shape in ((60, 40), (30, 48), (48, 48), (90, 31))])


def inside(values: torch.Tensor, inputs: Inputs, i: int) -> torch.Tensor:
    """The channels of picture i, over its content only."""
    return values[i][:, inputs.content[i]]


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("preprocessing", [GREY, RGB], ids=["grey", "rgb"])
def test_the_padding_is_untouched_and_the_picture_is_in_range(name, preprocessing):
    inputs = mixed_batch(preprocessing)
    made = baseline(name, inputs, preprocessing, seed=0)
    padding = ~inputs.content[:, None].expand_as(made)
    assert padding.any()
    assert torch.equal(made[padding], inputs.pixel_values[padding])
    assert made.dtype == torch.float32
    pictures = made * torch.tensor(preprocessing.std)[:, None, None] + torch.tensor(preprocessing.mean)[:, None, None]
    assert pictures.min() > -1e-6
    assert pictures.max() < 1 + 1e-6
    for i in range(len(inputs)):
        assert not torch.allclose(inside(made, inputs, i), inside(inputs.pixel_values, inputs, i), atol=0.1)


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_does_not_depend_on_batch_mates(name):
    inputs = mixed_batch(GREY)
    together = baseline(name, inputs, GREY, seed=3)
    for i, one in enumerate(inputs):
        assert torch.equal(baseline(name, one, GREY, seed=3)[0], together[i])


@pytest.mark.parametrize(("name", "level"), [("black", 0.0), ("white", 1.0)])
def test_black_and_white_are_the_ends_of_picture_space(name, level):
    inputs = mixed_batch(RGB)
    made = baseline(name, inputs, RGB, seed=0)
    for channel, (mean, std) in enumerate(zip(RGB.mean, RGB.std, strict=True)):
        expected = torch.full((1,), (level - mean) / std)
        torch.testing.assert_close(inside(made, inputs, 0)[channel], expected.expand(int(inputs.content[0].sum())))


def test_mean_is_the_brightness_of_the_picture_without_its_padding():
    # Left half 100, right half 200, on black padding above and below that must not darken the mean.
    values = np.full((24, 48), 100, np.uint8)
    values[:, 24:] = 200
    inputs = collate([prepare(from_array(values), GREY)])
    made = GREY.denormalize(baseline("mean", inputs, GREY, seed=0))
    torch.testing.assert_close(inside(made, inputs, 0), torch.full((1, 24 * 48), 150 / 255))


def test_mean_keeps_each_channel_apart():
    values = np.zeros((48, 48, 3), np.uint8)
    values[...] = [10, 100, 250]
    inputs = collate([prepare(from_array(values), RGB)])
    made = RGB.denormalize(baseline("mean", inputs, RGB, seed=0))
    torch.testing.assert_close(made[0, :, 5, 5], torch.tensor([10.0, 100.0, 250.0]) / 255)


def test_noise_is_the_uniform_draw_of_seed_and_picture():
    inputs = mixed_batch(RGB)
    made = RGB.denormalize(baseline("noise", inputs, RGB, seed=5))
    for i, sha256 in enumerate(inputs.sha256):
        draws = torch.rand(48, 48, generator=generator(5, sha256, "baseline/noise"))[inputs.content[i]]
        torch.testing.assert_close(inside(made, inputs, i), draws.expand(3, -1), atol=1e-6, rtol=0)
    assert not torch.allclose(made, RGB.denormalize(baseline("noise", inputs, RGB, seed=6)), atol=0.1)
    assert not torch.allclose(made[2], made[0], atol=0.1)


def test_blur_equals_a_weighted_mean_over_the_picture_only():
    inputs = mixed_batch(GREY)
    made = GREY.denormalize(baseline("blur", inputs, GREY, seed=0))
    picture = (inputs.pixel_values[0, 0].double() * GREY.std[0] + GREY.mean[0]).numpy()
    content = inputs.content[0].numpy()
    row, column = np.nonzero(content)
    for at in (0, 700, len(row) - 1):
        squared = (row - row[at]) ** 2 + (column - column[at]) ** 2
        weights = np.exp(-squared / (2 * BLUR_SIGMA_PX**2))
        expected = (weights * picture[content]).sum() / weights.sum()
        assert made[0, 0, row[at], column[at]].item() == pytest.approx(expected, abs=1e-6)


def test_blur_of_an_even_picture_is_the_picture_up_to_its_very_edge():
    inputs = collate([prepare(from_array(np.full((24, 48), 180, np.uint8)), GREY)])
    made = GREY.denormalize(baseline("blur", inputs, GREY, seed=0))
    torch.testing.assert_close(inside(made, inputs, 0), torch.full((1, 24 * 48), 180 / 255))


def test_blur_works_far_out_in_the_padding_of_the_real_frame():
    inputs = collate([prepare(from_array(np.full((14, 224), 90, np.uint8)), MEDCLIP)])
    made = baseline("blur", inputs, MEDCLIP, seed=0)
    assert made.isfinite().all()
    assert MEDCLIP.denormalize(made)[0, 0, 112, 112].item() == pytest.approx(90 / 255, abs=1e-5)


@pytest.mark.parametrize("name", BASELINES)
def test_double_precision_stays_double(name):
    single = mixed_batch(GREY)
    inputs = Inputs(single.pixel_values.double(), single.content, single.sha256)
    made = baseline(name, inputs, GREY, seed=0)
    assert made.dtype == torch.float64
    torch.testing.assert_close(made.float(), baseline(name, single, GREY, seed=0), atol=1e-5, rtol=0)


def test_the_distribution_holds_each_baseline_in_order():
    inputs = mixed_batch(GREY)
    made = baseline_distribution(DEFAULT_DISTRIBUTION, inputs, GREY, seed=1)
    assert DEFAULT_DISTRIBUTION == ("black", "white", "mean", "noise")
    assert made.shape == (4, 4, 1, 48, 48)
    for k, name in enumerate(DEFAULT_DISTRIBUTION):
        assert torch.equal(made[:, k], baseline(name, inputs, GREY, seed=1))


@pytest.mark.parametrize("names", [[], ["black", "noise", "black"]])
def test_a_distribution_of_nothing_or_of_twins_is_refused(names):
    with pytest.raises(ConfigError, match="make no distribution; it holds at least one name, and each once"):
        baseline_distribution(names, mixed_batch(GREY), GREY, seed=0)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError) as caught:
        baseline("blck", mixed_batch(GREY), GREY, seed=0)
    assert str(caught.value) == (
        "baseline 'blck' is unknown; choose one of black, white, mean, noise, blur. Did you mean 'black'?"
    )
    with pytest.raises(ConfigError, match=r"baseline 'zzz' is unknown; choose one of [a-z, ]+\.$"):
        baseline_distribution(["black", "zzz"], mixed_batch(GREY), GREY, seed=0)


def test_references_fill_the_picture_and_leave_its_padding():
    inputs = mixed_batch(GREY)
    references = [prepared(48, 48, seed=7), prepared(48, 48, seed=8)]
    made = reference_baselines(references, inputs)
    assert made.shape == (4, 2, 1, 48, 48)
    for i in range(4):
        for k, reference in enumerate(references):
            content = inputs.content[i]
            assert torch.equal(made[i, k][:, content], reference.pixel_values[:, content])
            assert torch.equal(made[i, k][:, ~content], inputs.pixel_values[i][:, ~content])


def test_references_of_another_kind_are_refused():
    inputs = mixed_batch(GREY)
    with pytest.raises(InputError, match=r"shapes \[\(3, 48, 48\)\] where the inputs have \(1, 48, 48\)"):
        reference_baselines([prepared(48, 48, RGB)], inputs)
    with pytest.raises(InputError, match=r"shapes \[\] where"):
        reference_baselines([], inputs)


def test_draws_depend_on_every_part_of_their_key():
    def draw(seed: int, sha256: str, purpose: str) -> tuple[float, ...]:
        return tuple(torch.rand(4, generator=generator(seed, sha256, purpose)).tolist())

    keys = [(0, "ab", "c"), (1, "ab", "c"), (0, "a", "bc"), (0, "ab", "d"), (-1, "ab", "c"), (10, "ab", "c")]
    assert len({draw(*key) for key in keys}) == len(keys)
    assert draw(*keys[0]) == draw(*keys[0])


def test_draws_are_pinned():
    # A stored stack can be remade only while these stay; they were written down once.
    draws = torch.rand(3, generator=generator(0, "00" * 32, "baseline/noise"), dtype=torch.float64)
    assert draws.tolist() == pytest.approx([0.228689558918299, 0.13481645556047073, 0.08105195467566084], abs=1e-15)
