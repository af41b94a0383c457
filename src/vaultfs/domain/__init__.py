"""The core: values, algorithms and formats; synchronous and without I/O."""
