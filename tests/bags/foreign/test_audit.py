"""An audit tells what an archive really holds."""

from __future__ import annotations

from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from wsi.bags import create_store
from wsi.bags.foreign import (
    Given,
    audit_archive,
    audit_store,
    import_archive,
    layout_at,
    open_archive,
    summed_up,
)
from wsi.errors import ConfigError


def slide(mpp: float, size0=(6000, 5000)) -> SimpleNamespace:
    return SimpleNamespace(
        mpp=(mpp, mpp), fingerprint=f"f{mpp}", size0=size0, vendor="x", magnification=40.0
    )


def audit(layout: str, root, slides=None, given=None):
    return summed_up(audit_archive(open_archive(layout, root, given), slides or {}))


def rules(findings) -> list[tuple[str, str]]:
    return [(f.severity, f.rule) for f in findings]


def test_the_true_field_of_view_is_told_against_the_declared_one(archives, tmp_path):
    slides = {f"s{k}": archives.tiles(k) for k in range(5)}
    source = archives.trident(tmp_path, slides)
    mpps = {"s0": 0.2266, "s1": 0.25, "s2": 0.2523, "s3": 0.291, "s4": 0.25}
    findings = audit("trident", source, {s: slide(m) for s, m in mpps.items()})
    assert rules(findings) == [("warning", "field-of-view"), ("info", "field-of-view")]
    assert "2 slides were tiled at 116-149 um instead of 128" in findings[0].message
    assert findings[0].ids == ("s0", "s3")
    assert "3 slides were tiled at 128-129.2 um" in findings[1].message
    # the same of bags that were imported, by what was known then
    store = create_store(tmp_path / "ours")
    list(
        import_archive(
            open_archive("trident", source), store, {s: slide(m) for s, m in mpps.items()}
        )
    )
    again = summed_up(audit_store(store, {}))
    assert [f.message for f in again] == [f.message for f in findings]


def test_an_unknown_resolution_is_said_and_nothing_is_claimed(archives, tmp_path):
    source = archives.trident(tmp_path, {"a": archives.tiles(0)})
    (finding,) = audit("trident", source)
    assert (finding.severity, finding.rule, finding.ids) == ("info", "no-mpp", ("a",))
    (finding,) = audit("trident", source, given=Given(mpp=0.25))
    assert finding.message == "1 slide was tiled at 128 um"


def test_clam_of_unlike_scanners_is_told_without_a_declared_size(archives, tmp_path):
    source = archives.clam(tmp_path, {n: archives.tiles(k) for k, n in enumerate("abc")})
    known = {"a": slide(0.25), "b": slide(0.25), "c": slide(0.5)}
    (finding,) = audit("clam", source, known)
    assert finding.severity == "warning"
    assert "128-256 um and not all alike" in finding.message
    (finding,) = audit("clam", source, {"a": slide(0.25), "b": slide(0.25), "c": slide(0.25)})
    assert finding.message == "3 slides were tiled at 128 um"


def test_rows_that_are_no_features_are_counted(archives, tmp_path):
    slides = {n: archives.tiles(k) for k, n in enumerate(["fine", "zero", "nan", "twice", "all"])}
    slides["zero"].features[[1, 5]] = 0
    slides["nan"].features[3, 2] = np.inf
    slides["twice"].xy0[[8, 9]] = slides["twice"].xy0[7]
    slides["all"].features[:] = 0
    findings = audit("trident", archives.trident(tmp_path, slides), given=Given(mpp=0.25))
    told = {(f.severity, f.rule, f.ids): f.message for f in findings if f.ids}
    assert set(told) == {
        ("error", "non-finite", ("nan",)),
        ("error", "zero-rows", ("all",)),
        ("warning", "zero-rows", ("zero",)),
        ("warning", "duplicate-coordinates", ("twice",)),
    }
    assert "2 of 40" in told["warning", "zero-rows", ("zero",)]
    assert "2 of 40" in told["warning", "duplicate-coordinates", ("twice",)]


def test_corners_outside_the_slide_are_errors(archives, tmp_path):
    slides = {"a": archives.tiles(0), "b": archives.tiles(1)}
    source = archives.trident(tmp_path, slides)
    xy0 = slides["a"].xy0
    n = int(np.count_nonzero((xy0[:, 0] >= 2000) | (xy0[:, 1] >= 3000)))
    findings = audit("trident", source, {"a": slide(0.25, (2000, 3000)), "b": slide(0.25)})
    assert rules(findings) == [("error", "outside-slide"), ("info", "field-of-view")]
    assert f"a: {n} of 40" in findings[0].message


def test_stamp_in_the_wrong_unit_shows_as_corners_outside(archives, tmp_path):
    source = archives.stamp(tmp_path, {"a": archives.tiles(0)}, mpp0=2.0)
    findings = audit("stamp", source, {"a": slide(0.25)})
    assert ("error", "outside-slide") in rules(findings)
    assert rules(audit("stamp", source)) == [("info", "no-mpp")]


def test_mixtures_name_the_fewer(archives, tmp_path):
    source = archives.trident(tmp_path, {n: archives.tiles(k) for k, n in enumerate("abcd")})
    with h5py.File(source / "features_uni_v1" / "d.h5", "r+") as file:
        file["features"].attrs["encoder"] = "conch_v1"
        file["coords"].attrs["patch_size"] = 512
    features = np.ones((40, 9), np.float32)
    with h5py.File(source / "features_uni_v1" / "c.h5", "r+") as file:
        del file["features"]
        file["features"] = features
    findings = [f for f in audit("trident", source) if f.severity == "error"]
    assert [(f.rule, f.ids) for f in findings] == [
        ("mixed-encoders", ("d",)),
        ("mixed-widths", ("c",)),
        ("mixed-tilings", ("d",)),
    ]
    assert "conch_v1" in findings[0].message
    assert "3 with 6, 1 with 9" in findings[1].message


def test_files_that_cannot_be_read_are_errors_each_with_its_rule(archives, tmp_path):
    source = archives.trident(tmp_path, {n: archives.tiles(k) for k, n in enumerate("abcd")})
    folder = source / "features_uni_v1"
    (folder / "a.h5").write_bytes(b"no h5")
    (folder / "b.h5").write_bytes((folder / "b.h5").read_bytes()[:-2000])
    with h5py.File(folder / "c.h5", "r+") as file:
        file["elsewhere"] = h5py.ExternalLink("x.h5", "/x")
    findings = [f for f in audit("trident", source) if f.severity == "error"]
    told = {f.ids[0]: f.rule for f in findings}
    assert set(told) == {"a", "b", "c"}
    assert (told["a"], told["c"]) == ("unreadable", "external-link")


def test_damage_of_our_own_bags_is_an_error(archives, tmp_path):
    source = archives.trident(tmp_path / "t", {n: archives.tiles(k) for k, n in enumerate("ab")})
    store = create_store(tmp_path / "ours")
    list(import_archive(open_archive("trident", source), store))
    path = store.root / "a.h5"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    findings = summed_up(audit_store(store, {}))
    assert [(f.rule, f.ids) for f in findings if f.severity == "error"] == [("corrupt", ("a",))]


@pytest.mark.parametrize("layout", ["clam", "trident", "stamp", "atlaspatch"])
def test_an_archive_is_recognised_by_its_folders(archives, tmp_path, layout):
    getattr(archives, layout)(tmp_path, {"a": archives.tiles(0)})
    assert layout_at(tmp_path) == layout


def test_a_folder_of_nobody_is_asked_about(tmp_path):
    with pytest.raises(ConfigError, match="--from"):
        layout_at(tmp_path)
