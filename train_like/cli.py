"""The command line: arguments in, exit code and one JSON line out."""

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from mapstack.errors import MapstackError
from train_like.errors import STOPPED, exit_code, status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the last line on standard output is one JSON object, logs go to standard error.

    Returns:
        0 done; 1 finished but some samples failed; 2 wrong usage or configuration; 3 a store that is damaged or
        belongs to another configuration; 4 stopped early; 143 ended by SIGTERM after committing.
    """
    options = _parser().parse_args(arguments)
    try:
        result = options.run(options)
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


def _report(line: dict[str, Any]) -> None:
    print(json.dumps(line, allow_nan=False), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m train_like", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (run, help_text) in _COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=help_text)
        command.set_defaults(run=run)
        if name == "verify":
            command.add_argument("store", help="folder of the stack store")
            continue
        command.add_argument("config", help="YAML configuration")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.batch_size=8")
    return parser


# The commands are imported when they are called: `verify` needs no torch, and `project` no Lightning.


def _extract(options: argparse.Namespace) -> Any:
    from mapstack.config import Config, load_config
    from train_like.extract import extract

    return extract(load_config(Config, options.config, options.overrides))


def _project(options: argparse.Namespace) -> Any:
    from mapstack.config import Config, load_config
    from train_like.project import project

    return project(load_config(Config, options.config, options.overrides))


def _figures(options: argparse.Namespace) -> Any:
    from mapstack.config import FiguresConfig, load_config
    from train_like.paper_figures import draw_figures

    return draw_figures(load_config(FiguresConfig, options.config, options.overrides))


def _verify(options: argparse.Namespace) -> Any:
    from train_like.check_store import check_store

    return check_store(options.store)


def _shards(options: argparse.Namespace) -> Any:
    from mapstack.config import ShardsConfig, load_config
    from train_like.make_shards import make_shards

    return make_shards(load_config(ShardsConfig, options.config, options.overrides))


def _fit(options: argparse.Namespace) -> Any:
    from mapstack.config import FitConfig, load_config
    from train_like.fit import fit

    return fit(load_config(FitConfig, options.config, options.overrides))


def _weights(options: argparse.Namespace) -> Any:
    from mapstack.config import WeightsConfig, load_config
    from train_like.make_weights import make_weights

    return make_weights(load_config(WeightsConfig, options.config, options.overrides))


_COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], Any], str]] = {
    "extract": (_extract, "input shards -> stack store"),
    "project": (_project, "stack store + prompts -> maps, without the image model"),
    "figures": (_figures, "the paper's Fig. 1 and Fig. 2 on samples of the shards"),
    "verify": (_verify, "re-read every record against its checksum"),
    "shards": (_shards, "datasets in"),
    "fit": (_fit, "train the demo model on phantoms"),
    "weights": (_weights, "a checkpoint folder"),
}
