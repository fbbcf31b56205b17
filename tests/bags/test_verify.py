"""Whatever is done to a folder of bags is found, named and put aside."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wsi.bags import Bag, BagStore, Provenance, any_store, create_store, find_stale, set_aside
from wsi.errors import BagMismatchError, BagMissingError
from wsi.files import sampled_fingerprint, sha256_file

IDS = ("a", "b", "site-a/x", "site-b/x", "d.e")
FILES = dict(zip(IDS, ("a", "b", "site-a%2Fx", "site-b%2Fx", "d.e"), strict=True))


def made(slide_id: str, **slide: object) -> Provenance:
    return Provenance(
        slide={"fingerprint": f"slide {slide_id}"} | slide,
        tiling={"settings": {"mpp": 0.5, "tile_px": 256}},
        encoder={"name": "texture-v1", "fingerprint": "e"},
        tissue={"settings": {"method": "od_otsu"}},
        precision="float16",
    )


def bag(slide_id: str, n: int = 40, **slide: object) -> Bag:
    rng = np.random.default_rng(len(slide_id))
    return Bag(
        slide_id,
        rng.normal(size=(n, 6)).astype(np.float16),
        rng.integers(0, 999, (n, 2)).astype(np.int32),
        rng.uniform(size=n).astype(np.float16),
        made(slide_id, **slide),
    )


@pytest.fixture(params=["h5", "zarr"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BagStore:
    store = create_store(tmp_path / "bags", request.param)
    for slide_id in IDS:
        store.put(bag(slide_id))
    store.write_empty("glass", made("glass"), reason="no-tissue")
    return store


class Vandal:
    """Damages a folder at random places, and says what it has damaged and how that shows."""

    def __init__(self, store: BagStore, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.store = store
        self.sound = {path.name: path.read_bytes() for path in store.root.iterdir()}

    def restore(self) -> None:
        for path in self.store.root.iterdir():
            path.unlink()
        for name, data in self.sound.items():
            (self.store.root / name).write_bytes(data)

    def strike(self) -> tuple[str, dict[str, str]]:
        """Return what was done, and the state that each damaged name must show."""
        edits = [self.flip, self.cut, self.zero, self.grow, self.delete, self.swap, self.rename]
        edit = edits[self.rng.integers(len(edits))]
        bags = self.rng.permutation(IDS)[:2].tolist()
        return edit.__name__, edit(*(FILES[slide_id] for slide_id in bags))

    def _edit(self, one: str, change: Callable[[bytearray], bytearray]) -> dict[str, str]:
        path = self.store.root / (one + self._suffix())
        data = change(bytearray(path.read_bytes()))
        changed = bytes(data) != path.read_bytes()
        path.write_bytes(data)
        return {one: "corrupt"} if changed else {}

    def _suffix(self) -> str:
        return [".json", self.store.suffix][self.rng.integers(2)]

    def flip(self, one: str, _: str) -> dict[str, str]:
        def change(data: bytearray) -> bytearray:
            data[self.rng.integers(len(data))] ^= 1 << self.rng.integers(8)
            return data

        return self._edit(one, change)

    def cut(self, one: str, _: str) -> dict[str, str]:
        return self._edit(one, lambda data: data[: self.rng.integers(len(data))])

    def grow(self, one: str, _: str) -> dict[str, str]:
        return self._edit(one, lambda data: data + bytes(self.rng.integers(1, 9)))

    def zero(self, one: str, _: str) -> dict[str, str]:
        def change(data: bytearray) -> bytearray:
            start, stop = sorted(self.rng.integers(0, len(data) + 1, 2))
            data[start:stop] = bytes(stop - start)
            return data

        return self._edit(one, change)

    def delete(self, one: str, _: str) -> dict[str, str]:
        suffix = self._suffix()
        (self.store.root / (one + suffix)).unlink()
        return {one: "orphan" if suffix == ".json" else "missing"}

    def swap(self, one: str, other: str) -> dict[str, str]:
        both = [[".json"], [self.store.suffix], [".json", self.store.suffix]]
        for suffix in both[self.rng.integers(3)]:
            first, second = (self.store.root / (name + suffix) for name in (one, other))
            first.rename(self.store.root / "between")
            second.rename(first)
            (self.store.root / "between").rename(second)
        return {one: "corrupt", other: "corrupt"}

    def rename(self, one: str, _: str) -> dict[str, str]:
        suffix = self._suffix()
        (self.store.root / (one + suffix)).rename(self.store.root / f"new{suffix}")
        if suffix == ".json":
            return {"new": "corrupt", one: "orphan"}
        return {"new": "orphan", one: "missing"}


def stem(name: str, store: BagStore) -> str:
    return FILES.get(name, name.removesuffix(".json").removesuffix(store.suffix))


def strike_often(store: BagStore, edits: int) -> None:
    vandal = Vandal(store, seed=edits)
    struck = 0
    for _ in range(edits):
        edit, expected = vandal.strike()
        found = {stem(f.name, store): f.state for f in store.verify_all()}
        assert found == expected, edit
        struck += bool(expected)
        vandal.restore()
    assert list(store.verify_all()) == []
    assert struck > 0.9 * edits


def test_every_random_edit_is_found_and_nothing_else_is_named(store):
    strike_often(store, 60)


@pytest.mark.slow
def test_every_one_of_a_thousand_edits_is_found(store):
    strike_often(store, 1000)


# -- quick ------------------------------------------------------------------------------------


def test_a_quick_look_finds_what_size_and_sidecars_tell_and_opens_no_bag(store, monkeypatch):
    (store.root / "a.json").write_text("{}")
    path = store.root / f"b{store.suffix}"
    path.write_bytes(path.read_bytes()[:-1])
    (store.root / f"d.e{store.suffix}").unlink()
    monkeypatch.setattr(type(store), "_look", None)
    found = {f.name: f.state for f in store.verify_all(quick=True)}
    assert found == {"a.json": "corrupt", "b": "corrupt", "d.e": "missing"}


# -- slides -----------------------------------------------------------------------------------


@pytest.fixture
def slides(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / f"{name}.svs" for name in ("one", "two", "three")}
    for k, path in enumerate(paths.values()):
        path.write_bytes(bytes([k]) * 500_000)
    return paths


def test_bags_of_replaced_slides_are_stale_and_slides_without_bags_missing(tmp_path, slides):
    store = create_store(tmp_path / "bags")
    for name in ("one", "two"):
        store.put(bag(name, fingerprint=sampled_fingerprint(slides[name])))
    assert [(f.name, f.state) for f in find_stale(store, slides)] == [("three", "missing")]
    slides["two"].write_bytes(b"\1" * 499_999 + b"\2")
    slides.pop("three")
    (finding,) = find_stale(store, slides)
    assert (finding.name, finding.state) == ("two", "stale")
    assert set_aside(store, finding) == []
    slides["one"].unlink()
    assert {f.name for f in find_stale(store, slides)} == {"one", "two"}


def test_a_stored_hash_of_the_whole_slide_finds_any_bit(tmp_path, slides):
    store = create_store(tmp_path / "bags")
    path = slides.pop("one")
    for slides_known, found in [({"sha256": sha256_file(path)}, ["stale"]), ({}, [])]:
        path.write_bytes(bytes(500_000))
        store.put(bag("one", fingerprint=sampled_fingerprint(path), **slides_known))
        assert list(find_stale(store, {"one": path})) == []
        data = bytearray(path.read_bytes())
        data[100_000] ^= 1  # between two samples
        path.write_bytes(data)
        assert [f.state for f in find_stale(store, {"one": path})] == found


# -- repair -----------------------------------------------------------------------------------


def repair(store: BagStore) -> None:
    for finding in list(store.verify_all()):
        set_aside(store, finding)


def test_damaged_files_are_moved_aside_whole_and_the_rest_stays(store):
    before = {path.name: path.read_bytes() for path in store.root.iterdir()}
    spoiled = store.root / f"a{store.suffix}"
    spoiled.write_bytes(spoiled.read_bytes()[:-5])
    (store.root / "b.json").write_bytes(b"")
    (store.root / f"d.e{store.suffix}").unlink()
    (store.root / "site-a%2Fx.json").unlink()
    (store.root / f".tmp-1-y{store.suffix}").write_bytes(b"half")
    repair(store)
    assert list(store.verify_all()) == []
    assert store.ids() == ["site-b/x"]
    aside = {path.name: path.read_bytes() for path in (store.root / "corrupt").iterdir()}
    assert set(aside) == {
        *(f"a{s}" for s in (".json", store.suffix)),
        *(f"b{s}" for s in (".json", store.suffix)),
        "d.e.json",
        f"site-a%2Fx{store.suffix}",
        f".tmp-1-y{store.suffix}",
    }
    assert aside[f"b{store.suffix}"] == before[f"b{store.suffix}"]
    assert aside[f"a{store.suffix}"] == before[f"a{store.suffix}"][:-5]
    assert not store.holds("a", made("a").key)


def test_what_was_put_aside_before_is_never_overwritten(store):
    for k in range(3):
        (store.root / "a.json").write_text(str(k))
        repair(store)
        store.put(bag("a"))
    aside = store.root / "corrupt"
    assert [(aside / f"a.json{k}").read_text() for k in ("", ".1", ".2")] == ["0", "1", "2"]
    assert store.verify("a") == []


def test_the_folder_of_damaged_files_is_never_taken_for_bags(store):
    for path in store.root.glob("*.json"):
        path.write_bytes(path.read_bytes()[:-9])
    repair(store)
    with pytest.raises(BagMissingError, match="preprocess"):
        any_store(store.root)


def test_a_bag_whose_sidecar_came_meanwhile_stays(store):
    sidecar = (store.root / "a.json").read_bytes()
    (store.root / "a.json").unlink()
    (orphan,) = store.verify_all()
    (store.root / "a.json").write_bytes(sidecar)
    assert set_aside(store, orphan) == []
    assert store.verify("a") == []


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system has no such list")
def test_a_file_that_a_process_is_writing_stays(store):
    path = store.root / f".tmp-{os.getpid()}-y{store.suffix}"
    with path.open("wb"):
        (finding,) = store.verify_all()
        assert set_aside(store, finding) == []
    assert set_aside(store, finding) == [path.name]


# -- opening what is damaged ------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["sidecars", "bags"])
def test_a_folder_is_looked_at_when_one_half_of_it_is_gone(store, lost):
    for path in store.root.glob("*.json" if lost == "sidecars" else f"*{store.suffix}"):
        path.unlink()
    for path in (store.root, store.root.parent):
        opened = any_store(path)
        assert opened.format == store.format
        names = {stem(f.name, store) for f in opened.verify_all()}
        assert names == set(FILES.values())


def test_a_folder_where_every_sidecar_is_damaged_is_looked_at(store):
    for path in store.root.glob("*.json"):
        path.write_bytes(path.read_bytes()[:-9])
    found = list(any_store(store.root).verify_all())
    assert len(found) == len(IDS) + 1
    assert {f.state for f in found} == {"corrupt"}


def test_damage_does_not_hide_a_second_format(store):
    other = create_store(store.root.parent / "other", {"h5": "zarr", "zarr": "h5"}[store.format])
    other.put(bag("q"))
    for path in other.root.iterdir():
        path.rename(store.root / path.name)
    with pytest.raises(BagMismatchError, match="h5 and zarr"):
        any_store(store.root)


def test_checking_bags_loads_neither_torch_nor_zarr(store):
    code = (
        "import sys; from wsi.bags import any_store\n"
        f"assert not list(any_store({str(store.root)!r}).verify_all())\n"
        "print([m for m in ('torch', 'zarr') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
