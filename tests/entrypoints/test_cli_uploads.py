"""`vaultfs upload`, in a folder and against a server."""

from base64 import b64encode
from collections.abc import Callable

import anyio
import httpx
import pytest
from tests.entrypoints.cli_calls import Cli
from tests.faults import MIB, BytesSource, random_bytes

from vaultfs.domain.names import Address
from vaultfs.domain.services.uploads import Purpose
from vaultfs.entrypoints.settings import Settings
from vaultfs.entrypoints.vault import open_vault

Begin = Callable[[str], str]
DATA = random_bytes(700_000, "begun")


@pytest.fixture
def begin(cli: Cli) -> Begin:
    """Makes a session of a MiB with some bytes; its id."""

    async def here(path: str) -> str:
        async with open_vault(Settings(cli.vault, 64 * MIB, 2)) as vault:
            purpose = Purpose(Address("me", (path.removeprefix("/"),)))
            made = await vault.uploads.create(vault.user, purpose, size=MIB)
            source = BytesSource(DATA)
            made = await vault.uploads.append(vault.user, made.id, source, at=0, length=len(DATA))
            return made.id

    def there(path: str) -> str:
        headers = {"Tus-Resumable": "1.0.0", "Authorization": f"Bearer {cli.token}"}
        noted = f"path {b64encode(path.encode()).decode()}"
        made = httpx.post(
            f"{cli.server}/v1/uploads",
            headers={**headers, "Upload-Length": str(MIB), "Upload-Metadata": noted},
        )
        number = made.headers["Location"].rpartition("/")[2]
        kind = {"Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}
        url = f"{cli.server}/v1/uploads/{number}"
        httpx.patch(url, headers={**headers, **kind}, content=DATA).raise_for_status()
        return number

    return there if cli.server else lambda path: anyio.run(here, path)


def test_uploads_are_listed_and_aborted(cli: Cli, begin: Begin) -> None:
    assert cli.json("upload", "ls") == []
    assert cli("upload", "ls").out == ""
    first, second = begin("/a"), begin("/b")
    found = {each["id"]: each for each in cli.json("upload", "ls")}
    assert found.keys() == {first, second}
    assert [found[each]["path"] for each in (first, second)] == ["/a", "/b"]
    assert {(each["offset"], each["size"]) for each in found.values()} == {(700_000, MIB)}
    assert all(each["created"] < each["expires"] for each in found.values())
    assert "683.6 KiB  of 1.0 MiB" in cli("upload", "ls").out
    cli("upload", "abort", first)
    assert [each["id"] for each in cli.json("upload", "ls")] == [second]
    assert cli.refused("upload", "abort", "none") == "not_found"
    cli("upload", "abort", first, second)  # once more does no harm
    assert cli.json("upload", "ls") == []
