"""The command line: arguments in, exit code and one JSON line out."""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from mapstack.config_files import load_config
from mapstack.errors import MapstackError
from train_like.errors import STOPPED, exit_code, status
from train_like.result import Result

# Nearly all that a command writes was made of patients' pictures: the group may read it, nobody else.
_OTHERS_MAY_NOT = 0o027

# Where each command lives, its configuration, and what it does.
_COMMANDS = {
    "extract": ("train_like.extract:extract", "config:Config", "input shards -> stack store"),
    "project": (
        "train_like.project:project",
        "config:Config",
        "stack store + prompts -> maps, without a model",
    ),
    "basis": ("train_like.fit_basis:fit_basis", "config:Config", "few rows for the stacks of any text, from pictures"),
    "figures": ("train_like.paper_figures:draw_figures", "job_configs:FiguresConfig", "the paper's Fig. 1 and Fig. 2"),
    "verify": ("train_like.check_store:check_store", None, "re-read every record against its checksum"),
    "evaluate": (
        "train_like.evaluate:evaluate",
        "job_configs:EvaluateConfig",
        "metrics against masks or boxes",
    ),
    "shards": ("train_like.make_shards:make_shards", "job_configs:ShardsConfig", "datasets in"),
    "fit": ("train_like.fit:fit", "job_configs:FitConfig", "train the demo model on phantoms"),
    "weights": ("train_like.weights:fetch_weights", "job_configs:WeightsConfig", "a checkpoint folder"),
    "doctor": ("train_like.doctor:examine", "config:Config", "what this machine can do with a planned run"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the last line on standard output is one JSON object, logs go to standard error.

    Returns:
        0 done; 1 finished but some samples failed; 2 wrong usage or configuration; 3 a store that is damaged or
        belongs to another configuration; 4 stopped early; 143 ended by SIGTERM after committing.
    """
    options = _parser().parse_args(arguments)
    try:
        with _private_files():
            result = _run(options)
    except MapstackError as error:
        code = exit_code(error)
        print(f"{options.command}: {error}", file=sys.stderr)
        _report({"command": options.command, "status": status(code), "error": str(error)})
        return code
    except Exception as error:
        # Python's own code for this is 1, which says that the work was finished.
        traceback.print_exc()
        _report({"command": options.command, "status": status(STOPPED), "error": type(error).__name__})
        return STOPPED
    if result.is_reporter:
        _report({"command": options.command, "status": status(result.code), **result.summary})
    return int(result.code)


@contextmanager
def _private_files() -> Iterator[None]:
    """Let nobody but owner and group read what the block writes; a stricter mask of the caller is kept."""
    previous = os.umask(_OTHERS_MAY_NOT)
    os.umask(previous | _OTHERS_MAY_NOT)
    try:
        yield
    finally:
        os.umask(previous)


def _report(line: dict[str, Any]) -> None:
    print(json.dumps(line, allow_nan=False), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m train_like", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, schema, help_text) in _COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=help_text)
        if schema is None:
            command.add_argument("store", help="folder of the stack store")
            continue
        command.add_argument("config", help="YAML configuration")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.batch_size=8")
    return parser


def _run(options: argparse.Namespace) -> Result:
    """Import a command when it is called: `verify` needs no torch, and `project` no Lightning."""
    place, schema, _ = _COMMANDS[options.command]
    module, function = place.split(":")
    if schema is None:
        argument = options.store
    else:
        file, name = schema.split(":")
        dataclass = getattr(import_module(f"mapstack.{file}"), name)
        argument = load_config(dataclass, options.config, options.overrides)
    result: Result = getattr(import_module(module), function)(argument)
    return result
