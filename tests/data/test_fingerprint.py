from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from qlib_llm_alpha.data import fingerprint
from qlib_llm_alpha.data.fingerprint import market_name, provider_fingerprint
from qlib_llm_alpha.errors import ProviderError


@pytest.fixture
def provider(tmp_path: Path) -> Path:
    for name in ("calendars/day.txt", "instruments/all.txt", "features/sh600000/close.day.bin"):
        path = tmp_path / "provider" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(name.encode())
    return tmp_path / "provider"


def test_the_embedded_market_has_the_hash_of_its_manifest(small_provider: Path) -> None:
    manifest = json.loads((small_provider / "market.json").read_text(encoding="utf-8"))
    assert provider_fingerprint(small_provider) == manifest["sha256"]


def test_a_copy_elsewhere_with_other_dates_of_writing_is_the_same_data(provider: Path, tmp_path: Path) -> None:
    shutil.copytree(provider, tmp_path / "copy")
    assert provider_fingerprint(tmp_path / "copy") == provider_fingerprint(provider)


@pytest.mark.parametrize("name", ["calendars/day.txt", "instruments/all.txt", "features/sh600000/close.day.bin"])
def test_every_file_counts_within_one_process_too(name: str, provider: Path) -> None:
    before = provider_fingerprint(provider)
    path = provider / name
    path.write_bytes(path.read_bytes().upper())
    os.utime(path, ns=(1, 1))
    assert provider_fingerprint(provider) != before


def test_a_new_file_and_another_name_count(provider: Path) -> None:
    first = provider_fingerprint(provider)
    (provider / "features/sh600000/open.day.bin").write_bytes(b"1")
    second = provider_fingerprint(provider)
    (provider / "features/sh600000/open.day.bin").rename(provider / "features/sh600000/high.day.bin")
    assert len({first, second, provider_fingerprint(provider)}) == 3


def test_what_qlib_caches_beside_the_data_does_not_count(provider: Path) -> None:
    before = provider_fingerprint(provider)
    (provider / "dataset_cache").mkdir()
    (provider / "dataset_cache" / "x").write_bytes(b"1")
    assert provider_fingerprint(provider) == before


def test_unchanged_files_are_not_read_again(provider: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = provider_fingerprint(provider)
    monkeypatch.setattr(fingerprint, "hash_files", lambda *_: "read again")
    assert provider_fingerprint(provider) == first


def test_a_folder_without_a_provider_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="expected a Qlib provider"):
        provider_fingerprint(tmp_path / "nowhere")


def test_providers_of_a_region_are_one_market_and_an_embedded_market_is_its_own(
    provider: Path, small_provider: Path
) -> None:
    assert market_name(provider, "cn") == "cn"
    assert market_name(provider, "us") == "us"
    assert market_name(small_provider, "cn").startswith("embedded planted, seed 7, ")


def test_a_manifest_that_says_nothing_is_refused(provider: Path) -> None:
    for text in ("{", "[]", "{}"):
        (provider / "market.json").write_text(text, encoding="utf-8")
        with pytest.raises(ProviderError, match="does not say what market"):
            market_name(provider, "cn")
