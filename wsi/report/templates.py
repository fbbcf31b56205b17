"""Templates and their inline scripts, as every page of ours uses them."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from wsi.report.markdown import escaped


@dataclass(frozen=True)
class Script:
    """An inline script, and the hash by which a page's policy lets exactly it run."""

    text: Markup
    sha256: str


@cache
def template(name: str) -> Template:
    """Return a template of this package; whatever it is given is escaped."""
    return _environment(autoescape=True).get_template(name)


@cache
def markdown_template(name: str) -> Template:
    """Return a Markdown template of this package; whatever it is given is escaped, on one line."""
    return _environment(finalize=escaped, keep_trailing_newline=True).get_template(name)


def _environment(**more: Any) -> Environment:
    return Environment(
        loader=PackageLoader("wsi.report", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **more,
    )


@cache
def script(name: str) -> Script:
    """Return a script of this package, to stand inside a page."""
    text = files("wsi.report").joinpath(name).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Script(Markup(text), digest)


@cache
def source_hash(*names: str) -> str:
    """Return a hash of files of this package: a page looks the same while they do."""
    texts = (files("wsi.report").joinpath(name).read_bytes() for name in names)
    return hashlib.sha256(b"".join(texts)).hexdigest()
