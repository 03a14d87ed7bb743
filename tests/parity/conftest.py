"""The real server, shared with tests/serve."""

from tests.serve.conftest import demo_checkpoint, demo_model, server

__all__ = ["demo_checkpoint", "demo_model", "server"]
