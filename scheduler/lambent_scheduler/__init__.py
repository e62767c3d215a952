"""The control plane and front door of Lambent."""
