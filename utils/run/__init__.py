"""The files of a run: their names, and a module for each kind."""

CONFIG, LOG, METRICS, RESULTS = "config.yaml", "train_log.txt", "metrics.jsonl", "results.json"
VERSIONS, TENSORBOARD, STATES, LOCK = "versions.json", "tensorboard", "resume", ".lock"
PSEUDO_LABELS = "{}pseudo_labels.npz"  # with what the files of a repetition begin with
NON_FINITE = "non_finite.pt"  # no checkpoint, and not called like one
WRITTEN = (METRICS, RESULTS, LOG, VERSIONS)
