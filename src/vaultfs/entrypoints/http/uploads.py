"""`/v1/uploads`: contents that arrive in several requests and can be resumed (tus 1.0.0).

The protocol is that of https://tus.io/protocols/resumable-upload, with the extensions that
`EXTENSIONS` names; `docs/uploads.md` says what is particular to this server. Clients that cut
their contents themselves append frames instead of bytes: they ask `/v1/have` which chunks they
need not send.
"""

import json
import re
from base64 import b64decode
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from datetime import UTC
from email.utils import format_datetime
from hashlib import sha1, sha256
from typing import Final

from blake3 import blake3
from starlette.responses import Response

from vaultfs.domain.cutting import SMALL
from vaultfs.domain.digests import Digest
from vaultfs.domain.errors import (
    Exists,
    Forbidden,
    InvalidField,
    TooLarge,
    VersionMismatch,
    WrongMedia,
)
from vaultfs.domain.frames import MEDIA_TYPE
from vaultfs.domain.names import Address
from vaultfs.domain.nodes import NO_PRECONDITIONS, Origin, moment
from vaultfs.domain.services.hashing import Hasher
from vaultfs.domain.services.uploads import MAX_HAVE, Checksum, Purpose, said
from vaultfs.domain.tokens import Scope
from vaultfs.domain.uploads import Upload, UploadState
from vaultfs.entrypoints.http.calls import (
    CURSOR,
    IF_MATCH,
    IF_NONE_MATCH,
    LIMIT,
    WITH_LOCK,
    Answer,
    Call,
    Parameter,
    Route,
    write_cursor,
)
from vaultfs.entrypoints.http.contents import MOST, UploadBody, read_origin
from vaultfs.entrypoints.http.wire import UploadList, UploadOut, content_etag, upload_out

BYTES: Final = "application/offset+octet-stream"
RAW: Final = "application/octet-stream"
EXTENSIONS: Final = (
    "creation,creation-with-upload,creation-defer-length,expiration,checksum,termination,"
    "concatenation"
)
HASHERS: Final[dict[str, Callable[[], Hasher]]] = {
    "sha1": lambda: sha1(usedforsecurity=False),
    "sha256": sha256,
    "blake3": blake3,
}
_VERSION: Final = {"Tus-Resumable": "1.0.0"}
REFUSED: Final = _VERSION | {"Tus-Version": "1.0.0"}
"""Headers of refusals: with them a client that speaks another version knows what to speak."""
_NUMBER = re.compile(r"[0-9]{1,18}")
_PART_OF: Final = re.compile(r"/v1/uploads/([A-Za-z0-9_-]{1,64})$")


async def capabilities(call: Call) -> Response:
    """What of tus this server can."""
    del call
    return _empty(
        {
            "Tus-Version": "1.0.0",
            "Tus-Extension": EXTENSIONS,
            "Tus-Max-Size": str(MOST),
            "Tus-Checksum-Algorithm": ",".join(HASHERS),
        }
    )


async def create(call: Call) -> Response:
    """Begin an upload, with its first bytes if there are some; or join parts to one."""
    _check_version(call)
    concat = call.header("upload-concat") or ""
    purpose = await _purpose(call, concat)
    uploads = call.server.vault.uploads
    with _as_a_put_tells_it():
        if concat.startswith("final"):
            parts = _parts(concat)
            upload = await uploads.concatenate(call.user, parts, purpose, files=call.files)
            return _empty(_headers(upload) | _where(upload), 201)
        size = _size(call)
        if size is None and call.header("upload-defer-length") != "1":
            raise InvalidField("Upload-Length, or Upload-Defer-Length: 1, says how much comes")
        if size == 0 and call.header("content-type") == BYTES and call.length:
            raise TooLarge(f"{call.length} bytes of an upload that is to have none")
        upload = await uploads.create(call.user, purpose, size=size, files=call.files)
    if call.header("content-type") in {BYTES, MEDIA_TYPE} and upload.state is UploadState.OPEN:
        async with uploads.given_up_if_refused(call.user, upload.id):
            upload = await _append(call, upload.id, 0)
    return _empty(_headers(upload) | _where(upload), 201)


async def look(call: Call) -> Response:
    """How far an upload is."""
    _check_version(call)
    upload = await call.server.vault.uploads.open(call.user, call.params["upload"])
    return _empty(_headers(upload) | _told(upload), 200)


async def get_upload(call: Call) -> Response:
    """How far an upload is, and what became of it."""
    upload = await call.server.vault.uploads.get(call.user, call.params["upload"])
    return call.json(upload_out(upload), headers={"Cache-Control": "no-store"})


async def list_uploads(call: Call) -> Response:
    """The caller's uploads that are under way."""
    limit, after = call.limit, call.cursor("uploads") or ""
    found = await call.server.vault.catalog.uploads(call.user.id, after=after, limit=limit)
    cursor = write_cursor("uploads", found[-1].id) if len(found) == limit else None
    return call.json(UploadList([upload_out(upload) for upload in found], cursor))


async def append(call: Call) -> Response:
    """The next bytes, or frames. When all are there, they become a version of the file."""
    _check_version(call)
    if call.header("content-type") not in {BYTES, MEDIA_TYPE}:
        raise WrongMedia(f"the body of an append is {BYTES} or {MEDIA_TYPE}")
    at = _number(call, "upload-offset")
    if at is None:
        raise InvalidField("Upload-Offset says where the bytes go")
    upload = await _append(call, call.params["upload"], at)
    return _empty(_headers(upload))


async def _append(call: Call, number: str, at: int) -> Upload:
    length = call.length
    large = length is None or length > SMALL
    uploads = call.server.vault.uploads
    known = await uploads.get(call.user, number)
    if _concat(known).startswith("final"):
        raise Forbidden("this upload was joined of others: it takes no bytes of its own")
    async with call.server.share_of(call.user.id) if large else nullcontext():
        with _as_a_put_tells_it():
            return await uploads.append(
                call.user,
                number,
                UploadBody(call),
                at=at,
                length=length,
                size=_size(call),
                checksum=_checksum(call),
                frames=call.header("content-type") == MEDIA_TYPE,
                files=call.files,
            )


@contextmanager
def _as_a_put_tells_it() -> Generator[None, None, None]:
    """A file that was to be new and is there is a precondition that does not hold."""
    try:
        yield
    except Exists as error:
        raise VersionMismatch(error.message, expected=None, found=None) from error


async def abort(call: Call) -> Response:
    """Give an upload up."""
    _check_version(call)
    await call.server.vault.uploads.abort(call.user, call.params["upload"])
    return _empty({})


async def have(call: Call) -> Response:
    """Which chunks need not be sent: a bit for each digest, the first in the lowest place.

    Answered from what the caller has sent before, and promised for a day.
    """
    data = await call.raw_body(32 * MAX_HAVE)
    if len(data) % 32:
        raise InvalidField("the body is digests of 32 bytes each, one after another")
    digests = [Digest(data[at : at + 32]) for at in range(0, len(data), 32)]
    holder = call.query.get("upload")
    if holder is not None:
        await call.server.vault.uploads.open(call.user, holder)
    found = await call.server.vault.uploads.have(call.user, digests, holder=holder)
    bits = sum(1 << index for index, own in enumerate(found) if own)
    return Answer(bits.to_bytes((len(found) + 7) // 8, "little"), 200, RAW.encode())


# Headers


def _check_version(call: Call) -> None:
    if call.header("tus-resumable") not in {None, "1.0.0"}:
        raise VersionMismatch("this server speaks tus 1.0.0", expected=None, found=None)


def _number(call: Call, name: str) -> int | None:
    text = call.header(name)
    if text is None:
        return None
    if not _NUMBER.fullmatch(text):
        raise InvalidField(f"{name} is a number of bytes")
    return int(text)


def _size(call: Call) -> int | None:
    size = _number(call, "upload-length")
    if size is not None and size > MOST:
        raise TooLarge(f"an upload of {size} bytes: {MOST} is the most")
    return size


def _checksum(call: Call) -> Checksum | None:
    text = call.header("upload-checksum")
    if text is None:
        return None
    name, _, value = text.partition(" ")
    if name not in HASHERS:
        raise InvalidField(f"Upload-Checksum: {name[:20]} is none of {', '.join(HASHERS)}")
    try:
        return Checksum(name, HASHERS[name](), b64decode(value, validate=True))
    except ValueError:
        raise InvalidField("Upload-Checksum: a name, a space and base64") from None


async def _purpose(call: Call, concat: str) -> Purpose:
    """What the headers say the content is for."""
    header = call.header("upload-metadata") or ""
    notes = json.dumps({"metadata": header, "concat": concat})
    if concat == "partial":
        return Purpose(None, said=notes)
    if concat and not concat.startswith("final;"):
        raise InvalidField("Upload-Concat is `partial`, or `final;` and the parts")
    said_of = _metadata(header)
    address = _address(call, said_of)
    preconditions = NO_PRECONDITIONS
    if call.header("if-match") or call.header("if-none-match"):
        preconditions = await call.preconditions(address)
    return Purpose(
        address,
        _origin(said_of),
        preconditions,
        said_of.get("parents", "true") != "false",
        _claim(said_of),
        notes,
    )


def _metadata(header: str) -> dict[str, str]:
    """What `Upload-Metadata` holds, as text."""
    found: dict[str, str] = {}
    for item in filter(None, header.split(",")):
        key, _, value = item.strip().partition(" ")
        try:
            found[key] = b64decode(value, validate=True).decode()
        except ValueError:
            raise InvalidField(f"Upload-Metadata: {key[:40]} is not base64 of UTF-8") from None
    return found


def _address(call: Call, said_of: dict[str, str]) -> Address:
    if "path" in said_of:
        return call.at(said_of["path"])
    for key in ("relativePath", "filename", "name"):
        if said_of.get(key):
            return call.at("/" + said_of[key].lstrip("/"))
    raise InvalidField("Upload-Metadata says where the content goes: `path`, or `filename`")


def _origin(said_of: dict[str, str]) -> Origin:
    wrong = "mtime is microseconds, mode octal digits"
    return read_origin(said_of.get("mtime"), said_of.get("mode"), wrong)


def _claim(said_of: dict[str, str]) -> Digest | None:
    text = said_of.get("blake3")
    if text is None:
        return None
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise InvalidField("blake3 is 64 hexadecimal digits")
    return Digest(bytes.fromhex(text))


def _parts(concat: str) -> list[str]:
    found: list[str] = []
    for address in concat.removeprefix("final;").split():
        match = _PART_OF.search(address)
        if match is None:
            raise InvalidField(f"Upload-Concat: {address[:80]} is no upload of this server")
        found.append(match[1])
    if not found:
        raise InvalidField("Upload-Concat: of which parts?")
    return found


def _concat(upload: Upload) -> str:
    return str(json.loads(said(upload) or "{}").get("concat", ""))


def _headers(upload: Upload) -> dict[str, str]:
    """What every answer about `upload` tells."""
    found = {"Upload-Offset": str(upload.offset)}
    if upload.state is UploadState.OPEN:
        when = moment(upload.expires_us).astimezone(UTC)
        found["Upload-Expires"] = format_datetime(when, usegmt=True)
    if upload.version is not None:
        found["ETag"] = content_etag(upload.version)
        found["Vaultfs-Changed"] = str(upload.made)
    return found


def _where(upload: Upload) -> dict[str, str]:
    return {"Location": f"/v1/uploads/{upload.id}"}


def _told(upload: Upload) -> dict[str, str]:
    """What the client said, told again."""
    notes = json.loads(said(upload) or "{}")
    found = {"Cache-Control": "no-store"}
    if upload.size is None:
        found["Upload-Defer-Length"] = "1"
    else:
        found["Upload-Length"] = str(upload.size)
    if notes.get("metadata"):
        found["Upload-Metadata"] = notes["metadata"]
    if notes.get("concat"):
        found["Upload-Concat"] = notes["concat"]
    return found


def _empty(headers: dict[str, str], status: int = 204) -> Response:
    return Response(status_code=status, headers=_VERSION | headers)


_TUS: Final = Parameter("Tus-Resumable", "1.0.0", where="header")
_LENGTH: Final = Parameter("Upload-Length", "Bytes of the whole content.", where="header")
_SUM: Final = Parameter(
    "Upload-Checksum",
    "sha1, sha256 or blake3, a space and its base64: with it the body is taken whole or not at"
    " all, and has at most 64 MiB.",
    where="header",
)
_ONE: Final = "/v1/uploads/{upload}"

ROUTES: Final = (
    Route(
        *("OPTIONS", "/v1/uploads", capabilities, "uploadOptions", "What of tus is there."),
        status=204,
    ),
    Route(
        *("POST", "/v1/uploads", create, "createUpload", "Begin an upload, or join parts."),
        scope=Scope.WRITE,
        status=201,
        parameters=(
            _TUS,
            _LENGTH,
            Parameter("Upload-Defer-Length", "1: the length is said later.", where="header"),
            Parameter(
                "Upload-Metadata",
                "`path` (or `filename`), `mtime`, `mode`, `blake3`, `parents`, and anything else:"
                " keys and base64.",
                where="header",
            ),
            Parameter("Upload-Concat", "`partial`, or `final;` and the parts.", where="header"),
            _SUM,
            IF_MATCH,
            IF_NONE_MATCH,
            WITH_LOCK,
        ),
        failures=(400, 409, 410, 412, 413, 460, 507),
    ),
    Route(
        *("GET", "/v1/uploads", list_uploads, "listUploads", "List what is under way."),
        scope=Scope.READ,
        answer=UploadList,
        parameters=(LIMIT, CURSOR),
    ),
    Route(
        *("GET", _ONE, get_upload, "getUpload", "How far an upload is."),
        scope=Scope.READ,
        answer=UploadOut,
    ),
    Route(
        *("HEAD", _ONE, look, "headUpload", "Where an upload goes on."),
        scope=Scope.WRITE,
        parameters=(_TUS,),
        failures=(409, 410, 412),
    ),
    Route(
        *("PATCH", _ONE, append, "appendUpload", "Send the next bytes."),
        scope=Scope.WRITE,
        body=BYTES,
        status=204,
        parameters=(
            _TUS,
            Parameter("Upload-Offset", "Where the bytes go.", where="header"),
            _LENGTH,
            _SUM,
            WITH_LOCK,
        ),
        failures=(400, 409, 410, 412, 413, 415, 460, 501, 507),
    ),
    Route(
        *("DELETE", _ONE, abort, "abortUpload", "Give an upload up."),
        scope=Scope.WRITE,
        status=204,
        parameters=(_TUS,),
        failures=(409, 410, 412),
    ),
    Route(
        *("POST", "/v1/have", have, "haveChunks", "Ask which chunks need not be sent."),
        scope=Scope.WRITE,
        body=RAW,
        answer=RAW,
        parameters=(Parameter("upload", "The upload that they are for."),),
        failures=(409, 410),
    ),
)
