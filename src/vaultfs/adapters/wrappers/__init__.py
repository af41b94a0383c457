"""Stores around a store: what is the same for every backend, one concern a module."""
