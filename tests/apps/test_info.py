"""What `vrae info` says for a bug report, and what it keeps to itself."""

from __future__ import annotations

import json

import pytest

from vrae.apps.cli import main
from vrae.apps.info import describe, lines


def test_it_says_what_matters_in_json_and_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {"vrae", "python", "system", "packages", "extras", "torch", "processors", "threads", "devices", "configs"} <= set(
        report
    )
    assert report["packages"]["torch"].startswith("2.")
    assert {"tiny", "small", "base", "demo"} <= set(report["configs"])
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert f"vrae                 {report['vrae']}\n" in text
    assert f"  torch              {report['packages']['torch']}\n" in text


def test_the_environment_is_told_but_for_what_may_be_private(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    for name in ("HF_TOKEN", "HF_HOME", "HF_ENDPOINT", "HOME", "USER", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret-of-mine")
    report = describe()
    assert report["environment"]["OMP_NUM_THREADS"] == "3"
    assert "secret-of-mine" not in json.dumps(report)


def test_a_report_is_a_line_for_each_value() -> None:
    report = {"a": 1, "b": {"c": None, "d": ["x", "y"]}, "e": {}}
    told = ["a                    1", "b", "  c                  -", "  d                  x, y", "e                    -"]
    assert list(lines(report)) == told
