"""The command line: arguments in, exit code and one JSON line out."""

import argparse
import base64
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from mapstack.config_files import load_config
from mapstack.errors import MapstackError
from serve.client import Client
from serve.config import ServeConfig
from serve.errors import DONE, STOPPED, TERMINATED, WRONG_USE, AnswerError, ServerError
from serve.keys import KEY_FILE
from serve.pack import pack
from serve.server import Server, run_folder, start, stop

_DEFAULT_CONFIG = "configs/serve.yaml"
_AUTO = '{"name": "integrated_gradients", "n_steps": "auto"}'
_FAR_SHARE = 0.1
_FAR = f"a sum is more than 10 % off what it explains: so few steps are not complete; try --method '{_AUTO}'"
_HELP = {
    "pack": "everything that the endpoint needs -> a TorchServe archive",
    "start": "TorchServe in the foreground",
    "stop": "let requests in flight finish, then end TorchServe",
    "explain": "ask the endpoint about a picture: prints logits, writes the heat map",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the last line on standard output is one JSON object, logs go to standard error.

    Returns:
        0 done; 2 wrong usage or configuration; 4 the server failed or refused; 143 ended by a signal.
    """
    options = _options(arguments)
    try:
        config = load_config(ServeConfig, options.config, options.overrides)
        if options.command == "pack":
            summary = {"command": "pack", "status": "done", **pack(config)}
        elif options.command == "start":
            return _run_server(config)
        elif options.command == "stop":
            summary = {"command": "stop", "status": "done", **stop(config)}
        else:
            summary = _explain(options, config)
    except MapstackError as error:
        code = STOPPED if isinstance(error, ServerError | AnswerError) else WRONG_USE
        _say(f"{options.command}: {error}", sys.stderr)
        _report({"command": options.command, "status": _word(code), "error": str(error)})
        return code
    except Exception as error:
        traceback.print_exc()
        _report({"command": options.command, "status": _word(STOPPED), "error": type(error).__name__})
        return STOPPED
    _report(summary)
    return DONE


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read arguments; key=value may stand anywhere, which argparse alone does not allow after an option."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    unknown = [each for each in rest if each.startswith("-") or "=" not in each]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    options.overrides.extend(rest)
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serve", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help_text in _HELP.items():
        command = commands.add_parser(name, help=help_text, description=help_text)
        if name != "explain":
            command.add_argument("config", help="YAML configuration", nargs="?", default=_DEFAULT_CONFIG)
            command.add_argument("overrides", nargs="*", metavar="key=value", help="such as server.workers=2")
            continue
        command.add_argument("image", help="PNG or JPEG file")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="such as server.inference_port=9080")
        command.add_argument("--config", default=_DEFAULT_CONFIG, help="YAML configuration of the server")
        command.add_argument("--prompt", action="append", default=[], help="a text; may come several times")
        command.add_argument("--against", help="a text that each prompt is contrasted with")
        command.add_argument("--method", help="a name, or a JSON object with name and parameters")
        command.add_argument("--route", help="auto, direct, prompts or axes")
        command.add_argument(
            "--output", default="heat-map.png", help="where the heat map goes; .N is added for several"
        )
        command.add_argument("--url", help="of the inference API, where it is not on this host")
        command.add_argument("--token-file", help="a file that holds the token, where the server is not on this host")
    return parser


def _report(line: dict[str, Any]) -> None:
    _say(json.dumps(line, allow_nan=False), sys.stdout)


def _say(text: str, file: TextIO) -> None:
    """Print a line; who has stopped reading, as `| head -1` does, still wants the command to go on."""
    try:
        print(text, file=file, flush=True)
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file.fileno())  # Python flushes what is left when it ends
        os.close(nowhere)


def _word(code: int) -> str:
    return {WRONG_USE: "wrong_use", STOPPED: "stopped", TERMINATED: "terminated"}[code]


def _run_server(config: ServeConfig) -> int:
    """Start the server and stay in the foreground until it ends, by itself or by a signal to us."""
    _turn_signals_into_interrupts()
    server = None
    try:
        server = start(config)
        _announce(server, config)
        code = server.wait()
    except BaseException as error:
        if server is not None:  # a start that fails has cleaned up already
            stop(config)
            server.end()
        if isinstance(error, KeyboardInterrupt):
            return TERMINATED
        raise
    if server.was_stopped():
        return DONE  # by `serve stop`
    stop(config)
    raise ServerError(f"TorchServe ended by itself with {code}; see its log in '{run_folder(config.server) / 'logs'}'.")


def _turn_signals_into_interrupts() -> None:
    """Let the first SIGTERM, Ctrl-C or hang-up raise KeyboardInterrupt, and later ones not disturb what it begins."""
    signals: list[int] = []

    def interrupt(number: int, _: object) -> None:
        signals.append(number)
        if len(signals) == 1:
            raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # which is what nohup asks for
            signal.signal(number, interrupt)


def _announce(server: Server, config: ServeConfig) -> None:
    key_file = run_folder(config.server) / KEY_FILE
    url = config.server.url("inference_port")
    calls = {verb: f"{url}/{verb}/{config.name}" for verb in ("predictions", "explanations")}
    _say(f"ready: {calls['predictions']} and {calls['explanations']}", sys.stderr)
    _say(f"token: the key of 'inference' in {key_file}, sent as 'Authorization: Bearer KEY'", sys.stderr)
    _report(
        {
            "command": "start",
            "status": "ready",
            **calls,
            "management": config.server.url("management_port"),
            "metrics": f"{config.server.url('metrics_port')}/metrics",
            "key_file": str(key_file),
            "pid": server.pid,
        }
    )


def _explain(options: argparse.Namespace, config: ServeConfig) -> dict[str, Any]:
    try:
        image = Path(options.image).read_bytes()
        token = Path(options.token_file).read_text(encoding="utf-8").strip() if options.token_file else None
    except OSError as error:
        raise MapstackError(
            f"a file cannot be opened ({error.strerror}); it must be readable; correct the path."
        ) from None
    target, written = Path(options.output), []
    if not target.parent.is_dir():
        raise MapstackError(f"folder '{target.parent}' does not exist; the heat map goes there; make it.")
    client = Client(options.url, config.name, token=token) if options.url else Client.of(config)
    fields: dict[str, Any] = {"output": "png", "prompts": options.prompt or None, "method": _method(options.method)}
    for name in ("against", "route"):
        if getattr(options, name) is not None:
            fields[name] = getattr(options, name)
    answer = client.explain(image, **fields)
    for number, row in enumerate(answer["maps"]):
        path = target if len(answer["maps"]) == 1 else target.with_suffix(f".{number}{target.suffix}")
        path.write_bytes(base64.b64decode(row.pop("png")))
        written.append(str(path))
        print(f"{path}  logit {row['logit']:+.3f}{_sum(row)}{_cut(row)}  {row['name']}", file=sys.stderr)
    if answer["completeness"] == "in the limit of n_steps" and any(_is_far(row) for row in answer["maps"]):
        print(_FAR, file=sys.stderr)
    if answer["note"]:
        print(f"note: {answer['note']}", file=sys.stderr)
    return {"command": "explain", "status": "done", "written": written, **answer}


def _method(written: str | None) -> Any:
    if written is None or not written.lstrip().startswith("{"):
        return written
    try:
        return json.loads(written)
    except ValueError:
        raise MapstackError(f"method '{written}' is no JSON; give a name, or an object as {_AUTO}.") from None


def _sum(row: dict[str, Any]) -> str:
    return "" if row["difference"] is None else f", map sums to {row['map_sum']:+.3f} of {row['difference']:+.3f}"


def _cut(row: dict[str, Any]) -> str:
    return ", too long: only its beginning is read" if row["truncated"] else ""


def _is_far(row: dict[str, Any]) -> bool:
    return bool(abs(row["residual"]) > _FAR_SHARE * abs(row["difference"]))
