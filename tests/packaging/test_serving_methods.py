"""docs/serving.md lists the methods that a request may name, and counts what they cost as the endpoint does."""

import re
from pathlib import Path

import pytest
import yaml

from mapstack.config_files import merge
from mapstack.endpoint import EndpointConfig
from mapstack.endpoint.choice import _ALLOWED, require_affordable
from mapstack.endpoint.refusals import Refusal
from mapstack.methods import METHODS, CaptumMethod, IntegratedGradients
from mapstack.prompts import load_prompt_set
from serve.config import ServeConfig

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
MAX_PASSES = EndpointConfig().limits.max_passes
AUTO = IntegratedGradients(n_steps="auto")


def is_answered(method: IntegratedGradients, n_rows: int) -> bool:
    try:
        require_affordable(method, n_rows, image_size=224, max_passes=MAX_PASSES)
    except Refusal:
        return False
    return True


def test_every_method_stands_there_with_what_a_request_may_set() -> None:
    (table,) = re.findall(r"^\| `method` \| what a request may set \|\n\|.*\n((?:\|.*\n)+)", TEXT, re.MULTILINE)
    documented = {}
    for names, parameters in (row.split("|")[1:3] for row in table.splitlines()):
        for name in re.findall(r"`(\w+)`", names):
            documented[name] = set(re.findall(r"`(\w+)`", parameters)) - {"auto"}
    methods = EndpointConfig().methods
    assert documented == {name: set(_ALLOWED.get(type(method), ())) for name, method in methods.items()}
    assert METHODS.keys() - methods.keys() == {"captum"}


def test_the_shown_methods_are_added_and_survive_packing() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    config = merge(ServeConfig, [yaml.safe_load(block)]).endpoint
    assert config.methods.keys() == EndpointConfig().methods.keys() | {"fine_occlusion", "deep_lift"}
    assert config.methods["integrated_gradients"] == IntegratedGradients(max_steps=64)
    assert config.methods["deep_lift"] == CaptumMethod(attribution="captum.attr.DeepLift")
    assert merge(EndpointConfig, [config.to_dict()]) == config


def test_what_a_request_costs_is_told_as_it_is_counted() -> None:
    assert f"more than `endpoint.limits.max_passes` ({MAX_PASSES:,};" in TEXT
    (n_texts,) = {int(number) for number in re.findall(r"`n_steps: auto` for (\d+) texts", TEXT)}
    assert f"{n_texts + 1} times {AUTO.max_steps} is {(n_texts + 1) * AUTO.max_steps:,}" in TEXT
    assert re.findall(r"up to \[(\d+) texts\]\(#methods\)", TEXT) == [str(n_texts)]
    assert [is_answered(AUTO, n) for n in (n_texts, n_texts + 1)] == [True, False]
    assert is_answered(IntegratedGradients(n_steps=20), EndpointConfig().limits.max_prompts)
    assert not is_answered(IntegratedGradients(n_steps=20), 512)


@pytest.mark.parametrize(("name", "n_classes"), [("phantom", 8), ("mimic_cxr", 14)])
def test_the_shipped_classes_are_counted(name: str, n_classes: int) -> None:
    assert len(load_prompt_set(ROOT / "configs" / "prompts" / f"{name}.yaml").classes) == n_classes
    assert is_answered(AUTO, n_classes)
