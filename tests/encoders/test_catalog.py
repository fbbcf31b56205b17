"""Every row against the architecture it names, built without memory for its weights."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from timm.layers.mlp import SwiGLUPacked
from torch import nn

from wsi.encoders import CATALOG, Row, encoder_info
from wsi.encoders.row import TRANSFORMERS
from wsi.encoders.timm_encoder import build, pooled
from wsi.specs import Component

# Millions of parameters as published, or as counted by others; None where nobody says.
PARAMETERS = {
    "resnet50": 23.5,
    "uni": 303.4,
    "uni2-h": 681.4,
    "virchow": 631.2,
    "virchow2": 631.2,
    "gigapath": 1135,
    "h-optimus-0": 1134.8,
    "h-optimus-1": 1134.8,
    "h0-mini": 86,
    "phikon": 86,
    "phikon-v2": 303,
    "kaiko-s16": 21.7,
    "kaiko-s8": 21.7,
    "kaiko-b16": 85.8,
    "kaiko-b8": 85.8,
    "kaiko-l14": 304.4,  # 303.2 with position embeddings for 224 px, but the file is for 518
    "lunit-s8": 21.7,
    "lunit-s16": 21.7,
    "gpfm": 303.2,
    "midnight-12k": 1136,
    "openmidnight-1.1": 1135,
}
FAST = ("resnet50", "h0-mini", "kaiko-s16")
SLOW = tuple(name for name in PARAMETERS if name not in FAST)
NETWORKS = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def width_and_size(row: Row) -> tuple[int, int, int]:
    """Return the width of a row's features, its parameters and its tokens before patches."""
    px = row.input(row.tile_px)[1]
    images = torch.zeros(1, 3, px, px, device="meta")
    if row.load.startswith(TRANSFORMERS):
        pytest.importorskip("transformers")
        from wsi.encoders.transformers_encoder import build as build_it
        from wsi.encoders.transformers_encoder import configuration

        with torch.device("meta"):
            model = build_it(configuration(row)).eval()
        tokens = model(pixel_values=images).last_hidden_state
        width = tokens.shape[2] * (2 if row.pooling == "cls+mean" else 1)
        prefix = tokens.shape[1] - (px // model.config.patch_size) ** 2
    else:
        with torch.device("meta"):
            model = build(row).eval()
        width = pooled(model, images, row).shape[1]
        prefix = getattr(model, "num_prefix_tokens", 0)
    return width, sum(p.numel() for p in model.parameters()), prefix


@pytest.mark.parametrize("name", NETWORKS)
def test_a_row_builds_a_model_of_its_width_and_size(name: str) -> None:
    row = CATALOG[name]
    width, parameters, prefix = width_and_size(row)
    assert width == row.dim
    assert parameters / 1e6 == pytest.approx(PARAMETERS[name], rel=0.005)
    registers = {"uni2-h": 8, "virchow2": 4, "kaiko-l14": 4, "h0-mini": 4, "openmidnight-1.1": 4}
    registers |= {"h-optimus-0": 4, "h-optimus-1": 4}
    assert prefix == (0 if name == "resnet50" else 1 + registers.get(name, 0))


def test_every_network_of_the_catalogue_is_built_by_a_test() -> None:
    assert set(CATALOG) == {"texture-v1", *PARAMETERS}


UNI2 = {
    "img_size": 224,
    "patch_size": 14,
    "depth": 24,
    "num_heads": 24,
    "init_values": 1e-5,
    "embed_dim": 1536,
    "mlp_ratio": 2.66667 * 2,
    "num_classes": 0,
    "no_embed_class": True,
    "mlp_layer": SwiGLUPacked,
    "act_layer": nn.SiLU,
    "reg_tokens": 8,
    "dynamic_img_size": True,
}


@pytest.mark.slow
def test_uni2_has_the_layers_of_its_cards_own_call() -> None:
    with torch.device("meta"):
        theirs = timm.create_model("vit_giant_patch14_224", pretrained=False, **UNI2)
        ours = build(CATALOG["uni2-h"])
    assert str(ours) == str(theirs)
    shapes = {k: v.shape for k, v in theirs.state_dict().items()}
    assert {k: v.shape for k, v in ours.state_dict().items()} == shapes


@pytest.mark.parametrize("row", CATALOG.values(), ids=CATALOG)
def test_a_row_says_what_a_user_must_know(row: Row) -> None:
    assert encoder_info(Component(name=row.name)) == row.info
    assert row.licence
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*", row.name)
    assert row.load == "builtin" or row.repo
    for pin, length in ((row.revision, 40), (row.sha256, 64)):
        assert pin is None or re.fullmatch(rf"[0-9a-f]{{{length}}}", pin)
    assert row.load.startswith(("builtin", "timm:")) or row.architecture


@pytest.mark.parametrize(
    ("name", "sees"),
    [("uni", 0.5 * 256 / 224), ("resnet50", 0.5 * 256 / 224), ("gigapath", 0.5), ("virchow2", 0.5)],
)
def test_resizing_makes_tiles_coarser_and_cropping_does_not(name: str, sees: float) -> None:
    assert CATALOG[name].effective_mpp == pytest.approx(sees)


def test_gated_models_are_those_that_their_authors_hand_out() -> None:
    gated = {name for name, row in CATALOG.items() if row.gated}
    by_mahmood = {"uni", "uni2-h"}
    by_bioptimus = {"h-optimus-0", "h-optimus-1", "h0-mini"}
    assert gated == by_mahmood | by_bioptimus | {"virchow", "virchow2", "gigapath"}
