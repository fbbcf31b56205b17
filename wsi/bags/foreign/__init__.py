"""Archives of other tools: read with care, imported, checked, and written for their readers."""

from wsi.bags.foreign.archive import Entry, Given, Layout
from wsi.bags.foreign.exporting import EXPORTS, Exported, export_archive
from wsi.bags.foreign.importing import Outcome, import_archive
from wsi.bags.foreign.open import LAYOUTS, open_archive
from wsi.bags.foreign.provenance import DECLARED, VERIFIED, slide_of
from wsi.bags.foreign.store import ForeignStore

__all__ = [
    "DECLARED",
    "EXPORTS",
    "LAYOUTS",
    "VERIFIED",
    "Entry",
    "Exported",
    "ForeignStore",
    "Given",
    "Layout",
    "Outcome",
    "export_archive",
    "import_archive",
    "open_archive",
    "slide_of",
]
