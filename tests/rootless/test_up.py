"""`lambent up` by an ordinary user: what works, what it is told, and that nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import lambent
from tests.cluster import COMMAND_TIMEOUT_S, LAMBENT, Cluster, leftovers
from tests.rootless.ordinary_user import SUBORDINATE, UID, OrdinaryUser, ordinary_user
from tests.security.target import package

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="making a user for tests needs root")

FORKS = """
import os, signal
def handler(event, context):
    made = 0
    try:
        while made < 3000:
            if os.fork() == 0:
                signal.pause()
            made += 1
    except BlockingIOError:
        pass
    yield str(made)
    signal.pause()
"""
SWAPS = len(Path("/proc/swaps").read_text().splitlines()) > 1
NOT_ENFORCED = "memory,disk,own-uid,cpu,freezer" + (",swap" if SWAPS else "")
"""For a user whom nobody has given anything."""
SUBORDINATE_UIDS = range(SUBORDINATE, SUBORDINATE + 65536)
FACTS = """
import os, socket, subprocess
def handler(event, context):
    status = open("/proc/self/status").read()
    try:
        socket.create_connection(("127.0.0.1", event["port"]), timeout=1)
        reached = True
    except OSError:
        reached = False
    return {
        "uid": os.getuid(), "capabilities": [line.split()[1] for line in status.splitlines() if line.startswith("Cap")],
        "seccomp": "Seccomp:\\t2" in status, "files": sorted(os.listdir("/")), "run": os.listdir("/run"),
        "home": os.path.exists(event["home"]), "reached": reached, "devices": sorted(os.listdir("/dev")),
        "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
        "map": open("/proc/self/uid_map").read().split(), "written": open("/tmp/x", "w").write("12"),
        "started": start(50),
    }

def start(count):
    processes = [subprocess.Popen(["/usr/bin/sleep", "60"]) for _ in range(count)]
    for process in processes:
        process.kill()
    return len([process.wait() for process in processes])
"""
BOMBS = """
import time
def handler(event, context):
    if event == "memory":
        return len(bytearray(512 << 20))
    if event == "sleep":
        time.sleep(100)
    return "calm"
"""


def deploy(cluster: Cluster, name: str, source: str, timeout_s: int = 10) -> None:
    with lambent.Client(data_dir=cluster.data_dir) as client:
        client.deploy(name, package(source), handler="attack.handler", memory_mib=128, timeout_s=timeout_s)


def invoke(cluster: Cluster, name: str, event: Any) -> Any:
    with lambent.Client(data_dir=cluster.data_dir) as client:
        return client.invoke(name, event).json()


def facts_of(cluster: Cluster) -> dict[str, Any]:
    """What a function sees."""
    deploy(cluster, "facts", FACTS)
    event = {"port": int(cluster.grpc.rpartition(":")[2]), "home": str(cluster.data_dir.parent)}
    found: dict[str, Any] = invoke(cluster, "facts", event)
    return found


def labels_of(cluster: Cluster) -> dict[str, str]:
    with lambent.Client(data_dir=cluster.data_dir) as client:
        (node,) = client.nodes()
        return dict(node.labels)


def processes_of(*uids: int) -> list[psutil.Process]:
    """What runs under these UIDs; who was killed and not waited for yet does not."""
    found = psutil.process_iter(["uids", "status", "name"])
    return [one for one in found if one.info["uids"].real in uids and one.info["status"] != psutil.STATUS_ZOMBIE]


def left_of(user: OrdinaryUser) -> list[object]:
    """Whatever still runs under the user's UIDs, and what its cluster left elsewhere."""
    return [*processes_of(UID, *SUBORDINATE_UIDS), *leftovers(user.data_dir)]


# A user whom nobody has given anything


@pytest.fixture(scope="module")
def bare_user() -> Iterator[OrdinaryUser]:
    """Skips where a kernel or container has no user namespaces for ordinary users, of which all of this is made."""
    with ordinary_user() as user:
        checks, _ = user.doctor()
        if checks["user"]["status"] == "missing":
            pytest.skip(checks["user"]["help"])
        yield user


@pytest.fixture(scope="module")
def bare_cluster(bare_user: OrdinaryUser) -> Iterator[Cluster]:
    """Started with what the refusal offers."""
    try:
        yield bare_user.start_cluster("--allow-missing=memory")
    finally:
        assert bare_user.lambent("down").returncode == 0
        assert left_of(bare_user) == []


def test_up_refuses_to_run_functions_without_a_limit_of_memory(bare_user: OrdinaryUser) -> None:
    """It says which flag accepts that, and the doctor says how the limit can be had."""
    done = bare_user.lambent("up", "--detach", "--grpc-port=0", "--http-port=0")
    assert done.returncode == 1
    assert "memory is not enforced" in done.stderr
    assert "--allow-missing memory" in done.stderr
    checks, status = bare_user.doctor()
    assert status == 1
    assert checks["cgroups"]["status"] == "missing"
    assert "not this user's: cpu freezer memory pids" in checks["cgroups"]["detail"]
    assert "--allow-missing memory" in checks["cgroups"]["help"]


def test_doctor_makes_a_sandbox_without_root_and_names_what_is_not_enforced(bare_user: OrdinaryUser) -> None:
    """It works, and a machine of which more is required is not ready."""
    checks, _ = bare_user.doctor()
    assert checks["sandbox"]["status"] == "ok"
    assert checks["user"]["status"] == "warning"
    assert checks["isolation"]["status"] == "missing"
    assert checks["isolation"]["detail"] == f"reduced; not enforced: {NOT_ENFORCED}"


def test_a_function_of_a_user_without_uids_is_as_enclosed_as_root_s(bare_cluster: Cluster) -> None:
    """It runs under the user's own UID, sees another one, and nothing of the user's."""
    found = facts_of(bare_cluster)
    assert set(found["capabilities"]) == {"0" * 16}
    assert (found["seccomp"], found["reached"], found["home"], found["written"]) == (True, False, False, 2)
    assert (found["processes"][0], len(found["processes"]), found["run"]) == (1, 2, [])
    assert found["uid"] >= 0x1000_0000
    assert found["map"] == [str(found["uid"]), "0", "1"]
    assert not {"home", "root", "sys", "srv"} & set(found["files"])
    assert found["devices"] == ["fd", "full", "null", "random", "stderr", "stdin", "stdout", "urandom", "zero"]
    assert labels_of(bare_cluster) == {
        "lambent.isolation": "reduced",
        "lambent.not-enforced": NOT_ENFORCED,
    }


async def test_forks_without_end_stop_at_the_sandbox_s_limit(bare_cluster: Cluster) -> None:
    """Without control groups the rlimit counts, for each sandbox alone: a neighbour starts processes meanwhile."""
    await asyncio.to_thread(deploy, bare_cluster, "forks", FORKS, 30)
    async with (
        lambent.AsyncClient(data_dir=bare_cluster.data_dir) as client,
        contextlib.aclosing(client.stream("forks")) as pieces,
    ):
        assert 500 < int(await anext(pieces)) < 742
        found = await asyncio.to_thread(facts_of, bare_cluster)
    assert found["started"] == 50


def test_a_timeout_ends_the_call_and_the_next_one_is_answered(bare_cluster: Cluster) -> None:
    """The reaper kills what hangs, without a control group."""
    deploy(bare_cluster, "slow", BOMBS, timeout_s=1)
    with pytest.raises(lambent.FunctionError, match="timed out after"):
        invoke(bare_cluster, "slow", "sleep")
    assert invoke(bare_cluster, "slow", None) == "calm"


def test_nothing_runs_on_after_the_supervisor_was_killed(bare_user: OrdinaryUser, bare_cluster: Cluster) -> None:
    """Its children die with it, zygotes and sandboxes with their agent; `down` finds nothing to do."""
    running = processes_of(UID)
    assert {process.info["name"] for process in running} >= {"lambent-zygote", "lambent-reaper"}
    assert bare_cluster.supervisor.send(signal.SIGKILL)
    for process in running:
        process.wait(20)
    assert left_of(bare_user) == []


def test_root_of_a_user_namespace_is_a_user(bare_user: OrdinaryUser) -> None:
    """As in a container that a user started: UID 0, and no more rights than the user."""
    command = ["unshare", "--user", "--map-root-user", LAMBENT, "doctor", "--output=json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMMAND_TIMEOUT_S)
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["sandbox"]["status"] == "ok"
    assert "in a user namespace" in checks["user"]["detail"]
    assert "own-uid" in checks["isolation"]["detail"]


# A user with UIDs for sandboxes and control groups, as a desktop with systemd gives


@pytest.fixture(scope="module")
def equipped_user(bare_user: OrdinaryUser) -> Iterator[OrdinaryUser]:
    if shutil.which("newuidmap") is None:
        pytest.skip("newuidmap is not installed (apt-get install uidmap)")
    with ordinary_user(uids=True, groups=True) as user:
        yield user


@pytest.fixture(scope="module")
def equipped_cluster(equipped_user: OrdinaryUser) -> Iterator[Cluster]:
    try:
        yield equipped_user.start_cluster("--require-isolation=full")
    finally:
        assert equipped_user.lambent("down").returncode == 0
        assert left_of(equipped_user) == []


def test_doctor_finds_full_isolation_with_uids_and_control_groups(equipped_user: OrdinaryUser) -> None:
    """As root's, on either version; a sandbox was made in the user's groups, and a required level is met."""
    checks, status = equipped_user.doctor()
    assert status == 0
    assert checks["isolation"]["status"] == "warning"
    assert checks["isolation"]["detail"] == "full; not enforced: disk"
    assert [path for group in equipped_user.groups for path in group.glob("*/")] == []


def test_where_newuidmap_has_no_rights_sandboxes_share_the_user_s_uid(equipped_user: OrdinaryUser) -> None:
    """In a container without setuid programs it fails; the doctor says so, and a sandbox is made all the same."""
    done = equipped_user.run("/usr/bin/setpriv", "--no-new-privs", str(LAMBENT), "doctor", "--output=json")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["user"]["status"] == "warning"
    assert "newuidmap: " in checks["user"]["help"]
    assert checks["sandbox"]["status"] == "ok"
    assert checks["isolation"]["detail"] == "reduced; not enforced: disk,own-uid"


def test_the_node_s_label_says_so(equipped_cluster: Cluster) -> None:
    """The cluster was started with `--require-isolation=full`."""
    assert labels_of(equipped_cluster) == {"lambent.isolation": "full", "lambent.not-enforced": "disk"}


def test_sandboxes_have_uids_of_the_user_s_block(equipped_cluster: Cluster) -> None:
    """Each its own: what one writes, another one could not open."""
    found = facts_of(equipped_cluster)
    assert set(found["capabilities"]) == {"0" * 16}
    assert found["map"] == [str(found["uid"]), str(found["uid"]), "1"]
    reapers = [one for one in processes_of(*SUBORDINATE_UIDS) if one.info["name"] == "lambent-reaper"]
    assert len({one.info["uids"].real for one in reapers}) == len(reapers) >= 2


def test_a_function_that_takes_too_much_memory_is_killed(equipped_cluster: Cluster) -> None:
    """Its control group is one of the user's."""
    deploy(equipped_cluster, "bombs", BOMBS, timeout_s=20)
    with pytest.raises(lambent.FunctionError) as raised:
        invoke(equipped_cluster, "bombs", "memory")
    assert raised.value.error_type == "Runtime.OutOfMemory"
    assert invoke(equipped_cluster, "bombs", None) == "calm"
