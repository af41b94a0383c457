"""What stands behind the ports: stores, catalogs, clocks, local files."""
