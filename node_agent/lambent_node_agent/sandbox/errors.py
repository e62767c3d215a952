"""What a sandbox operation raises."""


class SandboxError(Exception):
    """A sandbox could not be made or changed; the message says which step failed on what, and why.

    The sandbox in question is of no more use: close it.
    """


class SlotLostError(SandboxError):
    """A process may still enter the slot that was meant for it: nobody else may use the slot."""
