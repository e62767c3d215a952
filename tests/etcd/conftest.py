"""A server and a client for each test."""

from tests.etcd_fixtures import client, server

__all__ = ["client", "server"]
