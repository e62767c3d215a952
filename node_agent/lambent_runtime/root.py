"""The root file system that every sandbox of one zygote has, built once in the zygote's own mount namespace.

The zygote pivots into it, so that a sandbox's copy of the mount table is these few mounts and none of the host's. All
of it is read-only and nosuid; nothing of the host's `/home`, `/root`, `/var` or `/run` is in it, and of `/etc` a
generated minimum.
"""

from __future__ import annotations

import os
import shutil
import stat

from . import linux

SYSTEM_TREE = "/usr"
SYSTEM_NAMES = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
"""Links into `/usr` on merged systems, directories of their own on others."""

DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9)}
"""Linux allocated devices, admin-guide/devices.txt."""
DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}

PROVIDED = ("snapshot_restore_py.py",)
"""Modules that AWS's runtimes have in `/var/runtime`, for functions to import."""

EMPTY_DIRECTORIES = ("proc", "var/task", "var/empty", "var/tmp", "tmp", "opt", "run")
"""Mount points of the sandbox recipe and places that programs expect to exist."""

OTHER_PROC = "/run"
"""Where a zygote without root shows its sandboxes the machine's procfs, until they have mounted their own."""

ETC_TEXT = {
    "group": "root:x:0:\nnogroup:x:65534:\n",
    "hostname": "localhost\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nprotocols: files\nservices: files\n",
    "passwd": "",
    "resolv.conf": "nameserver 169.254.169.253\n",  # the agent's, at the address that it has in a VPC of AWS
}
ETC_COPIES = ("ld.so.cache", "mime.types", "os-release", "protocols", "services", "ssl/openssl.cnf")
ETC_TREES = ("alternatives", "ssl/certs", "pki/tls/certs", "pki/ca-trust/extracted")
"""Links that `/usr/bin` and `/usr/lib` lead through, and certificate authorities as the distributions place them."""

_READ_ONLY = linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV
# Holds links, empty directories, five device nodes and copies of a few text files (ld.so.cache is the largest, 20 to
# 300 KiB).
_ROOT_OPTIONS = "mode=0755,size=4m,nr_inodes=4096"


def enter(base: str, package: str, prefixes: list[str], *, confined: bool) -> None:
    """Build the root on the empty directory `base` and pivot into it.

    Leaves the process in a mount namespace of its own, in which nothing of the host's tree is mounted any more.

    Args:
        base: An empty directory of the host.
        package: Directory of this package; appears at `/var/runtime/lambent_runtime`.
        prefixes: Directories outside `/usr` that the interpreter needs; each appears at its own path.
        confined: The process is root in a user namespace alone, which may not make devices, and may mount procfs only
            where it sees another one that is not masked.

    Raises:
        OSError: A step failed.
    """
    linux.unshare(linux.CLONE_NEWNS)
    # Private: what is mounted here stays here, and what the host mounts later does not come in.
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("lambent-root", base, "tmpfs", linux.MS_NOSUID, _ROOT_OPTIONS)
    os.umask(0o022)
    _bind_system(base)
    for prefix in prefixes:
        _bind_tree(prefix, base + prefix)
    _bind_tree(package, f"{base}/var/runtime/lambent_runtime")
    for name in PROVIDED:
        os.symlink(f"lambent_runtime/provided/{name}", f"{base}/var/runtime/{name}")
    for name in EMPTY_DIRECTORIES:
        os.makedirs(f"{base}/{name}", exist_ok=True)
    _make_etc(f"{base}/etc")
    if confined:
        _bind_devices(f"{base}/dev")
        linux.bind("/proc", base + OTHER_PROC, 0, recursive=True)
    else:
        _make_devices(f"{base}/dev")
    linux.mount(None, base, None, linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | linux.MS_NOSUID)
    os.chdir(base)
    # With both arguments the same, the old root is stacked on the new one and can be unmounted from there:
    # pivot_root(2).
    linux.pivot_root(".", ".")
    linux.umount(".")
    os.chdir("/")


def _bind_tree(source: str, target: str) -> None:
    os.makedirs(target, exist_ok=True)
    linux.bind(source, target, _READ_ONLY, recursive=True)


def _bind_system(base: str) -> None:
    _bind_tree(SYSTEM_TREE, base + SYSTEM_TREE)
    for name in SYSTEM_NAMES:
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{base}/{name}")
        elif os.path.isdir(f"/{name}"):
            _bind_tree(f"/{name}", f"{base}/{name}")


def _make_etc(target: str) -> None:
    os.makedirs(target)
    for name, text in ETC_TEXT.items():
        with open(f"{target}/{name}", "w", encoding="utf-8") as file:
            file.write(text)
    for name in ETC_COPIES:
        if os.path.isfile(f"/etc/{name}"):
            os.makedirs(os.path.dirname(f"{target}/{name}"), exist_ok=True)
            shutil.copyfile(f"/etc/{name}", f"{target}/{name}")
    for name in ETC_TREES:
        if os.path.isdir(f"/etc/{name}"):
            _bind_tree(f"/etc/{name}", f"{target}/{name}")
    # AWS Lambda runs in UTC; a function chooses another zone with TZ.
    os.symlink("/usr/share/zoneinfo/UTC", f"{target}/localtime")


def _make_devices(target: str) -> None:
    os.makedirs(target)
    for name, (major, minor) in DEVICES.items():
        os.mknod(f"{target}/{name}", stat.S_IFCHR | 0o666, os.makedev(major, minor))
        os.chmod(f"{target}/{name}", 0o666)  # noqa: S103 - the usual mode of these devices; mknod applied the umask
    _link_devices(target)


def _bind_devices(target: str) -> None:
    os.makedirs(target)
    for name in DEVICES:
        with open(f"{target}/{name}", "wb"):
            pass
        linux.bind(f"/dev/{name}", f"{target}/{name}", linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NOEXEC)
    _link_devices(target)


def _link_devices(target: str) -> None:
    for name, link in DEVICE_LINKS.items():
        os.symlink(link, f"{target}/{name}")
