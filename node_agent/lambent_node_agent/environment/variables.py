"""Environment variables that a function sees, as on AWS Lambda."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from lambent_runtime.snapshot_hooks import SNAP_START

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lambent.v1 import node_pb2

_ARN: Final = re.compile(r"arn:[^:]*:lambda:(?P<region>[^:]*):(?P<account>[^:]*):")
_DEFAULT_REGION: Final = "us-east-1"

# What AWS sets and a user may overwrite. LANG is C.UTF-8 because hosts need not have the other locale.
_DEFAULTS: Final[Mapping[str, str]] = {
    "LANG": "C.UTF-8",
    "PATH": "/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin",
    "LD_LIBRARY_PATH": (
        "/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:/var/task/lib:/opt/lib"
    ),
    "PYTHONPATH": "/var/runtime",
    "AWS_XRAY_CONTEXT_MISSING": "LOG_ERROR",
    "TZ": ":UTC",
}


def region_of(function_arn: str) -> str:
    """Region in an ARN; a default when it is not a function's ARN."""
    match = _ARN.match(function_arn)
    return match["region"] if match and match["region"] else _DEFAULT_REGION


def function_variables(start: node_pb2.StartEnvironment, log_stream: str) -> dict[str, str]:
    """All variables of a function's process; the platform's own win over the user's.

    The AWS credentials are the user's to set here, since this platform has no roles to lend.
    """
    region = region_of(start.function_arn)
    return {
        **_DEFAULTS,
        **start.environment_variables,
        "_HANDLER": start.handler,
        "AWS_DEFAULT_REGION": region,
        "AWS_REGION": region,
        "AWS_EXECUTION_ENV": f"AWS_Lambda_{start.runtime}",
        "AWS_LAMBDA_FUNCTION_NAME": start.function_name,
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(start.memory_mib),
        "AWS_LAMBDA_FUNCTION_VERSION": start.version,
        "AWS_LAMBDA_INITIALIZATION_TYPE": SNAP_START if start.snap_start else "on-demand",
        "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{start.function_name}",
        "AWS_LAMBDA_LOG_STREAM_NAME": log_stream,
        "LAMBDA_TASK_ROOT": "/var/task",
        "LAMBDA_RUNTIME_DIR": "/var/runtime",
        "PWD": "/var/task",
        "SHLVL": "0",
    }
