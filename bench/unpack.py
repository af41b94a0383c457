"""Unpacks the wheels in a folder into `unpacked` beside them, for the demonstration."""

import sys
import zipfile
from pathlib import Path


def main() -> None:
    folder = Path(sys.argv[1])
    for wheel in sorted(folder.glob("*.whl")):
        target = folder / "unpacked" / wheel.name.partition("-")[0]
        if not target.exists():
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(target)


if __name__ == "__main__":
    main()
