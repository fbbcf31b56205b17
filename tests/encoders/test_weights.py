"""Files of weights: what is read, what is refused, and which file it has to be."""

from __future__ import annotations

import resource
import zipfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from wsi.encoders import CATALOG, load_encoder
from wsi.encoders.timm_encoder import TimmEncoder
from wsi.encoders.weights import Weights, read_weights
from wsi.errors import ConfigError, EncoderError, UnsafeWeightsError, WeightsError
from wsi.specs import Component

BIG = 1_000_000_000


def rewritten(source: Path, change: Callable[[str, bytes], bytes], compress: int = 0) -> Path:
    """Return a copy of a torch file with its records changed."""
    path = source.with_name(f"changed-{source.name}")
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", compress) as new:
        for record in old.infolist():
            new.writestr(record.filename, change(record.filename, old.read(record)))
    return path


def claiming(name: str, data: bytes) -> bytes:
    """Return the pickle of `torch.zeros(4)` with a claim of a thousand million elements."""
    if not name.endswith("data.pkl"):
        return data
    big = b"J" + BIG.to_bytes(4, "little")
    changed = data.replace(b"K\x04tq", big + b"tq", 1).replace(b"K\x04\x85", big + b"\x85", 1)
    assert changed.count(big) == 2
    return changed


@pytest.fixture
def small(tmp_path: Path) -> Path:
    torch.save({"a": torch.zeros(4)}, tmp_path / "w.pth")
    return tmp_path / "w.pth"


@pytest.mark.parametrize("suffix", ["bin", "pth", "pt"])
@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"state_dict": w, "epoch": 3}])
def test_torch_files_of_tensors_are_read_as_they_are(tmp_path: Path, suffix: str, wrap) -> None:
    tied = torch.randn(3, 2)
    weights = {"a": tied, "b": tied, "half": torch.randn(6).half(), "part": torch.arange(9)[2:5]}
    weights |= {"turned": torch.randn(2, 3).T, "none": torch.empty(0), "one": torch.tensor(1)}
    torch.save(wrap(weights), tmp_path / f"w.{suffix}")
    found = read_weights(tmp_path / f"w.{suffix}", "x")
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(found[name], tensor)


def test_a_file_that_claims_more_than_it_holds_is_refused_before_memory_is_taken(
    small: Path,
) -> None:
    hostile = rewritten(small, claiming)
    assert hostile.stat().st_size < 2000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnsafeWeightsError, match=rf"a claims \({BIG},\)"):
        read_weights(hostile, "x")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000  # kB; the claim is for four million


def test_a_tensor_spread_over_one_number_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(BIG)}, tmp_path / "w.pth")
    assert (tmp_path / "w.pth").stat().st_size < 2000
    with pytest.raises(UnsafeWeightsError, match="does not hold"):
        read_weights(tmp_path / "w.pth", "x")


def test_a_file_that_grows_when_opened_is_refused(small: Path) -> None:
    def swell(name: str, data: bytes) -> bytes:
        return bytes(50_000_000) if name.endswith("data/0") else data

    bomb = rewritten(small, swell, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 100_000
    with pytest.raises(UnsafeWeightsError, match="compressed"):
        read_weights(bomb, "x")


def test_numbers_of_a_kind_that_no_network_has_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(4, dtype=torch.complex64)}, tmp_path / "w.pth")
    with pytest.raises(UnsafeWeightsError, match="complex64"):
        read_weights(tmp_path / "w.pth", "x")


@pytest.mark.parametrize(
    "content", [[1, 2], {"a": 1}, {1: torch.zeros(1)}, {"state_dict": {"a": "text"}}]
)
def test_anything_but_named_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UnsafeWeightsError, match="not a dictionary of tensors"):
        read_weights(tmp_path / "w.pth", "x")


class Canary:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_code_never_runs_and_is_called_unsafe(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1), "b": Canary(tmp_path / "canary")}, tmp_path / "w.pth")
    with pytest.raises(UnsafeWeightsError, match="could run code") as caught:
        read_weights(tmp_path / "w.pth", "x")
    assert caught.value.code == "UNSAFE"
    assert not (tmp_path / "canary").exists()


def test_a_cut_file_is_no_weights(small: Path) -> None:
    small.write_bytes(small.read_bytes()[:300])
    with pytest.raises(EncoderError, match=r"w\.pth is not readable as weights"):
        read_weights(small, "x")


# -- which file it has to be --------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small network, as a file."""
    import timm

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(timm.create_model("resnet10t", num_classes=0).state_dict(), path)
    return path


def component(path: Path, **params: object) -> Component:
    return Component.model_validate({"name": "timm:resnet10t", "weights": str(path), **params})


def test_a_pinned_file_is_loaded_and_its_hash_recorded(model: Path) -> None:
    digest = sha256(model.read_bytes()).hexdigest()
    encoder = load_encoder(component(model, sha256=digest))
    assert encoder.describe()["file_sha256"] == digest
    assert load_encoder(component(model)).describe()["file_sha256"] is None


def test_one_changed_byte_is_refused_with_both_hashes(model: Path, tmp_path: Path) -> None:
    digest = sha256(model.read_bytes()).hexdigest()
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    changed = tmp_path / "model.safetensors"
    changed.write_bytes(content)
    found = sha256(content).hexdigest()
    with pytest.raises(WeightsError, match=f"sha256 {found}, expected {digest}") as caught:
        load_encoder(component(changed, sha256=digest))
    assert caught.value.code == "WEIGHTS"


def test_a_row_pins_its_weights_and_a_user_may_pin_others(model: Path) -> None:
    row = replace(CATALOG["resnet50"], load="timm:resnet10t", dim=512, pooling="default")
    digest = sha256(model.read_bytes()).hexdigest()
    wrong = replace(row, sha256="0" * 64)
    with pytest.raises(WeightsError, match="expected 0000"):
        TimmEncoder(wrong, Weights("file", path=model))
    TimmEncoder(replace(row, sha256=digest), Weights("file", path=model))
    TimmEncoder(wrong, Weights("file", path=model, sha256=digest))


def test_a_damaged_file_of_the_cache_is_noticed(cache_files, model: Path) -> None:
    snapshot = cache_files("timm/resnet10t.c3_in1k", {"model.safetensors": model.read_bytes()})
    cached = Component(name="timm:resnet10t.c3_in1k")
    assert load_encoder(cached).describe()["file_sha256"]
    blob = (snapshot / "model.safetensors").resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(WeightsError, match="damaged"):
        load_encoder(cached)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"sha256": "abc"}, "64 hexadecimal digits"),
        ({"weights": "random", "sha256": "0" * 64}, "does not go with weights=random"),
    ],
)
def test_a_pin_that_means_nothing_is_refused(params: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_encoder(Component.model_validate({"name": "resnet50", **params}))
