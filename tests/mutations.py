"""Would the tests notice? Every mutation here is a mistake that is easily made; each must turn its tests red.

    python -m tests.mutations [NAME ...]

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

from tests.patterns import find, replaced

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = {".git", ".venv", "data", "runs", ".hypothesis", ".pytest_cache", ".ruff_cache"}
EQUALITY, REPLAY = "tests/test_equality.py", "tests/test_replay.py"
PASSED, FAILED = 0, 1  # pytest's exit codes; all others mean that nothing was tested


class Mutation(NamedTuple):
    """One place that is changed, and what must notice."""

    name: str
    where: str  # function or class that the place is in (Class.method), wherever that stands; "" is anywhere
    old: str  # a pattern (see patterns.py) that fits in exactly one place
    new: str
    tests: tuple[str, ...]  # FILE::FUNCTION, or functions of EQUALITY and REPLAY; each by itself must fail


def mutation(name: str, where: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(name, where, old, new, tests)


VIT, RN50 = "test_the_features_of_the_transformer", "test_the_features_of_the_resnet"
TABLES, SENTENCES = "test_position_tables_of_clip_are_resized", "test_sentences"
DISTURBED = "test_the_prompt_stage_disturbs_the_whole_context"
PROMPT = "test_the_prompt_stage_with_and_without_self_supervision"
IMAGE = "test_the_image_stage_and_the_gradient_of_every_tensor"
GROUPS, RATES = "test_rate_and_decay_of_every_tensor", "test_the_learning_rate_of_every_epoch"
VIEWS, TEST_VIEWS = "test_training_images_and_their_views", "test_test_images"
RERANKING, RANKING = "test_reranking", "test_ranking"
VERIFICATION, BENCHMARKS, METRICS = (f"tests/test_{name}.py" for name in ("verification", "benchmarks", "metrics"))
EXPANSION = "tests/test_query_expansion.py::test_as_the_formula_says"
CHANGED = "tests/test_robustness.py::test_queries_are_changed_and_the_gallery_is_not"
FLIP = "tests/test_stages.py::test_flip_is_the_mean_with_the_mirror_image_before_normalisation"
TRAINING = "test_a_whole_training"
RESUME, GUARD, PROCESSES = (f"tests/test_{name}.py" for name in ("resume", "guard", "distributed"))
MEMORY, CLUSTERING, ASSOCIATION = (f"tests/test_{name}.py" for name in ("prototypes", "clustering", "association"))
CCLNET, LABELS = "tests/test_cclnet.py", "test_pseudo_labels_are_joined_by_path"
LARGEST, LOOP = "test_the_sum_of_similarities_is_the_largest", "test_mixing_is_that_of_the_published_loop"
REMEMBERED = "tests/test_image_prototypes.py"
MOVED = "test_memories_are_taken_as_they_are_and_moved_after_the_step"
CONFIGURED = "test_the_configuration_begins_compares_and_moves_memories"
AVERAGE = f"{RESUME}::test_the_average_of_the_weights_is_resumed_saved_and_evaluated"
INTERRUPTED = f"{RESUME}::test_a_run_that_is_interrupted_again_and_again_ends_the_same"

MUTATIONS = (
    # Towers
    mutation(
        "gelu for quick_gelu",
        "build_clip",
        "_1 == QUICK_GELU",
        "False",
        *(VIT, SENTENCES, "test_the_features_of_the_full_transformer"),
    ),
    mutation(
        "layer norms with 1e-6",
        "build_clip",
        "return open_clip.CLIP(...)",
        """
        clip = open_clip.CLIP(...)
        for module in clip.modules():
            if hasattr(module, "normalized_shape"):
                module.eps = 1e-6
        return clip
        """,
        *(VIT, SENTENCES, IMAGE),
    ),
    mutation(
        "bicubic position tables",
        "resize_positions",
        'F.interpolate(..., mode="bilinear")',
        'F.interpolate(..., mode="bicubic")',
        TABLES,
    ),
    mutation(
        "antialiased position tables",
        "resize_positions",
        "F.interpolate(..., antialias=False)",
        "F.interpolate(..., antialias=True)",
        TABLES,
    ),
    mutation(
        "side information on all tokens",
        "ViTTower.forward",
        "torch.cat([_1, _2.flatten(2).transpose(1, 2)], dim=1)",
        "torch.cat([_1, (_2 if None in (self.side, side) else _2 + self.side(side)[:, :, None, None])"
        ".flatten(2).transpose(1, 2)], dim=1)",
        *(VIT, IMAGE, TRAINING),
    ),
    mutation(
        "side information with rows by viewpoint first",
        "SideEmbedding.forward",
        "self.table.view(self.shape)",
        "self.table.view(self.shape[1], self.shape[0], -1).transpose(0, 1)",
        *(VIT, IMAGE),
    ),
    mutation(
        "penultimate feature after the last layer norm",
        "ViTTower.forward",
        "ImageFeatures(_1, ...)",
        "ImageFeatures(self.visual.ln_post(_1), ...)",
        *(VIT, IMAGE),
    ),
    mutation(
        "resnet's last stage at stride 2",
        "ResNetTower",
        "_1.avgpool = _1.downsample[0] = nn.Identity()",
        "pass",
        *(RN50, IMAGE),
    ),
    mutation(
        "texts read a token early",
        "TextTower.forward",
        "slice(-1, None)",
        "slice(-2, -1)",
        *(SENTENCES, PROMPT),
    ),
    # Prompt stage
    mutation(
        "augmenting after cutting",
        "PromptStage.forward",
        "_1.prompts(_2)",
        "_1.prompts(_2)[:, : _1.prompts.end + 1]",
        *(DISTURBED, PROMPT, TRAINING),
    ),
    mutation(
        "what is not masked is scaled up",
        "mask",
        "return _1 * _2",
        "return _1 * _2 / (1 - strength)",
        DISTURBED,
    ),
    mutation(
        "text projector's batch norm over both views",
        "PromptStage._compare",
        "_1(*(_2.text_projector(_3) for _3 in _4))",
        "_1(*_2.text_projector(torch.cat(_4)).chunk(2))",
        *(DISTURBED, PROMPT, TRAINING),
    ),
    mutation(
        "text projector trained",
        "PromptStage",
        "_1 and _2.text_projector is not None",
        "_2.text_projector is not None",
        *(GROUPS, DISTURBED, TRAINING),
    ),
    mutation(
        "cached features with side information",
        "cache_features",
        "_1.encode_image(_2.images, stem_only(_1.image, _2.side))",
        "_1.encode_image(_2.images, _2.side)",
        *("test_cached_features_know_no_side_information", TRAINING),
    ),
    mutation(
        "normalised contrast of images and texts",
        "ImageTextContrast.forward",
        "_1 @ _2.T",
        "F.normalize(_1, dim=1) @ F.normalize(_2, dim=1).T",
        *("test_images_against_sentences_both_ways", PROMPT, TRAINING),
    ),
    # Image stage
    mutation(
        "normalised images against all texts",
        "ImageToText.forward",
        "_1 @ _2.T",
        "F.normalize(_1, dim=1) @ F.normalize(_2, dim=1).T",
        *("test_images_against_all_sentences", IMAGE, TRAINING),
    ),
    mutation(
        "unsmoothed images against all texts",
        "ImageToText.forward",
        "F.cross_entropy(_1, _2, label_smoothing=_3)",
        "F.cross_entropy(_1, _2)",
        *("test_images_against_all_sentences", IMAGE, TRAINING),
    ),
    mutation(
        "squared triplet distances",
        "BatchHardTriplet.forward",
        "_1.sqrt()",
        "_1",
        *("test_the_triplet_loss", IMAGE, TRAINING),
    ),
    mutation(
        "triplets at two of three depths",
        "ImageStage._triplet",
        "sum(self.triplet(_1, _2) for _1 in _3 if _1 is not None)",
        "sum(self.triplet(_1, _2) for _1 in _3[1:])",
        *(IMAGE, TRAINING),
    ),
    mutation(
        "temperature 0.07",
        "NTXent",
        "0.1",
        "0.07",
        *("test_views_among_strangers", IMAGE, DISTURBED, TRAINING),
    ),
    mutation(
        "gradient through what simsiam predicts",
        "NegativeCosine.forward",
        "F.cosine_similarity(_1, _2.detach()).mean() + _3",
        "F.cosine_similarity(_1, _2).mean() + _3",
        *("test_predictions_against_views", IMAGE, TRAINING),
    ),
    mutation(
        "positives of the same camera",
        "find_positives",
        "_1 & (_2[:, None] != _2) & _3",
        "_1 & (_2[:, None] == _2) & _3",
        "tests/test_losses.py::test_several_positives",
    ),
    mutation(
        "image projector's batch norm over both views",
        "ImageStage",
        "(_1.image_projector(_2) for _2 in _3)",
        "_1.image_projector(torch.cat(_3)).chunk(2)",
        *(IMAGE, TRAINING),
    ),
    mutation(
        "resnet's batch norms over both views",
        "ImageStage._view_features",
        "self.one_view_at_a_time",
        "False",
        IMAGE,
        TRAINING,
    ),
    mutation(
        "side information on views",
        "ImageStage",
        "_1.side if self.side_on_views else stem_only(self.model.image, _1.side)",
        "_1.side",
        *(IMAGE, TRAINING),
    ),
    mutation(
        "shift of the necks trained",
        "ImageStage",
        "_1.neck.bias.requires_grad_(False)",
        "_1.neck.bias.requires_grad_(True)",
        *(IMAGE, GROUPS, TRAINING),
    ),
    # Training on clusters
    mutation(
        "a memory that forgets a tenth only",
        "Memory.update",
        "(1 - self.momentum) * _1",
        "self.momentum * _1",
        *(
            f"{MEMORY}::test_the_update_is_one_image_after_the_other",
            f"{MEMORY}::test_the_last_image_of_a_class_dominates",
        ),
    ),
    mutation(
        "prototypes at length 1 after the batch only",
        "Memory.update",
        "_1 = F.normalize(self.momentum * _2 + _3, dim=1)",
        "_1 = self.momentum * _2 + _3",
        f"{MEMORY}::test_the_update_is_one_image_after_the_other",
    ),
    mutation(
        "the last image of a batch moves prototypes first",
        "Memory.update",
        "zip(_1, _2, _3, strict=True)",
        "reversed([*zip(_1, _2, _3, strict=True)])",
        *(
            f"{MEMORY}::test_the_update_is_one_image_after_the_other",
            f"{MEMORY}::test_the_last_image_of_a_class_dominates",
        ),
    ),
    mutation(
        "the proxy of the image's own camera is a positive",
        "Memory.forward",
        "_1 & (self.cameras != _2) & _3",
        "_1 & _3",
        f"{MEMORY}::test_camera_proxies_by_loops",
    ),
    mutation(
        "prototypes of cameras are of identities",
        "_classes",
        "_1 if name == _2 else None",
        "None",
        *(f"{REMEMBERED}::{test}" for test in ("test_loss_and_gradient_are_those_of_plain_loops", MOVED, CONFIGURED)),
    ),
    mutation(
        "memories move before the step",
        "ImageStage._remembered",
        "self.seen = _1.detach(), labels",
        """
        self.seen = _1.detach(), labels
        self.update(torch.tensor(True))
        """,
        *(f"{REMEMBERED}::{test}" for test in ("test_loss_and_gradient_are_those_of_plain_loops", MOVED, CONFIGURED)),
    ),
    mutation(
        "memories move without a step",
        "ImageStage.update",
        "finite",
        "torch.ones_like(finite)",
        f"{REMEMBERED}::test_what_was_no_step_moves_no_memory",
    ),
    mutation(
        "memories stay", "image_parts", "_1.update if _1.memories else None", "None", f"{REMEMBERED}::{CONFIGURED}"
    ),
    mutation(
        "memories begin anew in every epoch", "keep_prototypes", "epoch == 1", "True", f"{REMEMBERED}::{CONFIGURED}"
    ),
    mutation(
        "memories begin anew when a run is resumed",
        "keep_prototypes",
        "state is not None",
        "False",
        f"{RESUME}::test_prototypes_are_resumed",
    ),
    mutation(
        "clusters by k1 neighbours besides the image",
        "near_pairs",
        "neighbours[:, :k1]",
        "neighbours[:, : k1 + 1]",
        f"{CLUSTERING}::test_near_pairs_are_those_of_the_dense_form",
    ),
    mutation(
        "pairs at distance 0 are lost",
        "near_pairs",
        "_1.clamp(min=NEARLY_0)",
        "_1",
        f"{CLUSTERING}::test_pairs_at_distance_0_are_kept",
    ),
    mutation(
        "modalities drawn alike",
        "ClusterSampler.set_epoch",
        "np.random.default_rng([self.seed, epoch, _1])",
        "np.random.default_rng([self.seed, epoch])",
        "tests/test_sampler.py::test_clusters_are_drawn_uniformly_and_modalities_independently",
    ),
    mutation(
        "clusters of negative similarity are pairs",
        "associate",
        "_1 >= 0",
        "_1 >= -1",
        f"{ASSOCIATION}::test_a_negative_similarity_is_skipped",
    ),
    mutation(
        "the pairs of the smallest sum",
        "associate",
        "linear_sum_assignment(..., maximize=True)",
        "linear_sum_assignment(..., maximize=False)",
        *(
            f"{ASSOCIATION}::{test}"
            for test in (LARGEST, "test_a_permutation_is_recovered_though_some_have_no_partner")
        ),
    ),
    mutation(
        "one half of a swap",
        "swap_pairs",
        "_1.index_copy(0, _2.second, first[_2.first])",
        "_1",
        f"{ASSOCIATION}::test_a_true_swap_exchanges_pairs_and_leaves_the_others",
    ),
    mutation(
        "mixing with what the partner was",
        "mix_pairs",
        """
        first = _1
        return first, _2
        """,
        "return _1, _2",
        *(f"{ASSOCIATION}::{test}" for test in (LOOP, "test_mixing_a_pair_that_is_in_the_batch_merges_it")),
    ),
    mutation(
        "memories learn from what is not finite",
        "ClusterStage.update",
        "_1.where(finite, -1)",
        "_1",
        f"{CCLNET}::test_memories_learn_after_the_update_and_only_from_what_is_finite",
    ),
    mutation(
        "memories of the other modality",
        "ClusterStage._groups",
        "_1 == _2",
        "_1 != _2",
        f"{CCLNET}::test_the_loss_against_plain_loops",
    ),
    mutation(
        "unsmoothed images against the texts of clusters",
        "ClusterStage.__init__",
        "ImageToText(_1)",
        "ImageToText(0.0)",
        f"{CCLNET}::test_the_loss_against_plain_loops",
    ),
    mutation(
        "clusters are found anew in an epoch that is resumed",
        "cluster_parts",
        "state is None",
        "True",
        f"{CCLNET}::test_killed_and_resumed_is_as_uninterrupted",
    ),
    mutation(
        "batches of nothing where processes outnumber clusters",
        "ClusterSampler.set_labels",
        "len(_1) >= self.world_size",
        "True",
        "tests/test_sampler.py::test_batches_of_clusters_of_two_modalities",
    ),
    *(
        mutation(f"pseudo-labels {name}", "read_labels", old, new, f"{CCLNET}::{LABELS}")
        for name, old, new in (
            ("of another epoch", "found.epoch != epoch", "False"),
            ("of other settings", "found.settings != settings", "False"),
            ("of other images", "_1.keys() != set(_2)", "False"),
            ("in the order of the file", "[rows[_1] for _1 in _2]", "labels"),
        )
    ),
    # Optimisers and schedules
    mutation("bias factor dropped", "make_optimizer", '_1.get("BIAS_LR_FACTOR", _2)', "_2", GROUPS, TRAINING),
    mutation("no decay of biases", "make_optimizer", '_1.get("WEIGHT_DECAY_BIAS", _2)', "0.0", GROUPS, TRAINING),
    mutation("adamw for adam", "make_optimizer", "torch.optim.Adam", "torch.optim.AdamW", GROUPS, TRAINING),
    mutation(
        "cosine counted from the end of the warm-up",
        "warmup_cosine",
        "math.cos(math.pi * _1 / _2)",
        "math.cos(math.pi * (_1 - warmup_epochs) / (_2 - warmup_epochs))",
        *(RATES, TRAINING),
    ),
    mutation("steps an epoch late", "warmup_steps", "_1 <= epoch", "_1 < epoch", RATES, TRAINING),
    mutation(
        "layer decay a block late",
        "_layer_scales",
        "_1 ** (_2 - _3)",
        "_1 ** (_2 - _3 - 1)",
        "tests/test_solver.py::test_layer_decay_is_timms",
    ),
    mutation("evaluated without the average", "SavedStageRun.after_epoch", "_1.applied()", "nullcontext()", AVERAGE),
    mutation("average not resumed", "SavedStageRun._restore", "average.load(_1)", "None", AVERAGE),
    # Images
    mutation(
        "views erased like training images",
        "",
        "VIEW_ERASED = _1",
        "VIEW_ERASED = (0.02, 1 / 3)",
        VIEWS,
    ),
    mutation(
        "views erased like training images, by configuration",
        "",
        'Key("INPUT.TWIN_ERASED_AREA", _1, ...)',
        'Key("INPUT.TWIN_ERASED_AREA", (0.02, 1 / 3), ...)',
        VIEWS,
    ),
    mutation(
        "test images resized like training images",
        "TestTransform",
        "Image.Resampling.BILINEAR",
        "Image.Resampling.BICUBIC",
        TEST_VIEWS,
    ),
    # Retrieval
    mutation(
        "re-ranking with k1 neighbours, itself included",
        "rerank",
        "_1[:, : k1 + 1]",
        "_1[:, :k1]",
        RERANKING,
    ),
    mutation(
        "re-ranking with half of k1, itself included",
        "expanded_weights",
        "round(k1 / 2) + 1",
        "round(k1 / 2)",
        RERANKING,
    ),
    mutation(
        "similarities without their exponent",
        "expand_queries",
        "_1.gather(1, _2).clamp(min=0) ** alpha",
        "_1.gather(1, _2).clamp(min=0)",
        EXPANSION,
    ),
    mutation(
        "an expanded query without itself",
        "expand_queries",
        "query[rows] + (_1[:, None] @ gallery[_2])[:, 0]",
        "(_1[:, None] @ gallery[_2])[:, 0]",
        EXPANSION,
    ),
    mutation(
        "queries are as they were", "evaluate_changed", "_1(_2, model, changed)", "_1(_2, model, loader)", CHANGED
    ),
    mutation(
        "what a corruption draws is not seeded",
        "Corruption.__call__",
        "np.random.seed(seed)",
        "None",
        "tests/test_robustness.py::test_corruptions_are_drawn_by_image_and_run_and_always_the_same",
    ),
    mutation("the same image twice for flip", "embed_images", "images.flip(-1)", "images", FLIP),
    mutation("mirrored upside down", "embed_images", "images.flip(-1)", "images.flip(-2)", FLIP),
    mutation("a query's own camera counts", "same_camera", "_1 & (_2 == _3)", "_1 & (_2 > _3)", RANKING),
    mutation(
        "a query of camera 3 ignores its own identity only",
        "same_place",
        "_1 & (_2 == 1)",
        "_1 & (_2 == 1) & (query.pids[:, None] == gallery.pids)",
        f"{BENCHMARKS}::test_sysu_a_query_of_camera_3_does_not_see_camera_2",
    ),
    mutation(
        "a query of camera 2 does not see camera 3",
        "same_place",
        "(query.camids[_1] == 2) & (gallery.camids == 1)",
        "(query.camids[_1] == 1) & (gallery.camids == 2)",
        f"{BENCHMARKS}::test_sysu_a_query_of_camera_3_does_not_see_camera_2",
    ),
    mutation(
        "the CMC counts images",
        "_rank_chunk",
        "rules.unique_identities",
        "False",
        f"{METRICS}::test_a_cmc_of_unique_identities_by_hand",
        "tests/test_stages.py::test_a_benchmark_says_what_ranks_count_and_which_are_reported",
    ),
    mutation(
        "the gallery is drawn by the global generator",
        "draw_gallery",
        "random.Random(trial)",
        "random",
        f"{BENCHMARKS}::test_sysu_galleries_are_those_of_published_programs",
    ),
    # Resuming a run
    mutation("the optimiser begins anew", "", "load_optimizer(...)", "None", INTERRUPTED),
    mutation(
        "the scaler begins anew",
        "",
        "_1.load_state_dict(_2['scaler'])",
        "None",
        f"{RESUME}::test_the_scaler_of_fp16_is_resumed",
    ),
    mutation(
        "the best evaluation is forgotten",
        "",
        "_1['best'] if _2 else {}",
        "{}",
        f"{RESUME}::test_the_best_evaluation_on_the_way_is_kept",
    ),
    mutation("an epoch begins anew", "fit", "batches(_1, _2.step)", "batches(_1, 0)", INTERRUPTED),
    mutation("a line of the log begins anew", "", "{_1: list(_2) for _1, _2 in _3.sums.items()}", "{}", INTERRUPTED),
    mutation(
        "skipped updates are counted by epoch",
        "fit",
        "Position(_1 + 1, steps=_2.steps, skipped=_2.skipped)",
        "Position(_1 + 1, steps=_2.steps)",
        f"{GUARD}::test_skipped_updates_are_counted_over_the_whole_stage",
    ),
    mutation(
        "what comes once more stays",
        "",
        "os.truncate(_1, size)",
        "None",
        INTERRUPTED,
    ),
    mutation(
        "a damaged state is one of two",
        "RunFolder",
        "self.states = [_1.path] if _1 else []",
        "self.states = state_files(path)",
        f"{RESUME}::test_a_damaged_state_is_named_and_the_one_before_it_taken",
    ),
    mutation(
        "checksums are not compared",
        "",
        "_1.testzip() if _2 else None",
        "None",
        f"{RESUME}::test_a_damaged_state_is_named_and_the_one_before_it_taken",
    ),
    mutation(
        "everybody may write to a folder",
        "_acquire",
        "held.acquire()",
        "None",
        f"{RESUME}::test_of_two_runs_in_one_folder_the_second_is_refused",
    ),
    mutation(
        "an update that is not finite is made",
        "",
        "_1.found_inf = (~_2).float()",
        "_1.found_inf = (_2 & ~_2).float()",
        f"{GUARD}::test_that_update_is_not_made_and_the_run_stops_at_the_next_line",
    ),
    # Several processes
    mutation(
        "every process goes its own way",
        "fit",
        "average_gradients(_1)",
        "None",
        f"{PROCESSES}::test_a_training_is_that_of_one_process",
    ),
    mutation(
        "in a replicate, pairs of two identities count as often as the query's alone",
        "PairScores.resampled",
        "_1 @ _2",
        "_2.sum(dim=0)",
        f"{VERIFICATION}::test_replicates_weigh_pairs_by_their_identities",
    ),
    mutation(
        "an image is paired with itself",
        "PairScores._chunks",
        "_1 <= _2[:, None]",
        "_1 < _2[:, None]",
        f"{VERIFICATION}::test_all_pairs_that_count_do_so_once",
    ),
    mutation(
        "one process's share of the gradient",
        "",
        "_1.chunk(world_size())[rank()] * world_size()",
        "_1.chunk(world_size())[rank()]",
        f"{PROCESSES}::test_losses_and_gradients_are_those_of_one_process",
    ),
    mutation(
        "one process's running statistics are saved",
        "SavedStageRun.save",
        "average_statistics(_1)",
        "None",
        f"{RESUME}::test_running_statistics_are_averaged_before_anything_is_saved",
    ),
)


def mutated(mutation: Mutation, root: Path = ROOT) -> tuple[Path, str]:
    """The file that a mutation changes, and what it says then.

    Raises:
        ValueError: its pattern fits in no place, or in several.
    """
    places = find(root, mutation.where, mutation.old)
    if len(places) != 1:
        found = [f"{place.path.relative_to(root)}:{place.nodes[0].lineno}" for place in places]
        where = f" in {mutation.where}" if mutation.where else ""
        raise ValueError(f"{mutation.old!r}{where}: expected one place, found {found or 'none'}")
    return places[0].path, replaced(places[0], mutation.new)


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
            start, why = time.perf_counter(), ""
            try:
                path, text = mutated(mutation, folder)
            except ValueError as error:
                why = str(error)
            else:
                source = path.read_text(encoding="utf-8")
                path.write_text(text, encoding="utf-8")
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
