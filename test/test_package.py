"""Laws of the package itself: what manifests, pins, messages and scripts promise each other."""

import ast
import importlib.util
import re
import runpy
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import vla_oft_ros
from vla_oft_ros.types import KeptBy

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "vla_oft_ros"
NODES = sorted((PACKAGE / "ros").glob("*_node.py"))
MESSAGES = sorted((ROOT / "msg").glob("*.msg"))
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
DISTRIBUTIONS = {"PIL": "pillow", "cv2": "opencv-python-headless", "yaml": "pyyaml"}
"""Distribution of a module, where the names differ."""
OPTIONAL_ROS = {"cv_bridge", "tf2_msgs", "xacro"}
"""ROS packages that are used where they are installed and not missed elsewhere."""


@pytest.fixture
def setup_arguments(monkeypatch: pytest.MonkeyPatch) -> dict:
    """What setup.py hands to setuptools."""
    arguments: dict = {}
    monkeypatch.setattr(setuptools, "setup", arguments.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    return arguments


def all_requirements(setup_arguments: dict) -> list[Requirement]:
    texts = list(setup_arguments["install_requires"])
    for extra in setup_arguments["extras_require"].values():
        texts += extra
    return [Requirement(text) for text in texts]


def pins(python: str) -> dict[str, str]:
    """Distribution → version of constraints.txt that holds for one Python."""
    versions: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pin = Requirement(line)
        (specifier,) = pin.specifier
        assert specifier.operator == "==", line
        if pin.marker is None or pin.marker.evaluate({"python_version": python}):
            name = canonicalize_name(pin.name)
            assert name not in versions, f"{name} is pinned twice for Python {python}"
            versions[name] = specifier.version
    return versions


def imported_modules(path: Path) -> set[str]:
    """Top-level names of everything that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"vla_oft_ros", "__future__"}


def package_xml() -> ElementTree.Element:
    return ElementTree.parse(ROOT / "package.xml").getroot()


def load_tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_has_one_pin_that_satisfies_it(
    setup_arguments: dict, python: str
) -> None:
    pinned = pins(python)
    for requirement in all_requirements(setup_arguments):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in constraints.txt for {python}"
        assert requirement.specifier.contains(version), f"{requirement}: pinned to {version}"


def test_every_imported_distribution_is_a_requirement(setup_arguments: dict) -> None:
    required = {canonicalize_name(entry.name) for entry in all_requirements(setup_arguments)}
    for path in sorted(PACKAGE.rglob("*.py")):
        if (PACKAGE / "ros") in path.parents:
            continue
        for module in imported_modules(path):
            name = canonicalize_name(DISTRIBUTIONS.get(module, module))
            assert name in required, f"{path.name} imports {module}, which setup.py does not name"


def test_every_imported_ros_package_is_named_in_package_xml_and_in_the_ros_extra(
    setup_arguments: dict,
) -> None:
    tags = ("depend", "exec_depend")
    named = {entry.text for entry in package_xml() if entry.tag in tags}
    required = {canonicalize_name(entry.name) for entry in all_requirements(setup_arguments)}
    launch = {"launch", "launch_ros"}
    files = [*(PACKAGE / "ros").glob("*.py"), *(ROOT / "launch").glob("*.py")]
    for path in sorted(files):
        for module in imported_modules(path) - OPTIONAL_ROS:
            if canonicalize_name(DISTRIBUTIONS.get(module, module)) in required:
                continue
            assert module in named, f"{path.name} imports {module}, not named in package.xml"
            as_wheel = canonicalize_name(f"ros-{module}") in required
            assert as_wheel or module in launch, f"{path.name} imports {module}, not in extra ros"


def test_one_version_is_written_everywhere(setup_arguments: dict) -> None:
    version = vla_oft_ros.__version__
    assert setup_arguments["version"] == version
    assert package_xml().findtext("version") == version
    changelog = (ROOT / "CHANGELOG.rst").read_text(encoding="utf-8")
    headings = re.findall(r"^(Forthcoming|\d+\.\d+\.\d+.*)\n-+$", changelog, re.MULTILINE)
    released = [heading.split()[0] for heading in headings if heading != "Forthcoming"]
    assert headings and headings[0] in ("Forthcoming", version)
    assert not released or released[0] == version


def message_entries(path: Path) -> Iterator[tuple[str, str]]:
    """Each field or constant of a message file, with the comment before or behind it."""
    comment = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        code, _, behind = line.partition("#")
        if code.strip():
            yield code.strip(), (behind if behind else comment)
            comment = ""
        else:
            comment = f"{comment} {behind}" if behind else ""


@pytest.mark.parametrize("path", MESSAGES, ids=lambda path: path.stem)
def test_every_message_field_states_its_unit_or_range(path: Path) -> None:
    entries = list(message_entries(path))
    assert entries
    for entry, comment in entries:
        meaning, bracket, rest = comment.partition("[")
        assert meaning.strip() and bracket, f"{path.name}: {entry}: comment without [unit, range]"
        assert rest.rstrip().endswith("]") and len(rest) > 2, f"{path.name}: {entry}: {comment}"


def test_messages_name_the_same_reasons_as_the_types() -> None:
    text = (ROOT / "msg" / "RetainedTokens.msg").read_text(encoding="utf-8")
    constants = dict(re.findall(r"^uint8 ([A-Z_]+)=(\d+)", text, re.MULTILINE))
    assert {name: int(value) for name, value in constants.items()} == {
        flag.name: flag.value for flag in KeptBy
    }


def test_cmake_builds_every_message() -> None:
    listed = re.findall(r"^\s+msg/(\w+\.msg)$", (ROOT / "CMakeLists.txt").read_text(), re.M)
    assert sorted(listed) == [path.name for path in MESSAGES]


@pytest.mark.parametrize("path", NODES, ids=lambda path: path.stem)
def test_every_node_can_be_run_as_an_executable(path: Path) -> None:
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    assert "main" in names, f"{path.name} has no main, which the executable {path.stem} calls"


def test_project_environment_leaves_a_sourced_installation_out() -> None:
    environment = load_tool("ros_env").environment
    base = {
        "PATH": "/opt/ros/jazzy/bin:/usr/bin",
        "AMENT_PREFIX_PATH": "/srv/me/ws/install/mine:/opt/ros/jazzy",
        "LD_LIBRARY_PATH": "/opt/ros/jazzy/lib:/usr/local/cuda/lib64",
        "PYTHONPATH": "/srv/me/ws/install/mine/lib/python3.12/site-packages:/srv/me/mine",
        "HOME": "/srv/me",
    }
    env = environment(base)
    joined = ":".join(env.values())
    assert "/opt/ros" not in joined and "/srv/me/ws" not in joined
    assert env["LD_LIBRARY_PATH"].endswith("/usr/local/cuda/lib64")
    assert env["PYTHONPATH"] == "/srv/me/mine"
    assert env["HOME"] == "/srv/me"


def test_project_environment_made_twice_is_the_same() -> None:
    environment = load_tool("ros_env").environment
    once = environment({"PATH": "/usr/bin", "LD_LIBRARY_PATH": "/usr/local/cuda/lib64"})
    assert environment(once) == once


def test_users_own_ros_choices_are_kept() -> None:
    chosen = {"ROS_AUTOMATIC_DISCOVERY_RANGE": "OFF", "MUJOCO_GL": "glfw", "ROS_DOMAIN_ID": "7"}
    env = load_tool("ros_env").environment(chosen)
    assert {name: env[name] for name in chosen} == chosen
