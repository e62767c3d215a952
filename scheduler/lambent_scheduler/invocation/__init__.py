"""The path of an invocation: from the caller's stream to a node's and back."""
