"""Hack directions: extraction from contrastive pairs, controls, storage and the projection algebra."""
