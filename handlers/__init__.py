"""The online doors: one handler file a server."""
