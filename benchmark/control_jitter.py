"""How exact the 25 Hz tick is, idle and beside everything that a robot's machine does.

    python benchmark/control_jitter.py [--seconds 10] [--json FILE] [--mechanisms]

Every row is a run of the real controller_node as a process, with joint states at 100 Hz and action
chunks. Load is three raw 640x480 cameras at 30 Hz into a process that computes all the time, as a
policy does, and into another one that takes the serialised bytes, as a recorder does. Ticks are
read off the wire: the stamp of a target is when its tick began, the middleware's source time when
it was sent. Beside each run a bare loop sleeps 25 times per second in the same scheduling class
and shows what the machine itself allows; the first row is run twice (A/A), so that a difference
can be told from noise. `--mechanisms` compares ways to make a tick without a controller.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from vla_oft_ros.config import config_dir
from vla_oft_ros.ros.processes import NodeProcesses, keep_on_loopback

PERIOD_NS = 40_000_000
SETTLE_S = 2.0
START_TIMEOUT_S = 30.0
CAMERA_HZ, WIDTH_PX, HEIGHT_PX = 30.0, 640, 480
PRIORITY = 50
TICK_TOPIC = "tick_probe"
MECHANISMS = ("timer", "early timer", "thread")


def sleeper(seconds: float, fifo: bool) -> None:
    """A bare loop on the monotonic clock; writes the lateness of each wake-up, nanoseconds."""
    if fifo:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY + 1))
    due_ns = time.monotonic_ns() + PERIOD_NS
    late = []
    for _ in range(round(seconds * 1e9 / PERIOD_NS)):
        time.sleep(max(due_ns - time.monotonic_ns(), 0) * 1e-9)
        late.append(time.monotonic_ns() - due_ns)
        due_ns += PERIOD_NS
    sys.stdout.write(json.dumps(late))


def cameras() -> None:
    """Three cameras in one process."""
    import rclpy
    from sensor_msgs.msg import Image

    from vla_oft_ros.ros.conversions import image_to_msg

    rclpy.init()
    node = rclpy.create_node("cameras")
    image = np.zeros((HEIGHT_PX, WIDTH_PX, 3), dtype=np.uint8)
    message = image_to_msg(image, 0, "camera")
    publishers = [node.create_publisher(Image, f"camera_{index}", 5) for index in range(3)]
    node.create_timer(1.0 / CAMERA_HZ, lambda: [one.publish(message) for one in publishers])
    rclpy.spin(node)


def listener(busy: bool) -> None:
    """Takes all images; computes all the time if `busy`, else takes only the bytes."""
    import rclpy
    from sensor_msgs.msg import Image

    rclpy.init()
    node = rclpy.create_node("policy_like" if busy else "recorder_like")
    for index in range(3):
        node.create_subscription(Image, f"camera_{index}", lambda _: None, 5, raw=not busy)
    if busy:
        matrix = np.random.default_rng(0).normal(size=(512, 512))

        def compute() -> None:
            while True:
                matrix @ matrix

        threading.Thread(target=compute, daemon=True).start()
    rclpy.spin(node)


def mechanism(name: str, fifo: bool) -> None:
    """A process that only ticks, beside joint states: one way to make a tick."""
    import rclpy
    from rclpy.clock import Clock, ClockType
    from sensor_msgs.msg import JointState

    from vla_oft_ros.ros.conversions import joint_state_to_msg
    from vla_oft_ros.ros.realtime import be_real_time
    from vla_oft_ros.ros.tick import Tick

    rclpy.init()
    node = rclpy.create_node("tick_probe")
    publisher = node.create_publisher(JointState, TICK_TOPIC, 10)
    for arm in ("left", "right"):
        node.create_subscription(JointState, f"/follower_{arm}/joint_states", lambda _: None, 10)

    def tick() -> None:
        now_ns = node.get_clock().now().nanoseconds
        publisher.publish(joint_state_to_msg(["a"], np.zeros(1), now_ns))

    if name == "timer":
        node.create_timer(PERIOD_NS * 1e-9, tick, clock=Clock(clock_type=ClockType.STEADY_TIME))
    elif name == "early timer":
        Tick(node, PERIOD_NS, tick, simulated=False)
    else:

        def run() -> None:
            due_ns = time.monotonic_ns()
            while True:
                due_ns += PERIOD_NS
                time.sleep(max(due_ns - time.monotonic_ns(), 0) * 1e-9)
                tick()

        threading.Thread(target=run, daemon=True).start()
    if fifo:
        be_real_time(PRIORITY)
    rclpy.spin(node)


def child(*arguments: str, **keywords: object) -> subprocess.Popen[str]:
    """Another process of this file."""
    return subprocess.Popen(
        [sys.executable, __file__, "--child", *arguments], text=True, **keywords
    )


def robot(node: object, ending: threading.Event) -> None:
    """Publishes joint states at 100 Hz and a chunk every 0.6 s."""
    from sensor_msgs.msg import JointState

    from vla_oft_ros import msg as messages
    from vla_oft_ros.aloha import ACTION_NAMES, JOINT_STATE_NAMES, start_pose
    from vla_oft_ros.ros.conversions import chunk_to_msg, joint_state_to_msg
    from vla_oft_ros.types import ActionChunk

    arms = [
        node.create_publisher(JointState, f"/follower_{arm}/joint_states", 10)
        for arm in ("left", "right")
    ]
    chunks = node.create_publisher(messages.ActionChunk, "action_chunk", 10)
    joints = np.array([*start_pose(0.5)[:7], 0.03, -0.03])
    count = 0
    while not ending.wait(0.01):
        now_ns = time.time_ns()
        for publisher in arms:
            publisher.publish(joint_state_to_msg(JOINT_STATE_NAMES, joints, now_ns))
        if count % 60 == 0:
            chunk = ActionChunk(
                actions=np.tile(start_pose(0.5), (25, 1)),
                stamp_ns=now_ns,
                dt_ns=PERIOD_NS,
                instruction="",
                inference_s=0.0,
            )
            chunks.publish(chunk_to_msg(chunk, ACTION_NAMES))
        count += 1


def measure(seconds: float, *, load: bool, fifo: bool, name: str = "controller") -> dict:
    """One run.

    Returns:
        Period errors, missed ticks, tick to wire and the noise floor, milliseconds.
    """
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from sensor_msgs.msg import JointState

    from vla_oft_ros.ros.conversions import stamp_from_msg

    rclpy.init()
    node = rclpy.create_node("jitter")
    heard: list[tuple[int, int]] = []
    topic = "joint_targets" if name == "controller" else TICK_TOPIC

    def on_target(message: JointState, info: dict) -> None:
        heard.append((stamp_from_msg(message.header.stamp), info["source_timestamp"]))

    node.create_subscription(JointState, topic, on_target, 100)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    children = [child("cameras"), child("policy"), child("recorder")] if load else []
    if name != "controller":
        children.append(child(name, "fifo" if fifo else "normal"))
    log_dir = Path(tempfile.mkdtemp(prefix="jitter_"))
    ending = threading.Event()
    feeder = threading.Thread(target=robot, args=(node, ending))
    try:
        with NodeProcesses(config_dir(), log_dir, os.environ) as nodes:
            if name == "controller":
                overrides = {"exit_with_parent": True, "realtime_priority": PRIORITY * fifo}
                nodes.start("controller_node", "controller.yaml", overrides)
            feeder.start()
            start_limit_s = time.monotonic() + START_TIMEOUT_S
            while not heard and time.monotonic() < start_limit_s:
                executor.spin_once(timeout_sec=0.1)
            if not heard:
                raise SystemExit(f"no ticks within {START_TIMEOUT_S:g} s; see {log_dir}")
            settled_s = time.monotonic() + SETTLE_S
            while time.monotonic() < settled_s:
                executor.spin_once(timeout_sec=0.1)
            heard.clear()
            floor = child(
                *("sleeper", str(seconds), "fifo" if fifo else "normal"),
                stdout=subprocess.PIPE,
            )
            end_s = time.monotonic() + seconds
            while time.monotonic() < end_s:
                executor.spin_once(timeout_sec=0.1)
            late_ns = np.array(json.loads(floor.communicate()[0]))
    finally:
        ending.set()
        feeder.join()
        for process in children:
            process.kill()
            process.wait()
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    stamps, sent = np.array(heard).T
    periods = np.diff(stamps)
    expected = round((stamps[-1] - stamps[0]) / PERIOD_NS) + 1
    error_ms = np.abs(periods - PERIOD_NS) / 1e6
    floor_ms = np.abs(np.diff(late_ns)) / 1e6
    wire_ms = (sent - stamps) / 1e6
    return {
        "ticks": len(stamps),
        "missed": max(0, int(expected) - len(stamps)),
        **_quantiles("error", error_ms),
        **_quantiles("wire", wire_ms),
        **_quantiles("floor", floor_ms),
    }


def _quantiles(name: str, values: np.ndarray) -> dict[str, float]:
    p50, p99 = np.quantile(values, [0.5, 0.99])
    largest = values.max()
    return {f"{name}_ms_p50": p50, f"{name}_ms_p99": p99, f"{name}_ms_max": float(largest)}


def main() -> None:
    """Runs all rows and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each run")
    parser.add_argument("--json", type=Path, help="also write the figures as JSON")
    parser.add_argument("--mechanisms", action="store_true", help="compare ways to make a tick")
    parser.add_argument("--only", default="", help="only rows with this in their name")
    arguments = parser.parse_args()
    keep_on_loopback(os.environ, config_dir())
    runs = {
        "idle, FIFO": {"load": False, "fifo": True},
        "load, FIFO": {"load": True, "fifo": True},
        "load, FIFO (again)": {"load": True, "fifo": True},
        "load, normal class": {"load": True, "fifo": False},
    }
    if arguments.mechanisms:
        runs = {
            f"{name}, load, {kind}": {"load": True, "fifo": kind == "FIFO", "name": name}
            for kind in ("normal class", "FIFO")
            for name in MECHANISMS
        }
    console = Console(highlight=False, width=120)
    table = Table(box=None, pad_edge=False)
    for column in ("run", "ticks", "missed"):
        table.add_column(column)
    for column in ("period error", "tick to wire", "bare sleep"):
        table.add_column(f"{column}\np50/p99/max ms")
    results = {}
    for name, keywords in runs.items():
        if arguments.only not in name:
            continue
        row = results[name] = measure(arguments.seconds, **keywords)
        cells = [
            " / ".join(f"{row[f'{what}_ms_{q}']:.2f}" for q in ("p50", "p99", "max"))
            for what in ("error", "wire", "floor")
        ]
        table.add_row(name, str(row["ticks"]), str(row["missed"]), *cells)
    console.print(table)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(f"{os.cpu_count()} cores, {platform.release()}, load average {load}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def run_child(kind: str, *arguments: str) -> None:
    """What a process of this file does."""
    if kind == "sleeper":
        sleeper(float(arguments[0]), arguments[1] == "fifo")
    elif kind == "cameras":
        cameras()
    elif kind in ("policy", "recorder"):
        listener(kind == "policy")
    else:
        mechanism(kind, arguments[0] == "fifo")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run_child(*sys.argv[2:])
    else:
        main()
