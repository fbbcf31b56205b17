"""What one slide has of its own: settings from the slide table, and shapes drawn by a person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from wsi.errors import ConfigError
from wsi.registry import suggest
from wsi.slides import Slide, Thumbnail
from wsi.specs import TissueSpec
from wsi.tissue.edited import Edits
from wsi.tissue.find import METHODS, find_tissue, recipe_of
from wsi.tissue.mask import TissueMask


@dataclass(frozen=True)
class OwnTissue:
    """How the tissue of one slide is settled other than by the settings all slides share.

    Attributes:
        spec: settings in place of the common ones, or None.
        edits: shapes brought in by `wsi tissue import`.
    """

    spec: TissueSpec | None = None
    edits: Edits = field(default_factory=Edits)

    def find(self, slide: Slide, common: TissueSpec) -> tuple[TissueMask, TissueMask, Thumbnail]:
        """Return the mask as found, the mask with edits applied, and the thumbnail of both.

        Raises:
            ConfigError: the method has no such parameter.
            RegionError: the thumbnail cannot be decoded.
        """
        found, thumbnail = find_tissue(slide, self.spec or common)
        return found, self.edits.apply(found), thumbnail

    def provenance(self, common: TissueSpec) -> dict[str, Any]:
        """Return what enters this slide's provenance: `overrides` and `mask`, where it has them."""
        found: dict[str, Any] = {}
        if overrides := differences(common, self.spec or common):
            found["overrides"] = overrides
        if self.edits:
            found["mask"] = self.edits.sha256
        return found


def setting_names() -> list[str]:
    """Return what a slide table may set per slide: the tissue settings and those of any method."""
    methods = {name: METHODS.settings(name) for name in METHODS.names()}
    return list(
        dict.fromkeys([*TissueSpec.model_fields, *(p for m in methods.values() for p in m)])
    )


def own_spec(common: TissueSpec, given: Mapping[str, str]) -> TissueSpec:
    """Return `common` with settings of one slide in their place.

    Args:
        given: text by setting: a field of TissueSpec, or a parameter of the method. Another
            method than the common one starts from its own defaults.

    Raises:
        ConfigError: a setting is unknown to the method, or its value is not of its kind.
        UnknownNameError: no such method.
    """
    fields = {k: v for k, v in given.items() if k in TissueSpec.model_fields and k != "method"}
    params = {k: v for k, v in given.items() if k not in TissueSpec.model_fields}
    merged = common.model_dump() | fields
    if params or "method" in given:
        name = given.get("method", common.method.name)
        kept = common.method.params if name == common.method.name else {}
        checked = METHODS.check(name, kept | params)
        own = {k: v for k, v in checked.items() if k in METHODS.settings(name)}
        merged["method"] = {"name": name, **own}
    try:
        return TissueSpec.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"tissue.{first['loc'][0]}={first['input']}: {first['msg']}") from None


def check_setting(name: str, text: str) -> str | None:
    """Return what is wrong with one setting by itself, or None.

    A parameter is sound when it is for any method that has it: which method a slide gets is known
    only together with the configuration.
    """
    if name in TissueSpec.model_fields:
        candidates = [TissueSpec()]
    elif name in setting_names():
        having = [m for m in METHODS.names() if name in METHODS.settings(m)]
        having = [method for method in having if "<" not in method]
        if not having:  # of a family of methods only the whole can be checked
            return None
        candidates = [TissueSpec.model_validate({"method": method}) for method in having]
    else:
        return f"unknown setting tissue.{name}{suggest(name, setting_names())}"
    problem = None
    for candidate in candidates:
        try:
            own_spec(candidate, {name: text})
        except (ConfigError, KeyError) as error:
            problem = str(error)
        else:
            return None
    return problem


def differences(common: TissueSpec, own: TissueSpec) -> dict[str, Any]:
    """Return the settings of `own` that are not those of `common`, as JSON values."""
    shared = recipe_of(common)
    return {k: v for k, v in recipe_of(own).items() if v != shared[k]}
