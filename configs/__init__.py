"""The configuration. `load(path, overrides)` reads it."""

from configs.checks import ConfigError
from configs.loading import differences, from_dict, load, load_for_test, replaced, to_dict
from configs.resuming import check_changes

__all__ = ["ConfigError", "check_changes", "differences", "from_dict", "load", "load_for_test", "replaced", "to_dict"]
