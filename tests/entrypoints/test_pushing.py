"""Files pushed as the difference to what a server has: whatever was changed, to the last byte."""

import io
import zipfile
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from pathlib import Path
from random import Random

import pytest
from tests.domain.test_zipimages import Unseekable, words, zipped
from tests.entrypoints.test_client import served
from tests.faults import random_bytes

from vaultfs.domain.chunks import Chunking
from vaultfs.domain.errors import Unsupported
from vaultfs.domain.signatures import Unit, write_pieces, write_units
from vaultfs.entrypoints import pushing, searching
from vaultfs.entrypoints.client import connect
from vaultfs.entrypoints.pulling import Pushed

Make = Callable[[Random], tuple[bytes, bytes]]


def edited(random: Random) -> tuple[bytes, bytes]:
    """Bytes, and others of which stretches are the same, moved, repeated, or edited."""
    old = random.randbytes(random.choice((0, 1, 5000, 70_000, 900_000, 2_500_000)))
    parts: list[bytes] = []
    for _ in range(random.choice((1, 3, 20, 200))):
        start = random.randrange(len(old) + 1)
        part = bytearray(old[start : start + random.choice((10, 600, 9000, 200_000, 1_000_000))])
        for _ in range(random.choice((0, 0, 1, 30))):
            if part:
                part[random.randrange(len(part))] ^= 1
        parts += [bytes(part), random.randbytes(random.choice((0, 0, 3, 200, 5000)))]
        if sum(map(len, parts)) > 3_000_000:
            break
    return old, b"".join(parts)


def archived(random: Random) -> tuple[bytes, bytes]:
    """Two zip files, of which one is perhaps damaged."""
    words = [b"fold", b"chunk", b"pack", b"lease", random.randbytes(5)]

    def content() -> bytes:
        if random.random() < 0.2:
            return random.randbytes(random.choice((0, 10, 30_000)))
        return b" ".join(random.choices(words, k=random.choice((0, 5, 400, 9000))))

    count = random.choice((1, 3, 30, 300))
    members = [(f"m{random.randrange(count)}", content()) for _ in range(count)]
    changed = list(members)
    for _ in range(random.choice((0, 1, count))):
        place = random.randrange(count)
        name, text = changed[place]
        middle = random.randrange(len(text) + 1)
        changed[place] = (name, text[:middle] + content()[:50] + text[middle:])
    if random.random() < 0.3:
        random.shuffle(changed)
    found: list[bytes] = []
    for some in (members, changed):
        target = io.BytesIO() if random.random() < 0.7 else Unseekable()
        level = random.choice((6, 6, 6, 9, 1))
        with zipfile.ZipFile(target, "w") as archive:
            for name, text in some:
                info = zipfile.ZipInfo(name, (2024, 1, 2, 3, 4, 6))
                kind = zipfile.ZIP_STORED if random.random() < 0.1 else zipfile.ZIP_DEFLATED
                archive.writestr(info, text, kind, level)
            if random.random() < 0.2:
                archive.comment = b"PK\5\6 a comment"
        data = bytearray(target.getvalue())
        for _ in range(random.choice((0, 0, 0, 1, 5))):
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        found.append(bytes(data))
    return found[0], found[1]


async def pushed(
    tmp_path: Path, make: Make, count: int
) -> AsyncGenerator[tuple[bytes, Pushed], None]:
    """So many new contents, each pushed from the old one, and there; and what came of the push."""
    tmp_path.mkdir(exist_ok=True)
    local = tmp_path / "local"
    async with (
        served(tmp_path / "vault") as (_, address, token),
        connect(address, token=token) as vault,
    ):
        for seed in range(count):
            old, new = make(Random(seed))
            local.write_bytes(old)
            first = await vault.push(f"/{seed}", local)
            local.write_bytes(new)
            done = await vault.push(f"/{seed}", local, base=first.node.version)
            assert await vault.get(f"/{seed}") == new, seed
            yield new, done


@pytest.fixture(params=[searching.MUCH, 0])
def much(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of how much large pieces are asked for first: as it is, and always."""
    monkeypatch.setattr(searching, "MUCH", request.param)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.usefixtures("much")
@pytest.mark.parametrize("make", [edited, archived])
async def test_whatever_was_changed_arrives_and_costs_no_more_than_the_file(
    tmp_path: Path, make: Make
) -> None:
    async with aclosing(pushed(tmp_path, make, 28)) as pushes:
        async for new, done in pushes:
            assert done.travelled <= len(new) * 1.02 + 500


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.usefixtures("much")
@pytest.mark.parametrize("make", [edited, archived])
async def test_signatures_that_lie_lead_to_the_file_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    random = Random(1)

    def lying(write: Callable[[list[Unit]], bytes]) -> Callable[[Iterable[Unit]], bytes]:
        def lie(units: Iterable[Unit]) -> bytes:
            told = list(units)
            for place in range(len(told)):
                if random.random() < 0.1:
                    digest, length = random.choice(told)
                    told[place] = (digest, random.choice((0, 1, told[place][1], length)))
            data = write(told)
            return data[: random.choice((len(data), len(data), random.randrange(len(data) + 1)))]

        return lie

    for name, write in (("write_units", write_units), ("write_pieces", write_pieces)):
        monkeypatch.setattr(f"vaultfs.entrypoints.http.deltas.{name}", lying(write))
    async with aclosing(pushed(tmp_path, make, 25)) as pushes:
        assert len([new async for new, _ in pushes]) == 25


async def test_scattered_edits_cost_few_pieces_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scattered(random: Random) -> tuple[bytes, bytes]:
        old = random_bytes(8 << 20, str(random.random()))
        new = bytearray(old)
        for _ in range(40):
            place = random.randrange(len(new) - 10)
            new[place : place + 10] = random.randbytes(10)
        return old, bytes(new)

    async def cost(place: str) -> int:
        async with aclosing(pushed(tmp_path / place, scattered, 1)) as pushes:
            return sum([done.travelled async for _, done in pushes])

    two_steps = await cost("two")
    monkeypatch.setattr(searching, "MUCH", 1 << 30)
    assert two_steps < await cost("one") / 2


async def test_what_is_repeated_is_asked_about_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def repeated(random: Random) -> tuple[bytes, bytes]:
        old = random_bytes(2 << 20, "of which a part is repeated")
        parts: list[bytes] = []
        for _ in range(150):
            part = bytearray(old[1 << 20 : (1 << 20) + 20_000])
            part[10_000:10_010] = random.randbytes(10)
            parts += [bytes(part), random.randbytes(300)]
        return old, b"".join(parts)

    asked: list[int] = []
    original = pushing.There.pieces

    async def counted(
        self: pushing.There, ranges: Sequence[tuple[int, int]], cut: Chunking
    ) -> list[list[Unit]]:
        asked.append(len(ranges))
        return await original(self, ranges, cut)

    monkeypatch.setattr(pushing.There, "pieces", counted)
    async with aclosing(pushed(tmp_path, repeated, 1)) as pushes:
        [travelled] = [done.travelled async for _, done in pushes]
    assert len(asked) <= 4
    assert travelled < 100_000


async def test_a_short_file_is_not_compared_with_much_of_a_long_one(tmp_path: Path) -> None:
    def replaced(random: Random) -> tuple[bytes, bytes]:
        return random.randbytes(67_000), random.randbytes(1400)

    async with aclosing(pushed(tmp_path, replaced, 3)) as pushes:
        async for new, done in pushes:
            assert done.travelled <= len(new) * 1.02 + 500


async def test_a_delta_that_is_refused_is_counted_and_the_whole_file_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise Unsupported("not now")

    monkeypatch.setattr("vaultfs.entrypoints.http.deltas.VaultBase", refuse)
    new, travelled = await pushed_again(tmp_path)
    assert 300_000 < travelled < len(new)  # chunks that are there did not go again


async def test_where_a_server_takes_fewer_ranges_the_whole_file_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vaultfs.entrypoints.http.deltas.MOST_SIGNED", 10)
    new, travelled = await pushed_again(tmp_path)
    assert travelled < len(new) * 1.02


async def pushed_again(tmp_path: Path) -> tuple[bytes, int]:
    """A file that was put in place and grew, and what its push took."""
    local = tmp_path / "local"
    old, more = random_bytes(400_000, "old"), random_bytes(100_000, "more")
    new = old[:200_000] + more + old[200_000:]
    async with (
        served(tmp_path / "vault") as (_, address, token),
        connect(address, token=token) as vault,
    ):
        local.write_bytes(old)
        first = await vault.push("/f", local)
        local.write_bytes(new)
        done = await vault.push("/f", local, base=first.node.version)
        assert await vault.get("/f") == new
    return new, done.travelled


def numbered(names: Iterable[int], release: int) -> bytes:
    """A zip file of many small members."""
    return zipped({f"m{n}": b"%d " % release + words(n, 12) + b"%d" % n for n in names})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (numbered(range(6000), 1), numbered(range(0, 6000, 40), 1)),
        (numbered(range(6000), 1), numbered(range(6000, 6200), 1)),
        (numbered(range(1000), 1), numbered(range(1000, 2000), 2)),
    ],
    ids=["few of them", "few others", "all others"],
)
async def test_no_more_is_asked_about_members_than_pays(
    tmp_path: Path, before: bytes, after: bytes
) -> None:
    local = tmp_path / "local"
    async with (
        served(tmp_path / "vault") as (_, address, token),
        connect(address, token=token) as vault,
    ):
        local.write_bytes(before)
        first = await vault.push("/f", local)
        local.write_bytes(after)
        done = await vault.push("/f", local, base=first.node.version)
    assert done.travelled < len(after) * 0.7


async def test_where_most_members_are_in_both_images_are_asked_about(tmp_path: Path) -> None:
    local = tmp_path / "local"
    before = {f"m{n}": words(n, 300) for n in range(300)}
    edited = {name: text[:900] + b"!" + text[900:] for name, text in [*before.items()][::5]}
    after = zipped({**before, **edited})
    async with (
        served(tmp_path / "vault") as (_, address, token),
        connect(address, token=token) as vault,
    ):
        local.write_bytes(zipped(before))
        first = await vault.push("/f", local)
        local.write_bytes(after)
        done = await vault.push("/f", local, base=first.node.version)
    assert done.travelled < len(after) * 0.4
