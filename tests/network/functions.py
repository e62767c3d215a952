"""What functions try over the network."""

from __future__ import annotations

from tests.sandbox_harness import Lab

from lambent_node_agent.network import Attachment, Router
from lambent_node_agent.sandbox import Sandbox

OPERATORS_DENIED = "8.8.4.0/24"

CLIENT = """
import errno, socket

def name(error):
    return errno.errorcode.get(error.errno, type(error).__name__)

def tcp(host, port=80, timeout=5):
    with socket.socket() as made:
        made.settimeout(timeout)
        try:
            made.connect((host, port))
            return made.recv(99).decode()
        except OSError as error:
            return name(error)

def udp(host, port=80, timeout=5):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        made.settimeout(timeout)
        try:
            made.connect((host, port))
            made.send(b"?")
            return made.recv(99).decode()
        except OSError as error:
            return name(error)

def read(path):
    with open(path) as file:
        return file.read()

def handler(event, context):
    return eval(event)
"""
"""A function that evaluates its event, an expression."""

REFUSED = {"EHOSTUNREACH", "ENETUNREACH", "ECONNREFUSED", "EACCES"}
"""How a connection ends that the rules refuse: at once, not by a time-out."""


def router_of(agent: Lab) -> Router:
    """The router of the agent's sandboxes."""
    router = next(iter(agent.host._supplies.values()))._slots._networks
    assert isinstance(router, Router)
    return router


def attachments_of(agent: Lab) -> list[Attachment]:
    """Those of the slots that wait for a sandbox: all, while there is none."""
    slots = next(iter(agent.host._supplies.values()))._slots._free
    return [slot.network for slot in slots if isinstance(slot.network, Attachment)]


def address_of(agent: Lab, sandbox: Sandbox) -> str:
    """The address of a sandbox behind its router."""
    return str(router_of(agent)._environments[sandbox._slot.index])
