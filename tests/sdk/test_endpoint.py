"""Finding the cluster and its token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import lambent
from lambent.endpoint import default_data_dir, discover


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """As `lambent up` leaves it."""
    described = {"grpc": "127.0.0.1:9400", "http": "http://127.0.0.1:9401", "data_dir": str(tmp_path)}
    (tmp_path / "cluster.json").write_text(json.dumps(described))
    (tmp_path / "token").write_text("secret\n")
    return tmp_path


def test_cluster_of_this_machine_is_found_by_its_data_directory(data_dir: Path) -> None:
    """After `lambent up` nothing has to be configured."""
    found = discover(environ={"LAMBENT_DATA_DIR": str(data_dir)})
    assert (found.grpc, found.token, found.http) == ("127.0.0.1:9400", "secret", "http://127.0.0.1:9401")


@pytest.mark.parametrize(
    ("environ", "directory"),
    [
        ({"LAMBENT_DATA_DIR": "/d", "XDG_DATA_HOME": "/x", "HOME": "/h"}, "/d"),
        ({"XDG_DATA_HOME": "/x", "HOME": "/h"}, "/x/lambent"),
        ({"HOME": "/h"}, "/h/.local/share/lambent"),
    ],
)
def test_data_directory_is_the_variable_s_or_the_user_s(environ: dict[str, str], directory: str) -> None:
    """The same place for `up`, CLI and SDK."""
    assert default_data_dir(environ) == Path(directory)


def test_arguments_go_before_the_environment(data_dir: Path) -> None:
    """The nearest word wins."""
    environ = {"LAMBENT_ENDPOINT": "far:1", "LAMBENT_TOKEN": "theirs"}
    assert discover(endpoint="near:2", token="mine", environ=environ).grpc == "near:2"
    assert discover(environ=environ).token == "theirs"
    # A named directory goes before the variables as a whole: a token of one cluster is no use at another.
    assert discover(data_dir=data_dir, environ=environ).token == "secret"


def test_local_token_never_goes_to_a_foreign_endpoint(data_dir: Path) -> None:
    """A typing error in a host name must not hand out the keys of this machine."""
    environ = {"LAMBENT_DATA_DIR": str(data_dir)}
    assert discover(endpoint="elsewhere:9400", environ=environ).token == ""
    assert discover(endpoint="127.0.0.1:9400", environ=environ).token == "secret"
    assert discover(endpoint="elsewhere:9400", data_dir=data_dir, environ={}).token == "secret"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST"])
def test_localhost_is_the_cluster_of_this_machine(data_dir: Path, host: str) -> None:
    """By its own address: `localhost` may also lead to where another user listens, who must not get the token."""
    environ = {"LAMBENT_DATA_DIR": str(data_dir)}
    found = discover(endpoint=f"{host}:9400", environ=environ)
    assert (found.grpc, found.token) == ("127.0.0.1:9400", "secret")
    assert discover(endpoint=f"{host}:9401", environ=environ).token == ""
    own = discover(endpoint=f"{host}:9400", token="mine", environ=environ)
    assert (own.grpc, own.token) == (f"{host}:9400", "mine")


def test_token_is_not_in_what_is_printed(data_dir: Path) -> None:
    """Endpoints end up in logs and tracebacks."""
    assert "secret" not in repr(discover(data_dir=data_dir, environ={}))


def test_no_cluster_says_how_to_start_one(tmp_path: Path) -> None:
    """The first error that a new user meets."""
    with pytest.raises(lambent.UnavailableError, match="lambent up"):
        discover(data_dir=tmp_path, environ={})


@pytest.mark.parametrize("content", ["", "[]", "{}", "nonsense", '"text"'])
def test_damaged_description_is_a_typed_error(tmp_path: Path, content: str) -> None:
    """A half-written file is an absent cluster, not a traceback."""
    (tmp_path / "cluster.json").write_text(content)
    with pytest.raises(lambent.UnavailableError, match=r"cluster\.json"):
        discover(data_dir=tmp_path, environ={})


@pytest.mark.parametrize("endpoint", ["localhost", "http://localhost:9400", ":9400", "localhost:", "localhost:x"])
def test_endpoint_that_is_not_host_and_port_is_refused(endpoint: str) -> None:
    """GRPC would look such a name up for a long time."""
    with pytest.raises(lambent.InvalidParameterError, match="HOST:PORT"):
        discover(endpoint=endpoint, environ={})
