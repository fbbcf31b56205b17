"""Checks of settings that several objectives share."""

from __future__ import annotations

from wsi.errors import ConfigError


def require_positive(objective: str, **settings: float | None) -> None:
    """Raise ConfigError when a setting that was given is not above 0."""
    for name, value in settings.items():
        if value is not None and not value > 0:
            raise ConfigError(f"{objective}: {name}={value} must be above 0")


def require_within(objective: str, low: float, high: float, **settings: float) -> None:
    """Raise ConfigError when a setting is not in [low, high]."""
    for name, value in settings.items():
        if not low <= value <= high:
            raise ConfigError(f"{objective}: {name}={value} must be within {low:g} and {high:g}")
