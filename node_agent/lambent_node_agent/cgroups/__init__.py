"""Control groups of the sandboxes: version 1, version 2 and hybrids of both, behind one interface.

`open_tree` looks at what the machine has; each controller is used through the hierarchy that it is bound to.
"""

from .errors import CgroupError
from .group import Group
from .layout import Layout, parse_layout, read_layout
from .tree import Tree, open_tree

__all__ = ["CgroupError", "Group", "Layout", "Tree", "open_tree", "parse_layout", "read_layout"]
