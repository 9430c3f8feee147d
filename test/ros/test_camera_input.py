"""A camera is taken raw or compressed, whichever comes, and decoded only when it is looked at."""

from collections.abc import Callable

import numpy as np
import pytest
from ros.graph import Graph
from sensor_msgs.msg import CompressedImage, Image

from vla_oft_ros.ros.camera_input import CameraInput, Decode
from vla_oft_ros.ros.conversions import compressed_image_to_msg, image_from_msg, image_to_msg

TOPIC = "/eye/image"
GREY = np.full((8, 8, 3), 90, dtype=np.uint8)


class Camera:
    """Both topics of a camera, and what a `CameraInput` made of them."""

    def __init__(self, graph: Graph, transport: str) -> None:
        self.graph = graph
        self.frames: list[tuple[str, int, Decode]] = []
        self.decoded: list[Image] = []
        self.raw = graph.ear.create_publisher(Image, TOPIC, 10)
        self.jpeg = graph.ear.create_publisher(CompressedImage, f"{TOPIC}/compressed", 10)
        self.input = CameraInput(graph.ear, "eye", TOPIC, transport, self.decode, self.on_frame)
        self.input.setup()

    def decode(self, message: Image) -> np.ndarray:
        self.decoded.append(message)
        return image_from_msg(message)

    def on_frame(self, camera: str, stamp_ns: int, decode: Decode) -> None:
        self.frames.append((camera, stamp_ns, decode))

    @property
    def listeners(self) -> tuple[int, int]:
        """Subscriptions of the raw and of the compressed topic."""
        node = self.graph.ear
        return node.count_subscribers(TOPIC), node.count_subscribers(f"{TOPIC}/compressed")

    def send_raw(self, stamp_ns: int) -> None:
        self.raw.publish(image_to_msg(GREY, stamp_ns, "eye"))

    def send_jpeg(self, stamp_ns: int) -> None:
        self.jpeg.publish(compressed_image_to_msg(GREY, stamp_ns, "eye"))

    def until_frame(self, send: Callable[[int], None]) -> None:
        """Sends until something arrives: best effort may lose what is sent before discovery."""
        before = len(self.frames)

        def arrived() -> bool:
            send(len(self.frames) + 1)
            return len(self.frames) > before

        self.graph.until(arrived, "a frame")


@pytest.fixture
def make_camera(make_graph: Callable) -> Callable[[str], Camera]:
    return lambda transport: Camera(make_graph(), transport)


@pytest.mark.parametrize("winner", ["raw", "compressed"])
def test_auto_takes_whichever_comes_and_drops_the_other_subscription(
    winner: str, make_camera: Callable
) -> None:
    camera = make_camera("auto")
    camera.graph.until(lambda: camera.listeners == (1, 1), "two subscriptions")
    send, other = camera.send_raw, camera.send_jpeg
    if winner == "compressed":
        send, other = other, send
    camera.until_frame(send)
    expected = (1, 0) if winner == "raw" else (0, 1)
    camera.graph.until(lambda: camera.listeners == expected, f"only {winner}")
    camera.graph.listen_in_silence()
    count = len(camera.frames)
    other(99)
    camera.graph.listen_in_silence()
    assert len(camera.frames) == count
    camera.until_frame(send)


def test_auto_settles_on_one_when_both_come_at_once(make_camera: Callable) -> None:
    camera = make_camera("auto")

    def both(stamp_ns: int) -> None:
        camera.send_raw(stamp_ns)
        camera.send_jpeg(stamp_ns)

    for _ in range(5):
        camera.until_frame(both)
    camera.graph.until(lambda: sum(camera.listeners) == 1, "one subscription")


@pytest.mark.parametrize(("transport", "expected"), [("raw", (1, 0)), ("compressed", (0, 1))])
def test_a_chosen_transport_listens_to_nothing_else(
    transport: str, expected: tuple[int, int], make_camera: Callable
) -> None:
    camera = make_camera(transport)
    camera.graph.until(lambda: camera.listeners == expected, transport)
    camera.until_frame(camera.send_raw if transport == "raw" else camera.send_jpeg)
    assert camera.listeners == expected


@pytest.mark.parametrize("transport", ["raw", "compressed"])
def test_a_frame_carries_camera_and_stamp_and_is_decoded_on_demand(
    transport: str, make_camera: Callable
) -> None:
    camera = make_camera(transport)
    send = camera.send_raw if transport == "raw" else camera.send_jpeg
    camera.until_frame(lambda _: send(5_000_000_007))
    name, stamp_ns, decode = camera.frames[-1]
    assert (name, stamp_ns) == ("eye", 5_000_000_007)
    assert camera.decoded == []
    np.testing.assert_allclose(decode().astype(int), GREY, atol=2)
    assert len(camera.decoded) == (transport == "raw")


def test_after_teardown_nothing_is_heard_and_setup_begins_anew(make_camera: Callable) -> None:
    camera = make_camera("auto")
    camera.until_frame(camera.send_raw)
    camera.input.teardown()
    camera.graph.until(lambda: camera.listeners == (0, 0), "no subscription")
    count = len(camera.frames)
    camera.send_raw(1)
    camera.graph.listen_in_silence()
    assert len(camera.frames) == count
    camera.input.setup()
    camera.graph.until(lambda: camera.listeners == (1, 1), "both subscriptions")
    camera.until_frame(camera.send_jpeg)
