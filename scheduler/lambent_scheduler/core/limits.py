"""The bounds that the dispatcher keeps, each with the reason for its default."""

from __future__ import annotations

from dataclasses import dataclass

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one scheduler. Times in seconds of the caller's clock.

    Attributes:
        account_concurrency: Invocations of one account that run or wait at once. AWS Lambda quotas: 1,000.
        keep_alive_s: An environment that served nothing for so long is stopped. AWS keeps 5 to 15 minutes. Policies
            that learn go by it as long as they know nothing.
        keep_alive: Name of the policy that decides how long environments stay idle; see `policies`.
        eviction: Name of the policy that decides which of them makes room for another one.
        placement: Name of the policy that decides which node gets a new one.
        max_queue_wait_s: Longest wait for capacity. Past it the caller does better to go elsewhere, unless an
            environment is being made for it by then.
        waiting_calls_per_function: One function's backlog: what an account may have in flight unless told otherwise.
        waiting_calls: Backlog of the scheduler: ten accounts at that limit.
        waiting_bytes_per_function: Payloads kept for one function: ten of the largest (6 MiB).
        waiting_bytes: Payloads kept in all, so that a backlog cannot cost more memory than a small machine has.
        cpu_overcommit: Share of CPU that environments may hold, as a multiple of the node's cores. An idle environment
            holds its share and uses none, and CPU, unlike memory, is divided when it is short. Machines have 2 to 8 GiB
            a core where AWS counts 1,769 MB, and most environments are idle: 16 makes memory the usual bound.
        disk_overcommit: The same for `/tmp`, of which most functions use nothing.
        refusal_backoff_s: How long a node that refused or failed a version is left alone by that version. Its status
            arrives within a second, and then the table knows what the node has reserved for others.
        start_attempts: Starts that may fail before a waiting call fails with them. More than one, since one node may
            be sick; few, since a broken package fails everywhere.
        prepared_most: Environments of one version that SnapStart may keep ready beyond those in use: each holds its
            memory. More than a burst of eight starts in the usual way.
        prepare_retry_s: Between two looks for memory for them, which others may take at any time.
        fair_wait_s: A function that has waited so long for memory takes it from busy ones; also the shortest time that
            an environment serves before it is taken. A hundred cold starts of 10 ms: what is lost to turns stays 1 %.
    """

    account_concurrency: int = 1000
    keep_alive_s: float = 600.0
    keep_alive: str = "fixed"
    eviction: str = "least-recently-used"
    placement: str = "pack-then-spread"
    max_queue_wait_s: float = 10.0
    waiting_calls_per_function: int = 1000
    waiting_calls: int = 10_000
    waiting_bytes_per_function: int = 64 * _MIB
    waiting_bytes: int = 256 * _MIB
    cpu_overcommit: float = 16.0
    disk_overcommit: float = 10.0
    refusal_backoff_s: float = 1.0
    start_attempts: int = 3
    prepared_most: int = 8
    prepare_retry_s: float = 10.0
    fair_wait_s: float = 1.0
