from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from qlib_llm_alpha.errors import ConfigError
from qlib_llm_alpha.llm.models import LADDER, SHIPPED, ModelInfo, ModelRegistry

LOCAL, REMOTE = "http://127.0.0.1:8000/v1", "https://models.example/v1"


def registry(tmp_path: Path, text: str) -> ModelRegistry:
    path = tmp_path / "models.yaml"
    path.write_text(text, encoding="utf-8")
    return ModelRegistry.of(path)


def test_every_shipped_model_is_read_and_says_nothing_of_privacy() -> None:
    shipped = ModelRegistry.of()
    assert {"gpt-4o", "gpt-4o-mini", "deepseek-chat", "qwen-plus"} <= set(shipped.names())
    for name in shipped.names():
        info = shipped.get(name, REMOTE)
        assert info.privacy == "remote"
        assert shipped.get(name, LOCAL).privacy == "local"
        assert set(info.schema_modes) <= set(LADDER)
        assert info.knowledge_cutoff is None or date(2020, 1, 1) < info.knowledge_cutoff < date(2026, 11, 21)
    assert "dated: 2026" in SHIPPED.read_text(encoding="utf-8")


def test_what_is_known_of_one_model() -> None:
    info = ModelRegistry.of().get("gpt-4o-mini", REMOTE)
    assert info.price_per_million == (0.15, 0.6)
    assert info.knowledge_cutoff == date(2023, 10, 31)
    assert (info.max_tokens_field, info.images) == ("max_completion_tokens", True)


def test_of_an_unknown_model_nothing_is_known() -> None:
    info = ModelRegistry.of().get("ft:someone", REMOTE)
    assert info == ModelInfo("ft:someone")
    assert (info.knowledge_cutoff, info.price_per_million, info.privacy) == (None, None, "remote")
    assert ModelRegistry.of().get("ft:someone").privacy == "remote"
    assert ModelRegistry.of().get("ft:someone", LOCAL).privacy == "local"


def test_an_entry_of_the_user_replaces_the_shipped_one_as_a_whole(tmp_path: Path) -> None:
    text = "models:\n  gpt-4o:\n    fine_tuned_until: 2025-03-01\n  ours:\n    price_per_million: [0, 0.5]\n"
    mine = registry(tmp_path, text)
    assert mine.get("gpt-4o", REMOTE) == ModelInfo("gpt-4o", fine_tuned_until=date(2025, 3, 1))
    assert mine.get("ours").price_per_million == (0, 0.5)
    assert mine.get("gpt-4o-mini").price_per_million == (0.15, 0.6)


def test_stated_privacy_holds_wherever_the_model_is_asked(tmp_path: Path) -> None:
    mine = registry(tmp_path, "models:\n  house:\n    privacy: local\n  relay:\n    privacy: remote\n")
    assert mine.get("house", "http://10.0.0.5/v1").privacy == "local"
    assert mine.get("relay", LOCAL).privacy == "remote"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("pric: 1", "pric"),
        ("price_per_million: 3", "price_per_million"),
        ("price_per_million: [1, -1]", "price"),
        ("price_per_million: [1, .nan]", "price"),
        ("knowledge_cutoff: last year", "knowledge_cutoff"),
        ("privacy: secret", "privacy"),
        ("schema_modes: [yaml]", "schema_modes"),
        ("max_tokens_field: tokens", "max_tokens_field"),
        ("context: 0", "context"),
        ("images: maybe", "images"),
    ],
)
def test_an_entry_that_means_nothing_is_refused_with_its_place(tmp_path: Path, entry: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        registry(tmp_path, f"models:\n  ours:\n    {entry}\n")
    assert "'ours'" in str(raised.value)


@pytest.mark.parametrize("text", ["", "[]", "models: [a]", "models:\n  a: 3\n", "models:\n  3: {}\n", "a: [", "\x00"])
def test_a_file_that_is_no_registry_is_refused_by_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"models\.yaml"):
        registry(tmp_path, text)


def test_a_missing_file_is_refused_without_its_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ours\.yaml"):
        ModelRegistry.of(tmp_path / "ours.yaml")
