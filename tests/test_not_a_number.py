"""`.nan` in a configuration: no bound holds for it."""

import pytest

from mapstack.config import Config, DataConfig, ProjectConfig
from mapstack.config_files import at_least, merge
from mapstack.errors import ConfigError

NAN = float("nan")


def test_a_bound_refuses_what_is_no_number() -> None:
    with pytest.raises(ConfigError, match="limit is nan; it must be at least 0"):
        at_least("limit", NAN, 0)
    at_least("limit", None, 0)
    at_least("limit", 0, 0)
    at_least("limit", float("inf"), 0)


def test_no_share_is_none() -> None:
    for make in (
        lambda: DataConfig(max_bad_share=NAN),
        lambda: ProjectConfig(span_tolerance=NAN),
        lambda: merge(Config, [{"method": {"name": "integrated_gradients", "tolerance": NAN}}]),
        lambda: merge(Config, [{"stack": {"max_error": NAN}}]),
        lambda: merge(Config, [{"stack": {"basis_tolerance": NAN}}]),
    ):
        with pytest.raises(ConfigError, match="is nan; it"):
            make()
