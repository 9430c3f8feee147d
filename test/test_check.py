"""The look at the machine: what is missing is named with the way to get it."""

import io
import json
import os
import resource
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from rich.console import Console

from vla_oft_ros import check
from vla_oft_ros.check import Finding, check_machine, print_findings, write_findings


@pytest.fixture
def printed() -> Console:
    return Console(record=True, width=200, file=io.StringIO())


def test_every_finding_says_what_was_found_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_probe", lambda code: (False, "no such thing"))
    findings = check_machine()
    assert len({finding.name for finding in findings}) == len(findings) == 10
    for finding in findings:
        assert finding.found, finding.name
        assert finding.good or finding.advice, finding.name
    wanted = {"Python", "ROS 2", "Messages", "PyTorch", "MuJoCo", "OpenGL"}
    assert {finding.name for finding in findings if finding.needed} == wanted


def test_what_is_not_good_is_marked_and_advised_below_the_table(printed: Console) -> None:
    findings = [
        Finding(name="A", good=True, found="fine", advice="never shown", needed=True),
        Finding(name="B", good=False, found="broken", advice="mend it", needed=True),
        Finding(name="C", good=False, found="slow", advice="buy another"),
    ]
    print_findings(findings, printed)
    lines = [line.split() for line in printed.export_text().splitlines()]
    assert lines == [
        ["ok", "A", "fine"],
        ["missing", "B", "broken"],
        ["note", "C", "slow"],
        ["B:", "mend", "it"],
        ["C:", "buy", "another"],
    ]


def test_brackets_in_findings_and_advice_are_shown_as_they_are(printed: Console) -> None:
    finding = Finding(
        name="A", good=False, found="[Errno 2] [/usr/lib]", advice="pip install 'vla_oft_ros[sim]'"
    )
    print_findings([finding], printed)
    text = printed.export_text()
    assert finding.found in text and finding.advice in text


def test_findings_are_written_as_json(tmp_path: Path) -> None:
    path = tmp_path / "findings.json"
    write_findings([Finding(name="A", good=True, found="ü")], path)
    assert json.loads(path.read_text(encoding="utf-8")) == [
        {"name": "A", "good": True, "found": "ü", "advice": "", "needed": False}
    ]


def test_a_probe_runs_in_a_process_of_its_own_and_tells_its_last_line() -> None:
    assert check._probe("import os; print('a'); print(os.getpid())")[1] != str(os.getpid())
    assert check._probe("print('a'); print('b')") == (True, "b")
    assert check._probe("raise ValueError('no')") == (False, "ValueError: no")
    assert check._probe("import os; os._exit(3)") == (False, "exit code 3")
    assert check._probe("import os; os.kill(os.getpid(), 11)") == (False, "exit code -11")


def test_a_probe_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_PROBE_TIMEOUT_S", 1)
    assert check._probe("import time; time.sleep(60)") == (False, "no answer within 1 s")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "find_spec", lambda name: None)
    assert check._mujoco().found == "missing mujoco, gym-aloha (its robot meshes)"
    assert (check._ros().found, check._ros().good) == ("no rclpy", False)
    assert (check._torch().found, check._torch().good) == ("not installed", False)


def test_opengl_tries_the_next_backend_and_tells_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_probe", lambda code: ("osmesa" in code, "result"))
    assert check._opengl().found == "osmesa: result"
    monkeypatch.setattr(check, "_probe", lambda code: (False, "no"))
    finding = check._opengl()
    assert finding.found == "egl: no; osmesa: no"
    assert finding.advice.startswith("sudo apt-get install ")


def test_memory_and_disk_are_judged_by_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {"SC_AVPHYS_PAGES": 2, "SC_PHYS_PAGES": 8, "SC_PAGE_SIZE": 2**30}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    assert not check._memory().good and check._memory().found.startswith("2.0 of 8.0 GiB free")
    pages["SC_AVPHYS_PAGES"] = 3
    assert check._memory().good
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 9 * 2**30))
    assert not check._disk().good and check._disk().found == "9 GiB free here"


def test_real_time_needs_a_limit_or_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(resource, "getrlimit", lambda what: (0, 0))
    assert not check._real_time().good
    for limit in (99, resource.RLIM_INFINITY):
        monkeypatch.setattr(resource, "getrlimit", lambda what, limit=limit: (limit, limit))
        assert check._real_time().good
    monkeypatch.setattr(resource, "getrlimit", lambda what: (0, 0))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert check._real_time().good


def test_this_python_is_good_enough() -> None:
    finding = check._python()
    assert finding.good and sys.version.split()[0] in finding.found
