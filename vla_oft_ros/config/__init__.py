"""Configuration as frozen dataclasses, one per node or tool, and the one way to fill them.

Every name is imported from here; the files are for reading.
"""

from vla_oft_ros.config.controller import ChunkQueueConfig, ControllerConfig, SafetyConfig
from vla_oft_ros.config.fields import (
    ConfigError,
    check_fields,
    config_dir,
    default_of,
    doc,
    field_types,
    flat_fields,
    flatten,
    from_mapping,
    load_node_config,
    load_tool_config,
    load_yaml,
    nest,
    node_section,
)
from vla_oft_ros.config.policy import (
    EngineConfig,
    PolicyConfig,
    PolicyNodeConfig,
    PreprocessingConfig,
    PruningConfig,
    SyncConfig,
)
from vla_oft_ros.config.recorder import QualityConfig, RecorderConfig
from vla_oft_ros.config.sim import SimConfig, TeleopConfig
from vla_oft_ros.config.training import (
    FinetuneConfig,
    OfficialTrainingConfig,
    SmallModelConfig,
    TrainingDataConfig,
)
from vla_oft_ros.config.viewer import TokenViewerConfig

__all__ = [
    "ChunkQueueConfig",
    "ConfigError",
    "ControllerConfig",
    "EngineConfig",
    "FinetuneConfig",
    "OfficialTrainingConfig",
    "PolicyConfig",
    "PolicyNodeConfig",
    "PreprocessingConfig",
    "PruningConfig",
    "QualityConfig",
    "RecorderConfig",
    "SafetyConfig",
    "SimConfig",
    "SmallModelConfig",
    "SyncConfig",
    "TeleopConfig",
    "TokenViewerConfig",
    "TrainingDataConfig",
    "check_fields",
    "config_dir",
    "default_of",
    "doc",
    "field_types",
    "flat_fields",
    "flatten",
    "from_mapping",
    "load_node_config",
    "load_tool_config",
    "load_yaml",
    "nest",
    "node_section",
]
