"""The page of results."""

from pathlib import Path


def write(out: Path, path: Path) -> None:
    raise NotImplementedError
