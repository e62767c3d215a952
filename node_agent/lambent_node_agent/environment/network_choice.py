"""What an order says of an environment's network."""

from __future__ import annotations

from lambent.v1 import function_pb2, node_pb2
from lambent_node_agent.network import EGRESS, NO_NETWORK, Mode, NetworkChoice


def network_choice(order: node_pb2.StartEnvironment) -> NetworkChoice:
    """Give where the connections of an environment may go; pure."""
    if order.vpc_config.subnet_ids:
        return NetworkChoice(Mode.VPC, tuple(order.vpc_config.subnet_ids), tuple(order.vpc_config.security_group_ids))
    return NO_NETWORK if order.network_mode == function_pb2.NETWORK_MODE_NONE else EGRESS
