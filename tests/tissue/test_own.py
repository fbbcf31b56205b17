"""Settings of one slide in place of those of all."""

from __future__ import annotations

import pytest

from wsi.errors import ConfigError, UnknownNameError
from wsi.specs import TissueSpec
from wsi.tissue import Edits, OwnTissue, own_spec

COMMON = TissueSpec.model_validate({"mpp": 4, "method": {"name": "od_otsu", "pen": False}})


def test_text_becomes_settings_of_their_kind() -> None:
    spec = own_spec(COMMON, {"min_area_mm2": "0.5", "pen": "true"})
    assert (spec.mpp, spec.min_area_mm2, spec.method.params) == (4, 0.5, {"pen": True})
    assert own_spec(COMMON, {"min_hole_mm2": "1"}).method.params == {"pen": False}
    assert own_spec(COMMON, {}) == COMMON


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ({"mpp": "coarse"}, ConfigError, "tissue.mpp=coarse"),
        ({"min_area_mm2": "-1"}, ConfigError, "tissue.min_area_mm2=-1"),
        ({"pen": "red"}, ConfigError, "pen='red'"),
        ({"pan": "true"}, ConfigError, "did you mean 'pen'"),
        ({"method": "od_osu"}, UnknownNameError, "did you mean 'od_otsu'"),
    ],
)
def test_what_does_not_fit_is_named(given, error, told) -> None:
    with pytest.raises(error, match=told):
        own_spec(COMMON, given)


def test_only_what_differs_is_recorded() -> None:
    assert OwnTissue().provenance(COMMON) == {}
    assert OwnTissue(own_spec(COMMON, {"mpp": "4", "pen": "false"})).provenance(COMMON) == {}
    found = OwnTissue(own_spec(COMMON, {"mpp": "2", "pen": "true"})).provenance(COMMON)
    assert found == {"overrides": {"mpp": 2.0, "method": {"name": "od_otsu", "pen": True}}}
    assert OwnTissue(edits=Edits()).provenance(COMMON) == {}
