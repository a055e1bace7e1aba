"""RegDB (Nguyen et al., 2017): lists and protocol of people seen by a visible and a thermal camera.

ROOT_DIR/RegDB/
    Visible/, Thermal/      1/male_front_v_00001_1.bmp ...
    idx/                    train_visible_1.txt, train_thermal_1.txt, test_visible_1.txt, test_thermal_1.txt: the lists
                            of split 1 of 10:  Visible/1/male_front_v_00001_1.bmp 0     image, label in this list

Half of the 412 identities are for training, the others for the test; results are means over ten such splits, of a
network each. Visible images look for thermal ones, and the other way round; nothing is left out of a ranking.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from datasets.names import PERSON, TEMPLATES
from datasets.naming import Origin, dense_labels, read_list, usual_folder
from datasets.sysu import RANKS
from utils.errors import DataError
from utils.metrics import ignore_nothing
from utils.records import INFRARED, VISIBLE, Benchmark, Sample, Trial

ORIGIN = Origin("RegDB", ("RegDB", "regdb", "REGDB"), "Visible/1/male_front_v_00001_1.bmp")
LISTS = "idx"
SPLITS = range(1, 11)
KINDS = {"visible": VISIBLE, "thermal": INFRARED}  # modalities by their names in the lists
FORTH, BACK = "visible to infrared", "infrared to visible"


def regdb(root: Path, *, train: bool = True, split: int = 1) -> Benchmark:
    """Read one split of the data set below `root`; the benchmark's parts are the two directions of its test.

    Args:
        train: without it, the lists of training images, and these, need not be there.
        split: 1 to 10.

    Raises:
        DataError: naming the folder or list that is missing, the line that is wrong or names an image in the other
            modality's folder, or the images that are listed but not there.
    """
    folder = usual_folder(root, ORIGIN, (LISTS,))
    samples = [sample for kind in KINDS for sample in _read(folder, "train", kind, split)] if train else []
    visible, infrared = (_read(folder, "test", kind, split) for kind in KINDS)
    ways = {FORTH: Trial(visible, infrared), BACK: Trial(infrared, visible)}
    whole = Benchmark(
        "regdb",
        PERSON,
        dense_labels(sorted(samples)),
        tuple(ways.values()),
        ignore_nothing,
        variant=f"split {split}",
        templates=TEMPLATES,
        ranks=RANKS,
    )
    parts = (replace(whole, name=f"regdb ({way})", train=(), trials=(trial,)) for way, trial in ways.items())
    return replace(whole, parts=tuple(parts))


def _read(folder: Path, use: str, kind: str, split: int) -> tuple[Sample, ...]:
    """The images of a list, sorted by their paths; the modality is the camera."""
    missing = f"RegDB has {{train,test}}_{{visible,thermal}}_{{1..{len(SPLITS)}}}.txt in {LISTS}"
    path, others = folder / LISTS / f"{use}_{kind}_{split}.txt", KINDS.keys() - {kind}
    lines = read_list(path, folder, example=f"{ORIGIN.example} 0", missing=missing)
    if wrong := next((line for line in lines if line.image.partition("/")[0].lower() in others), None):
        raise DataError(f"{path}: line {wrong.number} is {wrong.image}; expected {kind} images")
    inside, modality = str(folder), KINDS[kind]
    return tuple(sorted(Sample(os.path.join(inside, line.image), line.pid, modality, 0, modality) for line in lines))
