"""What all commands share: which vault, how to answer, and what to do with errors."""

import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from attrs import define, evolve

from vaultfs.domain.errors import Blocking, VaultError
from vaultfs.entrypoints.cli.errors import ExitCode, error_code, exit_code

if TYPE_CHECKING:
    from vaultfs.domain.nodes import User
    from vaultfs.domain.services.browse import Browse
    from vaultfs.entrypoints.client import RemoteVault
    from vaultfs.entrypoints.look import Look
    from vaultfs.entrypoints.settings import Settings
    from vaultfs.entrypoints.surface import Surface
    from vaultfs.entrypoints.vault import Vault
    from vaultfs.ports.progress import Progress

VaultOption = Annotated[
    str | None,
    typer.Option(
        "--vault",
        metavar="DIR|URL",
        help="The vault's folder, or its server: https://HOST[:PORT]. [env: VAULTFS_VAULT]",
    ),
]
FolderOption = Annotated[
    str | None,
    typer.Option("--vault", metavar="DIR", help="The vault's folder. [env: VAULTFS_VAULT]"),
]
"""Of commands that work on the vault itself alone."""
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="URL",
        help="For many servers: postgresql://USER@HOST/NAME. [env: VAULTFS_DATABASE]",
    ),
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="The object store: file:///DIR, s3://BUCKET, azure://CONTAINER, gs://BUCKET."
        " [env: VAULTFS_STORE]",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Answer in JSON, for programs.")]


def _in_bounds(value: int | None) -> int | None:
    if value is not None and not 0 <= value < 1 << 63:
        raise typer.BadParameter("no number of a version is like that")
    return value


def user_name(value: str | None) -> str | None:
    """`value`, which is to name a user, or None for oneself: an empty name does neither."""
    if value == "":
        raise typer.BadParameter("a name is not empty")
    return value


NumberOption = Annotated[
    int | None,
    typer.Option("--version", metavar="N", help="This version of a file.", callback=_in_bounds),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no remarks.")]


class Unwritable(OSError):
    """Standard output cannot be written: `run` tells that, whatever else went on."""


@contextmanager
def writing() -> Generator[TextIO, None, None]:
    """Standard output, to be written to and nothing else. Raises `Unwritable`."""
    try:
        yield sys.stdout
    except BrokenPipeError:  # no failure: nobody wants the rest
        raise
    except OSError as error:
        raise Unwritable(error.errno, error.strerror) from error


@define
class Session:
    """One call of the command line."""

    vault: str | None = None
    database: str | None = None
    store: str | None = None
    json: bool = False
    quiet: bool = False
    debug: bool = False

    @property
    def settings(self) -> "Settings":
        """Those of the vault that the call is about. Raises `InvalidField` if none is named."""
        from vaultfs.entrypoints.settings import read_settings

        return read_settings(self.vault, database=self.database, store=self.store)

    def answer(self, value: Any, text: Callable[[], str] | str = "") -> None:
        """Print `value` as JSON, or else `text`, on standard output."""
        if self.json:
            shown_text = json.dumps(value, default=str)
        else:
            shown_text = text if isinstance(text, str) else text()
        if shown_text:
            with writing() as out:
                out.write(shown_text + "\n")

    def refuse(self, code: str, message: str) -> None:
        """Tell why it was not done: as JSON on standard output, or else on standard error."""
        if self.json:
            self.answer({"error": {"code": code, "message": message}})
        else:
            sys.stderr.write(f"vaultfs: {shown(message)}\n")

    def remark(self, text: str) -> None:
        """Tell a person something, on standard error."""
        if not self.quiet:
            sys.stderr.write(text + "\n")

    @contextmanager
    def progress(
        self, title: str, total: int | None = None, *, files: bool = False
    ) -> Generator["Bar", None, None]:
        """A progress bar in bytes, or in `files`, on a terminal; else nothing."""
        if self.json or self.quiet or not sys.stderr.isatty():
            yield Bar()
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            *((MofNCompleteColumn(),) if files else (DownloadColumn(), TransferSpeedColumn())),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(title, total=total)
            yield Bar(
                lambda done: progress.advance(task, done),
                lambda size: progress.reset(task, total=size),
            )


def _nothing(_: int, /) -> None:
    """Where there is no bar."""


@define
class Bar:
    """A progress bar, or none."""

    advance: "Progress" = _nothing
    expect: Callable[[int], None] = _nothing
    """Told the total once it is known; what was done before does not count."""


defaults = Session()
"""What the options before the command said."""


def session(
    vault: str | None,
    *,
    database: str | None = None,
    store: str | None = None,
    as_json: bool,
    quiet: bool = False,
) -> Session:
    """The options of a command over those before it."""
    return evolve(
        defaults,
        vault=vault or defaults.vault,
        database=database or defaults.database,
        store=store or defaults.store,
        json=as_json or defaults.json,
        quiet=quiet or defaults.quiet,
    )


def run(call: Session, work: Callable[[], Coroutine[Any, Any, ExitCode | None]]) -> None:
    """Run a command to its end, and leave with its exit code."""
    try:
        code = _code_of(call, work)
        if code != ExitCode.INTERRUPTED:  # then a thread may hold it, and wait for a reader
            sys.stdout.flush()
    except BrokenPipeError:
        _silence_stdout()
        code = ExitCode.UNREAD
    except OSError as error:
        _silence_stdout()
        sys.stderr.write(f"vaultfs: standard output: {error.strerror}\n")
        code = ExitCode.FAILED
    raise typer.Exit(code)


def _code_of(call: Session, work: Callable[[], Coroutine[Any, Any, ExitCode | None]]) -> ExitCode:
    """Run a command to its end; its exit code, after telling what went wrong."""
    try:
        import anyio

        tune()
        code = anyio.run(_interruptible, work)
        return _stop(call) if code is None else code
    except VaultError as error:
        return _fail(call, error)
    except (BrokenPipeError, Unwritable):
        raise
    except OSError as error:
        return _fail_outside(call, error)
    except KeyboardInterrupt:
        return _stop(call)
    except Exception as error:  # noqa: BLE001 nobody is to see a traceback who did not ask
        return _bug(call, error)


def stop_signals() -> list[signal.Signals]:
    """SIGINT, SIGTERM, and that the terminal is gone, unless that is ignored (as by `nohup`)."""
    found = [signal.SIGINT, signal.SIGTERM]
    gone = getattr(signal, "SIGHUP", None)
    if gone is not None and signal.getsignal(gone) is not signal.SIG_IGN:
        found.append(gone)
    return found


async def _interruptible(
    work: Callable[[], Coroutine[Any, Any, ExitCode | None]],
) -> ExitCode | None:
    """What `work` returns, or None if a signal to stop came first.

    The signals cancel `work` as anyio cancels, which waits for what must not be torn
    apart, such as a transaction in its thread; the event loop's own way would not. A
    second signal is not waited for.
    """
    import anyio

    from vaultfs.domain.services.tasks import task_group

    async def watch() -> None:
        with anyio.open_signal_receiver(*stop_signals()) as signals:
            async for _ in signals:
                break
        tasks.cancel_scope.cancel()

    code: ExitCode | None = None
    async with task_group() as tasks:
        tasks.start_soon(watch)
        code = await work() or ExitCode.DONE
        tasks.cancel_scope.cancel()
    return code


def tune() -> None:
    """What is loaded stays, and little garbage comes in circles: collect it rarely.

    What a short command loads while it works is fewer objects than this: a look at them all
    would take 10 ms.
    """
    import gc

    gc.freeze()
    gc.set_threshold(150_000, 20, 20)
    gc.enable()


def _fail(call: Session, error: VaultError) -> ExitCode:
    blocked = isinstance(error, Blocking)
    way_out = "; `vaultfs lock ls` has the token for `vaultfs lock break`" if blocked else ""
    call.refuse(error_code(error), f"{error.message}{way_out}")
    if call.debug:
        raise error
    return exit_code(error)


def _fail_outside(call: Session, error: OSError) -> ExitCode:
    """What the operating system refused, where no adapter knows a better word for it."""
    where = "" if error.filename is None else f"{os.fspath(error.filename)}: "
    call.refuse("system", f"{where}{error.strerror or error}")
    if call.debug:
        raise error
    return ExitCode.FAILED


def _stop(call: Session) -> ExitCode:
    if call.json:
        call.refuse("interrupted", "interrupted")
        sys.stdout.flush()
    sys.stderr.write("vaultfs: interrupted; what was finished is kept\n")
    return ExitCode.INTERRUPTED


def _bug(call: Session, error: Exception) -> ExitCode:
    if call.debug:
        raise error
    text = f"{type(error).__name__}: {error}"
    if call.json:
        call.refuse("bug", text)
    sys.stderr.write(f"vaultfs: a bug: {shown(text)} (--debug before the command shows where)\n")
    return ExitCode.BUG


def _silence_stdout() -> None:
    """Nobody reads any more: let the interpreter flush into nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def server_of(call: Session) -> str | None:
    """The server that the call is about, if it is one."""
    from vaultfs.entrypoints.settings import read_place, server_named

    return server_named(read_place(call.vault, database=call.database, store=call.store))


def connected(server: str, locks: Sequence[str] = ()) -> "AbstractAsyncContextManager[RemoteVault]":
    """`client.connect` for commands.

    aiohttp reads the certificates of this system when it is imported, and takes 35 ms for it; a
    command that talks to http:// alone needs none.
    """
    with _no_certificates() if server.startswith("http://") else nullcontext():
        from vaultfs.entrypoints.client import connect
    return connect(server, locks=locks)


@contextmanager
def _no_certificates() -> Generator[None, None, None]:
    before = os.environ.get("SSL_CERT_FILE")
    os.environ["SSL_CERT_FILE"] = os.devnull
    try:
        yield
    finally:
        if before is None:
            del os.environ["SSL_CERT_FILE"]
        else:
            os.environ["SSL_CERT_FILE"] = before


@asynccontextmanager
async def looking(call: Session) -> "AsyncGenerator[Look, None]":
    """The vault that the call is about, to look at: of one in a folder, only the catalog."""
    server = server_of(call)
    if server is not None:
        async with connected(server) as remote:
            yield remote
        return
    from vaultfs.entrypoints.embedded import EmbeddedLook

    async with browsing(call) as (browse, user):
        yield EmbeddedLook(browse, user)


@asynccontextmanager
async def working(call: Session) -> "AsyncGenerator[Surface, None]":
    """The vault that the call is about, to work with, in a folder or behind a server."""
    server = server_of(call)
    if server is not None:
        from vaultfs.entrypoints.settings import shown_locks

        async with connected(server, shown_locks()) as remote:
            yield remote
        return
    from vaultfs.entrypoints.sdk import as_client

    async with opened(call) as vault, as_client(vault) as client:
        yield client


@asynccontextmanager
async def opened(call: Session) -> "AsyncGenerator[Vault, None]":
    """The vault that the call is about, which has to be in reach itself."""
    from vaultfs.entrypoints.vault import open_vault

    async with open_vault(call.settings) as vault:
        yield vault


@asynccontextmanager
async def browsing(call: Session) -> "AsyncGenerator[tuple[Browse, User], None]":
    """The catalog of the vault that the call is about, for a look."""
    from vaultfs.domain.services.browse import Browse
    from vaultfs.entrypoints.opening import OWNER, catalog_of

    catalog = await catalog_of(call.settings)
    try:
        yield Browse(catalog), await catalog.user(OWNER)
    finally:
        await catalog.aclose()


def shown(text: str) -> str:
    """`text` with everything escaped that could drive a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def local_time(micros: int) -> str:
    """A moment in local time, to the second."""
    from vaultfs.domain.nodes import moment

    return moment(micros).astimezone().isoformat(" ", "seconds")


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Aligned columns; those of numbers and sizes are the caller's to pad."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
