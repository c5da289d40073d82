"""Shapes of models and settings of stages: frozen dataclasses, no torch.

Presets: `tiny` is what `herd run tiny` raises in minutes on two cores. `scout` and `maverick` are the published shapes,
`behemoth` one of our own with the published counts; `tiny-scout`, `tiny-maverick` and `tiny-behemoth` are small
versions of them, with the same kinds of layers in a few megabytes. `herd plan PRESET` counts any of them.
"""

from herd.config.cleaning import CleaningConfig
from herd.config.distill import DistillConfig, PruneConfig, TeachConfig
from herd.config.dpo import DpoConfig
from herd.config.engine import EngineConfig
from herd.config.evaluate import EvaluateConfig, LongConfig, ReportConfig
from herd.config.guard import GuardConfig
from herd.config.model import PAGE_TOKENS, ModelConfig, MoEConfig, RopeScaling, SpecialIds, VisionConfig
from herd.config.new_model import EncoderConfig, NewModelConfig
from herd.config.presets import (
    PRESETS,
    RELEASED_IDS,
    RELEASED_VISION,
    RELEASED_VOCAB,
    TINY_VOCAB,
    PresetName,
    behemoth,
    maverick,
    preset,
    scout,
    tiny,
    tiny_behemoth,
    tiny_ids,
    tiny_long,
    tiny_maverick,
    tiny_scout,
)
from herd.config.rl import CurriculumConfig, RlConfig
from herd.config.rl_loss import CorrectionConfig, PolicyLossConfig
from herd.config.sampling import SamplingConfig
from herd.config.select import SelectConfig
from herd.config.serve import ServeConfig
from herd.config.sources import (
    ChatSource,
    DemonstrationSource,
    ImageSource,
    PreferenceSource,
    PromptSource,
    SourceConfig,
    TextSource,
    VideoSource,
)
from herd.config.stages import (
    LANGUAGES,
    DataConfig,
    MidtrainConfig,
    PretrainConfig,
    PretrainPlan,
    SftConfig,
    VisionStageConfig,
)
from herd.config.training import (
    HOW_IT_RUNS,
    LORA_TARGETS,
    PARALLEL_AXES,
    CheckpointConfig,
    LanguageTrainingConfig,
    LoraConfig,
    LossSpikesConfig,
    OptimizerConfig,
    ParallelConfig,
)

__all__ = [
    "HOW_IT_RUNS",
    "LANGUAGES",
    "LORA_TARGETS",
    "PAGE_TOKENS",
    "PARALLEL_AXES",
    "PRESETS",
    "RELEASED_IDS",
    "RELEASED_VISION",
    "RELEASED_VOCAB",
    "TINY_VOCAB",
    "ChatSource",
    "CheckpointConfig",
    "CleaningConfig",
    "CorrectionConfig",
    "CurriculumConfig",
    "DataConfig",
    "DemonstrationSource",
    "DistillConfig",
    "DpoConfig",
    "EncoderConfig",
    "EngineConfig",
    "EvaluateConfig",
    "GuardConfig",
    "ImageSource",
    "LanguageTrainingConfig",
    "LongConfig",
    "LoraConfig",
    "LossSpikesConfig",
    "MidtrainConfig",
    "MoEConfig",
    "ModelConfig",
    "NewModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "PolicyLossConfig",
    "PreferenceSource",
    "PresetName",
    "PretrainConfig",
    "PretrainPlan",
    "PromptSource",
    "PruneConfig",
    "ReportConfig",
    "RlConfig",
    "RopeScaling",
    "SamplingConfig",
    "SelectConfig",
    "ServeConfig",
    "SftConfig",
    "SourceConfig",
    "SpecialIds",
    "TeachConfig",
    "TextSource",
    "VideoSource",
    "VisionConfig",
    "VisionStageConfig",
    "behemoth",
    "maverick",
    "preset",
    "scout",
    "tiny",
    "tiny_behemoth",
    "tiny_ids",
    "tiny_long",
    "tiny_maverick",
    "tiny_scout",
]
