"""The look at the machine: what is missing is named with the way to get it."""

import io
import json
import os
import re
import resource
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from rich.console import Console

from vla_oft_ros import check
from vla_oft_ros.check import Finding, check_machine, print_findings, write_findings
from vla_oft_ros.config import ControllerConfig, config_dir
from vla_oft_ros.config.system import UDEV_FILE


@pytest.fixture
def printed() -> Console:
    return Console(record=True, width=200, file=io.StringIO())


def test_every_finding_says_what_was_found_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_probe", lambda code: (False, "no such thing"))
    findings = check_machine()
    assert len({finding.name for finding in findings}) == len(findings) == 11
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


@pytest.mark.parametrize(
    ("priority", "memory", "root", "good"),
    [
        (0, 0, False, False),
        (99, 8 << 20, False, False),
        (0, resource.RLIM_INFINITY, False, False),
        (99, resource.RLIM_INFINITY, False, True),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, False, True),
        (0, 0, True, True),
    ],
)
def test_real_time_needs_both_limits_or_root(
    monkeypatch: pytest.MonkeyPatch, priority: int, memory: int, root: bool, good: bool
) -> None:
    limits = {resource.RLIMIT_RTPRIO: priority, resource.RLIMIT_MEMLOCK: memory}
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)
    monkeypatch.setattr(resource, "getrlimit", lambda what: (limits[what], limits[what]))
    assert check._real_time().good is good


def test_the_advice_names_the_shipped_limits_which_permit_what_the_controller_asks_for() -> None:
    advice = check._real_time().advice
    path = Path(re.search(r"install -m 644 (\S+) ", advice)[1])
    rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    limits = {row[2]: row[3] for row in rows if row and not row[0].startswith("#")}
    assert int(limits["rtprio"]) >= ControllerConfig().realtime_priority > 0
    assert limits["memlock"] == "unlimited"


def test_the_shipped_udev_rules_are_rules_in_pairs_of_key_and_value() -> None:
    """Every line matches something and then assigns something, in udev's grammar."""
    term = re.compile(r'([A-Z_]+)(\{[\w/]+\})?(==|\+=|=)"[^"]+"')
    lines = (config_dir() / "system" / UDEV_FILE).read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert len(rules) >= 8
    for rule in rules:
        terms = [term.fullmatch(part.strip()) for part in rule.split(", ")]
        assert all(terms), rule
        operators = [match[3] for match in terms]
        assert operators[0] == "==" and operators[-1] in ("=", "+="), rule
        assert operators == sorted(operators, key=lambda sign: sign != "=="), rule


def test_this_python_is_good_enough() -> None:
    finding = check._python()
    assert finding.good and sys.version.split()[0] in finding.found


@pytest.mark.parametrize(
    ("said", "good"),
    [
        ("rmw_fastrtps_cpp, built without DDS security", False),
        ("rmw_fastrtps_cpp, built with DDS security", True),
        ("rmw_zenoh_cpp, ignores DDS security", False),
        ("ModuleNotFoundError: No module named 'rclpy'", False),
    ],
)
def test_security_is_what_the_middleware_says(
    said: str, good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_probe", lambda code: (True, said))
    finding = check._security()
    assert (finding.good, finding.found, finding.needed) == (good, said, False)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("cannot: use -DSECURITY=ON", "built without DDS security"),
        ("couldn't find all security files!", "built with DDS security"),
        (None, "ignores DDS security"),
    ],
)
def test_the_probe_of_security_understands_the_middleware(
    error: str | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an rclpy that answers as the middlewares do."""
    raising = f"raise RuntimeError({error!r})" if error else "pass"
    (tmp_path / "rclpy.py").write_text(
        f"def init(): pass\ndef create_node(name): {raising}\n"
        "def get_rmw_implementation_identifier(): return 'rmw_x'\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert check._security().found == f"rmw_x, {told}"
