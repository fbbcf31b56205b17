"""One row per encoder, as data: what a model card says, checked where it could be.

Tests build every architecture and compare widths and parameter counts. What stands on cards alone
(transforms, poolings, licences) was read there, or in the loaders of other tools where a card
stays silent. A revision or sha256 is given where it was seen, never guessed.

Source: the model cards; Lu et al. 2021 (CLAM), Chen et al. 2024 (UNI), Vorontsov et al. 2024
(Virchow), Zimmermann et al. 2024 (Virchow2), Xu et al. 2024 (Prov-GigaPath), Saillard et al. 2024
(H-optimus), Filiot et al. 2023, 2024, 2025 (Phikon, Phikon-v2, H0-mini), kaiko.ai 2024, 2025
(kaiko, Midnight), Kang et al. 2023 (Lunit), Ma et al. 2025 (GPFM).
"""

from __future__ import annotations

from dataclasses import replace

from wsi.encoders.row import IMAGENET_MEAN, IMAGENET_STD, Row

_HALF = (0.5, 0.5, 0.5)
_OPTIMUS_MEAN, _OPTIMUS_STD = (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)
_LUNIT_MEAN = (0.70322989, 0.53606487, 0.66096631)
_LUNIT_STD = (0.21716536, 0.26081574, 0.20723464)
_SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}

_TEXTURE = Row(
    name="texture-v1",
    load="builtin",
    dim=98,
    tile_px=256,
    mpp=0.5,
    resize=None,
    crop=None,
    interpolation="bilinear",
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    pooling="default",
    licence="Apache-2.0",
    gated=False,
    note="baseline features, not a foundation model",
)

_RESNET50 = Row(
    name="resnet50",
    load="timm:resnet50.tv_in1k",
    dim=1024,
    tile_px=256,
    mpp=0.5,
    resize=224,
    crop=None,
    interpolation="bilinear",
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    pooling="layer3",
    licence="BSD-3-Clause",
    gated=False,
    note="ImageNet weights, third stage, as in CLAM; sees 0.571 um per pixel",
)

_CARD = Row(  # what most cards have in common
    name="",
    load="",
    dim=0,
    tile_px=224,
    mpp=0.5,
    resize=224,
    crop=None,
    interpolation="bicubic",
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    pooling="cls",
    licence="see model card",
    gated=False,
)

_UNI = replace(
    _CARD,
    name="uni",
    load="hf-hub:MahmoodLab/UNI",
    architecture="vit_large_patch16_224",
    kwargs={"img_size": 224, "init_values": 1e-5, "dynamic_img_size": True},
    dim=1024,
    tile_px=256,
    interpolation="bilinear",
    licence="CC-BY-NC-ND-4.0",
    gated=True,
    note="sees 0.571 um per pixel",
    batch=32,
)

_UNI2 = replace(
    _UNI,
    name="uni2-h",
    load="hf-hub:MahmoodLab/UNI2-h",
    architecture="vit_giant_patch14_224",
    kwargs={
        "img_size": 224,
        "patch_size": 14,
        "depth": 24,
        "num_heads": 24,
        "init_values": 1e-5,
        "embed_dim": 1536,
        "mlp_ratio": 2.66667 * 2,
        "no_embed_class": True,
        "reg_tokens": 8,
        "dynamic_img_size": True,
        **_SWIGLU,
    },
    dim=1536,
    batch=16,
)

_VIRCHOW_KWARGS = {
    "img_size": 224,
    "init_values": 1e-5,
    "mlp_ratio": 5.3375,
    "global_pool": "",
    "dynamic_img_size": True,
    **_SWIGLU,
}

_VIRCHOW = replace(
    _CARD,
    name="virchow",
    load="hf-hub:paige-ai/Virchow",
    architecture="vit_huge_patch14_224",
    kwargs=_VIRCHOW_KWARGS,
    dim=2560,
    pooling="cls+mean",
    licence="Apache-2.0",
    gated=True,
    note="class token and mean of patch tokens; 1280 wide elsewhere is the class token alone",
    batch=16,
)

_VIRCHOW2 = replace(
    _VIRCHOW,
    name="virchow2",
    load="hf-hub:paige-ai/Virchow2",
    kwargs={**_VIRCHOW_KWARGS, "reg_tokens": 4},
    licence="CC-BY-NC-ND-4.0",
    note="class token and mean of patch tokens, as TRIDENT; STAMP's 1280 is the class token alone",
)

_GIGAPATH = replace(
    _CARD,
    name="gigapath",
    load="hf-hub:prov-gigapath/prov-gigapath",
    architecture="vit_giant_patch14_dinov2",
    kwargs={
        "img_size": 224,
        "patch_size": 16,
        "embed_dim": 1536,
        "depth": 40,
        "num_heads": 24,
        "mlp_ratio": 5.33334,
    },
    dim=1536,
    tile_px=256,
    resize=256,
    crop=224,
    licence="Apache-2.0",
    gated=True,
    card_over_config=True,
    note="sees the central 224 of 256 pixels",
    batch=8,
)

_H_OPTIMUS_0 = replace(
    _CARD,
    name="h-optimus-0",
    load="hf-hub:bioptimus/H-optimus-0",
    architecture="vit_giant_patch14_reg4_dinov2",
    kwargs={"img_size": 224, "init_values": 1e-5, "dynamic_img_size": False},
    dim=1536,
    mean=_OPTIMUS_MEAN,
    std=_OPTIMUS_STD,
    licence="Apache-2.0",
    gated=True,
    batch=8,
)

_H_OPTIMUS_1 = replace(
    _H_OPTIMUS_0,
    name="h-optimus-1",
    load="hf-hub:bioptimus/H-optimus-1",
    licence="CC-BY-NC-ND-4.0",
)

_H0_MINI = replace(
    _H_OPTIMUS_0,
    name="h0-mini",
    load="hf-hub:bioptimus/H0-mini",
    architecture="vit_base_patch14_reg4_dinov2",
    # The ratio follows from the 86 million parameters of the card.
    kwargs={"img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.33334, **_SWIGLU},
    dim=768,
    licence="CC-BY-NC-ND-4.0",
    note="class token; 1536 wide elsewhere is with the mean of patch tokens",
    batch=32,
)

_PHIKON = replace(
    _CARD,
    name="phikon",
    load="transformers:owkin/phikon",
    architecture="ViTModel",
    kwargs={"image_size": 224, "patch_size": 16},
    dim=768,
    interpolation="bilinear",
    licence="Owkin non-commercial",
)

_PHIKON2 = replace(
    _PHIKON,
    name="phikon-v2",
    load="transformers:owkin/phikon-v2",
    architecture="Dinov2Model",
    kwargs={
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 16,
    },
    dim=1024,
    interpolation="bicubic",
    revision="419e8285b80eac3b60beca0d9b91942d48ad7b8e",
    batch=32,
)

_KAIKO_REPO = "hf-hub:1aurent/{}.kaiko_ai_towards_large_pathology_fms"
_KAIKO_B16 = replace(
    _CARD,
    name="kaiko-b16",
    load=_KAIKO_REPO.format("vit_base_patch16_224"),
    architecture="vit_base_patch16_224",
    kwargs={"dynamic_img_size": True},
    dim=768,
    interpolation="bilinear",
    mean=_HALF,
    std=_HALF,
    card_over_config=True,
    licence="kaiko non-commercial",
    note="trained at 0.25 to 2 um per pixel; not the crop and mean of the hub's config",
    revision="797c524a94c7fdae8ea33064d0ac6966ed8956bb",
)

_KAIKO = (
    replace(
        _KAIKO_B16,
        name="kaiko-s16",
        load=_KAIKO_REPO.format("vit_small_patch16_224"),
        architecture="vit_small_patch16_224",
        dim=384,
        revision=None,
    ),
    replace(
        _KAIKO_B16,
        name="kaiko-s8",
        load=_KAIKO_REPO.format("vit_small_patch8_224"),
        architecture="vit_small_patch8_224",
        dim=384,
        revision=None,
    ),
    _KAIKO_B16,
    replace(
        _KAIKO_B16,
        name="kaiko-b8",
        load=_KAIKO_REPO.format("vit_base_patch8_224"),
        architecture="vit_base_patch8_224",
        revision=None,
    ),
    replace(
        _KAIKO_B16,
        name="kaiko-l14",
        load=_KAIKO_REPO.format("vit_large_patch14_reg4_224"),
        architecture="vit_large_patch14_reg4_dinov2",
        # The hub's file has the size of position embeddings for 518 px, in spite of its name.
        kwargs={"img_size": 518, "dynamic_img_size": True},
        dim=1024,
        revision="d86df45eccdb957aa7869bab7d11f8e158dcbda2",
        batch=32,
    ),
)

_LUNIT_S8 = replace(
    _CARD,
    name="lunit-s8",
    load="hf-hub:1aurent/vit_small_patch8_224.lunit_dino",
    architecture="vit_small_patch8_224",
    dim=384,
    mean=_LUNIT_MEAN,
    std=_LUNIT_STD,
    licence="Lunit non-commercial",
    note="trained at 0.5 and 0.25 um per pixel",
    revision="c23bc01cfbe022bc1f2a8a9306125a07818e4eb4",
)

_LUNIT_S16 = replace(
    _LUNIT_S8,
    name="lunit-s16",
    load="hf-hub:1aurent/vit_small_patch16_224.lunit_dino",
    architecture="vit_small_patch16_224",
    revision=None,
)

_GPFM = replace(
    _CARD,
    name="gpfm",
    load="hf-hub:majiabo/GPFM",
    architecture="vit_large_patch14_dinov2",
    kwargs={"img_size": 224, "init_values": 1e-5},
    file="GPFM.pth",
    dim=1024,
    note="a pickled checkpoint: read only if it holds tensors and nothing else",
    batch=32,
)

_MIDNIGHT = replace(
    _CARD,
    name="midnight-12k",
    load="transformers:kaiko-ai/midnight",
    architecture="Dinov2Model",
    kwargs={
        "hidden_size": 1536,
        "num_hidden_layers": 40,
        "num_attention_heads": 24,
        "image_size": 224,
        "patch_size": 14,
        "use_swiglu_ffn": True,
    },
    dim=3072,
    interpolation="bilinear",
    mean=_HALF,
    std=_HALF,
    pooling="cls+mean",
    licence="MIT",
    note="class token and mean of patch tokens, as its card; TRIDENT's 1536 is the class token",
    batch=8,
)

_OPENMIDNIGHT = replace(
    _CARD,
    name="openmidnight-1.1",
    load="hf-hub:medarc/OpenMidnight-1.1",
    architecture="vit_giant_patch14_reg4_dinov2",
    kwargs={"img_size": 224, "init_values": 1e-5},
    dim=1536,
    batch=8,
)

_ROWS = (
    _TEXTURE,
    _RESNET50,
    _UNI,
    _UNI2,
    _VIRCHOW,
    _VIRCHOW2,
    _GIGAPATH,
    _H_OPTIMUS_0,
    _H_OPTIMUS_1,
    _H0_MINI,
    _PHIKON,
    _PHIKON2,
    *_KAIKO,
    _LUNIT_S8,
    _LUNIT_S16,
    _GPFM,
    _MIDNIGHT,
    _OPENMIDNIGHT,
)

CATALOG: dict[str, Row] = {row.name: row for row in _ROWS}
