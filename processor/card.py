"""Model cards: what a network is, what it was trained on, its figures, and under which terms it may be passed on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from configs.stages import CLUSTER, PROMPT, STAGES
from model.families import FAMILIES
from model.licences import OURS, licence_of
from model.pretrained import NONE
from model.svllreid import SvllReid
from utils.metrics import CROSS_CAMERA
from utils.records import Refinement
from utils.report import REFINED, columns_of, markdown, percent
from utils.run import RESULTS
from utils.run.results import END, read_results

# DATASETS.NAMES -> title, and who made it; docs/data.md has more.
DATA_SETS = {
    "market1501": ("Market-1501", "Zheng et al., ICCV 2015"),
    "dukemtmc": (
        "DukeMTMC-reID",
        "Ristani et al., 2016, and Zheng et al., ICCV 2017; withdrawn in 2019 because the people in it had not "
        "consented, no longer distributed",
    ),
    "occ_duke": ("Occluded-Duke", "Miao et al., ICCV 2019; images of DukeMTMC-reID, which was withdrawn in 2019"),
    "msmt17": ("MSMT17", "Wei et al., CVPR 2018"),
    "veri": ("VeRi-776", "Liu et al., 2016"),
    "VehicleID": ("VehicleID", "Liu et al., CVPR 2016"),
    "sysu_mm01": ("SYSU-MM01", "Wu et al., ICCV 2017"),
    "regdb": ("RegDB", "Nguyen et al., Sensors 2017"),
}
RENDERED, OWN = "synthetic", "folder"
MIT, OTHER = "mit", "other"
TASK = {"type": "image-feature-extraction", "name": "Image re-identification"}


class Facts(NamedTuple):
    """What a card is made of; what is not known is left out."""

    name: str
    place: str  # what `Embedder.from_checkpoint` takes
    architecture: Mapping[str, Any]
    settings: Mapping[str, Any]  # the configuration, as plain types
    width: int  # of a feature
    parameters: int  # of the image tower
    trained: bool = True  # whether `settings` are those of its training
    stage: str | None = None  # of the training that the weights are of
    epoch: int | None = None  # after which they were saved
    results: Sequence[Mapping] = ()  # entries of results.json
    digest: str | None = None
    licence: str | None = None  # of the network, by the Hub's names; None: as its parts tell


def facts_of(model: SvllReid, settings: Mapping[str, Any], **known: Any) -> Facts:
    """The facts of a network with these settings; `known` are further fields."""
    parameters = sum(parameter.numel() for parameter in model.image.parameters())
    width = sum(model.image.dims[1:])
    return Facts(architecture=model.architecture, settings=settings, width=width, parameters=parameters, **known)


def results_of(weight: Path) -> list[dict]:
    """The evaluations of a checkpoint in the results.json beside it: of each kind the last.

    Raises:
        UserError: that file cannot be read.
    """
    found, folder = {}, weight if weight.is_dir() else weight.parent
    for entry in read_results(folder / RESULTS)["evaluations"]:
        if entry["when"] in (END, "test") and Path(str(entry.get("checkpoint"))).name == weight.name:
            what = {name: entry.get(name) for name in WHAT}
            found[repr((what, Refinement.of(entry)))] = entry
    return list(found.values())


# Fields of an entry that, besides the refinement, tell which measurement it is.
WHAT = ("data_set", "variant", "data_fingerprint", "protocol", "network", "neck_feat", "feat_norm", "side_information")


def model_card(facts: Facts) -> str:
    """The card, Markdown with the Hub's YAML before it."""
    sections = {
        f"# {facts.name}": _summary(facts),
        "## Use": _use(facts),
        "## Network": _network(facts),
        "## Preprocessing": _preprocessing(facts),
        "## Training": _training(facts) if facts.trained else "",
        "## Results": _results(facts) if facts.results else "",
        "## Terms": _terms(facts),
    }
    head = yaml.safe_dump(_front_matter(facts), sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n" + "\n\n".join(f"{title}\n\n{text}" for title, text in sections.items() if text) + "\n"


def without_front_matter(card: str) -> str:
    """A card as people read it."""
    return card.partition("\n---\n")[2] if card.startswith("---\n") else card


def without_folders(text: str) -> str:
    """A text without the folders of absolute paths, which are nobody else's business."""
    return re.sub(r"(?<![\w.])[~/][^\s'\"]*/|\b[A-Za-z]:\\[^\s'\"]*\\", "", text)


def method_of(settings: Mapping[str, Any]) -> str:
    """What the README calls a training with these settings."""
    solver, stages = settings["SOLVER"], settings["PROCESSOR"]["STAGES"]
    if CLUSTER.name in stages:
        return "CCLNet"
    model = settings["MODEL"]
    prompts = PROMPT.name in stages or model["I2T_LOSS_WEIGHT"] > 0
    prototypes = model.get("PROTOTYPE_LOSS_WEIGHT", 0) > 0  # older settings do not have it
    language, vision = (solver[stage]["SSL_LOSS_WEIGHT"] > 0 for stage in ("STAGE1", "STAGE2"))
    if not prompts:
        name = "PCL-CLIP" if prototypes else "baseline"
        return f"{name} with vision self-supervision" if vision else name
    names = {
        (True, True): "SVLL-ReID",
        (True, False): "CLIP-ReID with language self-supervision",
        (False, True): "CLIP-ReID with vision self-supervision",
        (False, False): "CLIP-ReID",
    }
    return names[language, vision]


def _names(facts: Facts) -> list[str]:
    """The data sets that it was trained on."""
    return facts.settings["DATASETS"]["NAMES"].split("+") if facts.trained else []


def _title(name: str) -> str:
    return DATA_SETS.get(name, (name,))[0]


def _tested_on(entry: Mapping) -> str:
    return " ".join(filter(None, [_title(entry["data_set"]), entry.get("variant")]))


def _front_matter(facts: Facts) -> dict:
    noun = "vehicle" if "vehicle" in facts.architecture["template"] else "person"
    licence = facts.licence or (MIT if _is_ours(facts) else OTHER)
    head: dict[str, Any] = {"license": licence}
    if licence == OTHER:
        head["license_name"] = "terms-of-its-weights-and-data"
    method = [method_of(facts.settings).partition(" ")[0].lower()] if facts.trained else []
    head |= {
        "library_name": "svll-reid",
        "pipeline_tag": TASK["type"],
        "tags": ["image-re-identification", f"{noun}-re-identification", "image-retrieval", *method],
    }
    if _names(facts):
        head["datasets"] = _names(facts)
    if facts.results:
        head["metrics"] = ["mAP", "rank-1"]
        head["model-index"] = [{"name": facts.name, "results": [_indexed(facts, entry) for entry in facts.results]}]
    return head


def _indexed(facts: Facts, entry: Mapping) -> dict:
    how = ", ".join(filter(None, [f"protocol {_protocol(entry)}", str(Refinement.of(entry))]))
    data_set = {"type": entry["data_set"], "name": _tested_on(entry), "split": _split(facts, entry)}
    return {
        "task": TASK,
        "dataset": data_set,
        "metrics": [
            {"type": name, "value": round(100 * entry[field], 1), "name": f"{name} ({how})"}
            for name, field in (("mAP", "mAP"), ("rank-1", "rank1"))
        ],
    }


def _is_ours(facts: Facts) -> bool:
    """Whether weights and data are this repository's own, or none."""
    model = facts.settings["MODEL"]
    own = model["PRETRAIN"] == NONE or licence_of(model["NAME"], model["PRETRAIN"]) == OURS
    rendered = all(name.startswith(RENDERED) for name in _names(facts))
    return facts.trained and own and rendered and not model["INIT_FROM"]


def _summary(facts: Facts) -> str:
    height, width = facts.architecture["test_size"]
    method = f": {method_of(facts.settings)}" if facts.trained else ""
    return (
        f"A network for image re-identification{method}, image tower {facts.architecture['name']}. "
        f"It turns an image, resized to {height} × {width} pixels, into a vector of {facts.width} numbers; vectors are "
        "compared by their cosine."
    )


def _use(facts: Facts) -> str:
    return (
        "With the code of SVLL-ReID:\n\n```python\nfrom processor.inference import Embedder\n\n"
        f'embed = Embedder.from_checkpoint("{facts.place}")\n'
        'a, b = embed(["a.jpg", "b.jpg"])  # each of length 1\nsimilarity = a @ b\n```'
    )


def _network(facts: Facts) -> str:
    a, test = facts.architecture, facts.settings["TEST"]
    side = [word for key, word in (("sie_camera", "camera"), ("sie_view", "viewpoint")) if a[key]]
    rows = {
        "image tower": f"{a['name']}, {facts.parameters / 1e6:.1f} million parameters",
        "stride of the patches": " × ".join(map(str, a["stride"])),
        "features": f"{facts.width} numbers, {test['NECK_FEAT']} the batch-norm necks",
        "side information": f"{' and '.join(side)}; single images take the mean" if side else "",
        "flip": "mean over the image and its mirror image" if test["FLIP"] else "",
        "digest": facts.digest or "",
    }
    return markdown([("", ""), *((name, said) for name, said in rows.items() if said)])


def _preprocessing(facts: Facts) -> str:
    a = facts.architecture
    height, width = a["test_size"]
    mean, std = (", ".join(f"{value:g}" for value in a[name]) for name in ("pixel_mean", "pixel_std"))
    return (
        f"RGB; resized to {height} × {width} pixels (height × width), bilinear, antialiased, aspect ratio not kept; "
        f"values from 0 to 1, minus the mean ({mean}), divided by the standard deviation ({std})."
    )


def _training(facts: Facts) -> str:
    s = facts.settings
    model, solver, held = s["MODEL"], s["SOLVER"], s["DATASETS"].get("HOLD_OUT", 0)
    start = model["INIT_FROM"] or model["PRETRAIN"]
    stages = [STAGES[name] for name in s["PROCESSOR"]["STAGES"]]
    epochs = ", ".join(f"{stage.title}: {solver[stage.block]['MAX_EPOCHS']} epochs" for stage in stages)
    saved = f"after epoch {facts.epoch} of {STAGES[facts.stage].title}" if facts.stage and facts.epoch else ""
    lines = [
        f"method: {method_of(s)}",
        f"data: {', '.join(map(_title, _names(facts)))}"
        + (f", without {100 * held:g} % of the training identities, which are held out" if held else ""),
        f"identities: {facts.architecture['num_pids']}" if facts.architecture["num_pids"] else "",
        f"started from: {Path(start).name} (MODEL.{'INIT_FROM' if model['INIT_FROM'] else 'PRETRAIN'})",
        f"settings: {epochs}",
        f"these weights: {saved}" if saved else "",
        f"images: {' × '.join(map(str, facts.architecture['image_size']))} pixels",
        f"seed: {solver['SEED']}",
    ]
    return "\n".join(f"- {line}" for line in lines if line)


def _results(facts: Facts) -> str:
    columns = columns_of(facts.results)
    head = ["data set", "split", *columns.values(), "valid queries", "gallery", "trials", "protocol"]
    rows = [[*head, *REFINED.values(), "side information", "image size"]]
    notes: list[str] = []
    for entry in facts.results:
        done, numbers = Refinement.of(entry), [percent(entry, name) for name in columns]
        gallery, trials = (str(entry.get(name, "")) for name in ("gallery_images", "trials"))
        counts = [f"{entry['valid_queries']} of {entry['queries']}", gallery, trials]
        size = (entry.get("network") or {}).get("test_size") or facts.architecture["test_size"]
        how = ["yes" if done.flip else "no", *(str(each) if each else "no" for each in done[1:])]
        side = entry.get("side_information") or ""
        names = [_tested_on(entry), _split(facts, entry)]
        rows.append([*names, *numbers, *counts, _protocol(entry), *how, side, " × ".join(map(str, size))])
        notes += [f"- {_title(entry['data_set'])}: {without_folders(note)}" for note in entry.get("notes") or ()]
    said = "In per cent." + (" ± is the deviation over the trials." if any(e.get("std") for e in facts.results) else "")
    table = markdown(rows, numbers=range(2, 2 + len(columns)))
    return "\n\n".join([said, table, *(["\n".join(dict.fromkeys(notes))] if notes else [])])


def _protocol(entry: Mapping) -> str:
    return entry.get("protocol") or CROSS_CAMERA  # which earlier versions did not write


def _split(facts: Facts, entry: Mapping) -> str:
    """Held-out training identities, where training held some out and these are the images of its own end."""
    ends = [each for each in facts.results if each["when"] == END and each["data_set"] == entry["data_set"]]
    own = any(_images(each) == _images(entry) for each in ends)
    return "held-out identities" if facts.settings["DATASETS"].get("HOLD_OUT") and own else "test"


def _images(entry: Mapping) -> object:
    found = entry.get("data_fingerprint")
    return found.get("test") if isinstance(found, Mapping) else found  # one for all images in early versions


def _terms(facts: Facts) -> str:
    model = facts.settings["MODEL"]
    name, start = facts.architecture["name"], Path(model["INIT_FROM"]).name if facts.trained else ""
    lines = ["Code: MIT."]
    if start:
        lines.append(f"Started from {start}, whose terms apply.")
    if name in FAMILIES:
        lines.append(f"Weights of {name}: {FAMILIES[name].licence}.")
    elif facts.trained and not start and (licence := licence_of(name, model["PRETRAIN"])):
        lines.append(f"Weights that it started from ({model['PRETRAIN']}): {licence}.")
    for name in _names(facts):
        if name in DATA_SETS:
            title, authors = DATA_SETS[name]
            lines.append(f"{title}: its authors' terms apply ({authors}).")
        elif name.startswith(RENDERED):
            lines.append(f"{name}: rendered by this repository's code; shows nobody.")
        elif name == OWN:
            lines.append("Training images: its owner's.")
    return "\n".join(f"- {line}" for line in lines)
