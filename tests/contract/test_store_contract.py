"""What every bag store does, whatever its file format."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wsi.bags import Bag, BagStore, Provenance, remembered
from wsi.bags.h5 import H5Store
from wsi.bags.sidecar import write_sidecar
from wsi.bags.zarr_zip import ZarrStore
from wsi.errors import BagCorruptError, BagError, BagMissingError, CohortError
from wsi.files import file_name_of

ROWS, DIM = 2500, 6
KILLED_WRITER = """
import os, signal
import numpy as np
from wsi.bags import Provenance, create_store
store = create_store({root!r}, {fmt!r})
made = Provenance(**{made!r})
if {moment!r} == "publishing":
    store._write_file = lambda path, bag, attributes: (
        type(store)._write_file(store, path, bag, attributes), os.kill(os.getpid(), signal.SIGKILL))
with store.writer("killed", 8, 3, made) as writer:
    writer.append(np.ones((4, 3), np.float32), np.zeros((4, 2), int), np.ones(4))
    if {moment!r} == "appending":
        os.kill(os.getpid(), signal.SIGKILL)
    writer.append(np.ones((4, 3), np.float32), np.zeros((4, 2), int), np.ones(4))
"""

LARGE_WRITER = """
import numpy as np
from pathlib import Path
from wsi.bags import Provenance, create_store
store = create_store({root!r}, {fmt!r})
made = Provenance(**{made!r})
features = np.random.default_rng(0).normal(size=(1000, 512)).astype(np.float32)
xy0, tissue = np.zeros((1000, 2), int), np.ones(1000)
def write(slide_id, n):
    with store.writer(slide_id, n, 512, made) as writer:
        for _ in range(n // 1000):
            writer.append(features, xy0, tissue)
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
write("small", 8000)
before = peak()
write("large", {rows})
print(peak() - before)
"""


def provenance(slide: str = "f" * 64, precision: str = "float16", **tiling: object) -> Provenance:
    settings = {"mpp": 0.5, "tile_px": 256, "stride_um": 128.0, "min_tissue": 0.05} | tiling
    return Provenance(
        slide={"fingerprint": slide, "mpp": [0.25, 0.25]},
        tiling={"settings": settings, "resolved": {"size0": [512, 512]}},
        encoder={"name": "texture-v1", "fingerprint": "e" * 64},
        tissue={"settings": {"method": "od_otsu"}},
        precision=precision,  # pyright: ignore[reportArgumentType]
    )


def arrays(n: int = ROWS, dim: int = DIM, seed: int = 0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, dim)).astype(np.float32)
    return features, rng.integers(0, 100_000, (n, 2)), rng.uniform(0, 1, n)


def bag(slide_id: str = "a", seed: int = 0, n: int = 20) -> Bag:
    features, xy0, tissue = arrays(n, seed=seed)
    made = provenance(f"{slide_id}-{seed}")
    return Bag(
        slide_id,
        features.astype(np.float16),
        xy0.astype(np.int32),
        tissue.astype(np.float16),
        made,
        scores(n, seed),
    )


def scores(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([seed, 1])
    return {name: rng.uniform(0, 1, n).astype(np.float16) for name in ("blur", "pen", "fold")}


def flip(path: Path, position: int, mask: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= mask
    path.write_bytes(data)


class StoreContract:
    """Inherit and set `kind` to have a store checked."""

    kind: type[BagStore]

    @pytest.fixture
    def store(self, tmp_path: Path) -> BagStore:
        (tmp_path / "bags").mkdir()
        return self.kind(tmp_path / "bags")

    def files(self, store: BagStore) -> list[str]:
        return sorted(p.name for p in store.root.iterdir())

    def bag_path(self, store: BagStore, slide_id: str) -> Path:
        return store.root / f"{file_name_of(slide_id)}{store.suffix}"

    # -- content ------------------------------------------------------------------------------

    def test_rows_read_back_are_the_rows_appended(self, store):
        features, xy0, tissue = arrays()
        with store.writer("a", ROWS, DIM, provenance()) as writer:
            for part in np.array_split(np.arange(ROWS), 7):
                writer.append(features[part], xy0[part], tissue[part])
            writer.counts["dropped"] = 3
            writer.timings["decode_s"] = 1.5
        read = store.read("a")
        np.testing.assert_array_equal(read.features, features.astype(np.float16))
        np.testing.assert_array_equal(read.xy0, xy0)
        np.testing.assert_array_equal(read.tissue, tissue.astype(np.float16))
        assert read.provenance == provenance()
        info = store.info("a")
        assert (info.n, info.dim, info.dtype, info.status) == (ROWS, DIM, "float16", "done")
        assert info.counts == {"planned": ROWS, "dropped": 3}
        assert info.timings == {"decode_s": 1.5}
        assert info.bytes == self.bag_path(store, "a").stat().st_size
        assert store.verify("a") == []
        assert store.stray() == []

    def test_float32_is_kept_exactly(self, store):
        features, xy0, tissue = arrays(50)
        with store.writer("a", 50, DIM, provenance(precision="float32")) as writer:
            writer.append(features, xy0, tissue)
        np.testing.assert_array_equal(store.read("a").features, features)
        assert store.info("a").max_rel_error is None

    def test_rounding_error_is_measured_at_write(self, store):
        features, xy0, tissue = arrays(300)
        with store.writer("a", 300, DIM, provenance()) as writer:
            writer.append(features, xy0, tissue)
        exact = features.astype(np.float64)
        errors = np.abs(features.astype(np.float16).astype(np.float64) - exact) / np.abs(exact)
        worst = errors[np.abs(exact) >= 2.0**-14].max()
        assert store.info("a").max_rel_error == pytest.approx(worst, rel=1e-3)
        assert 0 < worst <= 2.0**-11

    @pytest.mark.parametrize(
        "rows",
        [
            np.array([5, 3, 2400, 3]),
            [0],
            slice(10, 2000, 7),
            slice(None, None, -1),
            np.arange(1000, 1100),
        ],
    )
    def test_chosen_rows_come_in_the_order_asked_for(self, store, rows):
        features, xy0, tissue = arrays()
        with store.writer("a", ROWS, DIM, provenance()) as writer:
            writer.append(features, xy0, tissue)
        read = store.read("a", rows)
        np.testing.assert_array_equal(read.features, features.astype(np.float16)[rows])
        np.testing.assert_array_equal(read.xy0, xy0[rows])
        np.testing.assert_array_equal(read.tissue, tissue.astype(np.float16)[rows])

    @pytest.mark.parametrize("rows", [[20], [-1], [], [0.5], [True], [[1]]])
    def test_rows_that_are_not_rows_are_refused(self, store, rows):
        store.put(bag())
        with pytest.raises(BagError, match="rows must"):
            store.read("a", rows)

    @pytest.mark.parametrize(
        "slide_id",
        [
            "site-a/x",
            "per%2Fcent",
            "per/cent",
            "切片/α",
            "a b",
            ".hidden",
            "x.json",
            "{x}",
            "n" * 400,
        ],
    )
    def test_any_id_keeps_its_own_bag_inside_the_folder(self, store, slide_id):
        store.put(bag("other", seed=1))
        store.put(bag(slide_id))
        assert store.ids() == sorted(["other", slide_id])
        np.testing.assert_array_equal(store.read(slide_id).features, bag(slide_id).features)
        assert store.verify(slide_id) == []
        assert len(self.files(store)) == 4
        assert [p.name for p in store.root.parent.iterdir()] == [store.root.name]

    @pytest.mark.parametrize("slide_id", ["../x", "a/../../x", "/etc/x", "", "nul\0"])
    def test_an_id_that_leaves_the_folder_is_refused(self, store, slide_id):
        with pytest.raises(CohortError):
            store.writer(slide_id, 1, 1, provenance())
        with pytest.raises(CohortError):
            store.info(slide_id)

    # -- scores and bad tiles -----------------------------------------------------------------

    def test_scores_read_back_are_those_appended(self, store):
        features, xy0, tissue = arrays()
        given = scores(ROWS)
        with store.writer("a", ROWS, DIM, provenance()) as writer:
            for part in np.array_split(np.arange(ROWS), 7):
                of_part = {name: values[part] for name, values in given.items()}
                writer.append(features[part], xy0[part], tissue[part], of_part)
        rows = np.array([5, 3, 2400, 3])
        whole, some = store.read("a"), store.read("a", rows)
        assert list(whole.quality) == list(given)
        for name, values in given.items():
            assert whole.quality[name].dtype == np.float16
            np.testing.assert_array_equal(whole.quality[name], values)
            np.testing.assert_array_equal(some.quality[name], values[rows])
        np.testing.assert_array_equal(whole.features, features.astype(np.float16))
        assert store.verify("a") == []

    def test_a_bag_without_scores_says_so(self, store):
        features, xy0, tissue = arrays(10)
        with store.writer("a", 10, DIM, provenance()) as writer:
            writer.append(features, xy0, tissue)
        assert store.read("a").quality is None
        assert list(store.info("a").scores) == []

    @pytest.mark.parametrize(
        "given",
        [
            {"blur": np.zeros(4)},
            {name: np.zeros(4) for name in ("pen", "fold", "blur")},
            {name: np.zeros(4) for name in ("blur", "pen", "fold", "dust")},
            scores(4) | {"pen": np.zeros(3)},
            scores(4) | {"fold": np.full(4, 1.5)},
            scores(4) | {"fold": np.full(4, np.nan)},
        ],
    )
    def test_other_scores_are_refused(self, store, given):
        features, xy0, tissue = arrays(4)
        with pytest.raises(BagError), store.writer("a", 4, DIM, provenance()) as writer:
            writer.append(features, xy0, tissue, given)
        assert self.files(store) == []

    def test_scores_for_some_rows_only_are_refused(self, store):
        features, xy0, tissue = arrays(4)
        with pytest.raises(BagError, match="some rows"):  # noqa: SIM117, PT012
            with store.writer("a", 8, DIM, provenance()) as writer:
                writer.append(features, xy0, tissue, scores(4))
                writer.append(features, xy0, tissue)
        assert self.files(store) == []

    def test_bad_tiles_are_named_in_the_sidecar(self, store):
        features, xy0, tissue = arrays(4)
        bad = [{"xy0": [512, 1024], "reason": "no such marker"}]
        with store.writer("a", 5, DIM, provenance()) as writer:
            writer.append(features, xy0, tissue)
            writer.leave_out(1, "bad")
            writer.bad_tiles += bad
        content = json.loads((store.root / "a.json").read_text())
        assert content["bad_tiles"] == bad
        assert content["counts"] == {"planned": 5, "bad": 1}
        assert store.info("a").bad_tiles == bad

    @pytest.mark.parametrize(
        ("reasons", "said"),
        [
            (["missing", "missing"], "no-data"),
            (["missing", "dropped-blur"], "all-dropped"),
            (["dropped-pen", "dropped-fold"], "all-dropped"),
        ],
    )
    def test_a_slide_of_which_all_was_left_out_says_why(self, store, reasons, said):
        with store.writer("a", 2, DIM, provenance()) as writer:
            for reason in reasons:
                writer.leave_out(1, reason)
        info = store.info("a")
        assert (info.status, info.reason) == ("empty", said)
        assert sum(info.counts[reason] for reason in set(reasons)) == 2

    # -- completeness -------------------------------------------------------------------------

    def test_a_bag_is_invisible_until_its_block_ends(self, store):
        features, xy0, tissue = arrays(10)
        with store.writer("a", 10, DIM, provenance()) as writer:
            writer.append(features, xy0, tissue)
            assert store.ids() == []
            assert not store.holds("a", provenance().key)
            with pytest.raises(BagMissingError, match="preprocess"):
                store.read("a")
        assert store.ids() == ["a"]
        assert store.holds("a", provenance().key)
        assert not store.holds("a", provenance(mpp=1.0).key)

    @pytest.mark.parametrize("came", [0, 9])
    def test_fewer_rows_than_planned_publish_nothing(self, store, came):
        features, xy0, tissue = arrays(came)
        writer = store.writer("a", 10, DIM, provenance())
        with pytest.raises(BagError, match=f"{came} rows came for 10"), writer:
            writer.append(features, xy0, tissue)
        assert self.files(store) == []

    def test_more_rows_than_planned_publish_nothing(self, store):
        features, xy0, tissue = arrays(11)
        with pytest.raises(BagError, match="11 rows for 10"):  # noqa: SIM117
            with store.writer("a", 10, DIM, provenance()) as writer:
                writer.append(features, xy0, tissue)
        assert self.files(store) == []

    def test_rows_left_out_are_counted(self, store):
        features, xy0, tissue = arrays(8)
        with store.writer("a", 10, DIM, provenance()) as writer:
            writer.append(features, xy0, tissue)
            writer.leave_out(2, "bad")
        assert store.info("a").counts == {"planned": 10, "bad": 2}
        assert store.info("a").n == 8

    def test_an_exception_inside_the_block_leaves_nothing(self, store):
        features, xy0, tissue = arrays(10)
        with pytest.raises(KeyboardInterrupt):  # noqa: SIM117, PT012
            with store.writer("a", 10, DIM, provenance()) as writer:
                writer.append(features, xy0, tissue)
                raise KeyboardInterrupt
        assert self.files(store) == []

    def test_an_old_bag_stays_while_a_new_one_fails(self, store):
        store.put(bag("a", seed=1))
        with pytest.raises(BagError), store.writer("a", 10, DIM, provenance()):
            pass
        np.testing.assert_array_equal(store.read("a").features, bag("a", seed=1).features)

    def test_a_replaced_bag_is_wholly_the_new_one(self, store):
        store.put(bag("a", seed=1))
        store.put(bag("a", seed=2, n=7))
        np.testing.assert_array_equal(store.read("a").features, bag("a", seed=2, n=7).features)
        assert store.verify("a") == []

    @pytest.mark.parametrize("moment", ["appending", "publishing"])
    def test_a_killed_writer_leaves_nothing_visible(self, store, moment):
        script = KILLED_WRITER.format(
            root=str(store.root), fmt=store.format, made=provenance().to_json(), moment=moment
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        assert store.ids() == []
        assert [p.name for p in store.stray()] == self.files(store)
        assert len(self.files(store)) == (0 if moment == "appending" else 1)
        store.put(bag("killed"))
        assert store.ids() == ["killed"]

    @pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is unknown")
    def test_memory_does_not_grow_with_the_slide(self, store):
        script = LARGE_WRITER.format(
            root=str(store.root), fmt=store.format, made=provenance().to_json(), rows=80_000
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert store.info("large").bytes > 80_000_000
        assert int(done.stdout) < 40_000_000

    # -- bad input ----------------------------------------------------------------------------

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e6])
    def test_values_float16_cannot_hold_are_refused_by_row(self, store, value):
        features, xy0, tissue = arrays(10)
        features[7, 2] = value
        with pytest.raises(BagError, match=r"1 rows .* \(rows 17\)"):  # noqa: SIM117, PT012
            with store.writer("a", 20, DIM, provenance()) as writer:
                writer.append(np.ones((10, DIM), np.float32), xy0, tissue)
                writer.append(features, xy0, tissue)
        assert self.files(store) == []

    @pytest.mark.parametrize(
        ("features", "xy0", "tissue"),
        [
            (np.ones((2, 5), np.float32), np.ones((2, 2), int), np.ones(2)),
            (np.ones((2, 6), np.float32), np.ones((3, 2), int), np.ones(2)),
            (np.ones((2, 6), np.float32), np.ones((2, 2), int), np.ones((2, 1))),
            (np.ones((2, 6), np.float64), np.ones((2, 2), int), np.ones(2)),
            (np.ones((2, 6), np.float32), np.ones((2, 2)), np.ones(2)),
            (np.ones((2, 6), np.float32), np.full((2, 2), 2**31), np.ones(2)),
            (np.ones((2, 6), np.float32), np.ones((2, 2), int), np.array([0.5, np.nan])),
            (np.ones((2, 6), np.float32), np.ones((2, 2), int), np.array([0.5, 1.5])),
        ],
    )
    def test_rows_of_another_shape_type_or_range_are_refused(self, store, features, xy0, tissue):
        with pytest.raises(BagError), store.writer("a", 2, 6, provenance()) as writer:
            writer.append(features, xy0, tissue)
        assert self.files(store) == []

    # -- empty slides -------------------------------------------------------------------------

    def test_an_empty_slide_is_known_and_never_read(self, store):
        store.put(bag("slide"))
        store.write_empty("slide", provenance(), reason="no-tissue", counts={"planned": 0})
        assert store.ids() == []
        assert [(i.slide_id, i.status, i.reason) for i in store.infos()] == [
            ("slide", "empty", "no-tissue")
        ]
        assert store.holds("slide", provenance().key)
        assert store.verify("slide") == []
        assert self.files(store) == ["slide.json"]
        with pytest.raises(BagMissingError, match="no-tissue"):
            store.read("slide")

    def test_removed_bags_are_gone(self, store):
        store.put(bag("a"))
        store.remove("a")
        store.remove("never-there")
        assert self.files(store) == []

    def test_a_bag_replaced_between_two_reads_is_read_anew(self, store, monkeypatch):
        monkeypatch.setattr(remembered, "_SETTLED_NS", 0)
        store.put(bag("a", seed=1))
        np.testing.assert_array_equal(store.read("a").features, bag("a", seed=1).features)
        np.testing.assert_array_equal(store.read("a").features, bag("a", seed=1).features)
        self.kind(store.root).put(bag("a", seed=2, n=31))
        np.testing.assert_array_equal(store.read("a").features, bag("a", seed=2, n=31).features)
        self.bag_path(store, "a").unlink()
        with pytest.raises(BagCorruptError, match="gone"):
            store.read("a")

    @pytest.mark.parametrize(
        "rows", [slice(5, 9), slice(2, 2000), slice(9, 2, -3), slice(-4, None)]
    )
    def test_slices_are_those_of_the_whole(self, store, rows):
        store.put(bag("a", n=2100))
        whole, some = store.read("a"), store.read("a", rows)
        np.testing.assert_array_equal(some.features, whole.features[rows])
        np.testing.assert_array_equal(some.xy0, whole.xy0[rows])

    # -- damage -------------------------------------------------------------------------------

    def test_any_flipped_bit_of_a_bag_is_found(self, store):
        store.put(bag("a"))
        path = self.bag_path(store, "a")
        sound = path.read_bytes()
        for position in np.random.default_rng(0).integers(0, len(sound), 40):
            flip(path, position, 1 << (position % 8))
            assert [f.state for f in store.verify("a")] == ["corrupt"]
            assert "a" in store.verify("a")[0].message
            path.write_bytes(sound)
        assert store.verify("a") == []

    def test_any_changed_byte_of_a_sidecar_hides_the_bag_and_is_named(self, store):
        store.put(bag("a"))
        path = store.root / "a.json"
        sound = path.read_bytes()
        with path.open("r+b", buffering=0) as handle:  # in place: quicker than made anew
            for position in range(0, len(sound), 3):
                for replacement in (b"\t", b" ", b"7", bytes([sound[position] ^ 1])):
                    if replacement[0] != sound[position]:
                        os.pwrite(handle.fileno(), replacement, position)
                        assert store.ids() == [], (position, replacement)
                os.pwrite(handle.fileno(), sound[position : position + 1], position)
            assert store.ids() == ["a"]
            os.pwrite(handle.fileno(), b" ", 0)
        assert [f.state for f in store.verify_all()] == ["corrupt"]
        with pytest.raises(BagMissingError, match="sidecar"):
            store.read("a")

    @pytest.mark.parametrize("cut", [1, 100, 10_000_000])
    def test_a_cut_bag_is_refused_and_named(self, store, cut):
        store.put(bag("a"))
        path = self.bag_path(store, "a")
        path.write_bytes(path.read_bytes()[:-cut])
        assert not store.holds("a", bag("a").provenance.key)
        with pytest.raises(BagCorruptError, match="bytes where"):
            store.read("a")
        assert [(f.name, f.state) for f in store.verify("a")] == [("a", "corrupt")]

    def test_a_deleted_bag_is_refused_and_named(self, store):
        store.put(bag("a"))
        self.bag_path(store, "a").unlink()
        with pytest.raises(BagCorruptError, match="gone"):
            store.read("a")
        assert [(f.name, f.state) for f in store.verify_all()] == [("a", "missing")]

    def test_two_swapped_bags_are_both_named(self, store):
        store.put(bag("a", seed=1))
        store.put(bag("b", seed=2))
        first, second = self.bag_path(store, "a"), self.bag_path(store, "b")
        assert first.stat().st_size == second.stat().st_size
        first.rename(store.root / "c")
        second.rename(first)
        (store.root / "c").rename(second)
        found = {f.name: f.message for f in store.verify_all()}
        assert "bag of slide b" in found["a"]
        assert "bag of slide a" in found["b"]
        with pytest.raises(BagCorruptError, match="bag of slide b"):
            store.read("a")

    def test_two_swapped_sidecars_are_both_named(self, store):
        store.put(bag("a", seed=1))
        store.put(bag("b", seed=2))
        first, second = (store.root / "a.json").read_text(), (store.root / "b.json").read_text()
        (store.root / "a.json").write_text(second)
        (store.root / "b.json").write_text(first)
        assert store.ids() == []
        assert sorted(f.name for f in store.verify_all()) == ["a.json", "b.json"]

    def test_bag_and_sidecar_copied_under_another_name_are_named(self, store):
        store.put(bag("a"))
        shutil.copy(self.bag_path(store, "a"), self.bag_path(store, "b"))
        shutil.copy(store.root / "a.json", store.root / "b.json")
        assert store.ids() == ["a"]
        assert ["belongs to slide a" in f.message for f in store.verify_all()] == [True]

    def test_a_bag_from_another_slide_with_a_forged_sidecar_is_named(self, store):
        # Content hash and sidecar agree; only what the bag file says of itself does not.
        other = self.kind(store.root.parent / "other")
        other.put(bag("a", seed=1))
        store.put(bag("b", seed=2))
        shutil.copy(self.bag_path(other, "a"), self.bag_path(store, "b"))
        forged = replace(store.info("b"), sha256=other.info("a").sha256)
        write_sidecar(store.root, forged)
        assert "it is the bag of slide a" in store.verify("b")[0].message

    def test_stray_files_are_listed(self, store):
        store.put(bag("a"))
        temporary = store.root / f".tmp-12-b{store.suffix}"
        temporary.write_bytes(b"")
        unfinished = store.root / ".tmp-12-b.json"
        unfinished.write_bytes(b"{}")
        orphan = self.bag_path(store, "c")
        shutil.copy(self.bag_path(store, "a"), orphan)
        assert store.stray() == sorted([temporary, unfinished, orphan])
        assert store.ids() == ["a"]
        assert sorted(f.state for f in store.verify_all()) == ["orphan", "temp", "temp"]

    def test_sidecar_is_plain_json_for_others(self, store):
        store.put(bag("a"), counts={"planned": 20, "missing": 4})
        content = json.loads((store.root / "a.json").read_text())
        assert content["schema"] == "wsi-bag/2"
        assert (content["n"], content["dim"], content["dtype"]) == (20, DIM, "float16")
        assert content["counts"]["missing"] == 4
        assert content["provenance"]["encoder"]["name"] == "texture-v1"


class TestH5Store(StoreContract):
    kind = H5Store


class TestZarrStore(StoreContract):
    kind = ZarrStore
