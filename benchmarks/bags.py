"""Print what reading and checking bags costs: ours beside the layouts of CLAM and TRIDENT.

The same synthetic features are written to a temporary folder as our HDF5 bag, our Zarr bag, a
packed cohort, CLAM's HDF5 (float32, chunks of 32 rows, appended batch by batch), CLAM's .pt, and
TRIDENT's HDF5 (float32, chunks of one row). All ways read in turn, several times over, in one
process on one thread with the files in the page cache; printed are medians and their ratios to
CLAM's HDF5. Every way gives the same values before anything is timed.

    python benchmarks/bags.py [--tiles 3000 12000] [--dim 1024] [--rounds 9] [--sidecars 2000]

GB/s counts the features as float16, whatever a layout stores, so that equal GB/s is equal bags per
second. The limit is a copy out of the page cache into fresh memory, printed as "copy". "first"
opens a folder of bags anew, as the first epoch does; later reads of a bag look no more at its
sidecar and its inside while both stay as they are. Goals: whole bags at least 3x and 512 rows at
least 10x CLAM's HDF5, half its bytes; verify at least 500 MB/s, quick 5,000 bags/s; a done slide
known in at most 2 ms.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from wsi.bags import SCORES, Bag, BagStore, PackedCohort, Provenance, create_store
from wsi.bags.open import STORES
from wsi.bags.packing import pack, packable
from wsi.data import pack as pack_batch

BAGS = 3  # read in turn, so that no bag stays in the processor's own cache
SUBSET = 512
BLOCK = 64
SETTLED_S = 1.0  # a bag written just now is looked at anew at every read

Read = Callable[[str], NDArray[np.floating]]
Ways = dict[str, Read]


def main() -> None:
    """Write the bags, compare all values, time the ways in turn, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiles", type=int, nargs="*", default=[3000, 12000])
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sidecars", type=int, default=2000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for n in options.tiles:
        with tempfile.TemporaryDirectory() as folder:
            compare(Path(folder), n, options.dim, options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        check_speeds(Path(folder), options.sidecars, options.rounds)


# -- writing ----------------------------------------------------------------------------------


def provenance(slide_id: str) -> Provenance:
    """Return a provenance about as long as those of real slides."""
    return Provenance(
        slide={"fingerprint": slide_id * 8, "mpp": [0.25, 0.25], "size0": [98304, 81920]},
        tiling={
            "settings": {"mpp": 0.5, "tile_px": 256, "stride_um": 128.0, "min_tissue": 0.05},
            "resolved": {"size0": [512, 512], "level": 0, "mpp0": [0.25, 0.25]},
        },
        encoder={"name": "resnet50", "fingerprint": "e" * 64, "weights_sha256": "d" * 64},
        tissue={"settings": {"method": "od_otsu", "min_area_um2": 10_000}, "threshold": 0.31},
        precision="float16",
    )


def synthetic(slide_id: str, n: int, dim: int, seed: int) -> Bag:
    """Return a bag of normal features."""
    rng = np.random.default_rng(seed)
    return Bag(
        slide_id,
        rng.standard_normal((n, dim), np.float32).astype(np.float16),
        rng.integers(0, 99_999, (n, 2)).astype(np.int32),
        np.ones(n, np.float16),
        provenance(slide_id),
        {name: np.zeros(n, np.float16) for name in SCORES},
    )


def write_appended(path: Path, bag: Bag, chunk_rows: int) -> None:
    """Write float32 features and coords as CLAM and TRIDENT do: batches of 256 rows, appended."""
    with h5py.File(path, "w") as file:
        for name, values in (("features", bag.features.astype(np.float32)), ("coords", bag.xy0)):
            width = values.shape[1]
            data = file.create_dataset(
                name, (0, width), values.dtype, maxshape=(None, width), chunks=(chunk_rows, width)
            )
            for start in range(0, len(values), 256):
                part = values[start : start + 256]
                data.resize(start + len(part), axis=0)
                data[start:] = part


def write_all(folder: Path, bags: list[Bag]) -> dict[str, Path]:
    """Write the bags in every layout, and return where each layout lies."""
    places = {name: folder / name for name in ("h5", "zarr", "clam", "pt", "trident")}
    for name in ("clam", "pt", "trident"):
        places[name].mkdir()
    stores = [create_store(places[name], name) for name in ("h5", "zarr")]
    for bag in bags:
        for store in stores:
            store.put(bag)
        write_appended(places["clam"] / f"{bag.slide_id}.h5", bag, 32)
        write_appended(places["trident"] / f"{bag.slide_id}.h5", bag, 1)
        torch.save(torch.from_numpy(bag.features).float(), places["pt"] / f"{bag.slide_id}.pt")
    places["packed"] = folder / "packed"
    list(pack(stores[0], places["packed"], packable(stores[0]), whole=True))
    time.sleep(SETTLED_S)
    return places


# -- reading ----------------------------------------------------------------------------------


def whole_ways(places: dict[str, Path]) -> Ways:
    """Return the ways to read a whole bag, coordinates included where a layout has them."""

    def theirs(layout: str) -> Read:
        def read(slide_id: str) -> NDArray[np.floating]:
            with h5py.File(places[layout] / f"{slide_id}.h5", "r") as file:
                file["coords"][:]
                return file["features"][:]

        return read

    stores = {name: create_store(places[name], name) for name in ("h5", "zarr")}
    packed = PackedCohort(places["packed"])
    return {
        "CLAM h5": theirs("clam"),
        "CLAM pt": lambda slide_id: torch.load(
            places["pt"] / f"{slide_id}.pt", weights_only=True
        ).numpy(),
        "TRIDENT h5": theirs("trident"),
        "h5, first": lambda slide_id: create_store_at(places, "h5").read(slide_id).features,
        "h5": lambda slide_id: stores["h5"].read(slide_id).features,
        "zarr, first": lambda slide_id: create_store_at(places, "zarr").read(slide_id).features,
        "zarr": lambda slide_id: stores["zarr"].read(slide_id).features,
        "packed": lambda slide_id: np.array(packed.read(slide_id).features),
    }


def create_store_at(places: dict[str, Path], name: str) -> BagStore:
    """Return a store that has not looked at any bag."""
    return STORES.load(name)(places[name])


def subset_ways(places: dict[str, Path], rows: NDArray[np.integer]) -> Ways:
    """Return the ways to read some rows: others' layouts by h5py's selection and by reading all."""
    whole = whole_ways(places)

    def selected(layout: str) -> Read:
        def read(slide_id: str) -> NDArray[np.floating]:
            with h5py.File(places[layout] / f"{slide_id}.h5", "r") as file:
                return file["features"][rows]

        return read

    def all_then_rows(name: str) -> Read:
        return lambda slide_id: whole[name](slide_id)[rows]

    stores = {name: create_store(places[name], name) for name in ("h5", "zarr")}
    packed = PackedCohort(places["packed"])
    return {
        "CLAM h5": all_then_rows("CLAM h5"),
        "CLAM h5, selected": selected("clam"),
        "CLAM pt": all_then_rows("CLAM pt"),
        "TRIDENT h5": selected("trident"),
        "h5, first": lambda s: create_store_at(places, "h5").read(s, rows).features,
        "h5": lambda s: stores["h5"].read(s, rows).features,
        "zarr, first": lambda s: create_store_at(places, "zarr").read(s, rows).features,
        "zarr": lambda s: stores["zarr"].read(s, rows).features,
        "packed": lambda s: packed.read(s, rows).features,
    }


def compare(folder: Path, n: int, dim: int, rounds: int) -> None:
    """Print the tables of bags of `n` tiles."""
    bags = [synthetic(f"slide-{k}", n, dim, k) for k in range(BAGS)]
    places = write_all(folder, bags)
    rng = np.random.default_rng(0)
    scattered = np.sort(rng.choice(n, SUBSET, replace=False))
    starts = np.sort(rng.choice(n // BLOCK, SUBSET // BLOCK, replace=False)) * BLOCK
    blocks = (starts[:, None] + np.arange(BLOCK)).ravel()
    print(f"\n{n} x {dim}, {BAGS} bags of {bags[0].features.nbytes / 1e6:.1f} MB as float16")
    whole = whole_ways(places)
    mapped = PackedCohort(places["packed"])
    tensors = {
        name: as_tensor(read, theirs=name.startswith(("CLAM", "TRIDENT")))
        for name, read in whole.items()
        if "first" not in name
    } | {"packed": as_tensor(lambda slide_id: mapped.read(slide_id).features, theirs=False)}
    tables: list[tuple[str, Ways, NDArray[np.integer] | None]] = [
        ("whole bag, as stored", whole | {"copy": copied(places, bags)}, None),
        ("whole bag, as a float32 tensor", tensors, None),
        (f"{SUBSET} random rows", subset_ways(places, scattered), scattered),
        (f"{SUBSET} rows in blocks of {BLOCK}", subset_ways(places, blocks), blocks),
    ]
    for title, ways, rows in tables:
        check_values(ways, bags, rows)
        size = bags[0].features.nbytes if rows is None else 0
        print_table(title, timed(ways, [bag.slide_id for bag in bags], rounds), size)
    print_sizes(places)


def as_tensor(read: Read, theirs: bool) -> Read:
    """Return a reader that ends where a network begins: as CLAM does, or packed as we do."""
    if theirs:
        return lambda slide_id: torch.from_numpy(read(slide_id)).numpy()
    return lambda slide_id: pack_batch([(read(slide_id), None, slide_id, None)]).x.numpy()


def copied(places: dict[str, Path], bags: list[Bag]) -> Read:
    """Return the limit: the features' bytes out of the page cache into fresh memory."""
    shape = bags[0].features.shape

    def read(slide_id: str) -> NDArray[np.floating]:
        k = int(slide_id.rsplit("-", 1)[1])
        offset, size = 128 + k * bags[0].features.nbytes, bags[0].features.size
        flat = np.fromfile(places["packed"] / "features.npy", np.float16, size, offset=offset)
        return flat.reshape(shape)

    return read


def check_values(ways: Ways, bags: list[Bag], rows: NDArray[np.integer] | None) -> None:
    """Raise unless every way gives the features of every bag."""
    for bag in bags:
        expected = bag.features if rows is None else bag.features[rows]
        for read in ways.values():
            np.testing.assert_array_equal(read(bag.slide_id), expected)


def timed(ways: Ways, ids: list[str], rounds: int) -> dict[str, tuple[float, float]]:
    """Return the median CPU and wall seconds of each way, all run in turn."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for slide_id in ids:
            for name, read in ways.items():
                cpu, wall = time.process_time(), time.perf_counter()
                read(slide_id)
                taken[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {
        name: (statistics.median(c for c, _ in times), statistics.median(w for _, w in times))
        for name, times in taken.items()
    }


def print_table(title: str, medians: dict[str, tuple[float, float]], size: int) -> None:
    """Print one way a line, with its ratio to the fastest way of reading CLAM's HDF5."""
    base = [min(t[k] for name, t in medians.items() if name.startswith("CLAM h5")) for k in (0, 1)]
    print(f"{title:32} CPU ms  wall ms    GB/s | x CLAM h5: CPU   wall")
    for name, (cpu, wall) in medians.items():
        speed = f"{size / wall / 1e9:7.1f}" if size else " " * 7
        ratios = f"{base[0] / cpu:16.1f} {base[1] / wall:6.1f}"
        print(f"  {name:30} {1e3 * cpu:6.2f} {1e3 * wall:8.2f} {speed} |{ratios}")


def print_sizes(places: dict[str, Path]) -> None:
    """Print the bytes of each layout, sidecars and index included."""
    sizes = {k: sum(f.stat().st_size for f in p.iterdir()) for k, p in places.items()}
    listed = ", ".join(f"{k} {s / 1e6:.1f} ({s / sizes['clam']:.2f})" for k, s in sizes.items())
    print(f"MB (share of CLAM's HDF5): {listed}")


# -- checking ---------------------------------------------------------------------------------


def check_speeds(folder: Path, sidecars: int, rounds: int) -> None:
    """Print how fast bags are checked, and what it costs to know that a slide is done."""
    large, many = create_store(folder / "large"), create_store(folder / "many")
    for k in range(8):
        large.put(synthetic(f"slide-{k}", 12_000, 1024, k))
    for k in range(sidecars):
        many.put(synthetic(f"slide-{k}", 4, 8, k))
    size = sum(info.bytes for info in large.infos())
    full = median_wall(lambda: list(large.verify_all()), rounds)
    quick = median_wall(lambda: list(many.verify_all(quick=True)), rounds)
    ids = [f"slide-{k}" for k in range(sidecars)]
    key = "not this one"
    known = median_wall(lambda: [many.holds(slide_id, key) for slide_id in ids], rounds)
    print(f"\nverify, every byte: {size / full / 1e6:,.0f} MB/s")
    print(f"verify, quick: {sidecars / quick:,.0f} bags/s")
    print(f"whether a slide is done: {1e3 * known / sidecars:.3f} ms")


def median_wall(work: Callable[[], object], rounds: int) -> float:
    """Return the median seconds of doing `work`."""
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
