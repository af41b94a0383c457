"""`serve`, `user`, `token` and `audit`: a vault for many, over HTTP."""

import os
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from vaultfs.domain.errors import InvalidField, NotFound
from vaultfs.domain.quantities import counted, human
from vaultfs.entrypoints.cli.session import (
    DatabaseOption,
    FolderOption,
    JsonOption,
    QuietOption,
    Session,
    StoreOption,
    VaultOption,
    local_time,
    opened,
    run,
    server_of,
    session,
    shown,
    stop_signals,
    table,
    user_name,
    working,
    writing,
)
from vaultfs.entrypoints.configuration import (
    SETTINGS,
    named,
    read_configuration,
    without_password,
)

if TYPE_CHECKING:
    from vaultfs.domain.nodes import User
    from vaultfs.domain.services.accounts import Issued
    from vaultfs.domain.services.upkeep import Plan
    from vaultfs.domain.tokens import Scope, Token
    from vaultfs.entrypoints.http.serving import Listening
    from vaultfs.entrypoints.http.wire import AuditOut
    from vaultfs.entrypoints.people import People

users = typer.Typer(no_args_is_help=True, help="Users of a served vault, and their quotas.")
tokens = typer.Typer(no_args_is_help=True, help="Tokens: who may do what over HTTP.")


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(serve)
    app.command()(maintain)
    app.command("config")(show_config)
    app.command("audit")(show_audit)
    app.add_typer(users, name="user")
    app.add_typer(tokens, name="token")


ConfigOption = Annotated[
    str | None, typer.Option("--config", metavar="FILE", help="TOML. [env: VAULTFS_CONFIG]")
]


def _is(name: str) -> str:
    setting = SETTINGS[name]
    plain = "" if setting.default is None else f" [default: {setting.default}]"
    return f"{setting.text}{plain}"


def serve(
    folder: Annotated[
        str | None, typer.Argument(metavar="[DIR]", show_default=False, help="Made if missing.")
    ] = None,
    *,
    host: Annotated[str | None, typer.Option("--host", metavar="ADDRESS", help=_is("host"))] = None,
    port: Annotated[int | None, typer.Option("--port", metavar="N", help=_is("port"))] = None,
    tls_cert: Annotated[
        str | None, typer.Option("--tls-cert", metavar="FILE", help=_is("tls_cert"))
    ] = None,
    tls_key: Annotated[
        str | None, typer.Option("--tls-key", metavar="FILE", help=_is("tls_key"))
    ] = None,
    rate: Annotated[float | None, typer.Option("--rate", metavar="N", help=_is("rate"))] = None,
    max_chain_depth: Annotated[
        int | None, typer.Option("--max-chain-depth", metavar="N", help=_is("max_chain_depth"))
    ] = None,
    trash_days: Annotated[
        int | None, typer.Option("--trash-days", metavar="N", help=_is("trash_days"))
    ] = None,
    backup_hours: Annotated[
        int | None, typer.Option("--backup-hours", metavar="N", help=_is("backup_hours"))
    ] = None,
    gc_hours: Annotated[
        int | None, typer.Option("--gc-hours", metavar="N", help=_is("gc_hours"))
    ] = None,
    scrub_days: Annotated[
        int | None, typer.Option("--scrub-days", metavar="N", help=_is("scrub_days"))
    ] = None,
    config: ConfigOption = None,
    vault: FolderOption = None,
    database: DatabaseOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Serve the vault over HTTP until Ctrl-C; on first start, show a token for everything.

    Every option can also stand in the environment or in a file: see `vaultfs config`.
    """
    flags = {
        "host": host,
        "port": port,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "rate": rate,
        "max_chain_depth": max_chain_depth,
        "trash_days": trash_days,
        "backup_hours": backup_hours,
        "gc_hours": gc_hours,
        "scrub_days": scrub_days,
    }
    call = session(folder or vault, database=database, store=store, as_json=as_json, quiet=quiet)

    async def work() -> None:
        import anyio

        from vaultfs.adapters.heap import share_one_heap
        from vaultfs.entrypoints.http.serving import check_tls, first_token, serving
        from vaultfs.entrypoints.settings import settings_of
        from vaultfs.entrypoints.vault import have_vault, open_vault

        share_one_heap()
        found = read_configuration({**flags, **_place(call)}, os.environ, config)
        where = _listening({name: each.value for name, each in found.items()}, log=not quiet)
        settings = settings_of(named(found))
        check_tls(where)
        await have_vault(settings)
        async with open_vault(settings) as vault, serving(vault, where) as address:
            secret = await first_token(vault)  # not before it can be shown
            value = {"address": address, "token": secret, "vault": settings.name}
            call.answer(value, _welcome(address, secret))
            with writing() as out:
                out.flush()
            with anyio.open_signal_receiver(*stop_signals()) as signals:
                async for _ in signals:
                    break  # a second one is not waited for

    run(call, work)


def _place(call: Session) -> dict[str, str | None]:
    """What the flags of a call say about which vault it is."""
    return {"vault": call.vault, "database": call.database, "store": call.store}


def _listening(values: dict[str, Any], *, log: bool) -> "Listening":
    from vaultfs.domain.rates import Rate
    from vaultfs.entrypoints.http.serving import Listening

    rate: float = values["rate"]
    if not 0 < rate < 1e9:
        raise InvalidField(f"--rate {rate}: more than 0 requests a second")
    certificate, key = values["tls_cert"], values["tls_key"]
    return Listening(
        values["host"],
        values["port"],
        None if certificate is None else Path(certificate),
        None if key is None else Path(key),
        Rate(rate, max(1, round(4 * rate))),
        _depth(values["max_chain_depth"]),
        _plan(*(values[name] for name in UPKEEP)),
        log=log,
    )


def _depth(most: int) -> int:
    if not 0 <= most <= 1000:
        raise InvalidField(f"--max-chain-depth {most}: 0 to 1000; 0 composes none")
    return most


def _welcome(address: str, secret: str | None) -> str:
    lines = [f"serving {address} (docs: {address}/docs); Ctrl-C stops it"]
    if secret is not None:
        lines.append(f"token for everything, shown this once: {secret}")
    return "\n".join(lines)


def show_config(
    config: ConfigOption = None,
    vault: FolderOption = None,
    database: DatabaseOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what `serve` would be told, and by whom: flag, environment, file or nobody."""
    call = session(vault, database=database, store=store, as_json=as_json, quiet=quiet)

    async def work() -> None:
        told = read_configuration(_place(call), os.environ, config)
        found = {
            name: each._replace(value=without_password(each.value)) for name, each in told.items()
        }
        rows = [
            (name, "-" if each.value is None else str(each.value), each.source)
            for name, each in found.items()
        ]
        value = {name: {"value": each.value, "source": each.source} for name, each in found.items()}
        call.answer(value, lambda: table(rows))

    run(call, work)


UPKEEP: Final = ("trash_days", "backup_hours", "gc_hours", "scrub_days")


def _plan(trash_days: int, backup_hours: int, gc_hours: int, scrub_days: int) -> "Plan":
    from vaultfs.domain.services.upkeep import Plan

    times = (trash_days, backup_hours, gc_hours, scrub_days)
    if not all(0 <= each < 100_000 for each in times):
        flags = ", ".join("--" + name.replace("_", "-") for name in UPKEEP)
        raise InvalidField(f"{flags}: 0 for never, or how many")
    return Plan(
        timedelta(days=trash_days) if trash_days else None,
        timedelta(hours=backup_hours) if backup_hours else None,
        timedelta(hours=gc_hours) if gc_hours else None,
        timedelta(days=scrub_days) if scrub_days else None,
    )


TrashOption = Annotated[
    int, typer.Option("--trash-days", metavar="N", help=SETTINGS["trash_days"].text)
]
GcOption = Annotated[int, typer.Option("--gc-hours", metavar="N", help=SETTINGS["gc_hours"].text)]
ScrubOption = Annotated[
    int, typer.Option("--scrub-days", metavar="N", help=SETTINGS["scrub_days"].text)
]
BackupOption = Annotated[
    int, typer.Option("--backup-hours", metavar="N", help=SETTINGS["backup_hours"].text)
]


def maintain(
    trash_days: TrashOption = 30,
    backup_hours: BackupOption = 24,
    gc_hours: GcOption = 24,
    scrub_days: ScrubOption = 30,
    vault: FolderOption = None,
    database: DatabaseOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Do what is due: forget old versions and trash, back up, collect garbage, scrub."""
    call = session(vault, database=database, store=store, as_json=as_json, quiet=quiet)

    async def work() -> None:
        from attrs import asdict, evolve

        async with opened(call) as vault:
            plan = _plan(trash_days, backup_hours, gc_hours, scrub_days)
            done = await vault.upkeep().run(evolve(plan, duty=1.0))
        call.answer(
            asdict(done),
            f"{counted(done.pruned, 'old version')} and {counted(done.purged, 'node')} of the trash"
            f" forgotten; {counted(done.linked, 'delta')} recorded;"
            f" {counted(done.expired, 'upload')} ended; {counted(done.digests, 'digest')} verified,"
            f" {done.false_claims} of them claimed falsely;"
            f" {'made backup ' + done.backup if done.backup else 'no backup was due'};"
            f" {counted(done.condemned, 'pack')} condemned, {human(done.freed)} freed,"
            f" {human(done.scrubbed)} read again"
            + "".join(f"\nproblem: {shown(each)}" for each in done.problems),
        )

    run(call, work)


@asynccontextmanager
async def _people(call: Session) -> AsyncGenerator["People", None]:
    """The users of the vault that the call is about: for whoever has its folder, or a token."""
    if server_of(call) is not None:
        from vaultfs.entrypoints.client import RemoteVault
        from vaultfs.entrypoints.remote_people import RemotePeople

        async with working(call) as remote:
            assert isinstance(remote, RemoteVault)
            yield RemotePeople(remote)
        return
    from vaultfs.domain.services.accounts import Accounts
    from vaultfs.domain.tokens import ALL_SCOPES, Identity
    from vaultfs.entrypoints.people import EmbeddedPeople

    async with opened(call) as vault:
        owner = Identity(vault.user, ALL_SCOPES)
        yield EmbeddedPeople(Accounts(vault.catalog, vault.clock), owner)


# Users


def _user_json(user: "User") -> dict[str, Any]:
    return {"name": user.name, "quota": user.quota, "used": user.used}


def _size(text: str) -> int | None:
    """Bytes as `500M` or `2G` (powers of 1,024), or `none`."""
    if text == "none":
        return None
    number, unit = (text[:-1], text[-1:].upper()) if text[-1:].isalpha() else (text, "")
    if unit not in {"", "K", "M", "G", "T"} or not number.isdecimal() or len(number) > 15:
        raise InvalidField(f"{text}: a number of bytes as in 500M or 2G, or none")
    return int(number) << 10 * " KMGT".index(unit or " ")


@users.command("add")
def add_user(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="Of the user.")],
    quota: Annotated[
        str, typer.Option("--quota", metavar="N[KMGT]|none", help="Bytes of all versions.")
    ] = "none",
    vault: VaultOption = None,
    database: DatabaseOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make a user, who owns a tree of files."""
    call = session(vault, database=database, store=store, as_json=as_json, quiet=quiet)

    async def work() -> None:
        from shlex import quote

        most = _size(quota)
        async with _people(call) as people:
            user = await people.add_user(name, most)
        token = f"vaultfs token add --user {quote(shown(name))}"
        call.answer(_user_json(user), f"made user {shown(name)}; give a token with: {token}")

    run(call, work)


@users.command("ls")
def list_users(
    vault: VaultOption = None,
    database: DatabaseOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List all users."""
    call = session(vault, database=database, store=store, as_json=as_json, quiet=quiet)

    async def work() -> None:
        async with _people(call) as people:
            found = await people.users()
        rows = list(map(_user_row, found))
        call.answer([_user_json(each) for each in found], lambda: table(rows))

    run(call, work)


def _user_row(user: "User") -> tuple[str, ...]:
    quota = "no quota" if user.quota is None else f"of {human(user.quota)}"
    return shown(user.name), human(user.used).rjust(10), quota


@users.command("quota")
def set_quota(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="Of the user.")],
    quota: Annotated[
        str,
        typer.Argument(
            metavar="N[KMGT]|none", show_default=False, help="Bytes that the tree may hold."
        ),
    ],
    vault: VaultOption = None,
    database: DatabaseOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Set how many bytes all versions of a user's files may have."""
    call = session(vault, database=database, store=store, as_json=as_json, quiet=quiet)

    async def work() -> None:
        most = _size(quota)
        async with _people(call) as people:
            user = await people.set_quota(name, most)
        call.answer(_user_json(user), lambda: "  ".join(_user_row(user)))

    run(call, work)


# Tokens

UserOption = Annotated[
    str | None,
    typer.Option(
        "--user",
        metavar="NAME",
        help="Whose token it is; your own if missing.",
        callback=user_name,
    ),
]
ExpiresOption = Annotated[
    int | None,
    typer.Option("--days", metavar="N", min=1, max=36_500, help="Expires after so many days."),
]


def _token_json(token: "Token", secret: str | None = None) -> dict[str, Any]:
    from vaultfs.domain.nodes import moment

    def when(at_us: int | None) -> str | None:
        return None if at_us is None else moment(at_us).isoformat()

    value: dict[str, Any] = {
        "id": token.id,
        "name": token.name,
        "scopes": token.scopes.split(),
        "created": when(token.created_us),
        "expires": when(token.expires_us),
        "last_used": when(token.used_us),
    }
    return value if secret is None else {**value, "token": secret}


def _scopes(text: str) -> "frozenset[Scope]":
    from vaultfs.domain.tokens import Scope

    names = [each for each in text.replace(",", " ").split() if each]
    if unknown := [each for each in names if each not in {*Scope}]:
        raise InvalidField(f"--scopes {unknown[0]}: read, write, admin, with commas between")
    return frozenset(map(Scope, names))


def _expiry(days: int | None) -> datetime | None:
    return None if days is None else datetime.now(UTC) + timedelta(days=days)


def _tell(issued: "Issued") -> str:
    return f"token {issued.token.id} ({issued.token.scopes}), shown this once:\n{issued.secret}"


@tokens.command("add")
def add_token(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="What it is for.")] = "",
    user: UserOption = None,
    scopes: Annotated[
        str, typer.Option("--scopes", metavar="read,write,admin", help="What it allows.")
    ] = "read,write",
    days: ExpiresOption = None,
    vault: VaultOption = None,
    database: DatabaseOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make a token and show it, once."""
    call = session(vault, database=database, store=store, as_json=as_json, quiet=quiet)

    async def work() -> None:
        wanted = _scopes(scopes)
        async with _people(call) as people:
            issued = await people.add_token(user or people.own, name, wanted, _expiry(days))
        call.answer(_token_json(issued.token, issued.secret), lambda: _tell(issued))

    run(call, work)


@tokens.command("ls")
def list_tokens(
    user: UserOption = None,
    vault: VaultOption = None,
    database: DatabaseOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List a user's tokens; their secrets are known to nobody."""
    call = session(vault, database=database, store=store, as_json=as_json, quiet=quiet)

    async def work() -> None:
        async with _people(call) as people:
            found = await people.tokens(user or people.own)
        call.answer(
            [_token_json(each) for each in found],
            lambda: table(list(map(_token_row, found))) if found else "",
        )

    run(call, work)


def _token_row(token: "Token") -> tuple[str, ...]:
    used = "never used" if token.used_us is None else f"used {local_time(token.used_us)}"
    ends = "" if token.expires_us is None else f"expires {local_time(token.expires_us)}"
    return token.id, token.scopes, used, ends, shown(token.name)


@tokens.command("rotate")
def rotate_token(
    number: Annotated[
        str,
        typer.Argument(
            metavar="ID", show_default=False, help="Of the token, as token ls shows it."
        ),
    ],
    user: UserOption = None,
    overlap: Annotated[
        int,
        typer.Option(
            "--overlap",
            metavar="SECONDS",
            min=0,
            max=2_592_000,
            help="Seconds the old secret stays good.",
        ),
    ] = 86_400,
    days: ExpiresOption = None,
    vault: VaultOption = None,
    database: DatabaseOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Give a token a new secret and show it, once."""
    call = session(vault, database=database, store=store, as_json=as_json, quiet=quiet)

    async def work() -> None:
        async with _people(call) as people:
            with _whose(user):
                issued = await people.rotate_token(
                    user or people.own, number, timedelta(seconds=overlap), _expiry(days)
                )
        call.answer(_token_json(issued.token, issued.secret), lambda: _tell(issued))

    run(call, work)


@contextmanager
def _whose(user: str | None) -> Generator[None, None, None]:
    """Say how to name the user of a token that is not the caller's."""
    try:
        yield
    except NotFound as error:
        more = ": --user NAME says whose it is" if user is None else ""
        raise NotFound(f"{error.message}{more}") from error


@tokens.command("revoke")
def revoke_token(
    number: Annotated[
        str,
        typer.Argument(
            metavar="ID", show_default=False, help="Of the token, as token ls shows it."
        ),
    ],
    user: UserOption = None,
    vault: VaultOption = None,
    database: DatabaseOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make a token useless, at once and for ever."""
    call = session(vault, database=database, store=store, as_json=as_json, quiet=quiet)

    async def work() -> None:
        async with _people(call) as people:
            with _whose(user):
                await people.revoke_token(user or people.own, number)
        call.answer({"revoked": number}, f"token {shown(number)} is good for nothing any more")

    run(call, work)


# Audit


def show_audit(
    vault: VaultOption = None,
    database: DatabaseOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List what was done to users, tokens, limits and locks, and by whom; oldest first."""
    call = session(vault, database=database, store=store, as_json=as_json, quiet=quiet)

    async def work() -> None:
        from msgspec import to_builtins

        async with _people(call) as people:
            found = await people.audit()
        call.answer(to_builtins(found), lambda: table(list(map(_audit_row, found))))

    run(call, work)


def _audit_row(row: "AuditOut") -> tuple[str, ...]:
    from vaultfs.domain.nodes import micros

    by = "the server" if row.user is None else shown(row.user)
    whose = "" if row.tree is None else f"of {shown(row.tree)}"
    return local_time(micros(row.at)), by, row.kind, whose, shown(row.subject)
