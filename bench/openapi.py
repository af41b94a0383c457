"""Writes docs/openapi.json, the description of the HTTP API, from its routes."""

import json
from pathlib import Path

from vaultfs.entrypoints.http.app import ROUTES
from vaultfs.entrypoints.http.description import describe

TARGET = Path(__file__).parents[1] / "docs" / "openapi.json"


def main() -> None:
    TARGET.write_text(json.dumps(describe(ROUTES), indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
