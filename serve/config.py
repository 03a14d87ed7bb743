"""The configuration of packing and serving, read as those of the offline job are."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from mapstack.config import ModelConfig
from mapstack.config_files import at_least
from mapstack.endpoint import EndpointConfig
from mapstack.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]{0,63}")
_BASE64_SHARE = 1.4  # a third more, and the rest of the request
_MAX_ANSWER_OVERHEAD = 65_536


@dataclass
class ServerConfig:
    """How TorchServe runs. What concerns workers is packed into the archive.

    Attributes:
        host: Address that all ports listen on.
        inference_port: Of `/predictions` and `/explanations`.
        management_port: Of the management API.
        metrics_port: Of the Prometheus metrics, which ask for no token.
        grpc_inference_port: Of the gRPC API, which TorchServe opens whether it is used or not.
        grpc_management_port: Of the management API by gRPC, likewise.
        workers: Processes that hold the model.
        threads: Of each worker's matrix products.
        batch_size: Requests that a worker answers together, at most.
        max_batch_delay_ms: How long a request waits for batch-mates.
        queue: Requests that may wait; more get 503 at once.
        response_timeout_s: A worker that takes longer is replaced.
        startup_timeout_s: For the model to be loaded.
        token_minutes: How long a token is good for.
        run_folder: Logs, tokens, temporary files, cache; private to the user.
        drain_s: How long `stop` waits for requests in flight.
    """

    host: str = "127.0.0.1"
    inference_port: int = 8080
    management_port: int = 8081
    metrics_port: int = 8082
    grpc_inference_port: int = 7070
    grpc_management_port: int = 7071
    workers: int = 1
    threads: int = 2
    batch_size: int = 4
    max_batch_delay_ms: int = 1
    queue: int = 100
    response_timeout_s: int = 600
    startup_timeout_s: int = 300
    token_minutes: int = 60
    run_folder: str = "out/serve"
    drain_s: int = 60

    def __post_init__(self) -> None:
        for key in ("workers", "threads", "batch_size", "max_batch_delay_ms", "queue", "token_minutes"):
            at_least(f"server.{key}", getattr(self, key), 1)
        for key in ("response_timeout_s", "startup_timeout_s"):
            at_least(f"server.{key}", getattr(self, key), 1)
        at_least("server.drain_s", self.drain_s, 0)
        for name, port in self.ports().items():
            if not 1 <= port <= 65_535:
                raise ConfigError(f"server.{name} is {port}; a port is 1 to 65535; correct it.")
        if len(set(self.ports().values())) < len(self.ports()):
            raise ConfigError("two ports of server are the same; each has its own; change one.")

    def ports(self) -> dict[str, int]:
        """Return every port that is opened, by its key."""
        names = ("inference_port", "management_port", "metrics_port", "grpc_inference_port", "grpc_management_port")
        return {name: getattr(self, name) for name in names}

    def url(self, name: str) -> str:
        """Return the address of one of `ports`."""
        return f"http://{self.host}:{self.ports()[name]}"


@dataclass
class ServeConfig:
    """What is packed, and how it is served.

    Attributes:
        name: Of the archive and of the model in URLs.
        output: Folder of the archive.
        model: Which model explains.
        prompts: Prompt set of the classes; None for none.
        endpoint: What the endpoint serves: methods, limits, cache.
        server: How TorchServe runs.
    """

    name: str = "medclip"
    output: str = "model_store"
    model: ModelConfig = field(default_factory=ModelConfig)
    prompts: str | None = "configs/prompts/mimic_cxr.yaml"
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    server: ServerConfig = field(default_factory=ServerConfig)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"name '{self.name}' is wrong; it is part of a file name and of URLs: letters, digits, _ and -, at "
                "most 64, the first a letter or digit; choose another."
            )

    @property
    def archive(self) -> Path:
        """Where the archive lies."""
        return Path(self.output) / f"{self.name}.mar"

    @property
    def max_request_bytes(self) -> int:
        """The largest body of a request: the picture in base64, and the texts."""
        return int(_BASE64_SHARE * self.endpoint.limits.max_image_bytes) + 1024**2

    @property
    def max_answer_bytes(self) -> int:
        """The largest answer that TorchServe passes on: the endpoint makes none so large, since that kills workers."""
        return self.endpoint.limits.max_answer_bytes + _MAX_ANSWER_OVERHEAD
