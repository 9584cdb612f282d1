"""Which files of a watched folder are taken, and when."""

import pytest

from node.work import watch_rules
from node.work.watch_rules import Facts, Filters, Memory, WatchSettings

A, B = Facts(1, 1, 1), Facts(2, 2, 1)


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        ("a.mkv", {}, True),
        ("shows/a.MKV", {}, True),
        ("a.txt", {}, False),
        ("mkv", {}, False),
        (".a.mkv", {}, False),
        (".hidden/a.mkv", {}, False),
        (".hidden/a.mkv", {"hidden": True}, True),
        ("a.xyz", {"extensions": ["XYZ"]}, True),
        ("a.mkv", {"extensions": ["xyz"]}, False),
        ("shows/a.mkv", {"include": ["shows/*"]}, True),
        ("films/a.mkv", {"include": ["shows/*"]}, False),
        ("shows/a.sample.mkv", {"include": ["shows/*"], "exclude": ["*sample*"]}, False),
    ],
)
def test_names(name: str, given: dict[str, object], taken: bool) -> None:
    assert Filters.model_validate(given).take(name) is taken


def test_a_file_settles_once_nothing_changes() -> None:
    memory = Memory()
    memory.look([("a", A)], 0, whole=True)
    assert memory.settled(9, 10) == []
    assert memory.settles_in_ms(4, 10) == 6
    memory.look([("a", B)], 8, whole=True)  # it grew
    assert memory.settled(10, 10) == []
    assert memory.settled(18, 10) == [("a", B)]
    memory.end("a", A, "submitted")  # of what it was, not of what it is
    assert memory.settled(18, 10) == [("a", B)]
    memory.end("a", B, "submitted")
    assert memory.settled(99, 10) == []
    assert memory.settles_in_ms(99, 10) is None
    memory.look([("a", B)], 100, whole=True)
    assert memory.settled(999, 10) == [], "looked at again, it is the same"
    memory.look([("a", A)], 100, whole=False)
    assert memory.settled(110, 10) == [("a", A)], "replaced"


def test_what_is_gone_is_forgotten_and_only_by_a_whole_look() -> None:
    memory = Memory()
    memory.look([("a", A), ("b", B)], 0, whole=True)
    memory.look([("a", A)], 1, whole=False)
    assert memory.counts() == {"seen": 2}
    memory.look([("a", A)], 1, whole=True)
    assert memory.counts() == {"seen": 1}
    memory.gone("a")
    memory.gone("never")
    assert memory.counts() == {}


def test_a_folder_is_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_rules, "FILES_MAX", 2)
    memory = Memory()
    memory.look([(str(n), A) for n in range(3)], 0, whole=True)
    assert memory.full
    assert memory.counts() == {"seen": 2}
    memory.look([("0", A)], 0, whole=True)
    assert not memory.full


def test_settings_come_back_as_they_were_written() -> None:
    text = '{"request": {"paths": ["/in"], "profile": "web"}, "filters": {"settle_s": 3}}'
    settings = WatchSettings.model_validate_json(text)
    again = WatchSettings.model_validate_json(settings.model_dump_json(exclude_defaults=True))
    assert again == settings
    assert settings.filters.scan_s == 60
