"""Settings: typed sections with their defaults, YAML files, and `KEY VALUE` on a command line."""

from hiera_video.config.schema import (
    Config,
    DataConfig,
    Section,
    SettingText,
    SolverConfig,
    describe_settings,
    is_setting,
    load_config,
    names_a_section,
)
from hiera_video.errors import ConfigError

__all__ = [
    "Config",
    "ConfigError",
    "DataConfig",
    "Section",
    "SettingText",
    "SolverConfig",
    "describe_settings",
    "is_setting",
    "load_config",
    "names_a_section",
]
