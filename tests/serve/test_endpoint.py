"""What the endpoint answers, without a server: the same numbers as the offline door, by every route, in every form."""

import base64
import io
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from mapstack import Explainer, Explanation
from mapstack.endpoint import Endpoint, Raw
from mapstack.images import decode, prepare
from mapstack.methods import make_method
from mapstack.models import EmbeddingModel
from mapstack.prompts import PromptSet, text_groups
from tests.serve.asked import PROMPTS, ask, body, code, content, picture_file, raw

METHODS = [
    {"name": "gradient"},
    {"name": "integrated_gradients", "n_steps": 3},
    {"name": "gradient_shap", "n_samples": 2},
    {"name": "occlusion", "sliding_window_shapes": 56, "strides": 56},
]


def offline(
    model: EmbeddingModel,
    image: bytes,
    method: dict[str, object],
    route: str = "auto",
    normalize: bool = True,
    **texts: object,
) -> Explanation:
    wanted = {
        "prompt_set": None,
        "texts": PROMPTS,
        "use": "prompts",
        "ensemble": "mean",
        "classes": None,
        "against": None,
    }
    groups = text_groups(**{**wanted, **texts})  # type: ignore[arg-type]
    explainer = Explainer(model, make_method(**method), normalize)
    (found,) = explainer.explain([prepare(decode(image), model.preprocessing)], groups, route)  # type: ignore[arg-type]
    return found


def maps_of(answer: dict[str, object]) -> np.ndarray:
    maps: np.ndarray = np.load(io.BytesIO(base64.b64decode(str(answer["npy"]))), allow_pickle=False)
    return maps


def assert_same(maps: np.ndarray, expected: torch.Tensor) -> None:
    assert np.abs(maps - expected.numpy()).max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("route", ["auto", "direct", "prompts"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method["name"]))
def test_maps_are_those_of_the_offline_door(
    endpoint: Endpoint,
    small_model: EmbeddingModel,
    image: bytes,
    method: dict[str, object],
    normalize: bool,
    route: str,
) -> None:
    answer = content(
        ask(endpoint, image, prompts=PROMPTS, method=method, normalize=normalize, route=route, output=["npy"])
    )
    expected = offline(small_model, image, method, normalize=normalize)
    assert_same(maps_of(answer), expected.maps)
    assert [row["name"] for row in answer["maps"]] == PROMPTS
    for i, row in enumerate(answer["maps"]):
        assert row["logit"] == pytest.approx(float(expected.logits[i]), abs=1e-4)
        assert row["map_sum"] == pytest.approx(float(expected.density * expected.maps[i].sum()), abs=1e-4)
        if expected.residual is not None:
            assert row["residual"] == pytest.approx(float(expected.residual[i]), abs=1e-4)


@pytest.mark.parametrize("name", ["gradient", "saliency", "occlusion"])
def test_the_axes_serve_the_next_text_without_the_model(
    endpoint: Endpoint, small_model: EmbeddingModel, image: bytes, name: str
) -> None:
    method = {"name": name} if name != "occlusion" else METHODS[3]
    first = content(ask(endpoint, image, prompts=PROMPTS[:1], method=method, route="axes", output="npy"))
    runs = count_runs(endpoint)
    second = content(ask(endpoint, image, prompts=["a text not seen before"], method=method, output="npy"))
    assert (first["cached"], second["cached"], second["route"]) == (False, True, "axes")
    assert runs == []
    expected = offline(small_model, image, method, "axes", texts=["a text not seen before"])
    assert_same(maps_of(second), expected.maps)


def count_runs(endpoint: Endpoint) -> list[tuple[int, ...]]:
    """Record what the image tower sees from now on."""
    seen: list[tuple[int, ...]] = []
    tower = endpoint._model.vision_model  # type: ignore[attr-defined]
    tower.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape)))
    return seen


def test_a_reduced_stack_serves_the_texts_of_its_span(
    endpoint: Endpoint, small_model: EmbeddingModel, image: bytes
) -> None:
    method = {"name": "gradient"}
    content(ask(endpoint, image, prompts=PROMPTS, method=method))
    runs = count_runs(endpoint)
    again = content(ask(endpoint, image, prompts=PROMPTS[::-1], method=method, output="npy"))
    contrast = content(ask(endpoint, image, prompts=PROMPTS[:1], against=PROMPTS[1], method=method, output="npy"))
    assert runs == []
    assert again["cached"]
    assert contrast["cached"]
    assert contrast["route"] == "prompts"
    assert_same(maps_of(again), offline(small_model, image, method).maps[[1, 0]])
    assert_same(maps_of(contrast), offline(small_model, image, method, texts=PROMPTS[:1], against=PROMPTS[1]).maps)
    other = content(ask(endpoint, image, prompts=["an utterly different nodule"], method=method))
    assert not other["cached"]
    assert runs != []


def test_a_picture_that_was_seen_is_named_by_its_sha256(endpoint: Endpoint, image: bytes) -> None:
    first = content(ask(endpoint, image, prompts=PROMPTS, method="gradient", output=["png", "npy"]))
    named = {"image_sha256": first["image"]["sha256"], "prompts": PROMPTS, "method": "gradient"}
    second = content(ask(endpoint, **named, output=["png", "npy"]))
    assert second["cached"]
    assert {key: second[key] for key in ("npy", "image")} == {key: first[key] for key in ("npy", "image")}
    assert [row["png"] for row in second["maps"]] == [row["png"] for row in first["maps"]]
    third = content(ask(endpoint, **{**named, "method": METHODS[1]}, output="npy"))  # computed from the kept picture
    assert_same(maps_of(third), offline(endpoint._model, image, METHODS[1]).maps)


def test_a_class_set_is_answered_without_prompts(
    endpoint: Endpoint, small_model: EmbeddingModel, image: bytes, classes: PromptSet
) -> None:
    (answer,) = endpoint.answer([Raw({"body": bytearray(image)})])
    rows = content(answer)["predictions"]
    assert [row["name"] for row in rows] == list(classes.labels)
    assert sum(row["probability"] for row in rows) == pytest.approx(1)
    expected = offline(small_model, image, {"name": "gradient"}, prompt_set=classes, texts=())
    assert [row["logit"] for row in rows] == pytest.approx(expected.logits.tolist(), abs=1e-4)
    chosen = content(ask(endpoint, image, classes=["Cardiomegaly"], against="No Finding", wants_maps=False))
    assert [row["name"] for row in chosen["predictions"]] == ["Cardiomegaly rather than No Finding"]
    difference = expected.logits[classes.labels.index("Cardiomegaly")] - expected.logits[0]
    assert chosen["predictions"][0]["logit"] == pytest.approx(float(difference), abs=1e-4)


def test_a_maximum_over_prompts_is_that_of_the_offline_door(
    make_endpoint: Callable[..., Endpoint], small_model: EmbeddingModel, image: bytes, classes: PromptSet
) -> None:
    endpoint = make_endpoint(ensemble="max")
    wanted = {"classes": ["Cardiomegaly"], "method": METHODS[1]}
    content(ask(endpoint, image, **wanted, route="prompts"))
    answer = content(ask(endpoint, image, **wanted, output="npy"))
    expected = offline(
        small_model, image, METHODS[1], prompt_set=classes, texts=(), classes=["Cardiomegaly"], ensemble="max"
    )
    assert (answer["route"], answer["linear"]) == ("direct", False)  # the stack at hand is not taken: it would differ
    assert_same(maps_of(answer), expected.maps)


def test_overlays_have_the_original_geometry_and_go_out_alone_where_asked(endpoint: Endpoint, image: bytes) -> None:
    wanted = {"prompts": PROMPTS[:1], "method": "gradient", "output": "png"}
    inside = content(ask(endpoint, image, **wanted))
    alone = ask(endpoint, image, **wanted, accept="image/png, */*;q=0.1")
    assert (alone.status, alone.content_type) == (200, "image/png")
    assert base64.b64decode(inside["maps"][0]["png"]) == alone.body
    picture = Image.open(io.BytesIO(alone.body))
    assert (picture.height, picture.width) == (200, 160)
    summary = json.loads(alone.headers["x-mapstack-summary"])
    assert summary["maps"][0]["logit"] == inside["maps"][0]["logit"]
    assert PROMPTS[0] not in str(alone.headers)
    several = ask(endpoint, image, **{**wanted, "prompts": PROMPTS}, accept="image/png")
    assert (several.status, several.code) == (406, "not_acceptable")


def test_arrays_come_in_either_frame_and_the_peak_in_the_original_one(
    endpoint: Endpoint, small_model: EmbeddingModel, image: bytes
) -> None:
    wanted = {"prompts": PROMPTS[:1], "method": "gradient", "output": "npy", "frame": "original"}
    expected = offline(small_model, image, {"name": "gradient"}, texts=PROMPTS[:1])
    answer = ask(endpoint, image, **wanted, accept="application/x-npy")
    maps = np.load(io.BytesIO(answer.body), allow_pickle=False)
    assert maps.shape == (1, 200, 160)
    assert_same(maps, expected.original_maps())
    inside = content(ask(endpoint, image, **wanted))
    peak = inside["maps"][0]["peak"]
    row, column = divmod(int(expected.maps[0].argmax()), 224)
    # 200 x 160 px on a black square of 224 px: nothing is enlarged.
    assert (peak["row"], peak["column"]) == pytest.approx((row + 0.5 - 12, column + 0.5 - 32), abs=0.01)
    assert peak["value"] == pytest.approx(float(expected.maps.max()), rel=1e-4)


@pytest.mark.fault("S9")
def test_a_bad_request_takes_nothing_from_its_batch_mates(endpoint: Endpoint, image: bytes) -> None:
    good = [
        raw(image, prompts=PROMPTS, method="gradient", output="npy"),
        raw(picture_file(seed=3), prompts=PROMPTS, method="gradient", output="npy"),
        raw(image, prompts=PROMPTS, wants_maps=False),
    ]
    alone = [endpoint.answer([each])[0] for each in good]
    bad = [
        raw(image[:-30], prompts=PROMPTS),
        Raw({"body": b"{"}, wants_maps=True),
        raw(image, prompts=PROMPTS, method="saliency", route="direct"),
    ]
    for wrong in bad:
        answers = endpoint.answer([good[0], wrong, good[1], good[2]])
        assert [answer.status for answer in answers] == [200, answers[1].status, 200, 200]
        assert 400 <= answers[1].status < 500
        for found, expected in zip([answers[0], answers[2]], alone[:2], strict=True):
            assert_same(maps_of(content(found)), torch.from_numpy(maps_of(content(expected))))


@pytest.mark.fault("S9")
def test_a_computation_that_fails_takes_nothing_from_its_batch_mates(endpoint: Endpoint, image: bytes) -> None:
    unlucky = picture_file(seed=3)
    seen = prepare(decode(unlucky), endpoint._model.preprocessing).pixel_values

    def fail(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
        if any(torch.equal(each, seen) for each in inputs[0]):
            raise RuntimeError("out of memory")

    endpoint._model.vision_model.register_forward_pre_hook(fail)  # type: ignore[attr-defined]
    for wanted in ({"wants_maps": False}, {"method": "gradient"}, {"method": "gradient", "route": "direct"}):
        answers = endpoint.answer([raw(each, prompts=PROMPTS, **wanted) for each in (image, unlucky, image)])
        assert [answer.status for answer in answers] == [200, 500, 200]


def test_requests_of_a_batch_are_computed_together(
    endpoint: Endpoint, small_model: EmbeddingModel, image: bytes
) -> None:
    other = picture_file(seed=3)
    batch = [
        raw(image, prompts=PROMPTS[:1], method="gradient", output="npy"),
        raw(image, prompts=PROMPTS[1:], method="gradient", output="npy"),
        raw(other, prompts=PROMPTS, wants_maps=False),
        raw(image, prompts=PROMPTS, wants_maps=False),
    ]
    runs = count_runs(endpoint)
    answers = endpoint.answer(batch)
    assert [shape[0] for shape in runs] == [2, 1]  # both logits, then one run for the maps of both texts
    expected = offline(small_model, image, {"name": "gradient"})
    for index in (0, 1):
        assert_same(maps_of(content(answers[index])), expected.maps[[index]])


def test_auto_steps_do_not_depend_on_other_texts(make_endpoint: Callable[..., Endpoint], image: bytes) -> None:
    auto = {"name": "integrated_gradients", "n_steps": "auto", "max_steps": 16}
    endpoint = make_endpoint(methods={"auto": auto}, method="auto")
    both = content(ask(endpoint, image, prompts=PROMPTS))
    alone = content(ask(endpoint, image, prompts=PROMPTS[:1], output="npy"))  # in the span of both, and yet
    again = content(ask(endpoint, image, prompts=PROMPTS[:1], output="npy"))
    assert [answer["cached"] for answer in (both, alone, again)] == [False, False, True]
    assert again["n_steps"] == alone["n_steps"] == 16
    assert alone["is_converged"] is not None
    assert_same(maps_of(again), torch.from_numpy(maps_of(alone)))


def test_multipart_and_json_say_the_same(endpoint: Endpoint, image: bytes) -> None:
    fields = body(prompts=PROMPTS, method="gradient", output="npy")
    as_form = Raw({"image": bytearray(image), "request": json.dumps(fields).encode()}, wants_maps=True)
    as_text = Raw({"image": image, "request": json.dumps(fields)}, wants_maps=True)
    decoded = Raw({"body": body(image, **fields)}, wants_maps=True)  # as TorchServe hands it over by default
    answers = [content(endpoint.answer([each])[0]) for each in (as_form, as_text, decoded)]
    assert len({answer["npy"] for answer in answers}) == 1


@pytest.mark.fault("S7")
def test_a_form_that_was_cut_short_is_not_taken_for_another_request(endpoint: Endpoint, image: bytes) -> None:
    """TorchServe drops the last part of a form without an end, and says nothing."""
    for parts in ({"image": image}, {"request": b'{"prompts": ["a text"]}'}, {"image": image, "prompts": b"a text"}):
        (answer,) = endpoint.answer([Raw(parts, wants_maps=True)])
        assert code(answer) in ("bad_request", "missing_image")


def test_what_each_route_would_have_cost_is_told(endpoint: Endpoint, small_model: EmbeddingModel, image: bytes) -> None:
    texts = [*PROMPTS, "a third text"]
    costs = {"direct": 3, "prompts": 3, "axes": small_model.embed_dim}
    expected = offline(small_model, image, {"name": "gradient"}, texts=texts)
    assert (expected.route, expected.costs) == ("direct", costs)
    answer = content(ask(endpoint, image, prompts=texts, method="gradient"))
    assert answer["costs"] == costs
    again = content(ask(endpoint, image, prompts=texts, method="gradient"))
    assert (again["cached"], again["costs"]) == (True, None)
    direct = content(ask(endpoint, image, prompts=texts, method="gradient", route="direct"))
    assert direct["costs"] == costs
    saliency = content(ask(endpoint, image, prompts=texts, method="saliency"))
    assert saliency["costs"] == {"axes": small_model.embed_dim}


def test_what_the_cache_did_is_told_once(endpoint: Endpoint, image: bytes) -> None:
    for _ in range(3):
        ask(endpoint, image, prompts=PROMPTS, method="gradient")
    report = endpoint.report_cache()
    assert (report.hits, report.misses) == (2, 1)
    assert report.n_bytes > 224 * 224 * 4
    assert endpoint.report_cache().hits == 0
