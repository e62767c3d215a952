"""What a control group operation raises."""


class CgroupError(Exception):
    """A control group could not be made or changed; the message names file, value and the kernel's reason."""
