"""Floor 0: the configuration. `load(path, overrides)` is all that the other folders need."""

from configs.checks import ConfigError
from configs.loading import from_dict, load, to_dict

__all__ = ["ConfigError", "from_dict", "load", "to_dict"]
