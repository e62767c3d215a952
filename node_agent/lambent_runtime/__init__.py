"""What runs inside a sandbox: fork server, sandbox recipe, reaper and the runtime loop of Python functions.

Standard library only, CPython 3.9 or newer, and it imports nothing else of ours: the same files run under every
interpreter that a node offers. The node agent imports `channel` and `linux` from here.
"""
