"""Quantities as people read them."""


def human(size: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def counted(number: int, what: str) -> str:
    """`number` of something, for people."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
