"""Prometheus metrics, read from the relay's and the dispatcher's own counters when somebody asks.

A warm call pays nothing for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client import Metric

    from lambent_scheduler.invocation.relay import Relay


class RelayCollector(Collector):
    """Shows the counters of the relay and its dispatcher.

    Args:
        relay: What has the counters.
        sessions: How many sessions there are, by way; looked at when somebody asks.
    """

    def __init__(self, relay: Relay, sessions: Mapping[str, int]) -> None:
        self._relay = relay
        self._sessions = sessions

    def collect(self) -> Iterator[Metric]:
        """Give every metric with its value of this moment."""
        dispatcher = self._relay.dispatcher
        yield CounterMetricFamily(
            "lambent_invocations", "Invocations admitted, throttled ones not counted", value=dispatcher.invocations
        )
        yield CounterMetricFamily("lambent_throttles", "Calls refused by a concurrency limit", dispatcher.throttles)
        yield CounterMetricFamily(
            "lambent_capacity_refusals", "Calls that found no room on any node in time", dispatcher.refusals
        )
        yield CounterMetricFamily(
            "lambent_cold_starts", "Invocations that were the first of their environment", dispatcher.cold_starts
        )
        yield GaugeMetricFamily("lambent_concurrent_executions", "Invocations running or waiting", dispatcher.in_flight)
        yield GaugeMetricFamily("lambent_waiting", "Calls that wait for an environment", dispatcher.waiting_calls)
        yield GaugeMetricFamily("lambent_waiting_bytes", "Payloads of the calls that wait", dispatcher.waiting_bytes)
        yield GaugeMetricFamily(
            "lambent_environments", "Execution environments alive, in any phase", dispatcher.environment_count
        )
        yield GaugeMetricFamily(
            "lambent_nodes_attached", "Nodes with a stream", sum(link.attached for link in self._relay.links.values())
        )
        yield from self._of_nodes()
        sessions = GaugeMetricFamily("lambent_sessions", "Sessions of callers, by way: grpc or port", labels=("way",))
        for way, count in self._sessions.items():
            sessions.add_metric((way,), count)
        yield sessions
        yield from self._relay.cold_starts.collect()
        functions = CounterMetricFamily(
            "lambent_function_invocations",
            "Invocations that have ended, by function",
            labels=("account", "function_name"),
        )
        errors = CounterMetricFamily(
            "lambent_function_errors", "Invocations whose function failed", labels=("account", "function_name")
        )
        duration = CounterMetricFamily(
            "lambent_function_duration_seconds", "Run time by function, summed", labels=("account", "function_name")
        )
        for (account, name), totals in self._relay.totals.items():
            functions.add_metric((account, name), totals.ended)
            errors.add_metric((account, name), totals.errors)
            duration.add_metric((account, name), totals.duration_us / 1e6)
        yield from (functions, errors, duration)

    def _of_nodes(self) -> Iterator[Metric]:
        """What the attached nodes said of themselves last."""
        frozen = GaugeMetricFamily(
            "lambent_node_frozen_environments", "Idle environments whose processes are stopped", labels=("node_id",)
        )
        reclaimed = CounterMetricFamily(
            "lambent_node_reclaimed_bytes", "Memory taken back from frozen environments", labels=("node_id",)
        )
        for link in self._relay.links.values():
            if link.attached:
                frozen.add_metric((link.node_id,), link.status.frozen)
                reclaimed.add_metric((link.node_id,), link.status.reclaimed_bytes)
        yield from (frozen, reclaimed)
