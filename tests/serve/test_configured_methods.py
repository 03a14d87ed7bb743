"""The methods that a server offers, as its configuration changes them and adds to them."""

from typing import Any

import pytest

from mapstack.config_files import merge
from mapstack.endpoint import EndpointConfig
from mapstack.errors import ConfigError
from mapstack.methods import IntegratedGradients, Occlusion
from serve.config import ServeConfig

ADDED: dict[str, Any] = {"fine": {"name": "occlusion", "strides": 8}}


def configured(methods: dict[str, Any]) -> dict[str, Any]:
    """Return the methods of a server whose file has these."""
    found: dict[str, Any] = merge(ServeConfig, [{"endpoint": {"methods": methods}}]).endpoint.methods
    return found


def test_a_method_of_a_name_of_its_own_is_added() -> None:
    assert configured(ADDED) == {**EndpointConfig().methods, "fine": Occlusion(strides=8)}


@pytest.mark.parametrize("block", [{"max_steps": 64}, {"name": "integrated_gradients", "max_steps": 64}])
def test_parameters_are_changed_with_the_name_or_without(block: dict[str, Any]) -> None:
    expected = {**EndpointConfig().methods, "integrated_gradients": IntegratedGradients(max_steps=64)}
    assert configured({"integrated_gradients": block}) == expected
    served = merge(ServeConfig, [{"endpoint": {"methods": {"integrated_gradients": block}}}]).endpoint
    assert served.methods == expected
    assert merge(EndpointConfig, [served.to_dict()]) == served  # as it is packed


def test_the_defaults_may_be_repeated() -> None:
    blocks = {name: {"name": name} for name in EndpointConfig().methods}
    assert merge(ServeConfig, [{"endpoint": {"methods": blocks}}]) == merge(ServeConfig, [{}]) == ServeConfig()


def test_a_wrong_parameter_is_named_with_those_of_its_method() -> None:
    with pytest.raises(ConfigError, match="'method.max_step' is unknown.*Did you mean 'method.max_steps'"):
        configured({"integrated_gradients": {"max_step": 64}})


@pytest.mark.parametrize("key", ["gradient", "captum"])
def test_a_name_keeps_its_meaning(key: str) -> None:
    """Who asks for a gradient must not get an occlusion."""
    block: dict[str, Any] = {"name": "occlusion", "strides": 8}
    with pytest.raises(ConfigError, match=rf"endpoint\.methods\.{key} has the name 'occlusion'.* a key of its own"):
        configured({key: block})
