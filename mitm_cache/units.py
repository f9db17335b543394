"""Numbers for people."""


def size(count: float) -> str:
    """Bytes, in the units of `cache.max_size`."""
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if count < 1024:
            break
        count, unit = count / 1024, larger
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def counted(count: int, noun: str) -> str:
    """1 image, 2 images."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
