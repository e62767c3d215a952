"""AWS's validation messages: every value that breaks a constraint of the service model is named at once."""

from __future__ import annotations

from lambent.errors import InvalidParameterError

# The AWS name of an error whose message is one of these; it has no class of its own, so it travels as a detail.
CODE_DETAIL = "Code"
VALIDATION_CODE = "ValidationException"

# A gRPC status travels in at most 8 KiB of trailing metadata, in which the message stands twice: percent-encoded, and
# in the details. This much of each value lets the longest valid one and its neighbour above the limit be shown whole.
_SHOWN_LIMIT_BYTES = 320


def shown(value: str, limit_bytes: int = _SHOWN_LIMIT_BYTES) -> str:
    """Give a caller's value as it may stand in a message: whole, or its beginning and three dots."""
    room = limit_bytes
    for at, character in enumerate(value):
        room -= 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode(errors="replace"))
        if room < 0:
            return f"{value[:at]}..."
    return value


class Violations:
    """Collects broken constraints, then raises all of them in one error.

    The sentences are those of AWS's front end ("1 validation error detected: Value '...' at '...' failed to satisfy
    constraint: ..."); `member` is the path of the value in AWS's spelling, for example `memorySize`.
    """

    def __init__(self) -> None:
        self._found: list[str] = []

    def add(self, member: str, value: object, constraint: str) -> None:
        """Note that a value does not satisfy a constraint."""
        self._found.append(f"Value '{shown(str(value))}' at '{member}' failed to satisfy constraint: {constraint}")

    def pattern(self, member: str, value: str, pattern: str) -> None:
        """Note that a value does not match a pattern."""
        self.add(member, value, f"Member must satisfy regular expression pattern: {pattern}")

    def length(self, member: str, value: str, least: int, most: int) -> None:
        """Note a value that is shorter or longer than allowed."""
        if len(value) < least:
            self.add(member, value, f"Member must have length greater than or equal to {least}")
        if len(value) > most:
            self.add(member, value, f"Member must have length less than or equal to {most}")

    def range(self, member: str, value: int, least: int, most: int) -> None:
        """Note a number that is smaller or larger than allowed."""
        if value < least:
            self.add(member, value, f"Member must have value greater than or equal to {least}")
        if value > most:
            self.add(member, value, f"Member must have value less than or equal to {most}")

    def message(self) -> str:
        """Give the sentence that names all of them."""
        noun = "error" if len(self._found) == 1 else "errors"
        return f"{len(self._found)} validation {noun} detected: {'; '.join(self._found)}"

    def raise_any(self) -> None:
        """Raise what was found, if anything was.

        Raises:
            InvalidParameterError: With `details["Code"]` = `ValidationException`.
        """
        if self._found:
            raise InvalidParameterError(self.message(), details={CODE_DETAIL: VALIDATION_CODE})
