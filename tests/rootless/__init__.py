"""An agent, and a whole cluster, of a user who is not root."""
