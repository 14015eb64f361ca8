"""Backends: what runs the segments of a model."""
