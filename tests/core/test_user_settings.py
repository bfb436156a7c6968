"""The user's own settings: read, changed, and refused when broken."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from uotft.core import user_settings
from uotft.core.errors import UserError
from uotft.core.user_settings import UserSettings


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "uotft/config.yaml"


def test_no_file_is_the_defaults_and_makes_none(config: Path) -> None:
    assert user_settings.load() == UserSettings(mirror="", imagenet="", accepted=[])
    assert not config.exists()


def test_what_is_remembered_is_kept_beside_the_rest(config: Path) -> None:
    user_settings.remember(imagenet="/data/imagenet")
    user_settings.remember(accepted=["imagenet"])
    assert user_settings.load() == UserSettings(imagenet="/data/imagenet", accepted=["imagenet"])
    assert config.read_text() == "imagenet: /data/imagenet\naccepted:\n- imagenet\n"
    user_settings.remember(imagenet="")
    assert user_settings.load().imagenet == ""
    assert [path.name for path in config.parent.iterdir()] == ["config.yaml"]


def test_who_cannot_read_it_still_cannot_after_it_is_rewritten(config: Path) -> None:
    user_settings.remember(mirror="https://me:s3cret@mirror.example")
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    config.chmod(0o640)
    user_settings.remember(imagenet="/data/imagenet")
    assert stat.S_IMODE(config.stat().st_mode) == 0o640


def test_the_environment_names_the_mirror_first_and_is_never_written(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user_settings.remember(mirror="https://one.example/all/")
    assert user_settings.load().mirror == "https://one.example/all"
    monkeypatch.setenv("UOTFT_MIRROR", "/mirror")
    assert user_settings.load().mirror == "/mirror"
    user_settings.remember(accepted=["imagenet"])
    assert "https://one.example/all" in config.read_text()
    monkeypatch.setenv("UOTFT_MIRROR", "mirror")
    with pytest.raises(UserError, match=r"UOTFT_MIRROR: .*\n  mirror: got 'mirror': write an http"):
        user_settings.load()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("mirror: [", "cannot be read"),
        ("- a", "the file: got"),
        ("proxy: /m", "proxy: got '/m'"),
        ("mirror: 3", "mirror: got 3"),
        ("imagenet: data", "imagenet: got 'data': write the whole path"),
        ("accepted: imagenet", "accepted: got 'imagenet'"),
    ],
)
def test_a_broken_file_is_named(config: Path, text: str, why: str) -> None:
    config.parent.mkdir()
    config.write_text(text)
    for use in (user_settings.load, lambda: user_settings.remember(imagenet="/x")):
        with pytest.raises(UserError) as error:
            use()
        assert str(config) in str(error.value)
        assert why in str(error.value)
    assert config.read_text() == text
