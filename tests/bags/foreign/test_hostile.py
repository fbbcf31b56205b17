"""Files made to harm, built by hand: refused by name before an array is allocated, never run."""

from __future__ import annotations

import contextlib
import io
import pickletools
import resource
import struct
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from wsi.bags import create_store, open_store
from wsi.bags.foreign import Given, import_archive, open_archive
from wsi.bags.foreign.safe_h5 import attributes, dataset, open_h5
from wsi.bags.foreign.safe_pt import check_tensor_file, read_tensor
from wsi.errors import ForeignBagError, UnsafeFileError

N, DIM = 40, 6
WRITTEN = np.arange(N * DIM, dtype=np.float32).reshape(N, DIM)


def external_link(file: h5py.File) -> None:
    file["features"] = h5py.ExternalLink("secret.h5", "/features")


def external_link_beside(file: h5py.File) -> None:
    file["features"] = WRITTEN
    file["more/deep"] = h5py.ExternalLink("secret.h5", "/features")


def soft_link(file: h5py.File) -> None:
    file["elsewhere"] = WRITTEN
    file["features"] = h5py.SoftLink("/elsewhere")


def dangling_soft_link(file: h5py.File) -> None:
    file["features"] = WRITTEN
    file["more"] = h5py.SoftLink("/nothing")


def external_storage(file: h5py.File) -> None:
    file.create_dataset(
        "features", (N, DIM), "f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
    )


def virtual_dataset(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((N, DIM), "f4")
    layout[:] = h5py.VirtualSource("secret.h5", "features", (N, DIM))
    file.create_virtual_dataset("features", layout)


def unlimited_virtual_dataset(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((N, DIM), "f4", maxshape=(None, DIM))
    source = h5py.VirtualSource("secret.h5", "features", (N, DIM), maxshape=(None, DIM))
    layout[: h5py.h5s.UNLIMITED, :] = source[: h5py.h5s.UNLIMITED, :]
    file.create_virtual_dataset("features", layout)


def claim_too_large(file: h5py.File) -> None:
    """A contiguous dataset of a terabyte whose space was never allocated."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
    space = h5py.h5s.create_simple((1 << 36, DIM))
    h5py.h5d.create(file.id, b"features", h5py.h5t.IEEE_F32LE, space, plan)


def chunks_too_large(file: h5py.File) -> None:
    """A chunked dataset of a terabyte of which one chunk was written."""
    data = file.create_dataset("features", (1 << 36, DIM), "f4", chunks=(32, DIM))
    data[:32] = 1


def compressed_bomb(file: h5py.File) -> None:
    """100 MB of zeros in 100 KB."""
    data = file.create_dataset(
        "features", (1 << 18, 100), "f4", chunks=(1 << 16, 100), compression="gzip"
    )
    for start in range(0, 1 << 18, 1 << 16):
        data[start : start + (1 << 16)] = 0


def objects(file: h5py.File) -> None:
    data = file.create_dataset("features", (N,), h5py.vlen_dtype(np.float32))
    data[0] = [1.0]


def text_objects(file: h5py.File) -> None:
    file.create_dataset("features", (N, DIM), h5py.string_dtype())[0, 0] = "x"


def unknown_filter(file: h5py.File) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((32, DIM))
    plan.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, ())
    space = h5py.h5s.create_simple((N, DIM))
    h5py.h5d.create(file.id, b"features", h5py.h5t.IEEE_F32LE, space, plan)


def too_many_objects(file: h5py.File) -> None:
    file["features"] = WRITTEN
    group = file.create_group("g")
    for k in range(10_001):
        group.create_group(str(k))


HOSTILE = [
    (external_link, "external-link"),
    (external_link_beside, "external-link"),
    (soft_link, "soft-link"),
    (dangling_soft_link, "soft-link"),
    (external_storage, "external-storage"),
    (virtual_dataset, "virtual-dataset"),
    (unlimited_virtual_dataset, "virtual-dataset"),
    (claim_too_large, "size-claim"),
    (chunks_too_large, "size-claim"),
    (compressed_bomb, "size-claim"),
    (objects, "object-type"),
    (text_objects, "object-type"),
    (unknown_filter, "filter"),
    (too_many_objects, "too-many-objects"),
]
EACH = pytest.mark.parametrize(("build", "reason"), HOSTILE, ids=[b.__name__ for b, _ in HOSTILE])


def hostile_archive(archives, root: Path, build) -> Path:
    """A TRIDENT archive of a sound slide and a hostile one, and a file that links may lead to."""
    source = archives.trident(root, {"bad": archives.tiles(0), "good": archives.tiles(1)})
    path = source / "features_uni_v1" / "bad.h5"
    with h5py.File(path, "r+") as file:
        del file["features"]
        build(file)
    with h5py.File(path.with_name("secret.h5"), "w") as file:
        file["features"] = WRITTEN
    return source


@EACH
@pytest.mark.parametrize("way", ["h5", "foreign"])
def test_a_hostile_file_is_refused_by_name_and_the_others_are_imported(
    archives, tmp_path, build, reason, way
):
    source = hostile_archive(archives, tmp_path, build)
    (source / "features_uni_v1" / "secret.h5").rename(tmp_path / "secret.h5")
    store = create_store(tmp_path / "ours", way)
    outcomes = list(import_archive(open_archive("trident", source), store))
    assert [(o.slide_id, o.status, o.code, o.reason) for o in outcomes] == [
        ("bad", "refused", "UNSAFE", reason),
        ("good", "imported", "", ""),
    ]
    assert "bad.h5" in outcomes[0].message
    assert open_store(tmp_path / "ours").ids() == ["good"]


@EACH
def test_nothing_is_allocated_for_a_hostile_file(archives, tmp_path, build, reason):
    path = hostile_archive(archives, tmp_path, build) / "features_uni_v1" / "bad.h5"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnsafeFileError) as caught, open_h5(path) as file:
        dataset(file, "features", 2)
    assert caught.value.reason == reason
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KB


def test_a_file_that_turns_hostile_after_import_in_place_is_not_read(archives, tmp_path):
    source = archives.trident(tmp_path, {"bad": archives.tiles(0)})
    store = create_store(tmp_path / "ours", "foreign")
    list(import_archive(open_archive("trident", source), store))
    path = source / "features_uni_v1" / "bad.h5"
    size, stamp = path.stat().st_size, path.stat().st_mtime_ns
    hostile_archive(archives, tmp_path, external_link)
    with path.open("ab") as handle:  # the same size and time: only a look inside can tell
        handle.truncate(size)
    import os

    os.utime(path, ns=(stamp, stamp))
    with pytest.raises(Exception, match=r"bad\.h5: 'features' is a link to another file"):
        store.read("bad")


def test_hard_links_in_a_circle_end(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"] = WRITTEN
        file["group/back"] = file["/"]
        file["group/itself"] = file["group"]
    with open_h5(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(dataset(file, "features", 2)[:], WRITTEN)


def test_chunks_that_were_never_written_are_not_read_as_zeros(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("features", (N, DIM), "f4", chunks=(8, DIM))
        data[:32] = 1
    with pytest.raises(ForeignBagError, match="4 of 5 pieces"), open_h5(tmp_path / "a.h5") as file:
        dataset(file, "features", 2)


def test_a_dataset_that_was_never_written_is_not_read_as_zeros(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["more"] = np.zeros(10_000)
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
        space = h5py.h5s.create_simple((N, DIM))
        h5py.h5d.create(file.id, b"features", h5py.h5t.IEEE_F32LE, space, plan)
    with pytest.raises(ForeignBagError, match="never written"), open_h5(tmp_path / "a.h5") as file:
        dataset(file, "features", 2)


@pytest.mark.parametrize("kept", [0, 100, 600, -1])
def test_a_file_that_was_cut_off_is_refused(tmp_path, kept):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["features"] = WRITTEN
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises((ForeignBagError, UnsafeFileError)), open_h5(path) as file:
        dataset(file, "features", 2)


@pytest.mark.parametrize(
    "options", [{}, {"compression": "gzip"}, {"compression": "lzf", "shuffle": True}]
)
def test_ordinary_chunks_and_compression_are_read(tmp_path, options):
    values = np.random.default_rng(0).standard_normal((100, 16)).astype(np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("features", data=values, chunks=(32, 16), **options)
        file.create_dataset(
            "coords", data=np.zeros((5000, 2), np.int64), chunks=(5000, 2), **options
        )
    with open_h5(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(dataset(file, "features", 2)[:], values)
        assert dataset(file, "coords", 2, "i").shape == (5000, 2)


def test_attributes_that_are_not_small_and_plain_are_not_read(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        file.attrs["ok"] = "text"
        file.attrs["pair"] = (1.0, 2.0)
        file.attrs["large"] = np.zeros(1 << 16)
        file.attrs["lists"] = np.array([np.arange(3), np.arange(2)], h5py.vlen_dtype(int))
        file.attrs["reference"] = file.ref
        assert attributes(file) == {"ok": "text", "pair": [1.0, 2.0]}


# -- tensors -------------------------------------------------------------------------------------


class Canary:
    """What is called when it is unpickled leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def saved(value: object, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def with_instructions(data: bytes, instructions: bytes) -> bytes:
    """Return a torch file with other instructions in it."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for member in old.infolist():
            is_pickle = member.filename.endswith("data.pkl")
            new.writestr(member.filename, instructions if is_pickle else old.read(member))
    return out.getvalue()


def canary_file(path: Path, canary: Path) -> None:
    path.write_bytes(saved(Canary(canary)))


def bare_canary(path: Path, canary: Path) -> None:
    import pickle

    path.write_bytes(pickle.dumps(Canary(canary)))


def legacy_canary(path: Path, canary: Path) -> None:
    path.write_bytes(saved(Canary(canary), _use_new_zipfile_serialization=False))


def canary_by_stack(path: Path, canary: Path) -> None:
    path.write_bytes(saved(Canary(canary), pickle_protocol=4))


@pytest.mark.parametrize("write", [canary_file, bare_canary, legacy_canary, canary_by_stack])
def test_a_pickle_that_would_run_code_does_not(archives, tmp_path, write):
    source = archives.clam(
        tmp_path / "c", {n: archives.tiles(0) for n in ("bad", "good")}, kind="pt"
    )
    canary = tmp_path / "canary"
    write(source / "pt_files" / "bad.pt", canary)
    with contextlib.suppress(RuntimeError):  # by then it has run
        torch.load(source / "pt_files" / "bad.pt", weights_only=False)
    assert canary.exists()  # so the file is armed
    canary.unlink()
    store = create_store(tmp_path / "ours", "h5")
    outcomes = list(import_archive(open_archive("clam", source, Given("x")), store))
    assert [(o.slide_id, o.code, o.reason) for o in outcomes] == [
        ("bad", "UNSAFE", "pickle"),
        ("good", "", ""),
    ]
    assert not canary.exists()


def expanded(path: Path) -> None:
    """A file of 1.5 KB that claims a billion elements by steps of zero."""
    path.write_bytes(saved(torch.zeros(1).expand(1_000_000, 1000)))


def storage_claim(path: Path) -> None:
    """A file whose instructions claim a billion elements, in shape and storage, and hold four."""
    data = saved(torch.zeros(4, 1))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        (name,) = [m for m in archive.namelist() if m.endswith("data.pkl")]
        instructions = archive.read(name)
    places = [p for op, a, p in pickletools.genops(instructions) if op.name == "BININT1" and a == 4]
    assert len(places) == 2
    for at in reversed(places):
        claimed = b"J" + struct.pack("<i", 1_000_000_000)
        instructions = instructions[:at] + claimed + instructions[at + 2 :]
    path.write_bytes(with_instructions(data, instructions))


def packed(path: Path) -> None:
    """A zip whose storage is compressed: 400 MB of zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with zipfile.ZipFile(io.BytesIO(saved(torch.zeros(2, 2)))) as old:
            archive.writestr("a/data.pkl", old.read(old.namelist()[0]))
        with archive.open("a/data/0", "w") as member:
            for _ in range(40):
                member.write(bytes(10 << 20))


@pytest.mark.parametrize("write", [expanded, storage_claim, packed])
def test_a_tensor_that_claims_more_than_its_file_holds_is_refused(tmp_path, write):
    path = tmp_path / "a.pt"
    write(path)
    assert path.stat().st_size < 500_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((UnsafeFileError, ForeignBagError), match=r"a\.pt"):
        read_tensor(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KB


@pytest.mark.parametrize(
    "value",
    [
        {"features": torch.zeros(3, 2)},
        [torch.zeros(3, 2), torch.zeros(3, 2)],
        torch.nn.Parameter(torch.zeros(3, 2)),
        torch.zeros(3, 2).to_sparse(),
        np.zeros((3, 2)),
    ],
    ids=["dict", "list", "parameter", "sparse", "numpy"],
)
def test_what_is_no_plain_tensor_is_refused(tmp_path, value):
    (tmp_path / "a.pt").write_bytes(saved(value))
    with pytest.raises(UnsafeFileError, match=r"a\.pt"):
        read_tensor(tmp_path / "a.pt")


def test_tensors_in_any_order_of_memory_are_read(tmp_path):
    values = torch.arange(12.0).reshape(3, 4)
    for name, tensor in {
        "t": values.T,
        "s": values[:, ::2],
        "g": values.clone().requires_grad_(),
    }.items():
        torch.save(tensor, tmp_path / f"{name}.pt")
        np.testing.assert_array_equal(read_tensor(tmp_path / f"{name}.pt"), tensor.detach().numpy())


def test_looking_at_a_tensor_file_loads_no_torch(tmp_path):
    import subprocess
    import sys

    torch.save(torch.zeros(3, 2), tmp_path / "a.pt")
    check_tensor_file(tmp_path / "a.pt")
    code = (
        "import sys; from pathlib import Path;"
        "from wsi.bags.foreign.safe_pt import check_tensor_file;"
        "check_tensor_file(Path(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.pt")], check=True)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no zip"])
def test_a_damaged_tensor_file_is_refused(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises((UnsafeFileError, ForeignBagError), match=r"a\.pt"):
        read_tensor(tmp_path / "a.pt")
