"""The endpoint: requests of a client in, logits and maps out, with a cache of stacks; knows no server.

A server's handler makes an `Endpoint` once and hands it batches of `Raw` requests.
"""

from mapstack.endpoint.answers import Answer
from mapstack.endpoint.endpoint import CacheReport, Endpoint
from mapstack.endpoint.refusals import STATUS, Refusal
from mapstack.endpoint.requests import FIELDS, Raw
from mapstack.endpoint.settings import CacheConfig, EndpointConfig, LimitsConfig

__all__ = [
    "FIELDS",
    "STATUS",
    "Answer",
    "CacheConfig",
    "CacheReport",
    "Endpoint",
    "EndpointConfig",
    "LimitsConfig",
    "Raw",
    "Refusal",
]
