"""Weights of CLAM and MIL-Lab: the numbers of the same layers laid out in plain torch."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from wsi.data import from_arrays
from wsi.errors import ConfigError, ForeignBagError, UnsafeFileError
from wsi.training.foreign import import_model
from wsi.training.predict import predict

DIM, E, A = 24, 16, 8
CLASSES = ("normal", "itc", "macro")


class Gated(nn.Module):
    """w (tanh(V h) * sigmoid(U h)) + bias, with the names of both tools."""

    def __init__(self, heads: int, dropout: bool) -> None:
        super().__init__()
        more = [nn.Dropout(0.25)] if dropout else []
        self.attention_a = nn.Sequential(nn.Linear(E, A), nn.Tanh(), *more)
        self.attention_b = nn.Sequential(nn.Linear(E, A), nn.Sigmoid(), *more)
        self.attention_c = nn.Linear(A, heads)

    def forward(self, h):
        return self.attention_c(self.attention_a(h) * self.attention_b(h))


class Plain(nn.Module):
    """w tanh(V h) + bias."""

    def __init__(self, heads: int, dropout: bool) -> None:
        super().__init__()
        more = [nn.Dropout(0.25)] if dropout else []
        self.module = nn.Sequential(nn.Linear(E, A), nn.Tanh(), *more, nn.Linear(A, heads))

    def forward(self, h):
        return self.module(h)


class Theirs(nn.Module):
    """A tool's model of a bag (N, D): logits (C,) and attention (N, heads)."""

    def __init__(self, tool: str, *, gated: bool, dropout: bool, multi: bool = False) -> None:
        super().__init__()
        torch.manual_seed(len(tool) + 2 * gated + dropout)
        C = len(CLASSES)
        attention = (Gated if gated else Plain)(C if multi else 1, dropout)
        first = [nn.Linear(DIM, E), nn.ReLU(), *([nn.Dropout(0.25)] if dropout else [])]
        self.tool, self.multi = tool, multi
        if tool == "clam":
            self.attention_net = nn.Sequential(*first, attention)
            self.classifiers = (
                nn.ModuleList(nn.Linear(E, 1) for _ in range(C)) if multi else nn.Linear(E, C)
            )
            self.instance_classifiers = nn.ModuleList(nn.Linear(E, 2) for _ in range(C))
        else:
            self.patch_embed = nn.Sequential(*first)
            self.global_attn = attention
            self.classifier = nn.Linear(E, C)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.4)
        self.eval()

    @torch.no_grad()
    def forward(self, x):
        if self.tool == "clam":
            h, score = self.attention_net[:-1](x), self.attention_net[-1]
        else:
            h, score = self.patch_embed(x), self.global_attn
        a = torch.softmax(score(h), dim=0)
        z = a.T @ h
        if self.multi:
            return torch.cat([self.classifiers[c](z[c]) for c in range(len(z))]), a
        head = self.classifiers if self.tool == "clam" else self.classifier
        return head(z)[0], a


def bags() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {str(n): rng.standard_normal((n, DIM)).astype(np.float32) for n in (1, 5, 80)}


def saved(path: Path, theirs: nn.Module) -> Path:
    torch.save(theirs.state_dict(), path)
    return path


def assert_same(theirs: Theirs, path: Path, tool, aggregator: str) -> None:
    model = import_model(path, tool, CLASSES).model
    assert model.card.aggregator == aggregator
    given = predict(model, from_arrays(bags()), attention=True)
    assert given.attention is not None
    for k, x in enumerate(bags().values()):
        logits, attention = theirs(torch.from_numpy(x))
        p = torch.softmax(logits.double(), 0)
        np.testing.assert_allclose(given.probabilities[k], p, atol=1e-6)
        np.testing.assert_allclose(given.attention[k], attention, atol=1e-6)


@pytest.mark.parametrize("tool", ["clam", "mil-lab"])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("dropout", [True, False])
def test_a_model_predicts_as_in_its_own_tool(
    tmp_path: Path, tool, gated: bool, dropout: bool
) -> None:
    theirs = Theirs(tool, gated=gated, dropout=dropout)
    assert_same(theirs, saved(tmp_path / "model.pt", theirs), tool, "abmil")


@pytest.mark.parametrize("gated", [True, False])
def test_a_branch_per_class_predicts_as_in_clam(tmp_path: Path, gated: bool) -> None:
    theirs = Theirs("clam", gated=gated, dropout=True, multi=True)
    assert_same(theirs, saved(tmp_path / "model.pt", theirs), "clam", "abmil_mb")


def test_wrapped_names_state_dicts_of_runs_and_safetensors_are_read(tmp_path: Path) -> None:
    theirs = Theirs("mil-lab", gated=True, dropout=True)
    state = theirs.state_dict()
    wrapped = {f"model.{name}": tensor for name, tensor in state.items()}
    save_file(wrapped, tmp_path / "model.safetensors")
    assert_same(theirs, tmp_path / "model.safetensors", "mil-lab", "abmil")
    torch.save({"state_dict": state}, tmp_path / "run.pt")
    assert_same(theirs, tmp_path / "run.pt", "mil-lab", "abmil")


def test_clams_names_on_several_devices_and_its_svm_loss_are_read(tmp_path: Path) -> None:
    theirs = Theirs("clam", gated=True, dropout=True)
    state = {
        name.replace("attention_net.", "attention_net.module."): tensor
        for name, tensor in theirs.state_dict().items()
    }
    state["instance_loss_fn.labels"] = torch.arange(2)
    torch.save(state, tmp_path / "model.pt")
    assert_same(theirs, tmp_path / "model.pt", "clam", "abmil")


def test_what_is_left_out_is_named_with_its_reason(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", Theirs("clam", gated=True, dropout=True))
    left_out = import_model(path, "clam", CLASSES).left_out
    assert sorted(left_out) == [
        "attention_net.3.attention_c.bias",
        *(f"instance_classifiers.{c}.{kind}" for c in range(3) for kind in ("bias", "weight")),
    ]
    assert "softmax takes away" in left_out["attention_net.3.attention_c.bias"]


def changed(state: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    match kind:
        case "more":
            return state | {"extra.weight": torch.ones(2, 2)}
        case "less":
            return {k: v for k, v in state.items() if k != "classifiers.bias"}
        case "narrow":
            return state | {"attention_net.3.attention_b.0.weight": torch.ones(A - 1, E)}
        case "heads":
            return state | {"attention_net.3.attention_c.weight": torch.ones(2, A)}
        case "half gated":
            return {k: v for k, v in state.items() if "attention_b.0.bias" not in k}
        case _:
            return state | {"attention_net.0.weight": torch.full((E, DIM), torch.nan)}


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("more", "no place for extra.weight"),
        ("less", "nothing for head.bias"),
        ("narrow", "attention.gate.weight do not fit"),
        ("heads", "2 attention heads"),
        ("half gated", "attention.gate.bias do not fit"),
        ("nan", "no finite numbers"),
    ],
)
def test_another_architecture_is_refused_by_name(tmp_path: Path, kind: str, told: str) -> None:
    state = Theirs("clam", gated=True, dropout=True).state_dict()
    torch.save(changed(dict(state), kind), tmp_path / "model.pt")
    with pytest.raises(ConfigError, match=told):
        import_model(tmp_path / "model.pt", "clam", CLASSES)


def test_another_tool_or_number_of_classes_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", Theirs("clam", gated=True, dropout=True))
    with pytest.raises(ConfigError, match=r"no place for .*nothing for embed\.0\.weight"):
        import_model(path, "mil-lab", CLASSES)
    with pytest.raises(ConfigError, match="a model of 3 classes, and 2 were named"):
        import_model(path, "clam", CLASSES[:2])


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    state = OrderedDict(Theirs("clam", gated=True, dropout=True).state_dict())
    torch.save(state | {"epoch": Bomb(touched)}, tmp_path / "model.pt")
    with pytest.raises(UnsafeFileError, match="nothing of it was run"):
        import_model(tmp_path / "model.pt", "clam", CLASSES)
    assert not touched.exists()


def test_a_tensor_that_claims_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    state = Theirs("clam", gated=True, dropout=True).state_dict()
    huge = torch.zeros(1, 1).expand(1 << 20, 1 << 10)
    torch.save(dict(state) | {"attention_net.0.weight": huge}, tmp_path / "model.pt")
    with pytest.raises(UnsafeFileError, match="claims"):
        import_model(tmp_path / "model.pt", "clam", CLASSES)


def test_other_content_and_damage_are_told(tmp_path: Path) -> None:
    torch.save(torch.ones(3, 3), tmp_path / "bag.pt")
    with pytest.raises(UnsafeFileError, match="not tensors by name"):
        import_model(tmp_path / "bag.pt", "clam", CLASSES)
    whole = saved(tmp_path / "model.pt", Theirs("clam", gated=True, dropout=True)).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises((UnsafeFileError, ForeignBagError)):
        import_model(tmp_path / "cut.pt", "clam", CLASSES)
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ForeignBagError, match="not readable"):
        import_model(tmp_path / "cut.safetensors", "clam", CLASSES)
