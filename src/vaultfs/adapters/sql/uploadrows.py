"""The rows of upload sessions: what those who write them and those who read them share."""

import json
from typing import Final

from vaultfs.adapters.sql.statements import Row
from vaultfs.domain.uploads import Upload, UploadState

UPLOAD: Final = (
    "id, tree, owner, path, state, fence, size, cut, tail, notes, created, touched, node, version"
)
ROW: Final = 2048
"""Entries that one row has at the most: 80 KiB."""


def to_upload(row: Row) -> Upload:
    """A session from the columns `UPLOAD`."""
    upload = Upload(*row)
    path = None if row[3] is None else tuple(json.loads(row[3]))
    return upload._replace(path=path, state=UploadState(upload.state))
