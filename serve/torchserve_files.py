"""The files that TorchServe reads: settings, logging, metrics."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

from mapstack.config_files import merge
from mapstack.endpoint import EndpointConfig
from mapstack.endpoint.packed import SETTINGS
from mapstack.errors import ConfigError
from serve.config import ServeConfig

PROPERTIES, LOGGING, METRICS = "config.properties", "log4j2.xml", "metrics.yaml"


def properties(config: ServeConfig, folder: Path) -> str:
    """Return config.properties: loopback, tokens on, registration off, no URL allowed, limits set.

    The limits are those that were packed, whatever the configuration says by now: the endpoint keeps to them, and an
    answer that TorchServe finds too large kills the worker.

    Raises:
        ConfigError: The archive cannot be read.
    """
    server, packed = config.server, replace(config, endpoint=packed_endpoint(config.archive))
    lines = {
        "inference_address": server.url("inference_port"),
        "management_address": server.url("management_port"),
        "metrics_address": server.url("metrics_port"),
        "grpc_inference_address": server.host,
        "grpc_inference_port": server.grpc_inference_port,
        "grpc_management_address": server.host,
        "grpc_management_port": server.grpc_management_port,
        "disable_token_authorization": "false",
        "token_expiration_min": server.token_minutes,
        "enable_model_api": "false",
        # A pattern that no URL matches; an empty list would allow all.
        "allowed_urls": "none://",
        "use_env_allowed_urls": "false",
        "enable_envvars_config": "false",
        "install_py_dep_per_model": "false",
        "max_request_size": packed.max_request_bytes,
        "max_response_size": packed.max_answer_bytes,
        "job_queue_size": server.queue,
        "default_response_timeout": server.response_timeout_s,
        "default_startup_timeout": server.startup_timeout_s,
        "default_workers_per_model": server.workers,
        "unregister_model_timeout": server.drain_s,
        "number_of_netty_threads": 4,
        "netty_client_threads": 4,
        "metrics_mode": "prometheus",
        "metrics_config": folder / METRICS,
        "disable_system_metrics": "true",
        "decode_input_request": "false",
    }
    return "".join(f"{key}={value}\n" for key, value in lines.items())


def packed_endpoint(archive: Path) -> EndpointConfig:
    """Read the configuration of the endpoint that an archive holds.

    Raises:
        ConfigError: There is none, or it cannot be read.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            block = json.loads(opened.read(SETTINGS))["endpoint"]
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"archive '{archive}' cannot be read ({type(error).__name__}); it holds '{SETTINGS}'; pack again."
        ) from None
    return merge(EndpointConfig, [block], prefix="endpoint.")


def logging_xml(log: Path) -> str:
    """Return log4j2.xml: one log of bounded size, and no access log, since a request's path may say anything.

    Args:
        log: The file; older ones get a number.
    """
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<Configuration>
  <Appenders>
    <RollingFile name="LOG" fileName="{log}" filePattern="{log}.%i">
      <!-- One line an event: no text can forge another. -->
      <PatternLayout pattern="%d{{ISO8601}} [%-5p] %t %c - %enc{{%m}}{{CRLF}}%n" alwaysWriteExceptions="false"/>
      <SizeBasedTriggeringPolicy size="10 MB"/>
      <DefaultRolloverStrategy max="5"/>
    </RollingFile>
  </Appenders>
  <Loggers>
    <Logger name="ACCESS_LOG" level="off"/>
    <Logger name="MODEL_METRICS" level="off"/>
    <Logger name="TS_METRICS" level="off"/>
    <Logger name="io.netty" level="off"/>
    <Logger name="org.apache" level="off"/>
    <Logger name="org.pytorch.serve.http" level="off"/>
    <Logger name="MODEL_LOG" level="info"/>
    <Logger name="org.pytorch.serve.ModelServer" level="info"/>
    <Root level="warn">
      <AppenderRef ref="LOG"/>
    </Root>
  </Loggers>
</Configuration>
"""


def metrics_yaml() -> str:
    """Return the metrics: TorchServe's own, and ours, by words that no request can choose."""
    return """dimensions:
  - &call "call"
  - &method "method"
  - &route "route"
  - &code "code"
  - &level "Level"
  - &hostname "Hostname"
ts_metrics:
  counter:
    - {name: Requests2XX, unit: Count, dimensions: [*level, *hostname]}
    - {name: Requests4XX, unit: Count, dimensions: [*level, *hostname]}
    - {name: Requests5XX, unit: Count, dimensions: [*level, *hostname]}
    - {name: ts_inference_requests_total, unit: Count, dimensions: [model_name, model_version, hostname]}
    - {name: ts_inference_latency_microseconds, unit: Microseconds, dimensions: [model_name, model_version, hostname]}
    - {name: ts_queue_latency_microseconds, unit: Microseconds, dimensions: [model_name, model_version, hostname]}
  gauge:
    - {name: QueueTime, unit: Milliseconds, dimensions: [*level, *hostname]}
    - {name: WorkerThreadTime, unit: Milliseconds, dimensions: [*level, *hostname]}
    - {name: WorkerLoadTime, unit: Milliseconds, dimensions: [WorkerName, *level, *hostname]}
model_metrics:
  counter:
    - {name: mapstack_answered, unit: count, dimensions: [*call, *method, *route]}
    - {name: mapstack_refused, unit: count, dimensions: [*call, *code]}
    - {name: mapstack_cache_hits, unit: count, dimensions: []}
    - {name: mapstack_cache_misses, unit: count, dimensions: []}
  gauge:
    - {name: mapstack_cache_bytes, unit: bytes, dimensions: []}
    - {name: PredictionTime, unit: ms, dimensions: [ModelName, *level]}
  histogram:
    - {name: mapstack_seconds, unit: s, dimensions: [*call, *method, *route]}
"""
