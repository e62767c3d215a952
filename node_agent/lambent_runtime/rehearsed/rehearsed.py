"""The function of a rehearsal: `lambent_runtime.rehearsal`."""

import json


def handler(event: object, context: object) -> object:  # noqa: ARG001 - what every handler takes
    """Return the event."""
    return json.loads(json.dumps(event))
