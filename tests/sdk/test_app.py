"""The decorator: what is deployed, and how it runs where only the standard library is."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
import textwrap
import zipfile
from typing import TYPE_CHECKING

import pytest

import lambent

if TYPE_CHECKING:
    from pathlib import Path

RUN = """
import json, sys
sys.path.insert(0, sys.argv[1])
import lambent_app_handler
print(json.dumps(lambent_app_handler.handler(json.loads(sys.argv[2]), None)))
"""


def test_decorated_function_is_still_a_function() -> None:
    """Tests of the code need no cluster."""
    app = lambent.App("photos")

    assert app.function()(double)(4) == 8
    assert app.function()(double).local(3) == 6
    assert app.function()(double).name == "photos-double"
    assert app.function(name="other")(double).name == "other"
    assert app.function()(double).__doc__ == double.__doc__


def test_functions_that_cannot_run_remotely_are_refused_where_they_stand() -> None:
    """At the decorator, not at the first call."""
    app = lambent.App("photos")

    def inner() -> None: ...

    async def coroutine() -> None: ...

    def generator() -> object:
        yield 1

    for function in (inner, coroutine, generator):
        with pytest.raises(lambent.InvalidParameterError):
            app.function()(function)


@pytest.mark.parametrize("name", ["", "with space", "x" * 65, "ä"])
def test_app_name_that_cannot_begin_a_function_name_is_refused(name: str) -> None:
    """Function names have AWS's alphabet."""
    with pytest.raises(lambent.InvalidParameterError):
        lambent.App(name)


@pytest.mark.parametrize("guarded", [True, False])
def test_script_runs_remotely_with_nothing_but_the_standard_library(tmp_path: Path, guarded: bool) -> None:
    """The five lines of the front page work as they stand, with or without a main guard."""
    calls = "print(double.remote(3))\n"
    source = textwrap.dedent(
        """
        import lambent

        app = lambent.App("photos", requirements=[])
        FACTOR = 2

        @app.function(memory_mib=256, timeout_s=10)
        def double(x: int, *, more: int = 0) -> int:
            try:
                return helper(x) + more
            except lambent.FunctionError:
                raise

        def helper(x):
            return FACTOR * x

        """
    )
    source += f'if __name__ == "__main__":\n    {calls}' if guarded else calls
    assert _run_remotely(tmp_path, source, "double", [3], {"more": 1}) == 7


def test_use_of_the_cluster_before_the_function_is_defined_says_what_to_do(tmp_path: Path) -> None:
    """The error names the line's culprit and the guard."""
    source = "import lambent\nclient = lambent.Client()\napp = lambent.App('a')\n@app.function()\ndef f(): return 1\n"
    with pytest.raises(AssertionError, match=r"uses lambent\.Client before it defines f"):
        _run_remotely(tmp_path, source, "f", [], {})


def test_remote_call_inside_a_function_is_an_ordinary_error(tmp_path: Path) -> None:
    """It must not end the runtime."""
    source = textwrap.dedent(
        """
        import lambent
        app = lambent.App("a")

        @app.function()
        def f():
            try:
                g.remote()
            except RuntimeError as error:
                return str(error)

        @app.function()
        def g(): return 1
        """
    )
    assert "cannot be used inside a function" in str(_run_remotely(tmp_path, source, "f", [], {}))


def test_module_of_a_package_travels_with_its_whole_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative imports work there as here."""
    package = tmp_path / "local" / "shop"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "prices.py").write_text("RATE = 5\n")
    (package / "deep" / "__init__.py").write_text("")
    (package / "deep" / "tasks.py").write_text(
        "import lambent\nfrom ..prices import RATE\napp = lambent.App('shop')\n"
        "@app.function()\ndef price(n: int) -> int: return RATE * n\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "local"))
    from shop.deep.tasks import price  # type: ignore[import-not-found]  # noqa: PLC0415 - written above

    with price._package() as built:
        content = b"".join(built.chunks())
    archive = zipfile.ZipFile(io.BytesIO(content))
    assert {"shop/deep/tasks.py", "shop/prices.py", "lambent_app_handler.py"} <= set(archive.namelist())
    archive.extractall(tmp_path / "task")
    assert _handle(tmp_path / "task", "shop.deep.tasks", "price", [3], {}) == 15


def test_script_with_a_dot_in_its_name_is_refused(tmp_path: Path) -> None:
    """It is not the module of a package, and what lies beside it is nobody's business."""
    (tmp_path / "secret.txt").write_text("secret")
    script = tmp_path / "run.v2.py"
    script.write_text("import lambent\napp = lambent.App('a')\n@app.function()\ndef f(): return 1\nf._package()\n")
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert "InvalidCodeError: script run.v2.py cannot be imported" in ran.stderr


def test_module_that_is_not_in_its_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name alone must not make the folder above a file into a package."""
    (tmp_path / "tasks.py").write_text("import lambent\napp = lambent.App('a')\n@app.function()\ndef f(): return 1\n")
    spec = importlib.util.spec_from_file_location("shop.tasks", tmp_path / "tasks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "shop.tasks", module)
    spec.loader.exec_module(module)
    with pytest.raises(lambent.InvalidCodeError, match=r"is not where module shop\.tasks would be"):
        module.f._package()


def double(x: int) -> int:
    """Twice as much."""
    return 2 * x


def _run_remotely(tmp_path: Path, source: str, function: str, args: list[object], kwargs: dict[str, object]) -> object:
    """Package a script as the decorator does when it runs as `__main__`, and call it as the runtime would."""
    script = tmp_path / "photos.py"
    script.write_text(source)
    task = tmp_path / "task"
    task.mkdir()
    build = f"""
import io, sys, types, zipfile
import lambent.app
from pathlib import Path
main = types.ModuleType("__main__")
main.__file__, main.__spec__ = {str(script)!r}, None
sys.modules["__main__"] = main
remote = lambent.app.RemoteFunction.__new__(lambent.app.RemoteFunction)
remote._function = types.FunctionType((lambda: 0).__code__, {{"__name__": "__main__"}}, {function!r})
remote._options = lambent.app._Options(None, None, None, {{}}, ())
with remote._package() as package:
    zipfile.ZipFile(io.BytesIO(b"".join(package.chunks()))).extractall({str(task)!r})
print(remote._module_name)
"""
    built = subprocess.run([sys.executable, "-c", build], capture_output=True, text=True, timeout=60, check=False)
    assert built.returncode == 0, built.stderr
    return _handle(task, built.stdout.strip(), function, args, kwargs)


def _handle(task: Path, module: str, function: str, args: list[object], kwargs: dict[str, object]) -> object:
    event = json.dumps({"args": args, "kwargs": kwargs})
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", RUN, str(task), event],
        env={"LAMBENT_APP_MODULE": module, "LAMBENT_APP_FUNCTION": function},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)
