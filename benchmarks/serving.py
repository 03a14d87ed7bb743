"""How long do answers take: through TorchServe on this machine, and by the same endpoint in one process?

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.serving FOLDER [config=configs/serve.yaml] [n=30] [seconds=15]

FOLDER is private to it: archive, logs and cache go there. It packs and starts a server of its own, asks it, stops it,
prints two tables and ends with one JSON line. Client and server share the processor cores, as the table says. The
variable is what `serve start` gives its workers; here it is for the process that asks itself.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from mapstack.config_files import load_config
from mapstack.endpoint import Endpoint, Raw
from mapstack.endpoint.packed import open_endpoint
from mapstack.phantom import phantom
from serve.client import Client
from serve.config import ServeConfig
from serve.pack import pack
from serve.server import start, stop
from tests.picture_files import encode

TEXTS = [
    "Small right pleural effusion blunting the costophrenic angle.",
    "Severe cardiomegaly with the heart reaching toward the left lateral chest wall.",
    "Large solid mass in the left mid lung.",
    "Moderate left apical pneumothorax with absent lung markings beyond the lung edge.",
    "Both lungs are clear, without opacity, nodule or pleural fluid.",
]
CLIENTS = (1, 4, 16)
Ask = Callable[[str, bytes | None, dict[str, Any]], Any]


def picture(seed: int) -> bytes:
    """Draw an X-ray of 320 px as a PNG file."""
    from PIL import Image

    return encode(Image.fromarray(phantom(seed=seed, size=320).pixels))


def asker(endpoint: Endpoint) -> Ask:
    """Ask an endpoint in this process, with the body that the server's worker would get."""

    def ask(verb: str, image: bytes | None, fields: dict[str, Any]) -> Any:
        parts: dict[str, Any] = {"request": json.dumps(fields).encode()}
        if image is None:
            parts = {"body": parts["request"]}
        else:
            parts["image"] = image
        (answer,) = endpoint.answer([Raw(parts, wants_maps=verb == "explanations")])
        if answer.status != 200:
            raise RuntimeError(answer.body.decode())
        return json.loads(answer.body)

    return ask


def workloads(ask: Ask, n: int) -> Iterator[tuple[str, list[float]]]:
    """Time every kind of request: name, and the seconds of each. Pictures are new where the model must run."""
    gradient, path = {"method": "gradient"}, {"method": "integrated_gradients"}
    number = iter(range(10**6))

    def timed(verb: str, repeats: int, make: Callable[[int], tuple[bytes | None, dict[str, Any]]]) -> list[float]:
        seconds = []
        for i in range(repeats + 2):
            image, fields = make(i)
            begun = time.perf_counter()
            ask(verb, image, fields)
            seconds.append(time.perf_counter() - begun)
        return seconds[2:]  # the first two warm up

    yield "logits of 5 texts", timed("predictions", n, lambda i: (picture(next(number)), {"prompts": TEXTS}))
    yield (
        "gradient, direct, 5 texts",
        timed("explanations", n, lambda i: (picture(next(number)), {"prompts": TEXTS, "route": "direct", **gradient})),
    )
    yield (
        "integrated gradients, 20 steps, 5 texts",
        timed("explanations", max(3, n // 6), lambda i: (picture(next(number)), {"prompts": TEXTS, **path})),
    )
    kept = picture(next(number))
    begun = time.perf_counter()
    first = ask("explanations", kept, {"prompts": TEXTS[:1], "route": "axes", **gradient})
    yield "gradient, axes (the stack is made)", [time.perf_counter() - begun]
    sha256 = first["image"]["sha256"]
    words = iter(range(10**6))
    yield (
        "a new text, stack in the cache, picture by its sha256",
        timed(
            "explanations",
            4 * n,
            lambda i: (None, {"image_sha256": sha256, "prompts": [f"nodule {next(words)}"], **gradient}),
        ),
    )
    yield (
        "a new text, stack in the cache, picture sent again",
        timed("explanations", 4 * n, lambda i: (kept, {"prompts": [f"mass {next(words)}"], **gradient})),
    )
    yield (
        "the same, and an overlay as PNG",
        timed("explanations", n, lambda i: (kept, {"prompts": [f"mass {next(words)}"], "output": "png", **gradient})),
    )


def throughput(client: Client, seconds: float) -> dict[str, dict[int, float]]:
    """Count answers a second with several clients at once."""
    kept = [picture(10**6 + i) for i in range(4)]
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "logits of 5 texts": ("predictions", {"prompts": TEXTS}),
        "gradient of 5 texts, stack in the cache": ("explanations", {"prompts": TEXTS, "method": "gradient"}),
    }
    found: dict[str, dict[int, float]] = {}
    for name, (verb, fields) in kinds.items():
        for image in kept:
            client.call(verb, image, fields)
        found[name] = {n: _rate(client, verb, fields, kept, n, seconds) for n in CLIENTS}
    return found


def _rate(
    client: Client, verb: str, fields: Mapping[str, Any], images: list[bytes], n_clients: int, seconds: float
) -> float:
    end = time.perf_counter() + seconds

    def work(number: int) -> int:
        done = 0
        while time.perf_counter() < end:
            client.call(verb, images[(number + done) % len(images)], fields)
            done += 1
        return done

    with ThreadPoolExecutor(n_clients) as threads:
        return sum(threads.map(work, range(n_clients))) / seconds


def free_ports() -> list[str]:
    """Return overrides that give the server ports of its own."""
    names = ("inference_port", "management_port", "metrics_port", "grpc_inference_port", "grpc_management_port")
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in names]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [f"server.{name}={probe.getsockname()[1]}" for name, probe in zip(names, probes, strict=True)]


def spread(seconds: list[float]) -> dict[str, float]:
    """Return median and 99th percentile [ms]."""
    last = quantiles(seconds, n=100)[98] if len(seconds) > 1 else seconds[0]
    return {"p50_ms": round(1000 * median(seconds), 1), "p99_ms": round(1000 * last, 1), "n": len(seconds)}


def main(arguments: list[str]) -> None:
    """Measure, and print tables and one JSON line."""
    folder, options = Path(arguments[0]), dict(each.split("=", 1) for each in arguments[1:])
    n, seconds = int(options.get("n", "30")), float(options.get("seconds", "15"))
    private = [f"output={folder}", f"server.run_folder={folder / 'run'}", *free_ports()]
    config = load_config(ServeConfig, options.get("config", "configs/serve.yaml"), private)
    pack(config)
    start(config)
    try:
        client = Client.of(config)
        served = dict(workloads(lambda verb, image, fields: client.call(verb, image, fields).json(), n))
        rates = throughput(client, seconds)
    finally:
        stop(config)
    torch.set_num_threads(config.server.threads)
    alone = dict(workloads(asker(_unpack(config, folder)), n))
    print(
        f"{os.cpu_count()} cores, {config.server.workers} worker of {config.server.threads} threads, "
        f"torch {torch.__version__}"
    )
    print("\n| request | p50 | p99 | in process p50 | p99 | server adds (p50) |\n|---|---|---|---|---|---|")
    table = {}
    for name, times in served.items():
        through, inside = spread(times), spread(alone[name])
        table[name] = {"server": through, "in_process": inside}
        added = through["p50_ms"] - inside["p50_ms"]
        cells = [through["p50_ms"], through["p99_ms"], inside["p50_ms"], inside["p99_ms"], round(added, 1)]
        print(f"| {name} | " + " | ".join(f"{cell} ms" for cell in cells) + " |")
    print("\n| answers a second | " + " | ".join(f"{n} clients" for n in CLIENTS) + " |\n|---|" + "---|" * len(CLIENTS))
    for name, by_clients in rates.items():
        print(f"| {name} | " + " | ".join(f"{by_clients[n]:.1f}" for n in CLIENTS) + " |")
    print(json.dumps({"latency": table, "answers_per_s": rates}))


def _unpack(config: ServeConfig, folder: Path) -> Endpoint:
    import zipfile

    inside = folder / "unpacked"
    with zipfile.ZipFile(config.archive) as archive:
        archive.extractall(inside)
    return open_endpoint(inside, cache_folder=folder / "own-cache")


if __name__ == "__main__":
    main(sys.argv[1:])
