"""Typed, frozen settings out of params.yaml: one module per section, and no section imports another.

A stage imports `loader` and the sections it needs; only `params` (for `validate` and the command line) knows
the whole tree, so that a new setting elsewhere makes no finished stage stale.
"""
