"""The fixtures that all tests with sandboxes share."""

from tests.sandbox_fixtures import mount_namespace, place, world

__all__ = ["mount_namespace", "place", "world"]
