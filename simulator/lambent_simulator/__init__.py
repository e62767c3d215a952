"""The scheduler's own decisions under a virtual clock, with simulated nodes and recorded loads.

What is simulated is what runs: `lambent_scheduler.core` decides here as it does in the daemon, and nothing of it is
written a second time.
"""

from __future__ import annotations

from lambent_simulator.faults import Fault, FaultKind
from lambent_simulator.figures import FunctionFigures, Report
from lambent_simulator.histogram import LogHistogram
from lambent_simulator.policies import EVICTIONS, PLACEMENTS, POLICIES
from lambent_simulator.scenario import Scenario, ScenarioError
from lambent_simulator.simulation import simulate

__all__ = [
    "simulate",
    "Scenario",
    "ScenarioError",
    "POLICIES",
    "PLACEMENTS",
    "EVICTIONS",
    "Fault",
    "FaultKind",
    "Report",
    "FunctionFigures",
    "LogHistogram",
]
