"""From words on a command line to settings: everything wrong is told, at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipelines.config import (
    FOREIGN,
    TRAINING,
    as_yaml,
    check_config,
    keys,
    load_config,
    paths_and_settings,
    presets,
    read_config,
    together,
    write_config,
)
from wsi.errors import ConfigError
from wsi.specs import Config


def refusal(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(words)
    return str(caught.value)


def test_nothing_said_is_the_defaults() -> None:
    assert load_config() == Config()


@pytest.mark.parametrize("key", sorted(keys()))
def test_every_key_misspelt_is_told_the_right_one(key: str) -> None:
    head, _, leaf = key.rpartition(".")
    wrong = leaf[:-1] + "x" if len(leaf) < 4 else leaf[:2] + leaf[3:] + "q"
    wrong = f"{head}.{wrong}" if head else wrong
    message = refusal(f"{wrong}=1")
    assert f"unknown setting '{wrong}'" in message
    assert "did you mean" in message or "here it is" in message or "config schema" in message
    if len(leaf) > 4:
        assert f"'{key}'" in message


@pytest.mark.parametrize("key", ["tile_px", "tissue.tile_px", "mpp", "epochs", "folds"])
def test_a_key_in_the_wrong_place_is_told_its_place(key: str) -> None:
    leaf = key.rpartition(".")[2]
    right = {"tile_px": "tiling.tile_px", "epochs": "fit.epochs", "folds": "split.folds"}
    if leaf in right:
        assert right[leaf] in refusal(f"{key}=7")
    else:
        assert ".mpp" in refusal(f"{key}=7")


@pytest.mark.parametrize(
    ("word", "right"),
    [
        ("tissue.pen=false", "tissue.method.pen"),
        ("tissue.threshold=0.1", "tissue.method.threshold"),
        ("pen=false", "tissue.method.pen"),
        ("pixels.target=a.png", "pixels.stain.target"),
    ],
)
def test_a_parameter_beside_its_method_is_told_its_place(word: str, right: str) -> None:
    assert f"(did you mean '{right}'?)" in refusal(word)


@pytest.mark.parametrize("word", FOREIGN)
def test_words_of_other_tools_are_translated_not_accepted(word: str) -> None:
    assert FOREIGN[word] in refusal(f"{word}=1")
    for target in FOREIGN[word].split(",")[0].split("="):
        if "." in target and target.islower():
            assert target in set(keys())


def test_common_words_lead_to_our_keys() -> None:
    assert "tiling.tile_px" in refusal("patch_size=256")
    assert "tiling.tile_px" in refusal("tiling.patch_size=256")
    assert "tiling.mpp=0.5" in refusal("mag=20")
    assert "tiling.stride" in refusal("overlap=0.5")
    assert "fit.bags_per_step" in refusal("fit.batch_size=1")
    assert "objective" in refusal("loss=ce")


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("aggregator=abml", "abmil"),
        ("objective=nmci", "ncmi"),
        ("tissue.method=od_ostu", "od_otsu"),
        ("encoder=texture-v2", "texture-v1"),
        ("encoder=resnet5", "resnet50"),
    ],
)
def test_a_misspelt_name_is_told_the_nearest(word: str, nearest: str) -> None:
    assert f"did you mean '{nearest}'" in refusal(word)


def test_all_problems_are_told_at_once() -> None:
    message = refusal(
        "tiling.mpp=99", "fit.epoch=3", "aggregator=abml", "objective=nmci", "store=h6"
    )
    assert message.startswith("5 problems")
    for part in ("tiling.mpp=99", "fit.epochs", "abmil", "ncmi", "store=h6"):
        assert part in message


def test_a_bad_value_is_told_with_its_key_and_itself() -> None:
    message = refusal("tiling.mpp=20x")
    assert message.startswith("tiling.mpp=20x: ")
    assert "'auto'" in message
    assert "\n" not in message
    assert "slides.no_mpp" in refusal("slides.no_mpp=ask") or "no_mpp=ask" in refusal(
        "slides.no_mpp=ask"
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1e-3 ", 1e-3), ("1E-3", 1e-3), ("0.001", 1e-3), (".5", 0.5), ("1", 1.0)],
)
def test_numbers_are_those_of_yaml_1_2(text: str, value: float) -> None:
    lr = load_config([f"fit.lr={text}"]).fit.lr
    assert isinstance(lr, float)
    assert lr == value


def test_a_key_nearly_of_its_section_is_not_sent_to_another() -> None:
    assert "(did you mean 'fit.seeds'?)" in refusal("fit.seed=1")
    assert "(did you mean 'split.seed'?)" in refusal("data.seed=1")


def test_words_of_yaml_1_1_stay_words(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data:\n  classes: [NO, yes, on, off]\n")
    assert load_config([str(path)]).data.classes == ("NO", "yes", "on", "off")
    assert load_config(["data.classes=[NO, ON]"]).data.classes == ("NO", "ON")


def test_a_value_may_hold_what_looks_like_a_setting() -> None:
    config = load_config(["encoder=timm:resnet18.a1_in1k"])
    assert config.encoder.name == "timm:resnet18.a1_in1k"
    assert load_config(["data.label=a=b"]).data.label == "a=b"


def test_an_empty_value_is_none() -> None:
    assert load_config(["fit.max_tiles=100"]).fit.max_tiles == 100
    assert load_config(["fit.max_tiles="]).fit.max_tiles is None


def test_a_component_keeps_its_name_when_a_parameter_is_given() -> None:
    assert load_config(["aggregator.hidden=64"]).aggregator.name == "abmil"
    config = load_config(["objective=ncmi", "objective.temperature=1"])
    assert (config.objective.name, config.objective.params) == ("ncmi", {"temperature": 1})
    assert load_config(["tissue.method.pen=false"]).tissue.method.params == {"pen": False}


def test_later_words_win() -> None:
    assert load_config(["tiling.tile_px=64", "tiling.tile_px=128"]).tiling.tile_px == 128


def test_words_win_over_a_file_and_a_file_over_its_parent(tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text("tiling: {mpp: 1.0, tile_px: 64}\nfit: {epochs: 3}\n")
    (tmp_path / "child.yaml").write_text("extends: parent.yaml\ntiling: {tile_px: 128}\n")
    config = load_config([str(tmp_path / "child.yaml"), "fit.epochs=5"])
    assert (config.tiling.mpp, config.tiling.tile_px, config.fit.epochs) == (1.0, 128, 5)


def test_a_file_may_extend_a_preset(tmp_path: Path) -> None:
    preset = presets()[0]
    (tmp_path / "c.yaml").write_text(f"extends: {preset}\nfit: {{epochs: 7}}\n")
    expected = load_config([preset, "fit.epochs=7"])
    assert load_config([str(tmp_path / "c.yaml")]) == expected


def test_parents_have_no_parents(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    assert "one parent" in refusal(str(tmp_path / "a.yaml"))
    (tmp_path / "c.yaml").write_text("extends: [a.yaml, b.yaml]\n")
    assert "one parent" in refusal(str(tmp_path / "c.yaml"))
    (tmp_path / "d.yaml").write_text("extends: nowhere\n")
    assert "'nowhere' is neither" in refusal(str(tmp_path / "d.yaml"))


@pytest.mark.parametrize("preset", presets())
def test_every_preset_is_valid(preset: str) -> None:
    assert isinstance(load_config([preset]), Config)


def test_a_misspelt_preset_is_told_the_nearest() -> None:
    assert "did you mean 'demo'" in refusal("dmeo")


def test_a_second_file_is_refused() -> None:
    assert "at most one preset or file" in refusal("demo", "camelyon17")


@pytest.mark.parametrize(
    "text",
    [
        "tiling: !!python/object:os.system {}\n",
        "!!python/object/apply:os.system ['touch CANARY']\n",
        "tiling: !!python/name:os.system ''\n",
        "tiling: {mpp: 0.5\n",
        "tiling: {mpp: 0.5}\ntiling: {mpp: 1.0}\n",
        "- 1\n- 2\n",
        "just words\n",
    ],
)
def test_a_file_that_is_no_safe_mapping_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(text)
    assert "bad.yaml" in refusal("bad.yaml")
    assert not (tmp_path / "CANARY").exists()


@pytest.mark.parametrize("value", ["!!python/object:os.system {}", "[1, 2", "{a: b"])
def test_an_unsafe_or_broken_value_is_refused(value: str) -> None:
    assert "tiling.mpp" in refusal(f"tiling.mpp={value}")


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"tiling: \xff\xfe\n")
    assert "bad.yaml" in refusal(str(tmp_path / "bad.yaml"))


@pytest.mark.parametrize("word", ["=3", "tiling=", "tiling=3", "tiling..mpp=1", "fit.lr.x=1"])
def test_a_word_that_is_no_setting_is_a_config_error(word: str) -> None:
    refusal(word)


def test_settings_survive_the_run_folder(tmp_path: Path) -> None:
    config = load_config(["demo", "tiling.mpp=0.5", "fit.seeds=3", "data.classes=[NO, b]"])
    write_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config
    assert load_config([str(tmp_path / "config.yaml")]) == config
    assert YAML(typ="safe", pure=True).load(as_yaml(config))["data"]["classes"] == ["NO", "b"]


def test_a_mapping_from_python_is_checked_the_same() -> None:
    assert check_config({"tiling": {"mpp": 0.5}}).tiling.mpp == 0.5
    with pytest.raises(ConfigError, match="tile_px"):
        check_config({"tiling": {"tile_pxx": 3}})


def test_settings_among_paths_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiling.mpp=2").mkdir()
    paths = ["DIR", "../up", "site=a/x.svs", "x/tiling.mpp=1", "tiling.mpp=2", "A.svs=1"]
    settings = ["tiling.mpp=1", "tilling.mp=1", "store=zarr", "batch_size=1", "own.yaml"]
    settings.append(f"data.classes=[{'a' * 300},b]")
    found = paths_and_settings([w for pair in zip(paths, settings) for w in pair])
    assert found == (tuple(map(Path, paths)), settings)


def test_two_values_in_two_places_are_refused() -> None:
    assert together(["demo", "fit.lr=1"], ["fit.lr=1", "fit.clip=2"])[2:] == [
        "fit.lr=1",
        "fit.clip=2",
    ]
    with pytest.raises(ConfigError, match=r"fit\.lr=1 and fit\.lr=2 are both given"):
        together(["fit.lr=1"], ["fit.lr=2"])


def test_sections_of_training_are_all_that_makes_no_bag() -> None:
    bags = {"slides", "tissue", "tiling", "pixels", "quality", "encoder", "compute"}
    bags |= {"limits", "precision", "store"}
    assert set(Config.model_fields) - bags == set(TRAINING)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("objective=[ce,ncmi]", "`wsi study` compares several: study.arms=[ce,ncmi]"),
        ("study.arms=[ce,ce]", "study.arms must have different labels, and ce is there twice"),
        ("study.arms=[ce]", "study.arms must be two or more"),
        ("splits.folds=3", "unknown setting 'splits.folds' (did you mean 'split.folds'?)"),
        ("split.kind=sites", "split.kind=sites and test=[<site>, ...] go together"),
    ],
)
def test_what_is_wrong_is_said_without_the_words_of_a_library(word: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([word])
    assert told in str(caught.value)
    assert "valid dictionary" not in str(caught.value)
