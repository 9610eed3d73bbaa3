"""Keys of a config (`SOLVER.BASE_LR`): which ones exist, and suggestions for unknown ones."""

from __future__ import annotations

import difflib

from hiera_video.config.section import Section, sections_of, settings_of

SLOWFAST_KEYS = {
    "NUM_GPUS": "start one process per GPU with torchrun",
    "NUM_SHARDS": "start the machines with torchrun",
    "SHARD_ID": "start the machines with torchrun",
    "IMPORT": "the key is IMPORTS, a list of modules",
    "MODEL.ARCH": "MODEL.MODEL_NAME alone picks the model",
    "AUG.ENABLE": "an empty AUG.AA_TYPE and AUG.RE_PROB 0 switch augmentation off",
    "SOLVER.BASE_LR_SCALE_NUM_SHARDS": "use SOLVER.LR_BATCH, the batch that BASE_LR is for",
    "SOLVER.LR_POLICY": "the schedule is always cosine; leave the key out",
    "DATA.TRAIN_JITTER_SCALES": "use DATA.TRAIN_JITTER_SCALES_RELATIVE, shares of the area",
    "DATA.INPUT_CHANNEL_NUM": "clips are RGB",
    "DATA.REVERSE_INPUT_CHANNEL": "clips are always RGB",
    "DATA.USE_OFFSET_SAMPLING": "test clips are always spread from the first to the last start",
    "MODEL.DROPPATH_RATE": "use HIERA.DROPPATH_RATE",
    "MVIT.DROPPATH_RATE": "use HIERA.DROPPATH_RATE, or MODEL.KWARGS.drop_path_rate",
    "MASK.DECODER_DEPTH": "use HIERA.DECODER_DEPTH",
    "MASK.DECODER_EMBED_DIM": "use HIERA.DECODER_EMBED_DIM",
    "HIERA.MASK_RATIO": "use AUG.MASK_RATIO",
}
"""Keys that users know from SlowFast, and what to use here instead."""


class Keys:
    """All keys that a config file or a command line may set; made by `keys_of`."""

    def __init__(self, config: type[Section]) -> None:
        self.section_types = sections_of(config)
        """Attribute of the config -> class of that section."""
        self.sections = frozenset(name.upper() for name in self.section_types)
        self.specs = {name.upper(): spec for name, spec in settings_of(config).items()}
        """Key -> type and range."""
        for section_name, section in self.section_types.items():
            for name, spec in settings_of(section).items():
                self.specs[f"{section_name}.{name}".upper()] = spec
        self.mappings = frozenset(key for key, spec in self.specs.items() if spec.is_mapping)
        """Keys whose value is a mapping with names of its own, such as MODEL.KWARGS."""

    def normalized(self, word: str) -> str:
        """Upper case, except for a name inside a mapping such as MODEL.KWARGS."""
        head, dot, name = word.rpartition(".")
        if dot and head.upper() in self.mappings:
            return f"{head.upper()}.{name}"
        return word.upper()

    def is_setting(self, word: str) -> bool:
        """Whether a word is a key, in upper or lower case."""
        key = self.normalized(word)
        return key in self.specs or key.rpartition(".")[0] in self.mappings

    def names_a_section(self, word: str) -> bool:
        """Whether a word begins with a section, as a mistyped key "SOLVER.BASE_RL" does."""
        section, dot, _ = word.partition(".")
        return bool(dot) and section in self.sections

    def explain_unknown(self, key: str) -> str:
        """An error message for a key that is not a setting, with the key that was meant."""
        if key in SLOWFAST_KEYS:
            return f"unknown config key {key}: {SLOWFAST_KEYS[key]}"
        if key in self.sections:
            return f"{key} is a section, not a setting; set one of {self._inside(key)}"
        near = self._near(key)
        section = key.partition(".")[0]
        if near:
            return f"unknown config key {key}; did you mean {' or '.join(near)}?"
        if "." in key and section in self.sections:
            return f"unknown config key {key}; the section has {self._inside(section)}"
        top = ", ".join(known for known in self.specs if "." not in known)
        return (
            f"unknown config key {key}; keys are {top} "
            f"and those of the sections {', '.join(sorted(self.sections))}"
        )

    def _inside(self, section: str) -> str:
        return ", ".join(key for key in self.specs if key.startswith(f"{section}."))

    def _near(self, key: str) -> list[str]:
        """Keys of the same name in another section; else keys that are spelled alike."""
        name = key.rpartition(".")[2]
        same_name = [known for known in self.specs if known.rpartition(".")[2] == name]
        return same_name or difflib.get_close_matches(key, list(self.specs), n=3, cutoff=0.7)


_KEYS: dict[type, Keys] = {}
"""What `keys_of` has made before."""


def keys_of(config: type[Section]) -> Keys:
    """The keys of a config class."""
    if config not in _KEYS:
        _KEYS[config] = Keys(config)
    return _KEYS[config]
