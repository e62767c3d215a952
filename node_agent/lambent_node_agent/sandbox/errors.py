"""What a sandbox operation raises."""


class SandboxError(Exception):
    """A sandbox could not be made or changed; the message says which step failed on what, and why.

    The sandbox in question is of no more use: close it.
    """
