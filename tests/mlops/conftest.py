"""The real server, shared with tests/serve."""

from tests.serve.conftest import image, server

__all__ = ["image", "server"]
