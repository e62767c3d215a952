"""Names of functions in every form that AWS takes: read and written back, they stay the same."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambent.errors import InvalidParameterError, PermissionDeniedError, ResourceNotFoundError
from lambent_scheduler.functions import record_keys
from lambent_scheduler.functions.names import FUNCTION_NAME_PATTERN, FunctionId, Naming, is_alias_name, parse

NAMING = Naming("eu-test-1")
ACCOUNT = "123456789012"
# Few letters, so that words like "function" and "arn" come up where they hurt.
WORDS = st.one_of(
    st.sampled_from(["function", "arn", "aws", "lambda", "LATEST", "1", "live", ACCOUNT, "eu-test-1"]),
    st.text("ab1-_", min_size=1, max_size=8),
)
QUALIFIERS = st.one_of(st.just(""), st.just("$LATEST"), WORDS)


@given(name=WORDS, qualifier=QUALIFIERS)
def test_arn_reads_back_as_what_it_was_written_from(name: str, qualifier: str) -> None:
    """What a reply says can be sent in the next request."""
    arn = NAMING.arn(FunctionId(ACCOUNT, name), qualifier)
    assert NAMING.read(ACCOUNT, arn) == (FunctionId(ACCOUNT, name), qualifier)


@given(name=WORDS, qualifier=QUALIFIERS)
def test_every_form_names_the_same_function(name: str, qualifier: str) -> None:
    """Full ARN, partial ARN, with and without account; the qualifier in the name or beside it."""
    expected = (FunctionId(ACCOUNT, name), qualifier)
    tail = f":{qualifier}" if qualifier else ""
    prefixes = ["function:", f"{ACCOUNT}:function:", f"eu-test-1:{ACCOUNT}:function:"]
    if name not in ("function", "arn", "eu-test-1") and qualifier != "function":
        prefixes.append("")
    for prefix in prefixes:
        if name == "function" and prefix != "function:":
            continue  # "function:function" is a function of that name; more of them cannot be told apart
        assert NAMING.read(ACCOUNT, f"{prefix}{name}{tail}") == expected
        assert NAMING.read(ACCOUNT, f"{prefix}{name}", qualifier) == expected


@given(st.text("ab:$-_1 /\n", max_size=30))
def test_what_is_read_has_only_the_characters_of_a_name(text: str) -> None:
    """Names become etcd keys, NATS subjects and directories: nothing else may get through."""
    try:
        function, qualifier = NAMING.read(ACCOUNT, text)
    except InvalidParameterError:
        return
    except (ResourceNotFoundError, PermissionDeniedError):
        return
    assert re.fullmatch(r"[a-zA-Z0-9_-]+", function.name)
    assert re.fullmatch(r"|\$LATEST|[a-zA-Z0-9_-]+", qualifier)


@given(st.text("ab:$-_1", max_size=30))
def test_everything_that_the_pattern_of_aws_takes_is_taken(text: str) -> None:
    """Nothing that works on AWS is refused as malformed."""
    if re.fullmatch(FUNCTION_NAME_PATTERN, text):
        assert parse(text) is not None


@pytest.mark.parametrize(
    "text", ["", "a b", "ä", "a/b", "a.b", "a:b:c", "a:", ":a", "arn:aws:lambda", "a\n", "x:$latest"]
)
def test_malformed_name_gets_the_message_of_aws(text: str) -> None:
    """The value, the field and the pattern stand in it."""
    with pytest.raises(InvalidParameterError) as error:
        NAMING.read(ACCOUNT, text)
    assert f"Value '{text}' at 'functionName' failed to satisfy constraint: Member must satisfy regular" in str(
        error.value
    )
    assert error.value.details == {"Code": "ValidationException"}


def test_lengths_are_those_of_aws() -> None:
    """64 for a new name, 140 for the field when defining, 256 when using."""
    assert NAMING.read_new(ACCOUNT, "f" * 64).name == "f" * 64
    with pytest.raises(InvalidParameterError) as error:
        NAMING.read_new(ACCOUNT, "f" * 65)
    assert error.value.message == (
        f"1 validation error detected: Value '{'f' * 65}' at 'functionName' failed to satisfy constraint: "
        "Member must have length less than or equal to 64"
    )
    assert error.value.details == {}
    with pytest.raises(InvalidParameterError, match="less than or equal to 140") as error:
        NAMING.read_new(ACCOUNT, "f" * 141)
    assert error.value.details == {"Code": "ValidationException"}
    assert NAMING.read(ACCOUNT, "f" * 256)[0].name == "f" * 256
    with pytest.raises(InvalidParameterError, match="less than or equal to 256"):
        NAMING.read(ACCOUNT, "f" * 257)


def test_two_qualifiers_must_agree() -> None:
    """Which one would count?"""
    assert NAMING.read(ACCOUNT, "f:1", "1") == (FunctionId(ACCOUNT, "f"), "1")
    with pytest.raises(InvalidParameterError) as error:
        NAMING.read(ACCOUNT, "f:1", "2")
    assert error.value.message == "The derived qualifier from the function name does not match the specified qualifier."


def test_other_places_are_refused() -> None:
    """Another region is not found, another account not allowed."""
    with pytest.raises(ResourceNotFoundError) as error:
        NAMING.read(ACCOUNT, f"arn:aws:lambda:us-east-1:{ACCOUNT}:function:f")
    assert error.value.message == "Functions from 'us-east-1' are not reachable in this region ('eu-test-1')"
    with pytest.raises(PermissionDeniedError):
        NAMING.read(ACCOUNT, "arn:aws:lambda:eu-test-1:other:function:f")


def test_account_is_checked() -> None:
    """It is part of keys and subjects."""
    assert NAMING.account("") == "default"
    for account in ("a/b", "a.b", "*", "x" * 65):
        with pytest.raises(InvalidParameterError, match="is no account"):
            NAMING.account(account)


@pytest.mark.parametrize(
    ("name", "valid"), [("live", True), ("1a", True), ("1", False), ("", False), ("$LATEST", False), ("x" * 129, False)]
)
def test_alias_is_a_word_and_not_a_number(name: str, valid: bool) -> None:
    """Else it could not be told from a version."""
    assert is_alias_name(name) is valid


@given(st.text("abc/1", max_size=40))
def test_unknown_keys_are_passed_over(text: str) -> None:
    """A newer release may keep more beside a function's records."""
    record_keys.parse(f"/lambent/v1/accounts/{text}")
    assert record_keys.parse(f"/lambent/v1/accounts/a/functions/f/policy/{text}") is None
