"""Would the tests notice? Every mutation here is a mistake that is easily made; each must turn its tests red.

    python tests/mutations.py [NAME ...]

works on a copy of the source tree, prints a line a mutation, and fails if one of them stays green or does not fit the
source any more (`test_mutations.py` says the latter at once).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = {".git", ".venv", "data", "runs", ".hypothesis", ".pytest_cache", ".ruff_cache"}
EQUALITY, REPLAY = "tests/test_equality.py", "tests/test_replay.py"
PASSED, FAILED = 0, 1  # pytest's exit codes; all others mean that nothing was tested


class Mutation(NamedTuple):
    """One place that is changed, and what must notice."""

    name: str
    file: str
    old: str  # occurs exactly once
    new: str
    tests: tuple[str, ...]  # FILE::FUNCTION, or functions of EQUALITY and REPLAY; each by itself must fail


def mutation(name: str, file: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(name, file, old, new, tests)


VIT, RN50 = "test_the_features_of_the_transformer", "test_the_features_of_the_resnet"
TABLES, SENTENCES = "test_position_tables_of_clip_are_resized", "test_sentences"
DISTURBED = "test_the_prompt_stage_disturbs_the_whole_context"
PROMPT = "test_the_prompt_stage_with_and_without_self_supervision"
IMAGE = "test_the_image_stage_and_the_gradient_of_every_tensor"
GROUPS, RATES = "test_rate_and_decay_of_every_tensor", "test_the_learning_rate_of_every_epoch"
VIEWS, TEST_VIEWS = "test_training_images_and_their_views", "test_test_images"
RERANKING, RANKING = "test_reranking", "test_ranking"
TRAINING = "test_a_whole_training"
RESUME, GUARD, PROCESSES = (f"tests/test_{name}.py" for name in ("resume", "guard", "distributed"))
BROKEN_OFF = f"{RESUME}::test_a_run_that_broke_off_anywhere_ends_the_same"

MUTATIONS = (
    # Towers
    mutation(
        "gelu for quick_gelu",
        "model/pretrained.py",
        "quick_gelu=activation == QUICK_GELU)",
        "quick_gelu=False)",
        *(VIT, SENTENCES, "test_the_features_of_the_full_transformer"),
    ),
    mutation(
        "layer norms with 1e-6",
        "model/pretrained.py",
        "    visual = clip.visual\n",
        "    visual = clip.visual\n"
        "    for module in clip.modules():\n"
        "        if isinstance(module, torch.nn.LayerNorm):\n"
        "            module.eps = 1e-6\n",
        *(VIT, SENTENCES, IMAGE),
    ),
    mutation("bicubic position tables", "model/clip.py", 'mode="bilinear"', 'mode="bicubic"', TABLES),
    mutation("antialiased position tables", "model/clip.py", "antialias=False)", "antialias=True)", TABLES),
    mutation(
        "side information on all tokens",
        "model/clip.py",
        "            token = token + self.side(side)[:, None]\n"
        "        tokens = torch.cat([token, patches.flatten(2).transpose(1, 2)], dim=1)",
        "            token, patches = token + self.side(side)[:, None], patches + self.side(side)[:, :, None, None]\n"
        "        tokens = torch.cat([token, patches.flatten(2).transpose(1, 2)], dim=1)",
        *(VIT, IMAGE, TRAINING),
    ),
    mutation(
        "side information with rows by viewpoint first",
        "model/heads.py",
        "table = self.table.view(self.shape)",
        "table = self.table.view(self.shape[1], self.shape[0], -1).transpose(0, 1)",
        *(VIT, IMAGE),
    ),
    mutation(
        "penultimate feature after the last layer norm",
        "model/clip.py",
        "return ImageFeatures(penultimate[:, 0], last",
        "return ImageFeatures(visual.ln_post(penultimate[:, 0]), last",
        *(VIT, IMAGE),
    ),
    mutation(
        "resnet's last stage at stride 2",
        "model/clip.py",
        "first.avgpool = first.downsample[0] = nn.Identity()",
        "pass",
        *(RN50, IMAGE),
    ),
    mutation(
        "sentences read a token early",
        "model/clip.py",
        "self.ln_final(x[:, end])",
        "self.ln_final(x[:, end - 1])",
        *(SENTENCES, PROMPT),
    ),
    # Prompt stage
    mutation(
        "disturbing after cutting",
        "processor/prompt_stage.py",
        "prompts = model.prompts(pids)  # [U, L, W]",
        "prompts = model.prompts(pids)[:, : model.prompts.end + 1]  # [U, L, W]",
        *(DISTURBED, PROMPT, TRAINING),
    ),
    mutation(
        "what is not masked is scaled up",
        "model/prompts.py",
        "return prompts * kept",
        "return prompts * kept / (1 - strength)",
        DISTURBED,
    ),
    mutation(
        "text projector's batch norm over both views",
        "processor/prompt_stage.py",
        "self.self_contrast(*(model.text_projector(view) for view in views))",
        "self.self_contrast(*model.text_projector(torch.cat(views)).chunk(2))",
        *(DISTURBED, PROMPT, TRAINING),
    ),
    mutation(
        "text projector trained",
        "processor/prompt_stage.py",
        "if train_projector and model.text_projector is not None:",
        "if model.text_projector is not None:",
        *(GROUPS, DISTURBED, TRAINING),
    ),
    mutation(
        "cached features with side information",
        "processor/prompt_stage.py",
        "model.encode_image(batch.images).projected",
        "model.encode_image(batch.images, batch.side).projected",
        *("test_cached_features_know_no_side_information", TRAINING),
    ),
    mutation(
        "normalised contrast of images and sentences",
        "loss/contrast.py",
        "scores = images @ texts.T / self.temperature",
        "scores = F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T / self.temperature",
        *("test_images_against_sentences_both_ways", PROMPT, TRAINING),
    ),
    # Image stage
    mutation(
        "normalised images against all sentences",
        "loss/contrast.py",
        "F.cross_entropy(images @ sentences.T, pids",
        "F.cross_entropy(F.normalize(images, dim=1) @ F.normalize(sentences, dim=1).T, pids",
        *("test_images_against_all_sentences", IMAGE, TRAINING),
    ),
    mutation(
        "unsmoothed images against all sentences",
        "loss/contrast.py",
        "images @ sentences.T, pids, label_smoothing=self.smoothing)",
        "images @ sentences.T, pids)",
        *("test_images_against_all_sentences", IMAGE, TRAINING),
    ),
    mutation(
        "squared triplet distances",
        "loss/triplet.py",
        "squared.clamp(min=1e-12).sqrt()",
        "squared.clamp(min=1e-12)",
        *("test_the_triplet_loss", IMAGE, TRAINING),
    ),
    mutation(
        "triplets at two of three depths",
        "processor/image_stage.py",
        "for depth in features)",
        "for depth in features[1:])",
        *(IMAGE, TRAINING),
    ),
    mutation(
        "temperature 0.07",
        "loss/self_supervised.py",
        "temperature: float = 0.1",
        "temperature: float = 0.07",
        *("test_views_among_strangers", IMAGE, DISTURBED, TRAINING),
    ),
    mutation(
        "gradient through what simsiam predicts",
        "loss/self_supervised.py",
        "F.cosine_similarity(p1, z2.detach())",
        "F.cosine_similarity(p1, z2)",
        *("test_predictions_against_views", IMAGE, TRAINING),
    ),
    mutation(
        "image projector's batch norm over both views",
        "processor/image_stage.py",
        "first, second = (self.model.image_projector(view) for view in views)",
        "first, second = self.model.image_projector(torch.cat(views)).chunk(2)",
        *(IMAGE, TRAINING),
    ),
    mutation(
        "resnet's batch norms over both views",
        "processor/image_stage.py",
        "if tower.batch_statistics:",
        "if False:",
        *(IMAGE, TRAINING),
    ),
    mutation(
        "side information on views",
        "processor/image_stage.py",
        "batch.side if self.side_on_views else None",
        "batch.side",
        *(IMAGE, TRAINING),
    ),
    mutation(
        "shift of the necks trained",
        "processor/image_stage.py",
        "head.neck.bias.requires_grad_(False)",
        "head.neck.bias.requires_grad_(True)",
        *(IMAGE, GROUPS, TRAINING),
    ),
    # Optimisers and schedules
    mutation(
        "bias factor dropped",
        "solver/build.py",
        'cfg_stage.get("BIAS_LR_FACTOR", 1.0)',
        "1.0",
        *(GROUPS, TRAINING),
    ),
    mutation(
        "no decay of biases",
        "solver/build.py",
        'cfg_stage.get("WEIGHT_DECAY_BIAS", decay)',
        "0.0",
        *(GROUPS, TRAINING),
    ),
    mutation(
        "adamw for adam",
        "solver/build.py",
        '{"Adam": torch.optim.Adam,',
        '{"Adam": torch.optim.AdamW,',
        *(GROUPS, TRAINING),
    ),
    mutation(
        "cosine counted from the end of the warm-up",
        "solver/schedules.py",
        "math.cos(math.pi * epoch / epochs)",
        "math.cos(math.pi * (epoch - warmup_epochs) / (epochs - warmup_epochs))",
        *(RATES, TRAINING),
    ),
    mutation(
        "steps an epoch late",
        "solver/schedules.py",
        "sum(step <= epoch for step in steps)",
        "sum(step < epoch for step in steps)",
        *(RATES, TRAINING),
    ),
    # Pictures
    mutation(
        "views erased like training images",
        "datasets/transforms.py",
        "VIEW_ERASED = (0.33, 1 / 3)",
        "VIEW_ERASED = (0.02, 1 / 3)",
        VIEWS,
    ),
    mutation(
        "views erased like training images, by configuration",
        "configs/defaults.py",
        '"INPUT.TWIN_ERASED_AREA", (0.33, 1 / 3)',
        '"INPUT.TWIN_ERASED_AREA", (0.02, 1 / 3)',
        VIEWS,
    ),
    mutation(
        "test images resized like training images",
        "datasets/transforms.py",
        "v2.Resize(list(size), InterpolationMode.BILINEAR)",
        "v2.Resize(list(size), InterpolationMode.BICUBIC)",
        TEST_VIEWS,
    ),
    # Retrieval
    mutation(
        "re-ranking with k1 neighbours, itself included",
        "utils/reranking.py",
        "neighbours[:, : k1 + 1]",
        "neighbours[:, :k1]",
        RERANKING,
    ),
    mutation(
        "re-ranking with half of k1, itself included",
        "utils/reranking.py",
        "half = round(k1 / 2) + 1",
        "half = round(k1 / 2)",
        RERANKING,
    ),
    mutation(
        "a query's own camera counts",
        "utils/metrics.py",
        " & (query.camids[:, None] == gallery.camids)",
        " & (query.camids[:, None] > gallery.camids)",
        RANKING,
    ),
    # Going on with a run
    mutation(
        "the optimiser begins anew",
        "processor/build.py",
        '                load_optimizer(optimizer, run["optimizer"]["state"])\n',
        "",
        BROKEN_OFF,
    ),
    mutation(
        "the scaler begins anew",
        "processor/build.py",
        'scaler.load_state_dict(run["scaler"])',
        "pass",
        f"{RESUME}::test_the_scaler_of_fp16_goes_on_where_it_was",
    ),
    mutation(
        "the best evaluation is forgotten",
        "processor/build.py",
        'run["best"] if run else {}',
        "{}",
        f"{RESUME}::test_the_best_evaluation_on_the_way_is_kept",
    ),
    mutation(
        "an epoch begins anew",
        "processor/loop.py",
        "loader = batches(epoch, at.step)",
        "loader = batches(epoch, 0)",
        BROKEN_OFF,
    ),
    mutation(
        "a line of the log begins anew",
        "processor/loop.py",
        "_Window(at.sums)",
        "_Window({})",
        BROKEN_OFF,
    ),
    mutation(
        "skipped updates are counted by epoch",
        "processor/loop.py",
        "at = Position(epoch + 1, steps=at.steps, skipped=at.skipped)",
        "at = Position(epoch + 1, steps=at.steps)",
        f"{GUARD}::test_skipped_updates_are_counted_over_the_whole_stage",
    ),
    mutation(
        "what comes once more stays",
        "utils/run_folder.py",
        "os.truncate(metrics, metrics_bytes)",
        "pass",
        BROKEN_OFF,
    ),
    mutation(
        "a damaged state is one of two",
        "utils/run_folder.py",
        "self.whole = [state.path] if state else []",
        "self.whole = _states(path)",
        f"{RESUME}::test_a_damaged_state_is_not_one_of_the_two_that_are_kept",
    ),
    mutation(
        "checksums are not compared",
        "utils/checkpoint.py",
        "wrong = archive.testzip() if any(record.CRC for record in records) else None",
        "wrong = None",
        f"{RESUME}::test_a_damaged_state_is_named_and_the_one_before_it_taken",
    ),
    mutation(
        "everybody may write to a folder",
        "utils/run_folder.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        f"{RESUME}::test_of_two_runs_in_one_folder_the_second_is_refused",
    ),
    mutation(
        "an update that is not finite is made",
        "processor/loop.py",
        "optimizer.found_inf = (~finite).float()",
        "optimizer.found_inf = (finite & ~finite).float()",
        f"{GUARD}::test_that_update_is_not_made_and_the_run_stops_at_the_next_line",
    ),
    # Several processes
    mutation(
        "every process goes its own way",
        "processor/loop.py",
        "                average_gradients(trained)\n",
        "",
        f"{PROCESSES}::test_a_training_is_that_of_one_process",
    ),
    mutation(
        "one process's share of the gradient",
        "utils/distributed.py",
        "return gradient.chunk(world_size())[rank()] * world_size()",
        "return gradient.chunk(world_size())[rank()]",
        f"{PROCESSES}::test_losses_and_gradients_are_those_of_one_process",
    ),
    mutation(
        "one process's running statistics are saved",
        "processor/build.py",
        "        nonlocal kept_at\n        average_statistics(stage.model)\n",
        "        nonlocal kept_at\n",
        f"{RESUME}::test_running_statistics_are_averaged_before_anything_is_saved",
    ),
)


def fault(mutation: Mutation, root: Path = ROOT) -> str:
    """Why a mutation cannot be applied to a source tree, or an empty text."""
    count = (root / mutation.file).read_text(encoding="utf-8").count(mutation.old)
    return "" if count == 1 else f"its text occurs {count} times in {mutation.file}, not once"


def run(folder: Path, tests: list[str]) -> tuple[int, set[str]]:
    """pytest in a copy of the source tree -> its exit code, and the functions of which some case failed."""
    options = ["-q", "-rf", "--tb=no", "--no-header", "-p", "no:cacheprovider"]
    # A compiled file of another mutation could pass for that of this one: they are as old and may be as long.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests], cwd=folder, env=environment, capture_output=True, text=True
    )
    return done.returncode, set(re.findall(r"^FAILED \S+?::(\w+)", done.stdout, re.MULTILINE))


def where(test: str) -> str:
    """What pytest calls a test."""
    return test if "::" in test else f"{REPLAY if test == TRAINING else EQUALITY}::{test}"


def copy(folder: Path) -> Path:
    def left_out(parent: str, names: list[str]) -> set[str]:
        top = LEFT_OUT if Path(parent) == ROOT else set()
        return {name for name in names if name in top or name == "__pycache__"}

    return Path(shutil.copytree(ROOT, folder / "copy", ignore=left_out))


def main(names: list[str]) -> int:
    chosen = [mutation for mutation in MUTATIONS if not names or mutation.name in names]
    if not chosen:
        print(f"no such mutation; there are: {', '.join(mutation.name for mutation in MUTATIONS)}")
        return 2
    bad = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = copy(Path(temporary))
        if not names and run(folder, [EQUALITY, REPLAY])[0] != PASSED:
            print("without any mutation, tests fail already")
            return 1
        for mutation in chosen:
            start, why = time.perf_counter(), fault(mutation, folder)
            if not why:
                path = folder / mutation.file
                source = path.read_text(encoding="utf-8")
                path.write_text(source.replace(mutation.old, mutation.new), encoding="utf-8")
                code, failed = run(folder, [where(test) for test in mutation.tests])
                path.write_text(source, encoding="utf-8")
                green = [test for test in mutation.tests if test.rpartition("::")[2] not in failed]
                if code not in (PASSED, FAILED):
                    why = f"pytest could not run them (code {code})"
                elif green:
                    why = f"GREEN: {', '.join(green)}"
            bad += bool(why)
            seconds = time.perf_counter() - start
            print(f"{mutation.name:52} {seconds:4.0f} s  {why or f'red ({len(mutation.tests)} tests)'}", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} mutations are noticed")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
