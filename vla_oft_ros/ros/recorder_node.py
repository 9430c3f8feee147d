"""Everything on the wire in, one rosbag2 (MCAP) per episode out.

Messages arrive serialised and are written as they are; the executor's thread only counts them and
puts them into the buffer of `data.recorder`, which writes and judges in its own thread. Operators
speak to it by services, by the instruction topic, or with their grippers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rclpy.clock import Clock, ClockType
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from vla_oft_ros import msg as messages
from vla_oft_ros.aloha import ARMS, CAMERAS, JointStateError, load_profile
from vla_oft_ros.config import ConfigError, RecorderConfig
from vla_oft_ros.data.cdr import CdrError, read_joint_state
from vla_oft_ros.data.episode_folder import EpisodeFolder
from vla_oft_ros.data.gripper_trigger import GripperTrigger
from vla_oft_ros.data.quality import Stream
from vla_oft_ros.data.recorder import EpisodeRecorder, Refused, State
from vla_oft_ros.data.stream_checks import decode_message
from vla_oft_ros.ros.conversions import episode_status_to_msg
from vla_oft_ros.ros.diagnostics import ERROR, OK, Diagnostics
from vla_oft_ros.ros.lifecycle import ManagedNode, main_of
from vla_oft_ros.ros.raw_topics import RawTopic, RawTopics

_POLL_S = 0.1
_DISCOVER_S = 0.5
_INSTRUCTION_DURABILITIES = (DurabilityPolicy.VOLATILE, DurabilityPolicy.TRANSIENT_LOCAL)
_COMPLAIN_EVERY_S = 5.0


class RecorderNode(ManagedNode):
    """Records episodes. Parameters: `RecorderConfig`."""

    config: RecorderConfig

    def __init__(self) -> None:
        super().__init__("recorder_node", RecorderConfig)
        self._recorder: EpisodeRecorder | None = None
        self._folder: EpisodeFolder | None = None
        self._topics: RawTopics | None = None
        self._diagnostics: Diagnostics | None = None
        self._handles: list[tuple] = []
        self._beats: list = []
        self._active = False

    def _setup(self) -> None:
        config = self.config
        profile = load_profile(config.profile, config.profiles_path)
        self._profile, self._instruction = profile, config.instruction
        self._folder = EpisodeFolder(Path(config.output_dir).expanduser().resolve())
        for sentence in self._folder.recover():
            self.get_logger().warning(sentence)
        self._trigger = GripperTrigger(config.gripper_closed, config.gripper_hold_s)
        try:
            self._topics = RawTopics(
                self, self._wanted(), self._on_message, self._on_lost, self._expected()
            )
        except ImportError as error:
            raise ConfigError(str(error)) from None
        self._recorder = EpisodeRecorder(self._folder, profile, config, self._topics)
        self._roles = self._roles_of_topics()
        self._streams: dict[str, Stream] = {}
        self._diagnostics = Diagnostics(self)
        self._status_publisher = self.create_lifecycle_publisher(
            messages.EpisodeStatus, config.status_topic, 10
        )
        self._handles = [(self.destroy_lifecycle_publisher, self._status_publisher)]
        for durability in _INSTRUCTION_DURABILITIES:
            qos = QoSProfile(depth=1, durability=durability)
            subscription = self.create_subscription(
                String, config.instruction_topic, self._on_instruction, qos
            )
            self._handles.append((self.destroy_subscription, subscription))
        for name, kind, action in (
            ("start", Trigger, lambda _: self._start_episode()),
            ("stop", Trigger, lambda _: self._stop_episode()),
            ("discard", Trigger, lambda _: self._discard()),
            ("rerecord", Trigger, lambda _: self._rerecord()),
            ("label", SetBool, lambda request: self._label(request.data)),
        ):
            service = self.create_service(kind, f"~/{name}", self._answering(action))
            self._handles.append((self.destroy_service, service))
        self.get_logger().info(
            f"{len(self._folder.episodes())} episodes in {self._folder.path}, "
            f"{self._folder.free_bytes() / 2**30:.1f} GB free"
        )

    def _start(self) -> None:
        self._active = True
        # Real time: the operator must see something even when simulated time stands still.
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        self._topics.poll()
        self._beats = [
            self.create_timer(_DISCOVER_S, self._topics.poll, clock=clock),
            self.create_timer(_POLL_S, self._poll, clock=clock),
            self.create_timer(1.0 / self.config.status_rate_hz, self._publish, clock=clock),
        ]
        self._publish()

    def _stop(self) -> None:
        for timer in self._beats:
            self.destroy_timer(timer)
        self._beats = []
        if self._recorder is not None:
            self._recorder.close()
            if self._active:
                self._active = False
                self._publish()
        if self._topics is not None:
            self._topics.teardown()

    def _teardown(self) -> None:
        self._stop()
        for destroy, handle in self._handles:
            destroy(handle)
        self._handles = []
        if self._diagnostics is not None:
            self._diagnostics.teardown()
        if self._folder is not None:
            self._folder.close()
        self._recorder = self._folder = self._topics = self._diagnostics = None

    def _wanted(self) -> list[tuple[str, ...]]:
        """Topics to hear, each with what serves instead."""
        config, profile = self.config, self._profile
        wanted: list[tuple[str, ...]] = []
        for camera in CAMERAS:
            raw = profile.camera_topic(camera)
            choices = {"raw": (raw,), "compressed": (f"{raw}/compressed",)}
            both = (*choices["raw"], *choices["compressed"])
            wanted.append(choices.get(config.image_transport, both))
            wanted.append((raw.rsplit("/", 1)[0] + "/camera_info",))
        single = [*profile.follower_joint_state_topics, *profile.leader_joint_state_topics]
        single += [config.target_topic, config.chunk_topic, config.retained_tokens_topic]
        single += [config.pruning_status_topic, config.safety_topic, config.instruction_topic]
        single += config.extra_topics
        return [*dict.fromkeys([*wanted, *((name,) for name in single)])]

    def _expected(self) -> dict[str, str]:
        """What begins to speak in the middle of things, and must be heard from its first word."""
        config = self.config
        kinds = {
            config.target_topic: "sensor_msgs/msg/JointState",
            config.chunk_topic: "vla_oft_ros/msg/ActionChunk",
            config.retained_tokens_topic: "vla_oft_ros/msg/RetainedTokens",
            config.pruning_status_topic: "vla_oft_ros/msg/PruningStatus",
            config.safety_topic: "vla_oft_ros/msg/SafetyStatus",
        }
        return {name: kind for name, kind in kinds.items() if name}

    def _roles_of_topics(self) -> dict[str, tuple[str, str]]:
        """Absolute topic → role and name, of those whose content is looked at."""
        profile, roles = self._profile, {}
        for camera in CAMERAS:
            for name in (
                profile.camera_topic(camera),
                f"{profile.camera_topic(camera)}/compressed",
            ):
                roles[name] = "image", camera
        for arm, name in zip(ARMS, profile.follower_joint_state_topics, strict=True):
            roles[name] = "follower", arm
        for arm, name in zip(ARMS, profile.leader_joint_state_topics, strict=True):
            roles[name] = "leader", arm
        roles[self.config.target_topic] = "target", ""
        return {self.resolve_topic_name(name): role for name, role in roles.items()}

    def _on_message(
        self, topic: RawTopic, log_ns: int, data: bytes, publish_ns: int | None
    ) -> None:
        self._recorder.take(topic.bag_topic, log_ns, data, publish_ns)
        role, arm = self._roles.get(topic.name, ("", ""))
        if role == "leader" and self.config.gripper_trigger != "off":
            self._feel_gripper(arm, data)

    def _on_lost(self, topic: RawTopic, count: int) -> None:
        if self._recorder.is_recording:
            self._recorder.note_lost(topic.name, count)
            self.get_logger().error(
                f"{topic.name}: {count} messages were lost on the way to the recorder; is the "
                "machine too busy, are Fast DDS' shared-memory segments too small?",
                throttle_duration_sec=_COMPLAIN_EVERY_S,
            )

    def _feel_gripper(self, arm: str, data: bytes) -> None:
        try:
            state = read_joint_state(data)
            opening = self._profile.leader_action(state.name, state.position.tolist())[-1]
        except (CdrError, JointStateError) as error:
            self.get_logger().error(str(error), throttle_duration_sec=_COMPLAIN_EVERY_S)
            return
        if not self._trigger.add(arm, state.stamp_ns, float(opening)):
            return
        try:
            if not self._recorder.is_recording:
                self.get_logger().info(f"both grippers closed: {self._start_episode()}")
            elif self.config.gripper_trigger == "start_and_stop":
                self.get_logger().info(f"both grippers closed: {self._stop_episode()}")
        except Refused as error:
            self.get_logger().warning(f"both grippers closed, but {error}")

    def _on_instruction(self, message: String) -> None:
        if message.data == self._instruction:
            return
        self._instruction = message.data
        self._recorder.set_instruction(message.data)
        self.get_logger().info(f"instruction: {message.data!r}")

    def _answering(self, action: Callable[[object], str]) -> Callable:
        """A service callback: what was done, or why not."""

        def answer(request: object, response: object) -> object:
            if not self._active:
                response.success, response.message = False, "recorder_node is not active"
                return response
            try:
                response.message, response.success = action(request), True
            except Refused as error:
                response.message, response.success = str(error), False
                self.get_logger().warning(str(error))
            self._publish()
            return response

        return answer

    def _start_episode(self) -> str:
        now_ns = self._topics.now_ns()
        self._topics.drain(now_ns)  # it came before
        index = self._recorder.start(
            now_ns, self._instruction, self._living_streams(now_ns), self._camera_facts()
        )
        return f"recording episode {index}"

    def _stop_episode(self) -> str:
        return f"saving episode {self._recorder.stop()}"

    def _discard(self) -> str:
        return f"episode {self._recorder.discard()} is deleted"

    def _rerecord(self) -> str:
        return f"{self._discard()}; {self._start_episode()}"

    def _label(self, success: bool) -> str:
        return f"episode {self._recorder.label(success)}: {'success' if success else 'failure'}"

    def _living_streams(self, now_ns: int) -> dict[str, Stream]:
        """Topic → what it is for.

        Raises:
            Refused: if something that an episode needs is silent.
        """
        streams, alive = {}, set()
        limit_s = self.config.max_silence_s
        for name, topic in self._topics.heard.items():
            if name not in self._roles:
                continue
            role = self._roles[name]
            streams[name] = Stream(*role, topic.bag_topic.type)
            if not limit_s or topic.is_alive(now_ns, limit_s):
                alive.add(role)
        silent = [camera for camera in CAMERAS if ("image", camera) not in alive]
        silent += [f"{arm} follower" for arm in ARMS if ("follower", arm) not in alive]
        leaders = all(("leader", arm) in alive for arm in ARMS)
        if not leaders and ("target", "") not in alive:
            silent.append("leaders and joint targets")
        if silent and limit_s:
            raise Refused(
                f"nothing was heard of {', '.join(silent)} in the last {limit_s:g} s, expected "
                f"the topics of profile {self._profile.name!r}. Start the drivers, or choose "
                "another profile"
            )
        return streams

    def _camera_facts(self) -> dict[str, dict[str, object]]:
        """Camera → topic and size of its images."""
        facts: dict[str, dict[str, object]] = {}
        for name, topic in self._topics.heard.items():
            role, camera = self._roles.get(name, ("", ""))
            if role == "image" and topic.latest:
                try:
                    height, width, _ = decode_message(topic.bag_topic.type, topic.latest).shape
                except ValueError as error:
                    raise Refused(f"{camera}: {error}") from None
                facts[camera] = {"topic": name, "width_px": width, "height_px": height}
        return facts

    def _poll(self) -> None:
        before = self._recorder.state
        self._recorder.poll()
        if self._recorder.state is not before:
            self._publish()
            status = self._recorder.status()
            tell = self.get_logger().info
            if self._recorder.state is State.FAILED:
                tell = self.get_logger().error
            tell(
                f"{self._recorder.state.name.lower()} {status.reason}: episode "
                f"{status.episode_index}, {status.episodes_on_disk} on disk, quality "
                f"{status.quality.name.lower()} {'; '.join(status.quality_reasons)}"
            )

    def _publish(self) -> None:
        status = self._recorder.status()
        state = status.state if self._active else State.INACTIVE
        self._status_publisher.publish(
            episode_status_to_msg(
                status,
                state=state,
                stamp_ns=self.now_ns(),
                topics=list(self._topics.heard),
                instruction=self._instruction,
            )
        )
        bad = state is State.FAILED or sum(status.dropped_counts.values()) > 0
        self._diagnostics.publish(
            {
                "recorder": (
                    ERROR if bad else OK,
                    status.reason,
                    {
                        "state": state.name.lower(),
                        "episodes_on_disk": status.episodes_on_disk,
                        "waiting_mb": self._recorder.waiting_bytes / 2**20,
                        "dropped": sum(status.dropped_counts.values()),
                        "lost": sum(topic.lost for topic in self._topics.heard.values()),
                        "free_disk_gb": status.free_disk_bytes / 2**30,
                        "quality": status.quality.name.lower(),
                    },
                )
            }
        )


main = main_of(RecorderNode)

if __name__ == "__main__":
    main()
