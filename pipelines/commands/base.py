"""What every command shares: the app, its groups, common options, kinds of arguments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Group, Parameter
from cyclopts.validators import Number

import wsi

if TYPE_CHECKING:
    from pipelines.console import Console

HELP = """Whole-slide images to attention-MIL classifiers, with intervals a reviewer can trust.

slides -> tissue -> tiles -> embeddings -> bags -> splits -> training
       -> predictions -> report

Start with `wsi demo`, then `wsi scan DIR` on your own slides. Settings are
given as `key=value`, on top of a preset or a YAML file: see `wsi config show`.
"""
# Plain text: the markdown that help is otherwise read as takes longer to load than all else.
app = App(
    name="wsi",
    help=HELP,
    help_format="plaintext",
    version=wsi.__version__,
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # it would end without a word; see run_command
)
app["--help"].group = app["--version"].group = "Options"
DATA = Group("Slides to bags", sort_key=1)
LEARN = Group("Bags to results", sort_key=2)
LOOK = Group("Looking around", sort_key=3)


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """Options of every command."""

    json: Annotated[bool, Parameter(negative=())] = False
    """One JSON document on stdout in place of tables."""

    quiet: Annotated[bool, Parameter(negative=(), name=("--quiet", "-q"))] = False
    """Say only what went wrong."""

    verbose: Annotated[bool, Parameter(negative=(), name=("--verbose", "-v"))] = False
    """Say more."""

    debug: Annotated[bool, Parameter(negative=())] = False
    """Show the traceback of an error."""

    def console(self, log: Path | None = None) -> Console:
        """Return what the command talks through."""
        from pipelines.console import Console
        from wsi.errors import ConfigError

        if log is not None and log.parent.exists() and not log.parent.is_dir():
            raise ConfigError(f"{log.parent} is a file — give a folder as --out")
        console = Console(json=self.json, quiet=self.quiet, verbose=self.verbose, log=log)
        talking.append(console)
        return console


talking: list[Console] = []  # through which an error reaches the log of the command at work
COMMON = Common()
Jobs = Annotated[int, Parameter(validator=Number(gte=1))]
Settle = Annotated[float, Parameter(validator=Number(gte=0))]
Replicates = Annotated[int, Parameter(validator=Number(gte=100))]
PositiveMpp = Annotated[float, Parameter(validator=Number(gt=0))]
TileMap = Literal["contrast", "evidence", "pmi", "leave-one-out"]
TrackerName = Literal["tensorboard", "mlflow", "wandb"]
ForeignTool = Annotated[Literal["stamp", "clam", "csv"] | None, Parameter(name="--from")]
ForeignColumns = Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())]
ForeignLayout = Literal["clam", "trident", "stamp", "atlaspatch"]
SlidePlaces = Annotated[tuple[Path, ...], Parameter(consume_multiple=True, negative=())]
Settings = Annotated[str, Parameter(help="a preset or YAML file, then key=value settings")]
