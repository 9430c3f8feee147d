"""The way of a chunk through the nodes, as they tell it on `chunk_trace`."""

import time
from collections.abc import Callable

from diagnostic_msgs.msg import DiagnosticArray
from ros.fakes import FakePolicy, FakeRobot
from ros.graph import Graph, parameters
from ros.test_controller_node import Bench as ControllerBench

from vla_oft_ros import msg as messages
from vla_oft_ros.aloha import CAMERAS
from vla_oft_ros.ros.chunk_trace import (
    COMPUTED,
    OBSERVED,
    PREPROCESSED,
    PUBLISHED,
    QUEUED,
    RECEIVED,
    SENT,
    STAMP,
    STARTED,
    TOPIC,
    trace_from_msg,
)
from vla_oft_ros.ros.conversions import stamp_from_msg
from vla_oft_ros.ros.policy_node import PolicyNode


def test_the_policy_tells_of_each_chunk_when_its_images_came_and_when_it_left(
    policy: FakePolicy, make_graph: Callable
) -> None:
    before_ns = time.time_ns()
    graph: Graph = make_graph(
        *parameters(use_sim_time="true", instruction="lift", execute_steps=2)
    )
    node = graph.add(PolicyNode())
    FakeRobot(graph.ear)
    heard = graph.hear(DiagnosticArray, TOPIC)
    chunks = graph.hear(messages.ActionChunk, "action_chunk")
    assert node.autostart()
    graph.until(lambda: len(heard) >= 2 and len(chunks) >= 2, "two traced chunks")
    for message in heard[:2]:
        stamp_ns, instants = trace_from_msg(message)
        asked = next(one for one in policy.asked if one.stamp_ns == stamp_ns)
        assert stamp_ns in [stamp_from_msg(chunk.header.stamp) for chunk in chunks]
        assert {camera: instants[STAMP + camera] for camera in CAMERAS} == asked.image_stamps_ns
        order = [OBSERVED, STARTED, PREPROCESSED, COMPUTED, SENT]
        last_ns = max(instants[RECEIVED + camera] for camera in CAMERAS)
        way = [before_ns, last_ns, *(instants[name] for name in order), time.time_ns()]
        assert way == sorted(way)


def test_the_controller_tells_of_each_chunk_once_when_its_first_target_left(
    make_graph: Callable,
) -> None:
    before_ns = time.time_ns()
    bench = ControllerBench(make_graph(*parameters(use_sim_time="true")))
    heard = bench.graph.hear(DiagnosticArray, TOPIC)
    bench.node.autostart()
    bench.until_targets()
    sent = bench.chunk()
    bench.send(sent)
    bench.graph.until(lambda: heard, "a traced chunk")
    bench.until_targets(3)
    (message,) = heard
    stamp_ns, instants = trace_from_msg(message)
    assert stamp_ns == stamp_from_msg(sent.header.stamp)
    way = [before_ns, instants[QUEUED], instants[PUBLISHED], time.time_ns()]
    assert way == sorted(way)
