"""The JetStream streams that hold what functions wrote, shared by the agents' publishers and the LogService."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from nats.js import api

from lambent_common.nats import ensure_stream

if TYPE_CHECKING:
    from nats.js import JetStreamContext

# A few streams, so that no single one is every node's; changing the number moves every function's log.
SHARDS = 4
SUBJECT_PREFIX = "lambent.v1.logs"

# Upper bound of one published LogBatch. One log event may be 256 KiB (CloudWatch); batches are cut near 64 KiB.
MAX_BATCH_BYTES = 512 * 1024
# A quarter of what all logs together may take on a node's disk; the oldest go first.
_STREAM_BYTES = 256 * 1024 * 1024
# Logs are for finding out what went wrong lately. A person who needs years ships them elsewhere.
_MAX_AGE_S = 14 * 24 * 3600
# A function that floods its log may not push out the others': 8,192 batches of at most 64 KiB are its share.
_BATCHES_PER_FUNCTION = 8_192


def shard_of(account: str, function_name: str) -> int:
    """Give the shard of a function's log, in [0, SHARDS): the same one for ever."""
    return zlib.crc32(f"{account}/{function_name}".encode()) % SHARDS


def stream_name(shard: int) -> str:
    """Name the stream of a shard."""
    return f"LAMBENT_LOGS_{shard}"


def log_subject(account: str, function_name: str) -> str:
    """Give the subject that a function's LogBatch messages are published to."""
    return f"{SUBJECT_PREFIX}.{shard_of(account, function_name)}.{account}.{function_name}"


async def ensure_log_streams(js: JetStreamContext) -> None:
    """Make the streams that do not exist. Any number of daemons may do so at once.

    Raises:
        UnavailableError: JetStream does not answer.
    """
    for shard in range(SHARDS):
        await ensure_stream(
            js,
            api.StreamConfig(
                name=stream_name(shard),
                description="What functions wrote",
                subjects=[f"{SUBJECT_PREFIX}.{shard}.>"],
                retention=api.RetentionPolicy.LIMITS,
                discard=api.DiscardPolicy.OLD,
                storage=api.StorageType.FILE,
                compression=api.StoreCompression.S2,
                max_bytes=_STREAM_BYTES,
                max_age=_MAX_AGE_S,
                max_msgs_per_subject=_BATCHES_PER_FUNCTION,
                max_msg_size=MAX_BATCH_BYTES,
                allow_direct=True,
            ),
        )
