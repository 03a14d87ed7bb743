"""YAML files and `key=value` overrides, merged into dataclasses, and the checks that dataclasses share.

The only file that knows OmegaConf. Every wrong key or value becomes a `ConfigError` of one sentence that names the key.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from mapstack.errors import ConfigError, unknown_name

T = TypeVar("T")


def load_config(schema: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Read a YAML file and overrides into a configuration.

    Args:
        schema: The dataclass to fill.
        path: The YAML file.
        overrides: `key=value` with dots, the value in YAML; later ones win.

    Raises:
        ConfigError: The file is missing or no YAML mapping, or a key or value is wrong.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"configuration file '{path}' does not exist; give the path of a YAML file.")
    try:
        from_file = OmegaConf.load(file)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"configuration file '{path}' is no YAML ({_first_line(error)}); correct it.") from None
    if isinstance(from_file, ListConfig):
        raise ConfigError(f"configuration file '{path}' holds a list; it must hold keys and values; correct it.")
    given = _read_overrides(overrides)
    _drop_parameters_of_another_method(from_file, given)
    return merge(schema, [from_file, given])


def _drop_parameters_of_another_method(from_file: DictConfig, given: DictConfig) -> None:
    """Let `method.name=occlusion` replace the file's method with its parameters, which the new one does not know."""
    stored, new = from_file.get("method"), given.get("method")
    both = isinstance(stored, DictConfig) and isinstance(new, DictConfig)
    if both and "name" in new and new.name != stored.get("name"):
        from_file.method = {}


def _read_overrides(overrides: Sequence[str]) -> DictConfig:
    for override in overrides:
        if "=" not in override or override.startswith("="):
            raise ConfigError(f"override '{override}' is no key=value; write it as in data.batch_size=8.")
    try:
        return OmegaConf.from_dotlist(list(overrides))
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"an override's value is no YAML ({_first_line(error)}); quote it.") from None


def merge(schema: type[T], layers: Sequence[Any], *, prefix: str = "") -> T:
    """Fill a dataclass from mappings; later ones win.

    Args:
        schema: The dataclass.
        layers: Mappings, nested as the dataclass is.
        prefix: What stands before the keys in error messages.

    Raises:
        ConfigError: A key or value is wrong.
    """
    structured = _defaults(schema)
    for layer in layers:
        _require_blocks(structured, layer, prefix)
    try:
        return cast(T, OmegaConf.to_object(OmegaConf.merge(structured, *layers)))
    except (ConfigKeyError, ConfigAttributeError) as error:
        key = str(error.full_key)
        known = _keys_beside(schema, key, prefix)
        raise ConfigError(unknown_name("configuration key", prefix + key, known)) from None
    except OmegaConfBaseException as error:
        key = f"'{prefix}{error.full_key}'" if error.full_key else "value"
        raise ConfigError(f"configuration key {key} is wrong: {_first_line(error)}; correct its type.") from None


def _defaults(schema: type) -> DictConfig:
    """Return the defaults of a dataclass as a file would have them, those of its blocks too.

    OmegaConf makes an object of a block, whose `__post_init__` turns what a file may change into something else.
    """
    found: DictConfig = OmegaConf.structured(schema)
    OmegaConf.set_readonly(found, False)  # a frozen dataclass makes a read-only one
    for each in dataclasses.fields(schema):
        if isinstance(each.default_factory, type) and dataclasses.is_dataclass(each.default_factory):
            found[each.name] = _defaults(each.default_factory)
    return found


def _require_blocks(schema: DictConfig, layer: Any, prefix: str) -> None:
    # OmegaConf's own refusal does not name the key.
    plain = cast(dict[str, Any], OmegaConf.to_container(layer) if isinstance(layer, DictConfig) else layer)
    for key, value in plain.items():
        is_block = key in schema and isinstance(schema[key], DictConfig)
        if is_block and not isinstance(value, Mapping) and not str(value).startswith("${"):
            raise ConfigError(
                f"configuration key '{prefix}{key}' is {value!r}; it is a block of keys; write them below it, or as in "
                f"{prefix}{key}.NAME=value."
            )


def _keys_beside(kind: type, full_key: str, prefix: str) -> list[str]:
    """Return the keys, in full, that the block of a key knows."""
    path = prefix
    for block in full_key.split("."):
        below = next((each.default_factory for each in dataclasses.fields(kind) if each.name == block), None)
        if not (isinstance(below, type) and dataclasses.is_dataclass(below)):
            break
        kind, path = below, f"{path}{block}."
    return [path + each.name for each in dataclasses.fields(kind)]


def _first_line(error: Exception) -> str:
    return str(error).split("\n", maxsplit=1)[0]


def one_of(key: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        ConfigError: It is none; the message names the nearest.
    """
    if value not in choices:
        raise ConfigError(unknown_name(key, value, choices))


def at_least(key: str, value: int | float | None, least: int | float) -> None:
    """Refuse a number that is too small, or none (`.nan`); None is left alone.

    Raises:
        ConfigError: It is smaller.
    """
    if value is not None and not value >= least:
        raise ConfigError(f"{key} is {value}; it must be at least {least}; correct it.")
