"""The few functions of libnftables that are used here, over ctypes: its own bindings are for the system's Python."""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING, Final, Self

from .errors import NetworkError
from .namespaces import entered

if TYPE_CHECKING:
    from types import TracebackType

_LIBRARY: Final = "libnftables.so.1"


class Nftables:
    """Rules of one network namespace.

    Threads may share it; one waits for the other. A table with the flag `owner` goes when this is closed, or this
    process ends.

    Args:
        namespace: Descriptor of the namespace; stays the caller's.

    Raises:
        NetworkError: libnftables is not installed here, or the kernel refused.
    """

    def __init__(self, namespace: int) -> None:
        try:
            self._library = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise NetworkError(f"{_LIBRARY} is not installed (Debian and Ubuntu: libnftables1): {error}") from error
        self._library.nft_ctx_new.restype = ctypes.c_void_p
        for name in ("nft_ctx_get_error_buffer", "nft_ctx_get_output_buffer"):
            getattr(self._library, name).restype = ctypes.c_char_p
        self._namespace = namespace
        self._turn = threading.Lock()
        with entered(namespace):
            self._context = ctypes.c_void_p(self._library.nft_ctx_new(ctypes.c_uint32(0)))
        if not self._context:
            raise NetworkError("libnftables cannot speak to the kernel")
        self._library.nft_ctx_buffer_error(self._context)
        self._library.nft_ctx_buffer_output(self._context)

    def __enter__(self) -> Self:
        """Give it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it, and with it the tables that it owns."""
        with self._turn:
            self._library.nft_ctx_free(self._context)
            self._context = ctypes.c_void_p()

    def run(self, commands: str) -> str:
        """Run commands in the language of nft(8), all of them or none; gives what they print.

        Raises:
            NetworkError: One was refused, or this is closed.
        """
        with self._turn:
            if not self._context:
                raise NetworkError("nftables: closed")
            return self._run(commands)

    def _run(self, commands: str) -> str:
        with entered(self._namespace):
            failed = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
            output = self._library.nft_ctx_get_output_buffer(self._context) or b""
            errors = self._library.nft_ctx_get_error_buffer(self._context) or b""
        if failed:
            raise NetworkError(f"nftables: {errors.decode(errors='replace').strip()}")
        return bytes(output).decode()
