"""The use cases: asynchronous, reaching the world through ports alone."""
