"""Ops with one definition in jnp and kernels for single backends."""
