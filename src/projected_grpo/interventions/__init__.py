"""Interventions: one file per arm family, each a small object with named hooks (see `interventions.base`)."""
