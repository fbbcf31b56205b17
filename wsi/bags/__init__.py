"""Bags: one slide's tile features, and the folders that hold them."""

from wsi.bags.aside import set_aside
from wsi.bags.bag import Bag, Provenance
from wsi.bags.base import BagStore
from wsi.bags.convert import convert
from wsi.bags.joined import JoinedBag, joined
from wsi.bags.means import BagMeans, bag_means
from wsi.bags.open import STORES, any_store, create_store, open_store
from wsi.bags.packed import PackedCohort
from wsi.bags.reuse import Earlier, Interleaved, earlier_rows, held_rows
from wsi.bags.scores import ALL_TILES, SCORES, TileFilter, beyond
from wsi.bags.select import check_uniform
from wsi.bags.sidecar import BagInfo
from wsi.bags.verify import Finding, find_stale
from wsi.bags.view import StoredBag, StoredBags
from wsi.bags.writer import DROPPED, BagWriter

__all__ = [
    "ALL_TILES",
    "DROPPED",
    "SCORES",
    "STORES",
    "Bag",
    "BagInfo",
    "BagMeans",
    "BagStore",
    "BagWriter",
    "Earlier",
    "Finding",
    "Interleaved",
    "JoinedBag",
    "PackedCohort",
    "Provenance",
    "StoredBag",
    "StoredBags",
    "TileFilter",
    "any_store",
    "bag_means",
    "beyond",
    "check_uniform",
    "convert",
    "create_store",
    "earlier_rows",
    "find_stale",
    "held_rows",
    "joined",
    "open_store",
    "set_aside",
]
