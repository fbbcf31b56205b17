"""TensorBoard: event files below RUN/tensorboard, a folder for each fold and seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorboard  # noqa: F401  # named here, as torch's own message would not say what to do
from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """Writes scalars; `tensorboard --logdir RUN/tensorboard` shows them."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "tensorboard"
        self._writers: dict[str, Any] = {}

    def begin(self, run: str, config: Mapping[str, Any], known: str | None) -> str:
        """Write the settings as text, unless they stand there already."""
        if known is None or not self._folder.is_dir():
            listed = "\n".join(f"    {key}: {value}" for key, value in config.items())
            self._writer("run").add_text("settings", listed)
            return f"{run}/{self._folder.name}"
        return known

    def epoch(self, fold: int, seed: int, row: Mapping[str, float]) -> None:
        """Write one scalar for each figure."""
        writer = self._writer(f"fold{fold}-seed{seed}")
        for name, value in row.items():
            if name != "epoch":
                writer.add_scalar(name, value, int(row["epoch"]))
        writer.flush()

    def end(self, metrics: Mapping[str, float] | None) -> None:
        """Write the scores and close all files."""
        for name, value in (metrics or {}).items():
            self._writer("run").add_scalar(f"test/{name}", value)
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def _writer(self, name: str) -> Any:
        if name not in self._writers:
            self._writers[name] = SummaryWriter(str(self._folder / name))
        return self._writers[name]


def make(root: Path) -> TensorBoard:
    """Return the tracker of a run folder."""
    return TensorBoard(root)
