"""Settings: typed sections with their defaults, YAML files, and `KEY VALUE` on a command line.

values, section     types and ranges; dataclasses that check their own fields
keys                which keys exist, and suggestions for unknown ones
yaml_dialect, parse files and words -> a config, and back to YAML
model, clips, training, generated, detection, trackers   the settings
schema              all of them, `Config`, and `load_config`
origin              the recipe that a run was started with
describe            every setting in words
command_line        `--cfg FILE KEY VALUE ...`
"""

from typing import TYPE_CHECKING

from hiera_video.on_first_use import on_first_use

if TYPE_CHECKING:
    from hiera_video.config.clips import DataConfig
    from hiera_video.config.describe import (
        SettingText,
        describe_settings,
        is_setting,
        names_a_section,
    )
    from hiera_video.config.schema import Config, load_config
    from hiera_video.config.section import Section
    from hiera_video.config.training import SolverConfig
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

# A command line without settings need not wait for all of them.
__getattr__ = on_first_use(
    __name__,
    {
        "Config": "hiera_video.config.schema",
        "ConfigError": "hiera_video.errors",
        "DataConfig": "hiera_video.config.clips",
        "Section": "hiera_video.config.section",
        "SettingText": "hiera_video.config.describe",
        "SolverConfig": "hiera_video.config.training",
        "describe_settings": "hiera_video.config.describe",
        "is_setting": "hiera_video.config.describe",
        "load_config": "hiera_video.config.schema",
        "names_a_section": "hiera_video.config.describe",
    },
)
