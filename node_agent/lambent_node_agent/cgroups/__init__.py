"""Control groups of the sandboxes: version 1, version 2 and hybrids of both, behind one interface.

`Tree` makes them where the machine's `Layout` says; each controller is used through the hierarchy that it is bound to.
"""

from .errors import CgroupError
from .group import Group
from .layout import Layout, parse_layout, read_layout
from .tree import Tree

__all__ = ["CgroupError", "Group", "Layout", "Tree", "parse_layout", "read_layout"]
