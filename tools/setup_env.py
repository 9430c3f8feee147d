"""Prepares everything that `make demo` and `make test` need: `python3 tools/setup_env.py`.

Uses the standard library only. Makes `.venv` beside the Makefile, installs the pinned packages and
the project into it, builds the messages with the package's own CMakeLists.txt, and finds an OpenGL
that draws without a screen. Each step leaves a stamp when it is done, so that a second call is
silent and instant, a changed file repeats only what depends on it, an interrupted set-up goes on.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from ros_env import GL_CHOICE, ROOT, VENV, environment

PYTHONS = ((3, 10), (3, 13))
EXTRAS = "model,data,sim,train,ros,security,dev"
STAMPS = VENV / "vla_oft_stamps.json"
INSTALLING = VENV / "vla_oft_installing"
"""Is there while pip works; found later, it means that pip was interrupted halfway."""
LOG = VENV / "vla_oft_setup.log"
PIPED_LINE_EVERY_S = 30.0
PYTHON = VENV / "bin" / "python"
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
STARTED_S = time.monotonic()

# What is asked of the system, as Debian and Ubuntu name it and as Fedora does.
COMPILER = (["g++"], ["gcc-c++"])
HEADERS = ([f"python{VERSION}-dev"], [f"python{VERSION}-devel"])
ENSUREPIP = ([f"python{VERSION}-venv"], [f"python{VERSION}"])
OPENGL = (
    ["libegl1", "libegl-mesa0", "libgl1", "libgl1-mesa-dri"],
    ["mesa-libEGL", "mesa-libGL", "mesa-dri-drivers"],
)

DRAW = """
import mujoco
world = "<mujoco><worldbody><light pos='0 0 3'/><geom size='.1'/></worldbody></mujoco>"
model = mujoco.MjModel.from_xml_string(world)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 16, 16)
renderer.update_scene(data)
assert renderer.render().max() > 0
renderer.close()
"""

TRY_OUT = """
import mujoco, numpy, rclpy, torch, vla_oft_ros.types
from rclpy.serialization import deserialize_message, serialize_message
from vla_oft_ros.msg import ActionChunk
chunk = ActionChunk(positions=[1.0] * 14, chunk_len=1)
assert deserialize_message(serialize_message(chunk), ActionChunk) == chunk
"""


class SetupError(Exception):
    """Something that only the person at the machine can change; its text says how."""


def say(text: str) -> None:
    """Prints one line with the seconds since the start."""
    print(f"[{time.monotonic() - STARTED_S:5.1f} s] {text}", flush=True)


def log(text: str) -> None:
    """Adds to the log as things happen, so that it can be watched; needs `.venv`."""
    if LOG.parent.is_dir():
        with LOG.open("a", encoding="utf-8") as file:
            file.write(text)


def run(command: Sequence[object], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs a command and keeps its output; a terminal sees its last line, the log all of it, and
    who reads through a pipe a line now and then.

    Returns:
        What became of it, with standard error in `stdout` too; the caller looks at the status.
    """
    words = [str(word) for word in command]
    lines = []
    log(f"$ {' '.join(words)}\n")
    next_line_s = time.monotonic() + PIPED_LINE_EVERY_S
    with subprocess.Popen(
        words, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace",
    ) as process:  # fmt: skip
        for line in process.stdout or ():
            lines.append(line)
            log(line)
            if not sys.stdout.isatty():
                if time.monotonic() > next_line_s:
                    say(f"… {line.strip()[:100]}")
                    next_line_s = time.monotonic() + PIPED_LINE_EVERY_S
            else:
                width = shutil.get_terminal_size().columns - 12
                print(f"\r\x1b[K          {line.strip()[:width]}", end="", flush=True)
    if sys.stdout.isatty():
        print("\r\x1b[K", end="", flush=True)
    return subprocess.CompletedProcess(words, process.returncode, "".join(lines))


def clean_environment() -> dict[str, str]:
    """The caller's variables without those that make pip or Python look elsewhere."""
    env = environment(os.environ)
    for name in ("PYTHONPATH", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_CONSTRAINT"):
        env.pop(name, None)
    env.update(PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1", PIP_PREFER_BINARY="1")
    return env


# Stamps


def digest(files: Iterable[Path]) -> str:
    """Hash over the content of files, the version of Python and the place of the project."""
    whole = hashlib.sha256(f"{platform.python_version()} {ROOT}".encode())
    for path in sorted(files):
        whole.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return whole.hexdigest()


def wanted_stamps() -> dict[str, str]:
    """What each step depends on, in the order of the steps."""
    here = Path(__file__).resolve()
    packages = [ROOT / name for name in ("constraints.txt", "setup.py")]
    packages += [ROOT / "vla_oft_ros" / "__init__.py", here]
    messages = [ROOT / name for name in ("CMakeLists.txt", "package.xml", "constraints.txt")]
    messages += [*(ROOT / "msg").glob("*.msg"), ROOT / "vla_oft_ros" / "__init__.py"]
    return {
        "packages": digest(packages),
        "messages": digest(messages),
        "opengl": digest([ROOT / "constraints.txt"]),
    }


def read_stamps() -> dict[str, str]:
    """Stamps of the steps that are done; none if the file is missing or half-written."""
    try:
        return dict(json.loads(STAMPS.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def write_stamps(stamps: dict[str, str]) -> None:
    """Replaces the file in one go, so that it is never half-written."""
    fresh = STAMPS.with_suffix(".new")
    fresh.write_text(json.dumps(stamps, indent=2), encoding="utf-8")
    fresh.replace(STAMPS)


# What the machine must have


def choose_python() -> None:
    """Starts this script again under a Python that the wheels support, if this one is not."""
    if PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        return
    for minor in (12, 11, 13, 10):
        other = shutil.which(f"python3.{minor}")
        works = other and not subprocess.call([other, "-c", ""], stderr=subprocess.DEVNULL)
        if other and works:
            os.execv(other, [other, *sys.argv])
    raise SetupError(
        f"expected Python 3.10 to 3.13, got {platform.python_version()} ({sys.executable}). "
        "Install one of them and type: make PYTHON=/path/to/python3.12 …"
    )


def check_machine() -> None:
    """Refuses machines for which ROS 2 does not exist as wheels."""
    if (
        sys.platform != "linux"
        or platform.machine() != "x86_64"
        or platform.libc_ver()[0] != "glibc"
    ):
        raise SetupError(
            "expected Linux on x86_64 with glibc, for which ROS 2 exists as wheels; got "
            f"{platform.system()} on {platform.machine()}. Use a ROS 2 Jazzy installation and "
            "colcon instead: see CONTRIBUTING.md, With a ROS installation"
        )


def install_system(reason: str, debian: list[str], fedora: list[str]) -> None:
    """Installs system packages where that is allowed, else stops with the line to type."""
    if not shutil.which("apt-get"):
        line = "sudo dnf install " + " ".join(fedora)
        raise SetupError(f"{reason}. On Fedora type: {line}\nElsewhere install its equivalent.")
    prefix: list[str] = []
    if os.geteuid() != 0:
        prefix = ["sudo", "-n"]
        if not shutil.which("sudo") or subprocess.call(
            ["sudo", "-n", "true"], stderr=subprocess.DEVNULL
        ):
            line = "sudo apt-get update && sudo apt-get install -y " + " ".join(debian)
            raise SetupError(f"{reason}. Type: {line}")
    say(f"{reason}: apt-get install {' '.join(debian)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run([*prefix, "apt-get", "update"], env)
    done = run([*prefix, "apt-get", "install", "-y", "--no-install-recommends", *debian], env)
    if done.returncode:
        fail(f"{reason}, and apt-get could not install {' '.join(debian)}", done.stdout)


def check_system() -> None:
    """The compilers, the headers of Python and the venv module; what is missing in one go."""
    missing = []
    if not shutil.which("cc") or not shutil.which("c++"):
        missing.append(("no C and C++ compiler (cc, c++)", COMPILER))
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        missing.append((f"no headers of Python {VERSION} (Python.h)", HEADERS))
    has_venv = [sys.executable, "-c", "import ensurepip, venv"]
    if subprocess.call(has_venv, stderr=subprocess.DEVNULL):
        missing.append((f"no venv module in Python {VERSION}", ENSUREPIP))
    if missing:
        install_system(
            ", ".join(reason for reason, _ in missing),
            [name for _, (debian, _) in missing for name in debian],
            [name for _, (_, fedora) in missing for name in fedora],
        )


def fail(what: str, output: str) -> NoReturn:
    """Stops with the end of a command's output, and names the network where that is the cause."""
    unreachable = ("NewConnectionError", "Temporary failure", "ConnectTimeout", "unreachable")
    if any(sign in output for sign in unreachable):
        raise SetupError(
            f"{what}: no network. Connect this machine and repeat the command\n({LOG})"
        )
    tail = "\n".join(f"    {line[:200]}" for line in output.splitlines()[-15:])
    raise SetupError(f"{what}\n{tail}\nEverything that was said is in {LOG}")


# The steps


def make_venv() -> None:
    """A virtual environment; kept if it works, was made here and has this Python's version."""
    try:
        said = run([VENV / "bin" / "pip", "--version"], clean_environment()).stdout
        whole = not INSTALLING.exists()
        if whole and f"from {VENV}/" in said and f"(python {VERSION})" in said:
            return
    except OSError:
        pass  # none yet, half-made, or moved here from another folder
    say(f"making {VENV.name} with Python {platform.python_version()}")
    done = run([sys.executable, "-m", "venv", "--clear", VENV], dict(os.environ))
    if done.returncode:
        fail("python -m venv failed", done.stdout)


def install_packages() -> None:
    """The pinned packages and the project itself, editable.

    One call names torch together with everything else, so that pip settles on one version of it.
    """
    say(
        "installing the pinned packages (torch, MuJoCo, ROS 2, …): minutes the first time; all of "
        f"it in {LOG.relative_to(ROOT)}"
    )
    INSTALLING.touch()
    pip = [
        PYTHON,
        "-m",
        "pip",
        "install",
        "--constraint",
        ROOT / "constraints.txt",
    ]
    done = run([*pip, "--editable", f"{ROOT}[{EXTRAS}]"], clean_environment())
    if done.returncode == 0:
        # Only the MuJoCo assets inside are used; its requirements would bring half a gigabyte.
        done = run([*pip, "--no-deps", "gym-aloha"], clean_environment())
    if done.returncode:
        fail("pip could not install the packages", done.stdout)
    INSTALLING.unlink()


def build_messages() -> None:
    """The messages, installed into the environment beside the other ROS packages."""
    say("building the messages")
    build = VENV / "build_messages"
    shutil.rmtree(build, ignore_errors=True)
    env = clean_environment()
    configure = [
        "-S", ROOT, "-B", build, "-G", "Ninja", f"-DCMAKE_INSTALL_PREFIX={VENV}",
        f"-DPython3_EXECUTABLE={PYTHON}", "-DVLA_OFT_ROS_MESSAGES_ONLY=ON", "-DBUILD_TESTING=OFF",
    ]  # fmt: skip
    for arguments in (configure, ["--build", build, "--target", "install"]):
        done = run([VENV / "bin" / "cmake", *arguments], env)
        if done.returncode:
            fail("CMake could not build the messages", done.stdout)
    done = run([PYTHON, "-c", TRY_OUT], env)
    if done.returncode:
        fail("the installed packages do not work together", done.stdout)


def find_opengl() -> None:
    """Tries what MuJoCo can draw with, and installs Mesa if nothing works."""
    say("looking for an OpenGL that draws without a screen")
    for attempt in range(2):
        wish = os.environ.get("MUJOCO_GL", "")
        for backend in dict.fromkeys([*([wish] if wish else []), "egl", "osmesa"]):
            done = run([PYTHON, "-c", DRAW], {**clean_environment(), "MUJOCO_GL": backend})
            if done.returncode == 0:
                GL_CHOICE.write_text(backend, encoding="utf-8")
                return
        if attempt == 0:
            install_system("MuJoCo cannot draw: no EGL and no OSMesa", *OPENGL)
    fail("MuJoCo cannot draw, neither with EGL nor with OSMesa", done.stdout)


STEPS = {
    "packages": install_packages,
    "messages": build_messages,
    "opengl": find_opengl,
}


def set_up() -> None:
    """Runs every step whose stamp is not as it should be."""
    choose_python()
    wanted = wanted_stamps()
    if read_stamps() == wanted and PYTHON.exists():
        return
    with open(__file__, "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second set-up beside this one waits here
        if read_stamps() == wanted and PYTHON.exists():
            return
        check_machine()
        check_system()
        LOG.unlink(missing_ok=True)
        make_venv()
        done = read_stamps()
        for name, step in STEPS.items():
            if done.get(name) == wanted[name]:
                continue
            step()
            done[name] = wanted[name]
            write_stamps(done)
        write_stamps(wanted)
        say("ready")


def main() -> None:
    """Sets up, or says in one paragraph what is missing."""
    try:
        set_up()
    except SetupError as error:
        sys.exit(f"set-up stopped: {error}")
    except KeyboardInterrupt:
        sys.exit("set-up interrupted; the same command goes on from here")


if __name__ == "__main__":
    main()
