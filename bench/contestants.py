"""How each contestant stores and returns one file or one tree.

The repository or vault is made anew, untimed, for every turn; `put` and `get` are timed, and
what `get` wrote must equal the input. Everything runs with the options a user would get by
default, except that borg does not encrypt; restic always does.
"""

import sys
from pathlib import Path

from bench.harness import Command, Contestant, Plan, Step


def vaultfs(*arguments: str, folder: Path) -> Command:
    """Our command line, of the Python that runs this; `folder` has the HOME."""
    script = Path(sys.executable).with_name("vaultfs")
    argv = (str(script),) if script.exists() else (sys.executable, "-m", "vaultfs")
    return Command((*argv, *arguments), folder, {"HOME": str(folder / "home")})


def restic(*arguments: str, folder: Path, cwd: Path | None = None) -> Command:
    env = {"HOME": str(folder / "home"), "RESTIC_PASSWORD": "benchmark"}
    return Command(("restic", "--repo", str(folder / "repo"), *arguments), cwd or folder, env)


def borg(*arguments: str, folder: Path, cwd: Path | None = None) -> Command:
    env = {
        "HOME": str(folder / "home"),
        "BORG_REPO": str(folder / "repo"),
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
    }
    return Command(("borg", *arguments), cwd or folder, env)


def our_contestant(source: Path) -> Contestant:
    def plan(folder: Path) -> Plan:
        vault = str(folder / "vault")
        back = folder / "back"
        put = ("--vault", vault, "put", str(source), f"/{source.name}")
        get = ("--vault", vault, "get", f"/{source.name}", str(back))
        return Plan(
            (vaultfs("init", vault, folder=folder),),
            (
                Step("put", vaultfs(*put, folder=folder)),
                Step("get", vaultfs(*get, folder=folder)),
            ),
            ((source, back),),
        )

    return Contestant("vaultfs", plan)


def restic_contestant(source: Path) -> Contestant:
    def plan(folder: Path) -> Plan:
        restore = ("restore", "latest", "--target", str(folder / "back"))
        return Plan(
            (restic("init", folder=folder),),
            (
                Step("put", restic("backup", source.name, folder=folder, cwd=source.parent)),
                Step("get", restic(*restore, folder=folder)),
            ),
            ((source, folder / "back" / source.name),),
        )

    return Contestant("restic", plan)


def borg_contestant(source: Path) -> Contestant:
    def plan(folder: Path) -> Plan:
        back = folder / "back"
        back.mkdir()
        create = ("create", "--compression", "lz4", "::one", source.name)
        return Plan(
            (borg("init", "--encryption=none", folder=folder),),
            (
                Step("put", borg(*create, folder=folder, cwd=source.parent)),
                Step("get", borg("extract", "::one", folder=folder, cwd=back)),
            ),
            ((source, back / source.name),),
        )

    return Contestant("borg", plan)


def there_and_back(
    name: str, source: Path, put: tuple[str, ...], get: tuple[str, ...]
) -> Contestant:
    """A contestant without a repository.

    `put` makes `{there}` of `{source}` and `get` makes `{back}` of `{there}`; no `get`, no step.
    """

    def plan(folder: Path) -> Plan:
        back = folder / "back"
        places = {
            "{source}": str(source),
            "{there}": str(folder / "there"),
            "{back}": str(back),
        }

        def command(template: tuple[str, ...]) -> Command:
            filled = list(template)
            for place, path in places.items():
                filled = [part.replace(place, path) for part in filled]
            return Command(tuple(filled), folder, {"HOME": str(folder / "home")})

        if not get:
            return Plan((), (Step("put", command(put)),))
        return Plan((), (Step("put", command(put)), Step("get", command(get))), ((source, back),))

    return Contestant(name, plan)
