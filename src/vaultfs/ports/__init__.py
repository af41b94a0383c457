"""The interfaces that services need, with their contracts."""
