"""Requests to a real server: what they give, and how they end when it is killed, frozen or not for us."""

from __future__ import annotations

import asyncio
import socket

import pytest
from tests.etcd_server import EtcdServer, etcd_server

from lambent.errors import InvalidParameterError, UnavailableError
from lambent_common.credentials import Credentials
from lambent_common.etcd import (
    EtcdClient,
    EtcdCompactedError,
    EtcdUnavailableError,
    LeaseLostError,
    delete_op,
    delete_prefix_op,
    mod_revision_is,
    prefix_unchanged_since,
    put_op,
)
from lambent_common.etcd.version import unsupported_reason
from lambent_supervisor.ports import free_port


async def test_a_write_that_compares_an_old_revision_is_refused(client: EtcdClient) -> None:
    """Two writers of one function cannot overwrite each other unseen."""
    first = await client.put("/a", b"1")
    assert (await client.txn([mod_revision_is("/a", first)], [put_op("/a", b"2")])).succeeded
    assert not (await client.txn([mod_revision_is("/a", first)], [put_op("/a", b"3")])).succeeded
    item = await client.get("/a")
    assert item is not None
    assert item.value == b"2"
    assert (await client.txn([mod_revision_is("/b", 0)], [put_op("/b", b"new")])).succeeded


async def test_a_prefix_that_changed_is_noticed_by_a_transaction(client: EtcdClient) -> None:
    """A decision made from many keys holds only while none of them was written."""
    await client.put("/f/a", b"1")
    revision = (await client.range("/f/")).revision
    assert (await client.txn([prefix_unchanged_since("/f/", revision)], [put_op("/other", b"")])).succeeded
    await client.put("/f/b", b"2")
    assert not (await client.txn([prefix_unchanged_since("/f/", revision)], [put_op("/other", b"")])).succeeded


async def test_of_many_writers_that_compare_one_wins(client: EtcdClient) -> None:
    """A name is created once, however many ask at the same time."""
    attempts = [client.txn([mod_revision_is("/a", 0)], [put_op("/a", str(n).encode())]) for n in range(20)]
    results = await asyncio.gather(*attempts)
    assert sum(result.succeeded for result in results) == 1


async def test_a_range_read_in_pages_shows_one_revision(client: EtcdClient) -> None:
    """A listing is whole and consistent, however many pages it takes and whatever is written meanwhile."""
    for number in range(7):
        await client.put(f"/list/{number}", b"old")
    revision = (await client.range("/list/")).revision
    await client.txn([], [put_op("/list/0", b"new"), delete_op("/list/5"), delete_prefix_op("/list/6")])
    then = await client.range("/list/", page_size=3, revision=revision)
    assert [(item.key, item.value) for item in then.items] == [(f"/list/{number}", b"old") for number in range(7)]
    now = await client.range("/list/", page_size=2)
    assert [item.value for item in now.items] == [b"new", b"old", b"old", b"old", b"old"]
    assert now.revision == revision + 1


async def test_a_revision_that_was_compacted_is_said_to_be(client: EtcdClient) -> None:
    """A reader of the past learns that it is gone, instead of being shown something else."""
    await client.put("/a", b"1")
    newest = await client.put("/a", b"2")
    await client.compact(newest)
    with pytest.raises(EtcdCompactedError):
        await client.range("/", revision=newest - 1)


async def test_a_delete_tells_whether_there_was_something(client: EtcdClient) -> None:
    """Deleting twice is harmless and seen."""
    await client.put("/a", b"")
    assert await client.delete("/a")
    assert not await client.delete("/a")
    assert await client.get("/a") is None


async def test_a_key_cannot_be_put_under_a_lease_that_has_ended(client: EtcdClient) -> None:
    """A node whose lease lapsed is told so, and catches it with what it catches anyway."""
    lease_id = await client.grant_lease(60)
    await client.revoke_lease(lease_id)
    await client.revoke_lease(lease_id)
    with pytest.raises(LeaseLostError) as lost:
        await client.put("/a", b"", lease_id=lease_id)
    assert isinstance(lost.value, EtcdUnavailableError)
    assert not lost.value.dispatched


async def test_a_server_that_is_away_gives_a_typed_error_in_bounded_time(server: EtcdServer) -> None:
    """A call names etcd and its reason and ends, instead of hanging; nothing was sent, so that it may be repeated."""
    async with await EtcdClient.connect(server.endpoints, Credentials(), timeout_s=1.0) as client:
        await server.kill()
        async with asyncio.timeout(5):
            with pytest.raises(EtcdUnavailableError, match=r"etcd did not answer within 1 s; etcd at 127"):
                await client.get("/a")
            with pytest.raises(EtcdUnavailableError) as unavailable:
                await client.put("/a", b"")
    assert not unavailable.value.dispatched


async def test_a_write_whose_answer_is_lost_says_that_it_may_have_been_done(server: EtcdServer) -> None:
    """A server that is silent may have the request, or not: a write says so, and a read does not matter."""
    async with (
        asyncio.timeout(20),
        await EtcdClient.connect(server.endpoints, Credentials(), timeout_s=0.5) as client,
    ):
        server.freeze()
        with pytest.raises(EtcdUnavailableError) as unavailable:
            await client.put("/a", b"1")
        with pytest.raises(EtcdUnavailableError) as unread:
            await client.get("/a")
        server.thaw()
    assert unavailable.value.dispatched
    assert not unread.value.dispatched


async def test_no_server_at_all_is_said_at_once_when_connecting() -> None:
    """A daemon started before its etcd, or with a wrong port, says so."""
    async with asyncio.timeout(5):
        with pytest.raises(EtcdUnavailableError, match="refused"):
            await EtcdClient.connect([f"http://127.0.0.1:{free_port()}"], Credentials(), timeout_s=0.5)


async def test_a_second_member_answers_when_the_first_is_away(server: EtcdServer) -> None:
    """Any member will do: one that refuses and one that swallows everything are passed over."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        away = [f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{silent.getsockname()[1]}"]
        async with asyncio.timeout(20), await EtcdClient.connect([*away, *server.endpoints], Credentials()) as client:
            await client.put("/a", b"1")


async def test_a_request_under_way_on_a_closed_client_fails_and_is_not_cancelled(server: EtcdServer) -> None:
    """GRPC cancels the calls of a closed channel; to a task group that would look like an order to end quietly."""
    async with asyncio.timeout(10):
        client = await server.connect()
        server.freeze()
        reading = asyncio.create_task(client.get("/a"))
        await _one_turn()
        await client.close()
        with pytest.raises(EtcdUnavailableError, match="closed"):
            await reading
        server.thaw()


async def test_a_client_with_the_clusters_certificate_is_let_in() -> None:
    """Etcd is open to the daemons of the cluster and to nobody else."""
    async with asyncio.timeout(30), etcd_server(tls=True) as server:
        assert server.certificates is not None
        async with await server.connect() as client:
            await client.put("/a", b"1")
        for stranger in (server.certificates.stranger, Credentials(etcd_ca=server.credentials.etcd_ca)):
            with pytest.raises(EtcdUnavailableError):
                await EtcdClient.connect(server.endpoints, stranger, timeout_s=0.5)
        with pytest.raises(EtcdUnavailableError, match=r"(?i)certificate|ssl|handshake"):
            await EtcdClient.connect(server.endpoints, Credentials(), timeout_s=0.5)


async def test_the_status_tells_version_and_size(client: EtcdClient) -> None:
    """The operator sees what runs."""
    status = await client.status()
    assert unsupported_reason(status.version) is None
    assert status.db_size_bytes > 0
    assert status.alarms == ()


@pytest.mark.parametrize("endpoint", ["127.0.0.1:2379", "ftp://a:1", "http://", ""])
async def test_a_malformed_endpoint_is_named(endpoint: str) -> None:
    """A typing error in a flag is found at the start."""
    with pytest.raises(InvalidParameterError, match="endpoint"):
        await EtcdClient.connect([endpoint], Credentials())


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("3.4.23", None),
        ("3.5.3", None),
        ("3.6.0-rc.1", None),
        ("3.3.27", "too old"),
        ("2.3.8", "too old"),
        ("3.5.0", "lose data"),
        ("3.5.2", "lose data"),
        ("git", "cannot be read"),
    ],
)
def test_releases_that_lose_data_or_are_too_old_are_refused(version: str, reason: str | None) -> None:
    """Nobody finds out by losing functions."""
    found = unsupported_reason(version)
    assert found is None if reason is None else reason in (found or "")


def test_an_unavailable_etcd_is_an_unavailable_service() -> None:
    """Callers need not know etcd's own class."""
    assert issubclass(EtcdUnavailableError, UnavailableError)
    assert EtcdUnavailableError.aws_name == UnavailableError.aws_name


async def _one_turn() -> None:
    """Let a task that was just created come to its first wait."""
    await asyncio.get_running_loop().run_in_executor(None, lambda: None)
