"""Reserved concurrency: the account's sum stays right, whoever writes at the same time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from lambent.errors import FunctionNotFoundError, InvalidParameterError
from lambent.v1 import function_pb2 as pb

if TYPE_CHECKING:
    from tests.functions.cluster import Cluster

pytestmark = pytest.mark.asyncio(loop_scope="module")

BELOW_MINIMUM = (
    "Specified ReservedConcurrentExecutions for function decreases account's UnreservedConcurrentExecution below its "
    "minimum value of [100]."
)


async def reserve(lambent: Cluster, account: str, name: str, count: int) -> None:
    request = pb.PutFunctionConcurrencyRequest(
        account=account, function_name=name, reserved_concurrent_executions=count
    )
    await lambent.service.PutFunctionConcurrency(request, None)


async def release(lambent: Cluster, account: str, name: str) -> None:
    request = pb.DeleteFunctionConcurrencyRequest(account=account, function_name=name)
    await lambent.service.DeleteFunctionConcurrency(request, None)


async def test_reservation_is_kept_given_back_and_seen(lambent: Cluster) -> None:
    """Zero is a reservation, too: it blocks the function. None at all is something else."""
    account = lambent.account()
    await lambent.make(account)
    request = pb.GetFunctionConcurrencyRequest(account=account, function_name="f")
    assert not (await lambent.service.GetFunctionConcurrency(request, None)).HasField("reserved_concurrent_executions")
    assert lambent.table.reserved(account, "f") is None
    for count in (5, 0, 900):
        await reserve(lambent, account, "f", count)
        reply = await lambent.service.GetFunctionConcurrency(request, None)
        assert (reply.HasField("reserved_concurrent_executions"), reply.reserved_concurrent_executions) == (True, count)
        assert lambent.table.reserved(account, "f") == lambent.table.account_reserved(account) == count
    for _ in range(2):
        await release(lambent, account, "f")
    assert lambent.table.reserved(account, "f") is None
    assert lambent.table.account_reserved(account) == 0


async def test_a_hundred_stay_unreserved(lambent: Cluster) -> None:
    """Else the functions without a reservation could never run."""
    account = lambent.account()
    for name in ("a", "b"):
        await lambent.create(account, name)
    await reserve(lambent, account, "a", 800)
    with pytest.raises(InvalidParameterError) as error:
        await reserve(lambent, account, "b", 101)
    assert error.value.message == BELOW_MINIMUM
    await reserve(lambent, account, "b", 100)
    await reserve(lambent, account, "a", 700)
    await reserve(lambent, account, "b", 200)
    assert lambent.table.account_reserved(account) == 900


async def test_reservations_made_at_once_never_exceed_the_account(lambent: Cluster) -> None:
    """Ten times 150 do not fit into 900: six win, whatever the order."""
    account = lambent.account()
    names = [f"f{number}" for number in range(10)]
    for name in names:
        await lambent.create(account, name)
    results = await asyncio.gather(*(reserve(lambent, account, name, 150) for name in names), return_exceptions=True)
    assert sum(result is None for result in results) == 6
    assert {result.message for result in results if isinstance(result, InvalidParameterError)} == {BELOW_MINIMUM}
    assert lambent.table.account_reserved(account) == 900
    await asyncio.gather(
        *(
            lambent.service.DeleteFunction(pb.DeleteFunctionRequest(account=account, function_name=name), None)
            for name in names
        )
    )
    assert lambent.table.account_reserved(account) == 0


async def test_versions_and_missing_functions_are_refused(lambent: Cluster) -> None:
    """A reservation is the whole function's."""
    account = lambent.account()
    with pytest.raises(FunctionNotFoundError):
        await reserve(lambent, account, "f", 1)
    await lambent.create(account)
    with pytest.raises(InvalidParameterError, match="does not support versions and aliases"):
        await reserve(lambent, account, "f:1", 1)
