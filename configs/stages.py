"""The stages of a training, a row each. Names of stages are spelled here and nowhere else."""

from __future__ import annotations

from typing import Any, NamedTuple


class Stage(NamedTuple):
    """What configuration, log and files know of a stage."""

    name: str  # in PROCESSOR.STAGES, checkpoints, resume states and metrics.jsonl
    title: str  # in the log and in messages
    block: str  # its block of SOLVER
    needs_text: bool  # the text tower and prompts, whatever the loss weights
    draws_identities: bool  # batches of training images are drawn by identity, P x K
    file: str  # of its checkpoints

    def key(self, leaf: str) -> str:
        """The dotted key of one of its settings, e.g. SOLVER.STAGE1.MAX_EPOCHS."""
        return f"SOLVER.{self.block}.{leaf}"

    def settings(self, cfg: Any) -> Any:
        """Its block of a configuration."""
        return cfg.SOLVER[self.block]

    def epochs(self, cfg: Any) -> int:
        """How many epochs it has."""
        return self.settings(cfg).MAX_EPOCHS


CLUSTER = Stage("cluster", "stage 0 (clustering)", "CLUSTER", False, False, "{model}_stage0_{epoch}.pth")
PROMPT = Stage("prompt", "stage 1 (prompt learning)", "STAGE1", True, False, "{model}_stage1_{epoch}.pth")
IMAGE = Stage("image", "stage 2 (fine-tuning)", "STAGE2", False, True, "{model}_{epoch}.pth")
STAGES = {stage.name: stage for stage in (CLUSTER, PROMPT, IMAGE)}  # in the order in which they usually run
USUAL = (PROMPT.name, IMAGE.name)  # of all methods that know identities
