"""This user's own settings, for all projects: $XDG_CONFIG_HOME/uotft/config.yaml.

mirror: /shared/mirror        # an address or folder; UOTFT_MIRROR comes first
imagenet: /data/imagenet      # where the training images of ImageNet lie
accepted: [imagenet]          # whose terms this user has accepted, by `uotft data accept`
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from uotft.core import environment, private, storage
from uotft.core.errors import UserError


class UserSettings(BaseModel):
    """The file's content; without a file, the defaults."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    mirror: str = ""
    imagenet: str = ""
    accepted: list[str] = []

    @field_validator("mirror")
    @classmethod
    def _address_or_folder(cls, value: str) -> str:
        if value and not is_address(value) and not Path(value).is_absolute():
            raise ValueError("write an http(s) address, or the whole path of a folder")
        return value.rstrip("/") or value

    @field_validator("imagenet")
    @classmethod
    def _whole_path(cls, value: str) -> str:
        if value and not Path(value).is_absolute():
            raise ValueError("write the whole path")
        return value


def is_address(text: str) -> bool:
    """Whether a text is an address of the web."""
    try:
        parts = urlsplit(text)
    except ValueError:  # half of an IPv6 address
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def path() -> Path:
    """The file, which need not exist."""
    return environment.config_folder() / "config.yaml"


def load() -> UserSettings:
    """The settings of the file; UOTFT_MIRROR replaces its ``mirror``.

    Raises `UserError` for a file that is broken, and for an UOTFT_MIRROR that is no place.
    """
    found = _read()
    if mirror := environment.mirror():
        return _checked({**found.model_dump(), "mirror": mirror}, environment.MIRROR)
    return found


def remember(**changes: Any) -> UserSettings:
    """Write the file with some settings changed; the others stay. Raises `UserError`."""
    made = _checked({**_read().model_dump(), **changes}, str(path()))
    held = {name: value for name, value in made.model_dump().items() if value}
    text = yaml.safe_dump(held, sort_keys=False, allow_unicode=True)
    private.write(path(), text.encode())
    return made


def _read() -> UserSettings:
    file = path()
    try:
        raw = storage.from_yaml(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return UserSettings()
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: this user's settings cannot be read: {error}") from error
    return _checked(raw or {}, str(file))


def _checked(raw: Any, where: str) -> UserSettings:
    try:
        return UserSettings.model_validate(raw)
    except ValidationError as error:
        lines = [
            f"\n  {'.'.join(map(str, e['loc'])) or 'the file'}: got {e['input']!r}: "
            f"{e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        ]
        known = ", ".join(UserSettings.model_fields)
        raise UserError(f"{where}: known settings are {known}{''.join(lines)}") from error
