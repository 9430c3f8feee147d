"""Settings of fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field

from vla_oft_ros.config.fields import check_fields, doc


@dataclass(frozen=True, kw_only=True)
class TrainingDataConfig:
    """Which demonstrations are learned from, and how frames become training samples."""

    paths: tuple[str, ...] = field(
        default=(),
        metadata=doc("HDF5 files, folders of them, or folders of LeRobot v3 sets; must be given."),
    )
    name: str = field(
        default="aloha",
        metadata=doc("Name of the set in dataset_statistics.json, the later unnorm_key."),
    )
    instruction: str = field(
        default="", metadata=doc("Instruction of episodes that carry none of their own.")
    )
    cameras: tuple[str, ...] = field(
        default=("cam_high", "cam_left_wrist", "cam_right_wrist"),
        metadata=doc("Cameras in the order in which the network shall see them."),
    )
    bounds: str = field(
        default="bounds",
        metadata=doc(
            "What is mapped to -1 and 1: bounds is minimum and maximum, bounds_q99 the 1st and "
            "99th percentile.",
            choices=["bounds", "bounds_q99"],
        ),
    )
    validation_share: float = field(
        default=0.05,
        metadata=doc(
            "Share of the episodes kept for validation, at least one; 0 is none.", ge=0.0, le=0.9
        ),
    )
    keep_failures: bool = field(
        default=False, metadata=doc("Also learn from episodes that are labelled as failures.")
    )
    augment: bool = field(
        default=True,
        metadata=doc(
            "Random crops and colours in training; the policy then crops centrally when it runs."
        ),
    )
    start_share: float = field(
        default=0.0,
        metadata=doc(
            "Share of the samples that are taken from the first start_frames of an episode, where "
            "only the images tell what will be done. Later the arm's own motion tells, and a "
            "small network looks no further; 0 is none, as officially.",
            ge=0.0,
            le=1.0,
        ),
    )
    start_frames: int = field(default=10, metadata=doc("See start_share.", ge=1, le=1000))
    workers: int = field(
        default=2,
        metadata=doc("Processes that prepare samples; 0 is the training process.", ge=0, le=64),
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class SmallModelConfig:
    """Sizes of a small network that is trained from scratch, where there is no base_dir."""

    width: int = field(default=128, metadata=doc("LLM width D.", ge=16, le=4096))
    layers: int = field(default=4, metadata=doc("LLM layers, at least 3 to learn.", ge=2, le=64))
    heads: int = field(default=4, metadata=doc("Attention heads everywhere.", ge=1, le=64))
    dino_width: int = field(default=96, metadata=doc("First vision tower.", ge=16, le=4096))
    siglip_width: int = field(default=96, metadata=doc("Second vision tower.", ge=16, le=4096))
    depth: int = field(
        default=4, metadata=doc("Blocks of the first tower; the second has one more.", ge=2, le=64)
    )
    image_px: int = field(
        default=112, metadata=doc("Side of the input image.", unit="px", ge=14, le=1024)
    )
    patch_px: int = field(
        default=14, metadata=doc("Side of a patch; must divide image_px.", unit="px", ge=2, le=64)
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class OfficialTrainingConfig:
    """Where the official code does something else than one would; true does as it does."""

    diagonal_crops: bool = field(
        default=False,
        metadata=doc("Random crops with one random number for both offsets, not two."),
    )
    drop_episode_ends: bool = field(
        default=False,
        metadata=doc("Never learn from the last K-1 frames of an episode, nor from shorter ones."),
    )
    pads_in_film_average: bool = field(
        default=False,
        metadata=doc("Average padding tokens into the language embedding that drives FiLM."),
    )
    resume_restarts: bool = field(
        default=False,
        metadata=doc("Start optimizer and learning-rate schedule anew when training resumes."),
    )
    warmup_cancels_decay: bool = field(
        default=False, metadata=doc("With a warm-up, never lower the learning rate afterwards.")
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Settings of `vla_oft train`; the defaults are the recipe of OpenVLA-OFT+ for ALOHA."""

    base_dir: str = field(
        default="",
        metadata=doc(
            "Checkpoint to start from: OpenVLA, or any OFT checkpoint; empty makes a small random "
            "one of the sizes under 'small'."
        ),
    )
    run_dir: str = field(
        default="", metadata=doc("Folder of checkpoints and logs of this training; must be given.")
    )
    resume: bool = field(
        default=True, metadata=doc("Go on from the newest checkpoint in run_dir, if there is one.")
    )
    decoding: str = field(
        default="l1",
        metadata=doc("What is learned.", choices=["l1", "discrete", "diffusion"]),
    )
    film: bool = field(
        default=True, metadata=doc("Let the instruction modulate the vision towers (OFT+).")
    )
    chunk_len: int = field(default=25, metadata=doc("Actions per chunk, K.", ge=1, le=1000))
    lora_rank: int = field(
        default=32,
        metadata=doc("Rank of LoRA on all linear layers; 0 trains all weights.", ge=0, le=512),
    )
    lora_dropout: float = field(default=0.0, metadata=doc("Dropout before LoRA.", ge=0.0, le=0.9))
    vision_probe: float = field(
        default=0.0,
        metadata=doc(
            "Weight of an extra loss: the mean patch token and proprio alone must tell the "
            "actions. Shows vision towers that start from random weights where things are; 0 is "
            "none, as officially.",
            ge=0.0,
            le=10.0,
        ),
    )
    vision_start_steps: int = field(
        default=0,
        metadata=doc(
            "Steps before the first one, in which vision towers and projector alone learn from "
            "the beginnings of episodes where things are. For towers that start from random "
            "weights; 0 is none, as officially.",
            ge=0,
        ),
    )
    noise_start_steps: int = field(
        default=0,
        metadata=doc(
            "Steps before the first one, without images, in which a diffusion policy learns where "
            "the noise of each joint stands. For an LLM that starts from random weights or from "
            "another head; 0 is none, as officially.",
            ge=0,
        ),
    )
    freeze_vision: bool = field(
        default=False,
        metadata=doc(
            "Train vision towers and projector no further than vision_start_steps did. A small "
            "LLM that cannot read yet spoils what they say."
        ),
    )
    freeze_film: bool = field(
        default=False,
        metadata=doc(
            "Do not train FiLM and the word embeddings that drive it. For one instruction alone, "
            "which gives FiLM nothing to tell. Changes nothing in a network without FiLM."
        ),
    )
    learning_rate: float = field(default=5e-4, metadata=doc("Highest rate.", ge=0.0, le=1.0))
    decay_steps: tuple[int, ...] = field(
        default=(50000,),
        metadata=doc("Steps at which the learning rate is multiplied by decay_factor.", ge=1),
    )
    decay_factor: float = field(default=0.1, metadata=doc("See decay_steps.", ge=0.0, le=1.0))
    warmup_steps: int = field(
        default=0,
        metadata=doc("Steps over which the learning rate rises from a tenth to full.", ge=0),
    )
    weight_decay: float = field(default=0.01, metadata=doc("Of AdamW.", ge=0.0, le=1.0))
    max_gradient_norm: float = field(
        default=0.0, metadata=doc("Longer gradients are shortened to this; 0 is no limit.", ge=0.0)
    )
    max_steps: int = field(default=100000, metadata=doc("Optimizer steps in all.", ge=1))
    batch_size: int = field(
        default=4, metadata=doc("Samples per process in one forward pass.", ge=1, le=4096)
    )
    accumulate: int = field(
        default=1, metadata=doc("Forward passes whose gradients make one step.", ge=1, le=4096)
    )
    device: str = field(
        default="auto", metadata=doc("Torch device: auto, cpu, cuda or cuda:<index>.")
    )
    precision: str = field(
        default="auto",
        metadata=doc(
            "Format of frozen weights and of the computation; what is trained stays fp32. auto is "
            "bf16 on a GPU, fp32 on a CPU.",
            choices=["auto", "bf16", "fp32"],
        ),
    )
    gradient_checkpointing: bool = field(
        default=False, metadata=doc("Compute layers twice instead of keeping their activations.")
    )
    sharding: str = field(
        default="ddp",
        metadata=doc(
            "Several processes: ddp holds the whole network in each, fsdp splits it among them.",
            choices=["ddp", "fsdp"],
        ),
    )
    threads: int = field(
        default=0, metadata=doc("CPU threads of the network; 0 leaves it to torch.", ge=0, le=256)
    )
    seed: int = field(default=7, metadata=doc("Of everything random.", ge=0))
    log_every: int = field(default=10, metadata=doc("Steps between two log lines.", ge=1))
    validate_every: int = field(default=1000, metadata=doc("Steps between two validations.", ge=1))
    validation_frames: int = field(
        default=512, metadata=doc("Frames per validation, evenly spread; 0 is all.", ge=0)
    )
    save_every: int = field(default=10000, metadata=doc("Steps between two checkpoints.", ge=1))
    keep_checkpoints: int = field(
        default=0, metadata=doc("Newest checkpoints to keep; 0 keeps all.", ge=0)
    )
    save_precision: str = field(
        default="bf16",
        metadata=doc("Format of saved weights.", choices=["bf16", "fp32"]),
    )
    tensorboard: bool = field(
        default=False, metadata=doc("Also write TensorBoard logs; needs the tensorboard package.")
    )
    data: TrainingDataConfig = field(default_factory=TrainingDataConfig)
    small: SmallModelConfig = field(default_factory=SmallModelConfig)
    official: OfficialTrainingConfig = field(default_factory=OfficialTrainingConfig)

    def __post_init__(self) -> None:
        check_fields(self)
