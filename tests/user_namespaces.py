"""A kernel that refuses user namespaces, as those of containers do."""

FORBID = """
import ctypes, os, struct
from lambent_runtime import linux

def forbid_user_namespaces():
    "Answer unshare(2) with CLONE_NEWUSER by EPERM; everything else passes."
    program = b"".join(struct.pack("HBBI", *line) for line in (
        (0x20, 0, 0, 0),  # load the number of the call
        (0x15, 0, 3, {"x86_64": 272, "aarch64": 97}[os.uname().machine]),
        (0x20, 0, 0, 16),  # load its first argument
        (0x45, 0, 1, linux.CLONE_NEWUSER),
        (0x06, 0, 0, 0x00050001),  # EPERM
        (0x06, 0, 0, 0x7FFF0000),
    ))
    if ctypes.CDLL(None).prctl(22, 2, linux.filter_program(program), 0, 0):
        raise OSError("no filter")

forbid_user_namespaces()
"""
"""Beginning of a program of root's: a filter of system calls for itself and what it starts."""
