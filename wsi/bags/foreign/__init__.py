"""Archives of other tools: read with care, imported, checked, and written for their readers."""

from wsi.bags.foreign.archive import Entry, Given, Layout
from wsi.bags.foreign.audit import Audited, audit_archive, audit_store, summed_up
from wsi.bags.foreign.exporting import EXPORTS, Exported, export_archive
from wsi.bags.foreign.importing import Outcome, import_archive, preview
from wsi.bags.foreign.open import LAYOUTS, layout_at, open_archive
from wsi.bags.foreign.provenance import DECLARED, NOT_RECORDED, VERIFIED, slide_of
from wsi.bags.foreign.store import ForeignStore

__all__ = [
    "DECLARED",
    "EXPORTS",
    "LAYOUTS",
    "NOT_RECORDED",
    "VERIFIED",
    "Audited",
    "Entry",
    "Exported",
    "ForeignStore",
    "Given",
    "Layout",
    "Outcome",
    "audit_archive",
    "audit_store",
    "export_archive",
    "import_archive",
    "layout_at",
    "open_archive",
    "preview",
    "slide_of",
    "summed_up",
]
