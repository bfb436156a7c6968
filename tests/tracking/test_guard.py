"""The order that the compare page takes its first metric from."""

from __future__ import annotations

import json

import pytest

from uotft.tracking import guard


def test_the_test_accuracy_comes_first() -> None:
    names = ["val/top1", "loss/target", "test/top1", "test/mean_per_class"]
    metrics = [{"key": name, "value": number} for number, name in enumerate(names)]
    answer = {"run": {"data": {"metrics": metrics, "params": []}}}
    many = {"runs": [answer["run"], {"data": {}}]}
    [of_many, _] = json.loads(guard.ordered(json.dumps(many).encode()))["runs"]
    run = json.loads(guard.ordered(json.dumps(answer).encode()))["run"]
    assert run == of_many
    found = {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}
    assert [*found] == ["test/top1", "val/top1", "loss/target", "test/mean_per_class"]
    assert found["test/top1"] == 2


@pytest.mark.parametrize("body", [b"", b"no", b"[]", b"{}", b'{"run": {"data": {}}}', b"\xff"])
def test_other_answers_stay(body: bytes) -> None:
    assert guard.ordered(body) == body
