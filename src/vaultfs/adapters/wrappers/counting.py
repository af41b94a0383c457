"""Every change to a store, announced: crash tests number the announcements and stop at one."""

from collections.abc import Callable, Sequence

from vaultfs.adapters.wrappers.around import StoreAround
from vaultfs.ports.objects import Deleted, ObjectStore, Payload, PutMode

Effect = Callable[[str], None]
"""Called just before and just after every change, with what it is.

It may raise, or never return: the next thing is then not done, as in a crash.
"""


class CountingObjectStore(StoreAround):
    """`inner`, with `effect` called around put, delete and delete_many.

    A call that fails is announced before only: it had no effect to follow.
    """

    def __init__(self, inner: ObjectStore, effect: Effect) -> None:
        super().__init__(inner)
        self._effect = effect

    async def put(self, key: str, data: Payload, *, mode: PutMode = PutMode.CREATE) -> None:
        self._effect(f"before {self.name} put {key}")
        await self.inner.put(key, data, mode=mode)
        self._effect(f"after {self.name} put {key}")

    async def delete(self, key: str) -> None:
        self._effect(f"before {self.name} delete {key}")
        await self.inner.delete(key)
        self._effect(f"after {self.name} delete {key}")

    async def delete_many(self, keys: Sequence[str]) -> tuple[Deleted, ...]:
        what = f"{self.name} delete_many {' '.join(keys)}"
        self._effect(f"before {what}")
        outcomes = await self.inner.delete_many(keys)
        self._effect(f"after {what}")
        return outcomes
