"""The API for any ASGI server: `vaultfs.entrypoints.http.asgi:app`.

It opens the vault that `VAULTFS_VAULT` names when the server starts it up, which has to
be there and to have a token (`vaultfs init`, `vaultfs token add`), and closes it when
the server shuts down. One process serves a vault of SQLite best.
"""

import logging

from starlette.types import Receive, Scope, Send

from vaultfs.adapters.heap import share_one_heap
from vaultfs.domain.errors import VaultError
from vaultfs.entrypoints.http.app import Api, Server
from vaultfs.entrypoints.http.serving import Listening, configure_log
from vaultfs.entrypoints.settings import read_settings
from vaultfs.entrypoints.vault import open_vault

log = logging.getLogger("vaultfs.server")


class Application:
    """The API, with a vault of its own from start-up to shutdown."""

    _api: Api | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or live through the server's life."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self._api is not None:
            await self._api(scope, receive, send)
        else:
            raise RuntimeError("the server does not speak the lifespan protocol: switch it on")

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()  # start-up
        share_one_heap()
        configure_log(Listening())
        try:
            async with open_vault(read_settings(None)) as vault:
                self._api = Api(Server(vault))
                await send({"type": "lifespan.startup.complete"})
                await receive()  # shutdown
                self._api = None
        except VaultError as error:
            log.exception("the vault cannot be served")
            await send({"type": "lifespan.startup.failed", "message": error.message})
            return
        await send({"type": "lifespan.shutdown.complete"})


app = Application()
