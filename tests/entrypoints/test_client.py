"""The SDK against a server, over real sockets: the server runs in this event loop."""

import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import msgspec
import pytest
from tests.faults import MIB, random_bytes, read_tree, write_tree

import vaultfs
from vaultfs.adapters.system import SystemClock
from vaultfs.domain.digests import Digest
from vaultfs.domain.errors import (
    Corrupt,
    CursorReset,
    DamagedContent,
    Exists,
    IsAFolder,
    Locked,
    LockTimedOut,
    NotAuthenticated,
    NotFound,
    QuotaExceeded,
    StaleToken,
    VersionMismatch,
    WouldBlock,
)
from vaultfs.domain.lockmodes import READ, WRITE
from vaultfs.domain.nodes import Preconditions, VersionId
from vaultfs.domain.rates import Rate
from vaultfs.domain.services.accounts import Accounts
from vaultfs.domain.tokens import ALL_SCOPES, Identity, Scope
from vaultfs.entrypoints.answers import ServerError
from vaultfs.entrypoints.changes import Changes
from vaultfs.entrypoints.client import RemoteVault, connect
from vaultfs.entrypoints.http.app import DEFAULT_RATE
from vaultfs.entrypoints.http.serving import Listening, first_token, serving
from vaultfs.entrypoints.http.wire import UserOut, WhoAmI
from vaultfs.entrypoints.remote_locks import leased
from vaultfs.entrypoints.settings import Settings
from vaultfs.entrypoints.surface import Content
from vaultfs.entrypoints.vault import Vault, init_vault, open_vault

CONTENT = random_bytes(5 * MIB, "client")


@asynccontextmanager
async def served(
    folder: Path, rate: Rate = DEFAULT_RATE
) -> AsyncGenerator[tuple[Vault, str, str], None]:
    """An open vault, the address of its server and a token for everything."""
    await init_vault(folder)
    async with open_vault(Settings(folder, 64 * MIB, 2)) as vault:
        token = await first_token(vault)
        assert token is not None
        where = Listening(port=0, log=False, rate=rate)
        async with serving(vault, where) as address:
            yield vault, address, token


@pytest.fixture
async def remote(tmp_path: Path) -> AsyncIterator[RemoteVault]:
    async with (
        served(tmp_path / "vault") as (_, address, token),
        vaultfs.connect(address, token=token) as vault,
    ):
        yield vault


async def test_contents_travel_in_both_directions(remote: RemoteVault, tmp_path: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(CONTENT), 300_000):
            yield CONTENT[start : start + 300_000]

    local = tmp_path / "local"
    local.write_bytes(CONTENT)
    contents: tuple[Content, ...] = (CONTENT, pieces(), local)
    for number, content in enumerate(contents):
        node = await remote.put(f"/deep/er/{number}", content)
        assert (node.size, node.number) == (len(CONTENT), 1)
        assert await remote.get(f"/deep/er/{number}") == CONTENT
    assert await remote.get("/deep/er/0", start=5, stop=1000) == CONTENT[5:1000]
    assert [node.name async for node in remote.list("/deep/er")] == ["0", "1", "2"]
    assert (await remote.put("/empty", b"")).size == 0
    assert await remote.get("/empty") == b""


async def test_versions_and_preconditions(remote: RemoteVault) -> None:
    first = await remote.put("/a", b"one")
    assert first.version is not None
    await remote.put("/a", b"two", preconditions=Preconditions(if_version=first.version))
    with pytest.raises(VersionMismatch):
        await remote.put("/a", b"three", preconditions=Preconditions(if_version=first.version))
    with pytest.raises(VersionMismatch):
        await remote.put("/a", b"three", preconditions=Preconditions(if_absent=True))
    assert [each.number async for each in remote.versions("/a")] == [2, 1]
    assert await remote.get("/a", version=1) == b"one"
    assert (await remote.restore_version("/a", 1)).number == 3
    with pytest.raises(NotFound):
        await remote.get("/a", version=9)
    gone = Preconditions(if_version=VersionId(999))
    with pytest.raises(VersionMismatch):
        await remote.delete("/a", preconditions=gone)


async def test_nodes(remote: RemoteVault) -> None:
    await remote.mkdir("/d/e", parents=True)
    with pytest.raises(Exists):
        await remote.mkdir("/d")
    await remote.put("/d/e/f", b"x")
    await remote.copy("/d", "/copy")
    moved = await remote.move("/d/e/f", "/g")
    assert (moved.name, await remote.exists("/d/e/f"), await remote.exists("/g")) == (
        *("g", False, True),
    )
    with pytest.raises(IsAFolder):
        await remote.get("/copy")
    assert await remote.set_metadata("/g", {"a": 1, "b": "é"}) == {"a": 1, "b": "é"}
    assert await remote.metadata("/g") == {"a": 1, "b": "é"}
    await remote.delete("/copy", recursive=True)
    [trashed] = [each async for each in remote.trash()]
    assert trashed.path == ("copy",)
    await remote.restore(trashed.node.id, "/back")
    assert await remote.get("/back/e/f") == b"x"
    await remote.delete("/back", recursive=True)
    await remote.purge(trashed.node.id)
    assert [each async for each in remote.trash()] == []


async def test_trees_travel_in_both_directions(remote: RemoteVault, tmp_path: Path) -> None:
    contents = {f"d{n % 3}/é {n}": random_bytes(n * 7000, n) for n in range(60)}
    contents["large"] = random_bytes(3 * MIB, "large")
    write_tree(tmp_path / "in", contents)
    (tmp_path / "in" / "nothing here").mkdir()
    (tmp_path / "in" / "link").symlink_to("large")
    report = await remote.put_tree(tmp_path / "in", "/tree")
    assert (report.files, report.changed, report.folders) == (61, 61, 4)
    assert [each.reason for each in report.skipped] == ["a symbolic link: links are not stored"]
    again = await remote.put_tree(tmp_path / "in", "/tree")
    assert (again.files, again.changed) == (61, 0)
    (tmp_path / "in" / "link").unlink()
    back = await remote.get_tree("/tree", tmp_path / "out")
    assert (back.files, back.failed, back.size) == (61, [], sum(map(len, contents.values())))
    assert read_tree(tmp_path / "out") == read_tree(tmp_path / "in")
    assert (tmp_path / "out" / "nothing here").is_dir()
    times = [(tmp_path / side / "large").stat().st_mtime for side in ("in", "out")]
    assert times[0] == pytest.approx(times[1], abs=1e-5)


async def test_changes_are_told(remote: RemoteVault) -> None:
    await remote.put("/d/f", b"x")
    first = await remote.changes()
    assert [(each.seq, each.kind, each.path) for each in first.entries] == [
        (1, "mkdir", "/d"),
        (2, "put", "/d/f"),
    ]

    async def later() -> None:
        await anyio.sleep(0.3)
        await remote.put("/g", b"x")

    waited: list[Changes] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(later)
        waited.append(await remote.changes(first.cursor, wait=20))
    [second] = waited
    assert [each.path for each in second.entries] == ["/g"]
    assert (await remote.changes(second.cursor)).entries == []
    with pytest.raises(CursorReset):
        await remote.changes("7.000000000000")


@pytest.mark.parametrize("empty", [{}, {"empty": b""}], ids=["large files alone", "an empty file"])
async def test_a_server_is_not_asked_for_no_chunks(
    remote: RemoteVault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: dict[str, bytes]
) -> None:
    async def have(
        vault: RemoteVault, digests: list[Digest], *, upload: str | None = None
    ) -> set[Digest]:
        asked.append(len(digests))
        return await real(vault, digests, upload=upload)

    asked, real = list[int](), RemoteVault.have
    monkeypatch.setattr(RemoteVault, "have", have)
    write_tree(tmp_path / "in", {"large": CONTENT, **empty})
    report = await remote.put_tree(tmp_path / "in", "/tree")
    assert (report.files, report.failed) == (1 + len(empty), [])
    assert asked
    assert 0 not in asked


async def test_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaultfs.entrypoints.remote_locks.TTL", 1.2)
    monkeypatch.setattr("vaultfs.entrypoints.remote_locks.ASKED", 0.1)
    (tmp_path / "large").write_bytes(random_bytes(17 * MIB, "locked"))
    write_tree(tmp_path / "in", {"x": b"x", "y/z": random_bytes(MIB, "z")})
    async with (
        served(tmp_path / "vault") as (_, address, token),
        connect(address, token=token) as vault,
    ):
        async with vault.lock("/a", "/b") as locked:
            await locked.put("/a", b"two")
            await locked.put("/a", tmp_path / "large")
            await locked.put_tree(tmp_path / "in", "/b")
            await locked.move("/b/x", "/a", replace=True)
            with pytest.raises(Locked):
                await vault.put("/a", b"three")
            with pytest.raises(Locked):
                await vault.delete("/b", recursive=True)
            with pytest.raises(WouldBlock):
                async with vault.lock(timeout=0):
                    pass
            with pytest.raises(
                LockTimedOut, match=r"^not had in 0.35 seconds: \w+ holds /a \(X\)$"
            ):
                async with vault.lock("/a", mode=READ, timeout=0.35):
                    pass
            await anyio.sleep(2)  # longer than a lease lasts
            await locked.put("/a", b"still")
        await vault.put("/a", b"free again")
        async with vault.lock(mode=READ), vault.lock("/a", mode=READ):
            assert await vault.get("/a") == b"free again"
        with pytest.raises(NotFound):
            async with vault.lock("bob:/a"):
                pass


async def test_a_lock_that_is_broken_is_told_by_the_next_write(tmp_path: Path) -> None:
    async with (
        served(tmp_path / "vault") as (local, address, token),
        connect(address, token=token) as vault,
    ):
        async with vault.lock("/a") as locked:
            [held] = (await local.locks.snapshot(local.user.tree)).held
            owner = Identity(local.user, ALL_SCOPES)
            await Accounts(local.catalog, local.clock).break_lock(owner, "me", held.token)
            with pytest.raises(StaleToken):
                await locked.put("/a", b"lost")
        assert (await local.locks.snapshot(local.user.tree)).held == ()


async def test_whoever_wants_to_is_told_that_a_lease_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vaultfs.entrypoints.remote_locks.TTL", 1.2)
    async with (
        served(tmp_path / "vault") as (local, address, token),
        connect(address, token=token) as vault,
    ):
        told = list[str]()
        async with leased(vault.calls, "me", ["/a"], WRITE, None, lambda e: told.append(e.message)):
            [held] = (await local.locks.snapshot(local.user.tree)).held
            await local.locks.release(held.owner, local.user.tree, held.token)
            with anyio.fail_after(5):
                while not told:
                    await anyio.sleep(0.05)
        assert len(told) == 2, "when it was found out, and at the end"
        assert all("ran out, was broken" in each for each in told)


async def test_of_servers_that_start_at_once_one_makes_the_first_token(tmp_path: Path) -> None:
    folder = tmp_path / "vault"
    await init_vault(folder)
    settings = Settings(folder, 64 * MIB, 2)
    made: list[str | None] = []
    async with open_vault(settings) as one, open_vault(settings) as two:

        async def make(vault: Vault) -> None:
            made.append(await first_token(vault))

        async with anyio.create_task_group() as tasks:
            for vault in (one, two, one, two):
                tasks.start_soon(make, vault)
        assert len([each for each in made if each is not None]) == 1
        owner, accounts = Identity(one.user, ALL_SCOPES), Accounts(one.catalog, one.clock)
        [token] = await accounts.tokens(owner, "me")
        await accounts.revoke_token(owner, "me", token.id)
        assert await first_token(one) is not None  # whoever has the folder can get in again
        assert await first_token(two) is None


async def test_who_waits_for_a_lock_can_be_cancelled(remote: RemoteVault) -> None:
    async with remote.lock("/a"):
        with anyio.move_on_after(0.3) as waiting:
            async with remote.lock("/a"):
                pass
        assert waiting.cancelled_caught
    async with remote.lock("/a", timeout=5):  # nobody is in the way
        pass


async def test_who_calls_decides_what_is_there(tmp_path: Path) -> None:
    async with served(tmp_path / "vault") as (vault, address, token):
        accounts = Accounts(vault.catalog, SystemClock())
        owner = Identity(vault.user, ALL_SCOPES)
        await accounts.add_user(owner, "bob", 10)
        scopes = frozenset({Scope.READ, Scope.WRITE})
        bob = (await accounts.add_token(owner, "bob", "", scopes)).secret
        async with connect(address, token=token) as mine, connect(address, token=bob) as his:
            await mine.put("/a", b"mine")
            with pytest.raises(NotFound):
                await his.get("me:/a")
            await his.put("/a", b"his")
            assert (await mine.get("/a"), await his.get("/a")) == (b"mine", b"his")
            with pytest.raises(QuotaExceeded):
                await his.put("/b", b"more than ten")
        with pytest.raises(NotAuthenticated):
            async with connect(address, token=token[:-1]):
                pass


async def test_without_a_token_or_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VAULTFS_TOKEN", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(NotAuthenticated, match="VAULTFS_TOKEN"):
        async with connect("http://127.0.0.1:9"):
            pass
    monkeypatch.setattr("vaultfs.entrypoints.calling.FIRST_WAIT", 0.001)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
    with pytest.raises(ServerError, match="cannot be reached"):
        async with connect(f"http://127.0.0.1:{port}", token="vfs_a_b"):
            pass


async def test_a_download_goes_on_where_it_broke_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vaultfs.entrypoints.calling.FIRST_WAIT", 0.001)
    async with served(tmp_path / "vault") as (_, address, token):
        port = int(address.rpartition(":")[2])
        async with connect(address, token=token) as vault:
            await vault.put("/a", CONTENT)
        async with (
            cutting_proxy(port, 1 * MIB) as (proxy, cuts),
            connect(f"http://127.0.0.1:{proxy}", token=token) as vault,
        ):
            assert await vault.get("/a") == CONTENT
            assert cuts[0] >= 4


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"]
)
async def test_what_may_have_been_done_is_not_sent_again(answer: bytes) -> None:
    async with answering(answer) as (address, seen):
        async with connect(address, token="vfs_a_b") as vault:
            with pytest.raises(ServerError):
                await vault.put("/a", b"one")
        async with connect(address, token="vfs_a_b") as vault:
            with pytest.raises(ServerError):
                await vault.delete("/a")
    assert seen == ["/v1/whoami", "/v1/files/me/a", "/v1/whoami", "/v1/nodes/me/a"]


async def test_contents_are_asked_of_nobody_else(remote: RemoteVault) -> None:
    await remote.put("/a", b"one")
    version = await remote.version("/a")
    elsewhere = f"Location: {remote.place}/v1/files/me/a".encode()
    moved = b"HTTP/1.1 307 Elsewhere\r\n%s\r\nContent-Length: 0\r\n\r\n" % elsewhere
    async with (
        answering(moved) as (address, _),
        connect(address, token="vfs_a_b") as vault,
        vault.content("/a", version) as parts,
    ):
        with pytest.raises(ServerError):
            await anext(parts)


async def test_what_is_not_what_the_server_vouches_for_is_refused(remote: RemoteVault) -> None:
    await remote.put("/a", CONTENT)
    version = (await remote.version("/a"))._replace(digest=Digest(bytes(32)))
    with pytest.raises(Corrupt, match="vouches"):
        async with remote.content("/a", version) as parts:
            async for _ in parts:
                pass


async def test_all_is_not_taken_for_the_range_that_was_asked_for(
    remote: RemoteVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    await remote.put("/a", CONTENT)

    def whole(_: object, size: int, __: str) -> tuple[int, int, bool]:
        return 0, size, False

    monkeypatch.setattr("vaultfs.entrypoints.http.contents._range", whole)
    assert await remote.get("/a") == CONTENT
    for start, stop in ((5, None), (5, 10), (0, 10)):
        with pytest.raises(ServerError, match="range"):
            await remote.get("/a", start=start, stop=stop)


@asynccontextmanager
async def answering(answer: bytes) -> AsyncGenerator[tuple[str, list[str]], None]:
    """A server that says who asks, and to all else `answer`, or breaks off if that is nothing."""
    seen: list[str] = []
    who = WhoAmI(UserOut("me", None, 0), "a", [Scope.READ, Scope.WRITE])
    body = msgspec.json.encode(who)
    found = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    async def handle(client: anyio.abc.SocketStream) -> None:
        async with client:
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                while True:
                    target = (await client.receive()).split(b" ")[1].decode()
                    path = target.partition("?")[0]
                    seen.append(path)
                    if path != "/v1/whoami" and not answer:
                        return
                    await client.send(found if path == "/v1/whoami" else answer)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        yield f"http://127.0.0.1:{port}", seen
        tasks.cancel_scope.cancel()


async def test_a_file_that_changes_meanwhile_is_not_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vaultfs.entrypoints.calling.FIRST_WAIT", 0.001)
    async with served(tmp_path / "vault") as (_, address, token):
        port = int(address.rpartition(":")[2])
        async with connect(address, token=token) as direct:
            await direct.put("/a", CONTENT)
            async with (
                cutting_proxy(port, 1 * MIB) as (proxy, _),
                connect(f"http://127.0.0.1:{proxy}", token=token) as vault,
            ):
                async with vault.stream("/a") as pieces:
                    read = [bytes(await anext(pieces))]
                    await direct.put("/a", CONTENT[::-1])
                    read += [bytes(piece) async for piece in pieces]
                assert b"".join(read) == CONTENT  # the version that it began with
                with pytest.raises(VersionMismatch):
                    async with vault.stream("/a", version=1) as pieces:
                        await anext(pieces)
                        await direct.delete("/a")
                        await direct.put("/a", CONTENT[::-1])  # version 1, but of another file
                        async for _ in pieces:
                            pass


@asynccontextmanager
async def cutting_proxy(port: int, after: int) -> AsyncGenerator[tuple[int, list[int]], None]:
    """A port that hands on to `port`, and cuts each connection after so many bytes of answers."""
    cuts = [0]

    async def handle(client: anyio.abc.SocketStream) -> None:
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, BaseExceptionGroup):
            await hand_on(client)

    async def hand_on(client: anyio.abc.SocketStream) -> None:
        async with client, await anyio.connect_tcp("127.0.0.1", port) as server:

            async def upwards() -> None:
                async for data in client:
                    await server.send(data)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(upwards)
                left = after
                async for data in server:
                    await client.send(data[:left])
                    left -= len(data)
                    if left <= 0:
                        cuts[0] += 1
                        break
                tasks.cancel_scope.cancel()

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        yield listener.extra(anyio.abc.SocketAttribute.local_port), cuts
        tasks.cancel_scope.cancel()


async def test_a_damaged_file_is_told_as_one(tmp_path: Path, remote: RemoteVault) -> None:
    await remote.put("/a", CONTENT)
    for pack in (tmp_path / "vault" / "objects" / "packs").rglob("*"):
        if pack.is_file():
            pack.write_bytes(pack.read_bytes()[:100])
    with pytest.raises(DamagedContent):
        await remote.get("/a")


async def test_a_server_that_is_busy_is_asked_again(tmp_path: Path) -> None:
    async with (
        served(tmp_path / "vault", Rate(20, 5)) as (_, address, token),
        connect(address, token=token) as remote,
    ):
        for number in range(12):
            await remote.put(f"/{number}", b"x")
        assert len([node async for node in remote.list()]) == 12
