"""What may change in the configuration of a run that is resumed: each key's row says it."""

from __future__ import annotations

from yacs.config import CfgNode

from configs.checks import ConfigError
from configs.defaults import KEYS
from configs.keys import ALWAYS, UNTIL_OVER
from configs.loading import differences
from configs.stages import STAGES


def check_changes(earlier: CfgNode, now: CfgNode, *, number: int, epoch: int, where: str, weights: bool) -> list[str]:
    """Compare the settings of a run that is resumed with those that it was started with.

    Args:
        earlier: the settings written in the run's folder.
        now: the settings asked for.
        number, epoch: where the run is; the stage's place in PROCESSOR.STAGES, from 0.
        where: the run's folder.
        weights: whether the run left any, for the advice.

    Returns:
        A line for the log per changed setting.

    Raises:
        ConfigError: naming every setting that may not change, with both values.
    """
    lines, faults = [], []
    stages = [STAGES[name].block for name in earlier.PROCESSOR.STAGES]
    over = set(stages[:number])
    for key, (new, old) in differences(now, earlier).items():
        line = f"{key}: {old!r} before, {new!r} now"
        rule, block = KEYS[key].on_resume, key.split(".")[1:2]
        if rule == ALWAYS:
            lines.append(line)
        elif rule != UNTIL_OVER:
            faults.append(line)
        elif over.intersection(block):
            faults.append(f"{line} (that stage is over)")
        elif block == [stages[number]] and new < epoch:
            faults.append(f"{line} (epoch {epoch} has begun)")
        else:
            lines.append(line)
    if faults:
        another = "in another OUTPUT_DIR (from its weights: MODEL.INIT_FROM)"
        advice = another if weights else "in another OUTPUT_DIR, or delete this one, which holds no weights"
        raise ConfigError(
            f"OUTPUT_DIR {where}: holds a run with other settings: {'; '.join(faults)}. Resume it with its own "
            f"settings, or start a new run {advice}"
        )
    return lines
