"""Versions and aliases, as callers of FunctionService see them."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from tests.functions.cluster import REGION, Cluster

from lambent.errors import (
    FunctionNotFoundError,
    InvalidParameterError,
    PreconditionFailedError,
    ResourceConflictError,
    ResourceNotFoundError,
)
from lambent.v1 import function_pb2 as pb

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def alias(lambent: Cluster, account: str, name: str = "live", version: str = "1", **weights: float) -> pb.Alias:
    request = pb.CreateAliasRequest(
        account=account,
        function_name="f",
        name=name,
        function_version=version,
        additional_version_weights={key.removeprefix("v"): weight for key, weight in weights.items()},
    )
    return (await lambent.service.CreateAlias(request, None)).alias


async def update(lambent: Cluster, account: str, **fields: Any) -> pb.Alias:
    request = pb.UpdateAliasRequest(account=account, function_name="f", name="live", **fields)
    return (await lambent.service.UpdateAlias(request, None)).alias


async def with_versions(lambent: Cluster, count: int) -> str:
    account = lambent.account()
    await lambent.make(account)
    for number in range(count):
        await lambent.change(account, memory_mib=128 + number)
        await lambent.publish(account)
    return account


async def delete_version(lambent: Cluster, account: str, version: str) -> None:
    request = pb.DeleteFunctionRequest(account=account, function_name="f", qualifier=version)
    await lambent.service.DeleteFunction(request, None)


async def test_publishing_twice_gives_the_same_version(lambent: Cluster) -> None:
    """A deployment that is repeated must not pile up versions."""
    account = await with_versions(lambent, 1)
    first = await lambent.publish(account, description="again")
    assert (first.version, first.description) == ("1", "")
    assert first.function_arn == f"arn:aws:lambda:{REGION}:{account}:function:f:1"
    assert first.state == pb.FUNCTION_STATE_ACTIVE
    await lambent.change(account, memory_mib=999)
    second = await lambent.publish(account, description="second")
    assert (second.version, second.description, second.memory_mib) == ("2", "second", 999)
    assert (await lambent.get(account, qualifier="1")).memory_mib == 128


async def test_version_made_with_the_function_is_published_once(lambent: Cluster) -> None:
    """`publish` on create and on update give a version that becomes ACTIVE, and publishing again gives it back."""
    account = lambent.account()
    assert (await lambent.create(account, publish=True)).version == "1"
    await lambent.settled(account)
    assert (await lambent.settled(account, qualifier="1")).state == pb.FUNCTION_STATE_ACTIVE
    assert (await lambent.publish(account)).version == "1"
    code = await lambent.code("x = 3\n")
    request = pb.UpdateFunctionCodeRequest(account=account, function_name="f", code_sha256=code, publish=True)
    reply = (await lambent.service.UpdateFunctionCode(request, None)).function
    assert (reply.version, reply.function_arn[-2:]) == ("2", ":2")
    settled = await lambent.settled(account, qualifier="2")
    assert (settled.state, settled.code_sha256) == (pb.FUNCTION_STATE_ACTIVE, code)
    await lambent.settled(account)
    assert (await lambent.publish(account)).version == "2"


async def test_deleted_version_is_never_used_again(lambent: Cluster) -> None:
    """A version's number means one thing for ever."""
    account = await with_versions(lambent, 2)
    await delete_version(lambent, account, "2")
    assert (await lambent.publish(account)).version == "3"
    await delete_version(lambent, account, "2")
    listed = await lambent.service.ListVersionsByFunction(
        pb.ListVersionsByFunctionRequest(account=account, function_name="f"), None
    )
    assert [version.version for version in listed.versions] == ["$LATEST", "1", "3"]
    assert listed.versions[0].function_arn.endswith(":function:f:$LATEST")


async def test_versions_are_listed_in_pages_by_number(lambent: Cluster) -> None:
    """Ten comes after nine, and $LATEST before all."""
    account = await with_versions(lambent, 11)
    versions: list[str] = []
    token = ""
    while True:
        request = pb.ListVersionsByFunctionRequest(account=account, function_name="f", page_size=5, page_token=token)
        page = await lambent.service.ListVersionsByFunction(request, None)
        versions += [version.version for version in page.versions]
        token = page.next_page_token
        if not token:
            break
    assert versions == ["$LATEST", *(str(number) for number in range(1, 12))]


async def test_publish_refuses_other_code_and_other_revision(lambent: Cluster) -> None:
    """What was tested is what gets a number."""
    account = lambent.account()
    function = await lambent.make(account)
    with pytest.raises(InvalidParameterError) as error:
        await lambent.publish(account, code_sha256="abc")
    assert error.value.message == (
        f"CodeSHA256 (abc) is different from current CodeSHA256 in $LATEST ({function.code_sha256}). "
        "Please try again with the CodeSHA256 in $LATEST."
    )
    with pytest.raises(PreconditionFailedError):
        await lambent.publish(account, revision_id="stale")
    published = await lambent.publish(
        account, code_sha256=function.code_sha256, revision_id=(await lambent.get(account)).revision_id
    )
    assert published.version == "1"


async def test_latest_and_used_versions_cannot_be_deleted(lambent: Cluster) -> None:
    """An alias must never point to nothing."""
    account = await with_versions(lambent, 2)
    with pytest.raises(InvalidParameterError) as error:
        await delete_version(lambent, account, "$LATEST")
    assert error.value.message == "$LATEST version cannot be deleted without deleting the function."
    await alias(lambent, account, "live", "1", v2=0.1)
    for version in ("1", "2"):
        with pytest.raises(ResourceConflictError, match=r"aliases reference it: \[live\]"):
            await delete_version(lambent, account, version)
    with pytest.raises(InvalidParameterError, match="aliases is not currently supported"):
        await delete_version(lambent, account, "live")


async def test_alias_keeps_what_it_pointed_to_for_a_rollback(lambent: Cluster) -> None:
    """`lambent rollback` reads it; a change of the description alone does not touch it."""
    account = await with_versions(lambent, 2)
    created = await alias(lambent, account)
    assert created.alias_arn == f"arn:aws:lambda:{REGION}:{account}:function:f:live"
    assert created.previous_function_version == ""
    moved = await update(lambent, account, function_version="2", revision_id=created.revision_id)
    assert (moved.function_version, moved.previous_function_version) == ("2", "1")
    assert moved.revision_id != created.revision_id
    described = await update(lambent, account, description="now")
    assert (described.function_version, described.previous_function_version) == ("2", "1")
    with pytest.raises(PreconditionFailedError):
        await update(lambent, account, function_version="1", revision_id=created.revision_id)


async def test_weights_share_the_calls_between_two_versions(lambent: Cluster) -> None:
    """The draw decides; clearing the weights sends everything to the first version again."""
    account = await with_versions(lambent, 2)
    await alias(lambent, account, "live", "1", v2=0.25)
    table = lambent.table
    drawn = [table.find(account, "f", "live").drawn(number / 100).version for number in range(100)]
    assert drawn == ["2"] * 25 + ["1"] * 75
    assert (await lambent.get(account, qualifier="live")).version == "1"
    cleared = await update(lambent, account, routing_config=pb.RoutingConfig())
    assert dict(cleared.additional_version_weights) == {}
    assert {table.find(account, "f:live", "").drawn(number / 10).version for number in range(10)} == {"1"}


async def test_alias_messages_are_those_of_aws(lambent: Cluster) -> None:
    """Tools match on them."""
    account = await with_versions(lambent, 2)
    arn = f"arn:aws:lambda:{REGION}:{account}:function:f"
    await alias(lambent, account)
    cases = [
        (alias(lambent, account, "live", "1"), ResourceConflictError, f"Alias already exists: {arn}:live"),
        (alias(lambent, account, "a", "9"), FunctionNotFoundError, f"Function not found: {arn}:9"),
        (alias(lambent, account, "a", "1", v9=0.5), FunctionNotFoundError, f"Function not found: {arn}:9"),
        (
            alias(lambent, account, "a", "1", v1=0.5),
            InvalidParameterError,
            "Invalid function version 1. Function version 1 is already included in routing configuration.",
        ),
        (
            alias(lambent, account, "a", "$LATEST", v1=0.5),
            InvalidParameterError,
            "$LATEST is not supported for an alias pointing to more than 1 version",
        ),
        (
            alias(lambent, account, "a", "1", v2=0.5, v3=0.1),
            InvalidParameterError,
            "Number of items in AdditionalVersionWeights cannot be greater than 1",
        ),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind) as error:
            await call
        assert error.value.message == message
    with pytest.raises(InvalidParameterError, match=r"Value '\{2=1.5\}' at 'routingConfig.additionalVersionWeights'"):
        await alias(lambent, account, "a", "1", v2=1.5)
    for name in ("1", "", "a.b", "x" * 129):
        with pytest.raises(InvalidParameterError, match=r"^[12] validation errors? detected"):
            await alias(lambent, account, name, "1")


async def test_missing_alias_is_said_so_and_deleting_it_is_no_error(lambent: Cluster) -> None:
    """Three operations, three sentences, as recorded from AWS."""
    account = await with_versions(lambent, 1)
    arn = f"arn:aws:lambda:{REGION}:{account}:function:f:live"
    request = pb.GetAliasRequest(account=account, function_name="f", name="live")
    with pytest.raises(ResourceNotFoundError) as error:
        await lambent.service.GetAlias(request, None)
    assert error.value.message == f"Cannot find alias arn: {arn}"
    with pytest.raises(ResourceNotFoundError) as error:
        await update(lambent, account, function_version="1")
    assert error.value.message == f"Alias not found: {arn}"
    with pytest.raises(FunctionNotFoundError, match=rf"^Function not found: {re.escape(arn)}$"):
        await lambent.get(account, qualifier="live")
    await alias(lambent, account)
    for _ in range(2):
        await lambent.service.DeleteAlias(pb.DeleteAliasRequest(account=account, function_name="f", name="live"), None)
    with pytest.raises(ResourceNotFoundError):
        await lambent.service.GetAlias(request, None)


async def test_aliases_are_listed_by_name_and_version(lambent: Cluster) -> None:
    """In pages; a version lists those that may send calls to it."""
    account = await with_versions(lambent, 2)
    await alias(lambent, account, "b", "2")
    await alias(lambent, account, "a", "1", v2=0.5)
    await alias(lambent, account, "c", "1")
    request = pb.ListAliasesRequest(account=account, function_name="f", page_size=2)
    page = await lambent.service.ListAliases(request, None)
    assert [item.name for item in page.aliases] == ["a", "b"]
    request.page_token = page.next_page_token
    page = await lambent.service.ListAliases(request, None)
    assert ([item.name for item in page.aliases], page.next_page_token) == (["c"], "")
    request = pb.ListAliasesRequest(account=account, function_name="f", function_version="2")
    assert [item.name for item in (await lambent.service.ListAliases(request, None)).aliases] == ["a", "b"]


async def test_alias_made_while_its_version_is_deleted_never_points_to_nothing(lambent: Cluster) -> None:
    """Either the alias comes first and the deletion is refused, or the version is gone and the alias is."""
    account = await with_versions(lambent, 1)
    for number in range(2, 22):
        await lambent.change(account, memory_mib=200 + number)
        version = (await lambent.publish(account)).version
        made, deleted = await asyncio.gather(
            alias(lambent, account, f"a{number}", version),
            delete_version(lambent, account, version),
            return_exceptions=True,
        )
        if deleted is None:
            assert isinstance(made, FunctionNotFoundError), made
        else:
            assert isinstance(made, pb.Alias)
            assert isinstance(deleted, ResourceConflictError)
            assert lambent.table.find(account, f"f:a{number}", "").drawn(0.0).version == version
