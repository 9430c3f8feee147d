"""Recorder: nothing is lost from three cameras, four arms and targets, raw and as JPEG.

    python benchmark/recorder.py [--seconds 60] [--output DIR] [--json FILE]

One process publishes 3 cameras of 640x480 at 30 Hz (best effort, as sensors do), 4 joint states
at 100 Hz and joint targets at 25 Hz; the recorder node, a process of its own, records them. Stamps
are equally spaced, so that what is missing can be counted in the bag itself, which is read back
message by message. Loopback, Fast DDS with the profile of config/. Ends with 0 if nothing is
missing or dropped, else with 1; with 2 if a run could not be made.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.serialization import serialize_message
from rclpy.signals import SignalHandlerOptions
from rich.console import Console
from rich.table import Table
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_srvs.srv import SetBool, Trigger

from vla_oft_ros import msg as messages
from vla_oft_ros.aloha import ACTION_NAMES, CAMERAS, JOINT_STATE_NAMES, load_profile, start_pose
from vla_oft_ros.config import config_dir
from vla_oft_ros.data import cdr
from vla_oft_ros.data.bag_storage import open_bag
from vla_oft_ros.ros.conversions import compressed_image_to_msg, image_to_msg, joint_state_to_msg
from vla_oft_ros.ros.processes import NodeProcesses, keep_on_loopback

CAMERA_HZ, JOINT_HZ, TARGET_HZ = 30, 100, 25
PICTURES = 30
"""Different pictures per camera."""
PROFILE = load_profile("sim")
RAW_BYTES_S = 3 * CAMERA_HZ * 640 * 480 * 3
SPARE_BYTES = 3 * 2**30
"""Left free besides: the recorder ends an episode when less than 2 GB are left."""
STAMP_AT = 4
"""Behind the CDR encapsulation, every one of these messages begins with its stamp."""


@dataclass(frozen=True)
class Row:
    """What became of one topic.

    Attributes:
        topic: Its name.
        on_disk: Messages in the bag.
        missing: Stamps that are absent between the first and the last one.
        dropped: Messages that the recorder says it has not written.
        rate_hz: Rate in the bag.
    """

    topic: str
    on_disk: int
    missing: int
    dropped: int
    rate_hz: float


def pictures(compressed: bool) -> list[bytearray]:
    """Serialised images, all different: a scene with edges and noise, as a camera gives it."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(PICTURES):
        image = np.zeros((480, 640, 3), np.uint8)
        for _ in range(40):
            x, y = rng.integers(0, 640), rng.integers(0, 480)
            color = [int(value) for value in rng.integers(30, 230, 3)]
            cv2.circle(image, (int(x), int(y)), int(rng.integers(10, 120)), color, -1)
        image = np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)
        to_msg = compressed_image_to_msg if compressed else image_to_msg
        made.append(bytearray(serialize_message(to_msg(image, number, "camera"))))
    return made


def publish(compressed: bool) -> None:
    """Publishes everything until it is told to end by SIGTERM."""
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = Node("publisher")
    streams: list[tuple[Any, list[bytearray], int]] = []
    images = pictures(compressed)
    for camera in CAMERAS:
        topic = PROFILE.camera_topic(camera) + ("/compressed" if compressed else "")
        kind = CompressedImage if compressed else Image
        publisher = node.create_publisher(kind, topic, qos_profile_sensor_data)
        streams.append((publisher, images, CAMERA_HZ))
    for topic in (*PROFILE.follower_joint_state_topics, *PROFILE.leader_joint_state_topics):
        streams.append((node.create_publisher(JointState, topic, 10), _joints(), JOINT_HZ))
    targets = node.create_publisher(JointState, "joint_targets", 10)
    streams.append((targets, _joints(ACTION_NAMES), TARGET_HZ))
    begin_ns = time.time_ns()
    counts = [0] * len(streams)
    periods_ns = [1_000_000_000 // hz for _, _, hz in streams]
    while True:
        dues = [
            begin_ns + count * period for count, period in zip(counts, periods_ns, strict=True)
        ]
        place = int(np.argmin(dues))
        wait_s = (dues[place] - time.time_ns()) * 1e-9
        if wait_s > 0:
            time.sleep(wait_s)
        publisher, messages, _ = streams[place]
        message = messages[counts[place] % len(messages)]
        struct.pack_into("<iI", message, STAMP_AT, *divmod(dues[place], 1_000_000_000))
        publisher.publish(bytes(message))
        counts[place] += 1


def _joints(names: tuple[str, ...] = JOINT_STATE_NAMES) -> list[bytearray]:
    """One second of serialised joint states that move."""
    made = []
    for number in range(JOINT_HZ):
        swing = 0.2 * np.sin(2 * np.pi * number / JOINT_HZ)
        pose = start_pose(0.5) + swing
        position = pose if len(names) == len(pose) else np.array([*pose[:7], 0.03, -0.03])
        zeros = np.zeros(len(names))
        message = joint_state_to_msg(names, position, number, zeros, zeros)
        made.append(bytearray(serialize_message(message)))
    return made


class Operator(Node):
    """Asks the recorder and hears its status; gives up when the publisher has ended."""

    def __init__(self, publisher: subprocess.Popen[bytes]) -> None:
        super().__init__("operator")
        self.publisher = publisher
        self.status = messages.EpisodeStatus()
        self.create_subscription(messages.EpisodeStatus, "episode_status", self._on_status, 10)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self)

    def _on_status(self, message: messages.EpisodeStatus) -> None:
        self.status = message

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 300.0) -> None:
        """Spins until something is so."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            self._executor.spin_once(timeout_sec=0.1)
            if self.publisher.poll() is not None:
                raise RuntimeError(f"the publisher ended with {self.publisher.returncode}")
            if time.monotonic() > deadline_s:
                raise RuntimeError(
                    f"{what} did not happen in {timeout_s:g} s; the recorder is in state "
                    f"{self.status.state} {self.status.reason} and hears {self.status.topics}"
                )

    def ask(self, kind: type, name: str, request: object) -> None:
        """Calls a service of the recorder."""
        client = self.create_client(kind, f"recorder_node/{name}")
        self.until(client.service_is_ready, f"service {name}")
        future = client.call_async(request)
        self.until(future.done, f"answer of {name}")
        if not future.result().success:
            raise RuntimeError(future.result().message)

    def insist(self, kind: type, name: str, request: object, timeout_s: float = 60.0) -> None:
        """Asks until it is granted: on a busy machine the streams may pause at first."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                return self.ask(kind, name, request)
            except RuntimeError:
                if time.monotonic() > deadline_s:
                    raise


def measure(compressed: bool, seconds: float, output: Path) -> dict[str, Any]:
    """Records one episode and counts what is in it.

    Raises:
        RuntimeError: if something does not answer, the counts said are not those on disk, or the
            disk is too small.
    """
    needed, free = SPARE_BYTES + round(seconds * RAW_BYTES_S), shutil.disk_usage(output).free
    if not compressed and free < needed:
        raise RuntimeError(
            f"{output}: expected {needed / 1e9:.1f} GB of free disk for {seconds:g} s; got "
            f"{free / 1e9:.1f}. Choose another disk with --output, or a shorter --seconds"
        )
    folder = Path(tempfile.mkdtemp(prefix="recorder_", dir=output))
    command = [sys.executable, __file__, "--publish", "jpeg" if compressed else "raw"]
    cpu_s, load = _children_s(), [os.getloadavg()[0]]
    publisher = subprocess.Popen(command)
    operator = Operator(publisher)
    try:
        with NodeProcesses(config_dir(), folder, os.environ) as nodes:
            nodes.start("recorder_node", "recorder.yaml", {"output_dir": str(folder / "set")})
            operator.until(lambda: len(operator.status.topics) >= 3 + 4 + 1, "all streams")
            time.sleep(1.0)  # discovery has ended for all of them
            operator.insist(Trigger, "start", Trigger.Request())
            end_s = time.monotonic() + seconds
            operator.until(lambda: time.monotonic() > end_s, "the end", seconds + 60.0)
            stop_s = time.monotonic()
            operator.ask(Trigger, "stop", Trigger.Request())
            review = messages.EpisodeStatus.STATE_REVIEW
            operator.until(lambda: operator.status.state == review, "the saved episode")
            save_s = time.monotonic() - stop_s
            operator.ask(SetBool, "label", SetBool.Request(data=True))
            status = operator.status
            nodes.stop()
            cpu_s = _children_s() - cpu_s
            load.append(os.getloadavg()[0])
        rows, cut = _count(folder / "set" / "episode_000000", status)
    finally:
        publisher.terminate()
        publisher.wait()
        operator.destroy_node()
        shutil.rmtree(folder)
    return {
        "images": "jpeg" if compressed else "raw",
        "seconds": status.duration_s,
        "bytes": status.bytes,
        "save_s": save_s,
        "cpu_s": cpu_s,
        "load": load,
        "cut": cut,
        "quality": status.quality,
        "quality_reasons": list(status.quality_reasons),
        "topics": [asdict(row) for row in rows],
    }


def _children_s() -> float:
    """CPU time of the processes that have ended: of the recorder, its start included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _count(bag_path: Path, status: messages.EpisodeStatus) -> tuple[list[Row], str]:
    """What became of each topic, and the topics whose end the recorder had no time for."""
    rows = []
    said = dict(zip(status.topics, status.message_counts, strict=True))
    dropped = dict(zip(status.topics, status.dropped_counts, strict=True))
    with open_bag(bag_path, check=True) as bag:
        if bag.damage:
            raise RuntimeError(str(bag.damage))
        for topic, kind in bag.types.items():
            if not kind.startswith("sensor_msgs") or kind.endswith("CameraInfo"):
                continue
            entries = [entry for entry in bag.entries if entry.topic == topic]
            stamps = [cdr.read_stamp_ns(bag.read(entry)) for entry in entries]
            hz = TARGET_HZ if topic.endswith("targets") else JOINT_HZ
            hz = CAMERA_HZ if "image" in topic else hz
            span_ns = max(stamps) - min(stamps)
            expected = round(span_ns / (1_000_000_000 // hz)) + 1
            if said[topic] != len(stamps):
                raise RuntimeError(f"{topic}: said {said[topic]}, on disk {len(stamps)}")
            missing = expected - len(set(stamps))
            rate_hz = (len(stamps) - 1) * 1e9 / span_ns
            rows.append(Row(topic, len(stamps), missing, dropped[topic], rate_hz))
        return rows, bag.custom_data.get("cut", "")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "middleware": rclpy.get_rmw_implementation_identifier(),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def show(results: list[dict[str, Any]], console: Console) -> None:
    """Prints a table per run."""
    console.print(", ".join(f"{name} {value}" for name, value in machine().items()))
    for result in results:
        rate = result["bytes"] / result["seconds"] / 1e6
        load = "{:.1f} before and {:.1f} after".format(*result["load"])
        console.print(
            f"\n[bold]{result['images']}[/]: {result['seconds']:.1f} s, {rate:.1f} MB/s, saved "
            f"{result['save_s']:.1f} s after the stop, recorder {result['cpu_s']:.1f} s of CPU, "
            f"load {load}, quality {result['quality']} {'; '.join(result['quality_reasons'])}"
        )
        table = Table("topic", "on disk", "missing", "dropped", "Hz")
        for row in result["topics"]:
            cells = [row["topic"], row["on_disk"], row["missing"], row["dropped"]]
            table.add_row(*map(str, cells), f"{row['rate_hz']:.2f}")
        console.print(table)
        told, gone, dropped = (
            sum(row[name] for row in result["topics"])
            for name in ("on_disk", "missing", "dropped")
        )
        console.print(f"{told} messages on disk as said, {gone} missing, {dropped} dropped")
        if result["cut"]:
            console.print(f"[bold red]the end of {result['cut']} is missing[/]")


def main() -> int:
    """Measures raw images, then JPEG."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of an episode")
    parser.add_argument("--output", type=Path, default=Path.cwd(), help="disk to write to")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--publish", choices=["raw", "jpeg"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.publish:
        publish(arguments.publish == "jpeg")
        return 0
    keep_on_loopback(os.environ, config_dir())
    rclpy.init()
    try:
        results = [
            measure(compressed, arguments.seconds, arguments.output)
            for compressed in (False, True)
        ]
    except RuntimeError as error:
        Console(stderr=True).print(f"[bold red]{error}[/]")
        return 2
    finally:
        rclpy.try_shutdown()
    show(results, Console(width=120))
    if arguments.json:
        record = {"machine": machine(), "runs": results}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    gone = sum(row["missing"] + row["dropped"] for run in results for row in run["topics"])
    return 1 if gone or any(run["cut"] for run in results) else 0


if __name__ == "__main__":
    sys.exit(main())
