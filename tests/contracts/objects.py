"""What every object store must do, whatever it is made of.

A backend's test module subclasses this and supplies `store`, empty at first, and
`written`, which looks at the backend behind the port; beyond that it tests only
what no other backend has.
"""

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from random import Random
from typing import assert_never

import anyio
import pytest
from anyio.lowlevel import checkpoint
from tests.strategies import KEYS, Delete, DeleteMany, Get, List, Put, Step

from vaultfs.ports.objects import (
    MAX_OBJECT,
    InvalidKey,
    ObjectExists,
    ObjectNotFound,
    ObjectStore,
    ObjectTooLarge,
    PutMode,
    Span,
)

Written = Callable[[str], bytes | None]

BAD_KEYS = (
    "",
    "ab",
    "/abc",
    "abc/",
    "abc//def",
    "abc/de",
    "ABC",
    "abc/Def",
    ".abc",
    "-abc",
    "abc/..",
    "../abc",
    "abc/../def",
    "abc/.../def",
    "abc def",
    "abc\n",
    "abc\x00",
    "abc\\def",
    "äbc",
    "a" * 513,
)

KEY_CALLS: dict[str, Callable[[ObjectStore, str], Awaitable[object]]] = {
    "head": lambda store, key: store.head(key),
    "get": lambda store, key: store.get(key),
    "create": lambda store, key: store.put(key, b"."),
    "overwrite": lambda store, key: store.put(key, b".", mode=PutMode.OVERWRITE),
    "delete": lambda store, key: store.delete(key),
}
PREFIXES = ("", "abc", "abc/", "packs", "packs/", "packs/ab", "packs/abcda", "tmp/key", "x")


async def listed(store: ObjectStore, prefix: str = "", start_after: str = "") -> list[str]:
    async with aclosing(store.list(prefix, start_after=start_after)) as objects:
        return [info.key async for info in objects]


def kept(objects: dict[str, bytes], prefix: str = "", start_after: str = "") -> list[str]:
    return sorted(key for key in objects if key.startswith(prefix) and key > start_after)


class ObjectStoreContract:
    @pytest.fixture
    def store(self) -> ObjectStore:
        raise NotImplementedError("a backend's tests supply their own store")

    @pytest.fixture
    def written(self) -> Written:
        raise NotImplementedError("a backend's tests look behind the port themselves")

    async def test_returns_what_was_put(self, store: ObjectStore, written: Written) -> None:
        await store.put("packs/one", b"\x00\xff")
        assert await store.get("packs/one") == b"\x00\xff" == written("packs/one")

    @pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
    async def test_takes_every_kind_of_buffer(
        self,
        store: ObjectStore,
        written: Written,
        make: Callable[[bytes], bytes | bytearray | memoryview],
    ) -> None:
        await store.put("key", make(b"content"))
        assert written("key") == b"content"
        assert type(await store.get("key")) is bytes

    async def test_takes_a_slice_of_a_buffer(self, store: ObjectStore, written: Written) -> None:
        await store.put("key", memoryview(bytearray(b"..content.."))[2:-2])
        assert written("key") == b"content"

    async def test_an_empty_object_is_one(self, store: ObjectStore, written: Written) -> None:
        await store.put("key", b"")
        assert await store.get("key") == b"" == written("key")
        assert (await store.head("key")).size == 0
        assert await listed(store) == ["key"]

    @pytest.mark.slow
    async def test_takes_the_largest_object(self, store: ObjectStore, written: Written) -> None:
        data = Random(1).randbytes(MAX_OBJECT)
        await store.put("key", data)
        assert await store.get("key") == data
        assert written("key") == data
        assert await store.get("key", Span(MAX_OBJECT - 3, MAX_OBJECT + 9)) == data[-3:]

    async def test_refuses_a_larger_one(self, store: ObjectStore, written: Written) -> None:
        with pytest.raises(ObjectTooLarge):
            await store.put("key", bytes(store.capabilities.largest_object + 1))
        assert written("key") is None

    @pytest.mark.parametrize(
        ("span", "expected"),
        [
            (Span(0, 3), b"abc"),
            (Span(2, 4), b"cd"),
            (Span(0, 6), b"abcdef"),
            (Span(4, 99), b"ef"),
            (Span(3, 3), b""),
            (Span(0, 0), b""),
            (Span(6, 9), b""),
            (Span(7, 9), b""),
            (Span(99, 99), b""),
        ],
    )
    async def test_a_span_gives_what_there_is_of_it(
        self, store: ObjectStore, span: Span, expected: bytes
    ) -> None:
        await store.put("key", b"abcdef")
        assert await store.get("key", span) == expected

    async def test_a_span_of_an_empty_object_is_empty(self, store: ObjectStore) -> None:
        await store.put("key", b"")
        assert await store.get("key", Span(0, 4)) == b""

    async def test_head_tells_size_and_time(self, store: ObjectStore) -> None:
        await store.put("key", b"abc")
        info = await store.head("key")
        assert (info.key, info.size) == ("key", 3)
        assert info.modified_us > 1_500_000_000_000_000
        assert {name for name, _ in info.digests} == store.capabilities.digests

    async def test_tells_how_much_room_there_is_if_it_knows(self, store: ObjectStore) -> None:
        room = await store.room()
        assert room is None or room > 0

    async def test_absent(self, store: ObjectStore) -> None:
        await store.put("other", b".")
        for call in (store.head, store.get):
            with pytest.raises(ObjectNotFound) as raised:
                await call("nothing")
            assert (raised.value.backend, raised.value.key) == (store.name, "nothing")
        with pytest.raises(ObjectNotFound):
            await store.get("nothing", Span(0, 0))
        with pytest.raises(ObjectNotFound):
            await store.get("other/below")

    @pytest.mark.parametrize("operation", KEY_CALLS)
    async def test_a_key_that_is_none_is_refused_everywhere(
        self, store: ObjectStore, operation: str
    ) -> None:
        for key in BAD_KEYS:
            with pytest.raises(InvalidKey):
                await KEY_CALLS[operation](store, key)
        assert await listed(store) == []

    async def test_a_key_that_is_none_is_not_deleted_among_many(self, store: ObjectStore) -> None:
        outcomes = await store.delete_many(BAD_KEYS)
        assert tuple(outcome.key for outcome in outcomes) == BAD_KEYS
        assert {type(outcome.error) for outcome in outcomes} == {InvalidKey}

    async def test_the_longest_key(self, store: ObjectStore, written: Written) -> None:
        key = "/".join(["a" * 255, "b" * 252, "cde"])
        await store.put(key, b".")
        assert written(key) == b"."
        assert await listed(store) == [key]

    async def test_create_leaves_what_is_there(self, store: ObjectStore, written: Written) -> None:
        await store.put("key", b"old")
        with pytest.raises(ObjectExists):
            await store.put("key", b"new")
        assert await store.get("key") == b"old" == written("key")

    async def test_overwrite_replaces_or_creates(
        self, store: ObjectStore, written: Written
    ) -> None:
        await store.put("key", b"old and long", mode=PutMode.OVERWRITE)
        await store.put("key", b"new", mode=PutMode.OVERWRITE)
        assert await store.get("key") == b"new" == written("key")

    @pytest.mark.parametrize("size", [1, 300 << 10])
    async def test_one_of_many_creators_wins(self, store: ObjectStore, size: int) -> None:
        lost: list[int] = []

        async def write(number: int) -> None:
            try:
                await store.put("packs/key", bytes([number]) * size)
            except ObjectExists:
                lost.append(number)

        async with anyio.create_task_group() as writers:
            for number in range(8):
                writers.start_soon(write, number)

        assert len(lost) == 7
        data = await store.get("packs/key")
        assert data[0] not in lost
        assert data == data[:1] * size

    async def test_a_reader_sees_one_or_the_other_of_two_overwrites(
        self, store: ObjectStore
    ) -> None:
        values = (b"a" * 300_000, b"b" * 400_000)
        await store.put("key", values[0])
        done = anyio.Event()

        async def read() -> None:
            while not done.is_set():
                assert await store.get("key") in values
                await checkpoint()

        async with anyio.create_task_group() as readers:
            readers.start_soon(read)
            readers.start_soon(read)
            for number in range(10):
                await store.put("key", values[number % 2], mode=PutMode.OVERWRITE)
            done.set()

    async def test_delete_forgets(self, store: ObjectStore, written: Written) -> None:
        await store.put("key", b".")
        await store.delete("key")
        assert written("key") is None
        with pytest.raises(ObjectNotFound):
            await store.get("key")
        await store.delete("key")
        await store.put("key", b"again")
        assert await store.get("key") == b"again"

    async def test_delete_of_nothing_is_fine(self, store: ObjectStore) -> None:
        await store.put("abc/def", b".")
        for key in ("nothing", "abc", "abc/def/ghi", "not/there"):
            await store.delete(key)
        assert await listed(store) == ["abc/def"]

    async def test_delete_many_tells_each_outcome_in_order(self, store: ObjectStore) -> None:
        for key in ("one", "two", "three"):
            await store.put(key, b".")
        outcomes = await store.delete_many(["two", "nothing", "A BAD ONE", "one", "two"])
        assert [outcome.key for outcome in outcomes] == [
            "two",
            "nothing",
            "A BAD ONE",
            "one",
            "two",
        ]
        assert [type(outcome.error) for outcome in outcomes if outcome.error] == [InvalidKey]
        assert await listed(store) == ["three"]

    async def test_delete_many_takes_more_than_a_batch(self, store: ObjectStore) -> None:
        await store.put("key-00042", b".")
        keys = [f"key-{number:05}" for number in range(store.capabilities.delete_batch + 50)]
        outcomes = await store.delete_many(keys)
        assert [outcome.key for outcome in outcomes] == keys
        assert not any(outcome.error for outcome in outcomes)
        assert await store.delete_many([]) == ()

    async def test_lists_by_code_point(self, store: ObjectStore) -> None:
        for key in KEYS:
            await store.put(key, b".")
        assert await listed(store) == sorted(KEYS)

    async def test_lists_a_prefix_from_any_key_on(self, store: ObjectStore) -> None:
        objects = dict.fromkeys(KEYS, b".")
        for key in KEYS:
            await store.put(key, b".")
        for prefix in PREFIXES:
            for start in ("", "abc", "abc/", "packs/ab", "packs/abcd", "zzzz", *KEYS[::3]):
                assert await listed(store, prefix, start) == kept(objects, prefix, start)

    async def test_a_listing_tells_size_and_time(self, store: ObjectStore) -> None:
        await store.put("key", b"abc")
        async with aclosing(store.list()) as objects:
            (info,) = [info async for info in objects]
        head = await store.head("key")
        assert (info.key, info.size, info.modified_us) == ("key", 3, head.modified_us)

    async def test_lists_what_stays_while_others_come_and_go(self, store: ObjectStore) -> None:
        stay = {f"packs/{number:060x}" for number in range(0, 40, 2)}
        go = {f"packs/{number:060x}" for number in range(1, 40, 2)}
        for key in stay | go:
            await store.put(key, b".")
        found: list[str] = []
        async with aclosing(store.list("packs/")) as objects:
            async for info in objects:
                found.append(info.key)
                if go:
                    await store.delete(go.pop())
                    await store.put(f"packs/{len(go):03}-new", b".")
        assert stay <= set(found)
        assert found == sorted(set(found))

    async def test_a_listing_may_be_left(self, store: ObjectStore) -> None:
        for key in ("one", "two", "three"):
            await store.put(key, b".")
        async with aclosing(store.list()) as objects:
            assert (await anext(objects)).key == "one"
        assert await listed(store) == ["one", "three", "two"]

    @pytest.mark.parametrize("size", [1000, 4 << 20])
    @pytest.mark.parametrize("delay", [0, 0.001, 0.005])
    async def test_a_cancelled_put_leaves_all_or_nothing(
        self, store: ObjectStore, written: Written, size: int, delay: float
    ) -> None:
        data = b"x" * size
        with anyio.move_on_after(delay):
            await store.put("packs/key", data)
        assert written("packs/key") in {None, data}
        assert await listed(store) == ["packs/key"][: written("packs/key") is not None]
        await store.put("packs/key", data, mode=PutMode.OVERWRITE)
        assert await store.get("packs/key") == data

    async def test_probe_finds_nothing_wrong_and_leaves_nothing(self, store: ObjectStore) -> None:
        await store.put("key", b".")
        await store.probe()
        assert await listed(store) == ["key"]

    async def test_a_new_store_is_empty(self, store: ObjectStore) -> None:
        assert await listed(store) == []
        await store.aclose()


async def check_against_a_dict(store: ObjectStore, steps: tuple[Step, ...]) -> None:
    """Take `steps` on `store` and on a dictionary, and compare what they show."""
    model: dict[str, bytes] = {}
    for step in steps:
        await _take(store, model, step)
    assert await listed(store) == kept(model)
    for key, data in model.items():
        assert await store.get(key) == data


async def _take(store: ObjectStore, model: dict[str, bytes], step: Step) -> None:
    match step:
        case Put(key, _, PutMode.CREATE) if key in model:
            with pytest.raises(ObjectExists):
                await store.put(key, step.data)
        case Put(key, data, mode):
            await store.put(key, data, mode=mode)
            model[key] = data
        case Delete(key):
            await store.delete(key)
            model.pop(key, None)
        case DeleteMany(keys):
            assert [outcome.key for outcome in await store.delete_many(keys)] == [*keys]
            for key in keys:
                model.pop(key, None)
        case Get(key, _) if key not in model:
            with pytest.raises(ObjectNotFound):
                await store.get(key, step.span)
        case Get(key, span):
            whole = Span(0, len(model[key])) if span is None else span
            assert await store.get(key, span) == model[key][whole.start : whole.stop]
            assert (await store.head(key)).size == len(model[key])
        case List(prefix, start_after):
            assert await listed(store, prefix, start_after) == kept(model, prefix, start_after)
        case _:
            assert_never(step)
