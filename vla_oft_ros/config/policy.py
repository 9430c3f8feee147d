"""Settings of the policy and its node: checkpoint, images, token pruning, observations."""

from __future__ import annotations

from dataclasses import dataclass, field

from vla_oft_ros.config.fields import ConfigError, check_fields, doc


@dataclass(frozen=True, kw_only=True)
class PreprocessingConfig:
    """How camera images become network input; the defaults are those of official OFT+ ALOHA."""

    resize_to_256: bool = field(
        default=True,
        metadata=doc(
            "First squash to 256x256 (bicubic), as the ALOHA training data were prepared."
        ),
    )
    jpeg_roundtrip: bool = field(
        default=True,
        metadata=doc(
            "JPEG encode and decode (quality 95) before the last resize, as in training."
        ),
    )
    center_crop: bool = field(
        default=True,
        metadata=doc("Crop the central 90 % of the area; needed when training used random crops."),
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class PruningConfig:
    """Which visual tokens are dropped on the way through the LLM (SpecPrune-VLA, arXiv
    2509.05614).

    Counts are per camera of 256 patches and layers are those of a 32-layer LLM, counted from 1, as
    in the paper; both scale with the model.
    """

    method: str = field(
        default="none",
        metadata=doc(
            "none keeps every token; specprune is the paper's method; random, fastv and divprune "
            "are rivals at the same number of tokens.",
            choices=["none", "specprune", "random", "fastv", "divprune"],
        ),
    )
    preset: str = field(
        default="static_shape",
        metadata=doc(
            "paper keeps exactly the paper's sets, whose union has no fixed size; static_shape "
            "fills a fixed number of places with the next best patches.",
            choices=["paper", "static_shape"],
        ),
    )
    alpha: float = field(
        default=0.8, metadata=doc("Factor of the five set sizes below.", ge=0.0, le=8.0)
    )
    global_count: int = field(
        default=30,
        metadata=doc("Best patches of the previous inference.", unit="patches", ge=0, le=256),
    )
    local_count_coarse: int = field(
        default=24,
        metadata=doc(
            "Best patches of each local layer while the robot moves coarsely.",
            unit="patches",
            ge=0,
            le=256,
        ),
    )
    local_count_fine: int = field(
        default=40,
        metadata=doc("The same in fine motion.", unit="patches", ge=0, le=256),
    )
    dynamic_count_coarse: int = field(
        default=20,
        metadata=doc(
            "At most so many changed patches in coarse motion.", unit="patches", ge=0, le=256
        ),
    )
    dynamic_count_fine: int = field(
        default=10,
        metadata=doc("The same in fine motion.", unit="patches", ge=0, le=256),
    )
    budget_coarse: int = field(
        default=0,
        metadata=doc(
            "Visual tokens of all cameras that stay in coarse motion (static_shape and rivals); 0 "
            "is the largest possible union.",
            unit="tokens",
            ge=0,
            le=65536,
        ),
    )
    budget_fine: int = field(
        default=0,
        metadata=doc("The same in fine motion.", unit="tokens", ge=0, le=65536),
    )
    length_multiple: int = field(
        default=0,
        metadata=doc(
            "Budgets grow until the sequence after static pruning is a multiple of this, where a "
            "GPU's products cost no more (static_shape); 0 leaves them.",
            unit="tokens",
            ge=0,
            le=1024,
        ),
    )
    tau: float = field(
        default=0.95,
        metadata=doc(
            "Patches less alike than this have changed; 0.95 in simulation, 0.8 on a camera.",
            ge=0.0,
            le=1.0,
        ),
    )
    gamma: float = field(
        default=0.9,
        metadata=doc(
            "Share of the visual tokens that each dynamic stage keeps; 1 is no dynamic pruning.",
            ge=0.01,
            le=1.0,
        ),
    )
    beta: float = field(
        default=0.2, metadata=doc("Weight of a new layer in the importance.", ge=0.0, le=1.0)
    )
    rank_slope: float = field(
        default=0.05,
        metadata=doc(
            "k of the rank weight, of which the paper says nothing; benchmark/pruning_recall.py "
            "shows what it changes.",
            ge=0.0,
            le=1.0,
        ),
    )
    layer_weights: str = field(
        default="entropy",
        metadata=doc(
            "How much a layer counts in the importance: entropy is the paper's, more for layers "
            "that look at few patches; uniform counts all alike.",
            choices=["entropy", "uniform"],
        ),
    )
    entropy_epsilon: float = field(
        default=1e-6, metadata=doc("Epsilon of the entropy confidence.", unit="nats", ge=1e-12)
    )
    static_layer: int = field(
        default=2, metadata=doc("Static pruning follows this layer.", ge=1, le=31)
    )
    local_layers: tuple[int, ...] = field(
        default=(1, 2),
        metadata=doc("Layers that give local scores, up to static_layer.", ge=1, le=31),
    )
    global_layers: tuple[int, ...] = field(
        default=(15, 32),
        metadata=doc("Layers whose scores serve the next inference.", ge=1, le=32),
    )
    dynamic_layers: tuple[int, ...] = field(
        default=(10, 15, 20, 25),
        metadata=doc("Dynamic pruning follows these layers, ascending.", ge=2, le=31),
    )
    text_span: str = field(
        default="instruction",
        metadata=doc(
            "Tokens that count as text: the operator's words or the whole prompt around them.",
            choices=["instruction", "prompt"],
        ),
    )
    rivals_start_dense: bool = field(
        default=False,
        metadata=doc(
            "Rivals too keep every token in the first inference of an episode, as SpecPrune must: "
            "for a comparison at the same number of tokens."
        ),
    )
    seed: int = field(default=0, metadata=doc("Seed of the random rival.", ge=0))

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.local_layers or max(self.local_layers) > self.static_layer:
            raise ConfigError(
                f"PruningConfig.local_layers: expected layers from 1 to static_layer "
                f"{self.static_layer}; got {list(self.local_layers)}"
            )
        if not self.global_layers:
            raise ConfigError("PruningConfig.global_layers: expected at least one layer; got none")
        if any(
            later <= earlier
            for earlier, later in zip(
                (self.static_layer, *self.dynamic_layers), self.dynamic_layers, strict=False
            )
        ):
            raise ConfigError(
                f"PruningConfig.dynamic_layers: expected ascending layers after static_layer "
                f"{self.static_layer}; got {list(self.dynamic_layers)}"
            )


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How passes of the network are run; what they compute stays the same."""

    kind: str = field(
        default="auto",
        metadata=doc(
            "eager runs everywhere; compiled lets torch.compile fuse small kernels; cuda_graph "
            "replays a whole captured pass; auto is cuda_graph on a GPU, else eager.",
            choices=["auto", "eager", "compiled", "cuda_graph"],
        ),
    )
    keep_graphs: int = field(
        default=12,
        metadata=doc(
            "Captured passes kept, three per length of prompt; the least recently used goes "
            "first.",
            ge=1,
            le=256,
        ),
    )
    fp8_tolerance: float = field(
        default=0.05,
        metadata=doc(
            "With precision fp8: largest change of a normalised action, of noise images at start; "
            "more falls back to bf16.",
            ge=0.0,
            le=2.0,
        ),
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Which policy to load and how to run it."""

    checkpoint_dir: str = field(
        default="",
        metadata=doc(
            "Directory of the fine-tuned checkpoint, official OFT layout, or shipped:<name> for a "
            "policy that comes with the package; must be given."
        ),
    )
    device: str = field(
        default="auto", metadata=doc("Torch device: auto, cpu, cuda or cuda:<index>.")
    )
    precision: str = field(
        default="auto",
        metadata=doc(
            "Number format of the network; auto is bf16 on a GPU, fp32 on a CPU; fp8 is bf16 with "
            "the LLM's products in 8 bits.",
            choices=["auto", "bf16", "fp32", "fp8"],
        ),
    )
    unnorm_key: str = field(
        default="",
        metadata=doc("Data set in dataset_statistics.json; empty if it holds only one."),
    )
    decoding: str = field(
        default="auto",
        metadata=doc(
            "How actions are decoded; auto is what the checkpoint's files say.",
            choices=["auto", "l1", "discrete", "diffusion", "autoregressive"],
        ),
    )
    diffusion_steps: int = field(
        default=50, metadata=doc("DDIM steps of a diffusion checkpoint.", ge=1, le=50)
    )
    chunk_len: int = field(
        default=0,
        metadata=doc(
            "Actions per chunk (K) of a checkpoint that does not record it; 0 is what it says.",
            ge=0,
            le=1000,
        ),
    )
    cameras: tuple[str, ...] = field(
        default=(),
        metadata=doc("Cameras in the order of training; empty is what the checkpoint says."),
    )
    threads: int = field(
        default=0, metadata=doc("CPU threads of the network; 0 leaves it to torch.", ge=0, le=256)
    )
    skip_self_tests: tuple[str, ...] = field(
        default=(), metadata=doc("Names of self-tests at load to leave out.")
    )
    override_preprocessing: bool = field(
        default=False,
        metadata=doc("Prepare images as set below, not as the checkpoint was trained."),
    )
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    pruning: PruningConfig = field(default_factory=PruningConfig)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class SyncConfig:
    """When the newest messages of all streams may be put together into one observation."""

    max_image_age_s: float = field(
        default=0.15, metadata=doc("Oldest image accepted.", unit="s", ge=0.001, le=10.0)
    )
    max_joint_age_s: float = field(
        default=0.05, metadata=doc("Oldest joint state accepted.", unit="s", ge=0.001, le=10.0)
    )
    max_skew_s: float = field(
        default=0.05,
        metadata=doc(
            "Largest difference between the stamps of two cameras.", unit="s", ge=0.0, le=10.0
        ),
    )
    max_frozen_s: float = field(
        default=0.5,
        metadata=doc(
            "A camera that shows the very same pixels for longer is refused; 0 is no check.",
            unit="s",
            ge=0.0,
            le=60.0,
        ),
    )
    frozen_motion_rad: float = field(
        default=0.02,
        metadata=doc(
            "Same pixels count only while a joint moves by this much; 0 counts them always, for "
            "cameras, whose noise never lets two images be the same.",
            unit="rad",
            ge=0.0,
            le=10.0,
        ),
    )
    min_brightness: float = field(
        default=2.0,
        metadata=doc(
            "Images darker than this on average, of 255, are refused; 0 is no check.",
            ge=0.0,
            le=255.0,
        ),
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class PolicyNodeConfig:
    """Parameters of `policy_node`: cameras, joints and an instruction in, action chunks out."""

    autostart: bool = field(
        default=True, metadata=doc("Configure and activate without being asked to.")
    )
    exit_with_parent: bool = field(
        default=False, metadata=doc("End when the process that started this one ends.")
    )
    profile: str = field(
        default="sim", metadata=doc("Robot profile, a section of config/aloha.yaml.")
    )
    profiles_path: str = field(
        default="", metadata=doc("File of robot profiles; empty is the shipped config/aloha.yaml.")
    )
    instruction: str = field(
        default="",
        metadata=doc("What the robot shall do; empty waits for the instruction topic.", live=True),
    )
    control_rate_hz: float = field(
        default=25.0,
        metadata=doc(
            "Rate for which the policy was trained: time between two actions of a chunk.",
            unit="Hz",
            ge=1.0,
            le=100.0,
        ),
    )
    execute_steps: int = field(
        default=15,
        metadata=doc(
            "Control steps from one observation to the next one that the policy is asked about.",
            ge=1,
            le=1000,
        ),
    )
    instruction_topic: str = field(
        default="instruction", metadata=doc("Instructions while running (std_msgs/String).")
    )
    chunk_topic: str = field(
        default="action_chunk", metadata=doc("Action chunks out (vla_oft_ros/ActionChunk).")
    )
    retained_tokens_topic: str = field(
        default="retained_tokens", metadata=doc("Kept patches out (vla_oft_ros/RetainedTokens).")
    )
    pruning_status_topic: str = field(
        default="pruning_status",
        metadata=doc("Mode, speeds and share of patches kept, out (vla_oft_ros/PruningStatus)."),
    )
    target_topic: str = field(
        default="joint_targets",
        metadata=doc("Joint targets in: how the robot really moves (sensor_msgs/JointState)."),
    )
    image_decoder: str = field(
        default="auto",
        metadata=doc(
            "Image conversion: cv_bridge where installed (auto prefers numpy).",
            choices=["auto", "numpy", "cv_bridge"],
        ),
    )
    image_transport: str = field(
        default="auto",
        metadata=doc(
            "raw, compressed, or auto: listen to both and take whichever comes.",
            choices=["auto", "raw", "compressed"],
        ),
    )
    sync: SyncConfig = field(default_factory=SyncConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)

    def __post_init__(self) -> None:
        check_fields(self)
