"""The configuration. `load(path, overrides)` reads it."""

from configs.checks import ConfigError
from configs.loading import check_overrides, differences, from_dict, load, load_for_test, replaced, to_dict
from configs.resuming import check_changes

__all__ = [
    "ConfigError",
    "check_changes",
    "check_overrides",
    "differences",
    "from_dict",
    "load",
    "load_for_test",
    "replaced",
    "to_dict",
]
