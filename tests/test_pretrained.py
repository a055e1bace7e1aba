"""CLIP's weights: every form of file, every way of going wrong."""

import argparse
import io
import re
import shlex
import socket
import threading
import urllib.error
import urllib.request
from pathlib import Path

import huggingface_hub
import pytest
import torch
from builders import SMALL, WRAPPINGS, benchmark, small_clip
from open_clip import pretrained as hub
from safetensors.torch import save_file
from torch import Tensor, nn

from configs import load
from model import pretrained, tiny_clip
from model.build import SETTLED, load_model, make_model, settle_architecture
from model.clip import resize_positions
from model.pretrained import load_clip
from model.towers import find_tower
from model.weights import read_weights
from utils.checkpoint import save_checkpoint
from utils.errors import WeightsError

pytestmark = [
    pytest.mark.usefixtures("small_architecture"),
    pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning"),  # OpenAI's files are in that form
    pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning"),
]


def weights(**config) -> dict[str, Tensor]:
    return small_clip(image_size=32, **config).state_dict()


def archive(path: Path, state: dict[str, Tensor]) -> Path:
    """As OpenAI publishes: TorchScript, half precision, three numbers beside the weights."""
    root = nn.Module()
    for name, value in state.items():
        *blocks, leaf = name.split(".")
        module = root
        for block in blocks:
            if not hasattr(module, block):
                module.add_module(block, nn.Module())
            module = getattr(module, block)
        module.register_parameter(leaf, nn.Parameter(value.half(), requires_grad=False))
    for name, number in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 49408)):
        root.register_buffer(name, torch.tensor(number))
    torch.jit.save(torch.jit.script(root), str(path))
    return path


def write(path: Path, state: dict[str, Tensor], form: str) -> Path:
    if form == "safetensors":
        save_file({name: value.clone() for name, value in state.items()}, path.with_suffix(".safetensors"))
        return path.with_suffix(".safetensors")
    if form == "archive":
        return archive(path.with_suffix(".pt"), state)
    torch.save(WRAPPINGS[form](state), path.with_suffix(".bin"))
    return path.with_suffix(".bin")


# ------------------------------------------------------------------------------------------------------------- loading


@torch.no_grad()
@pytest.mark.parametrize(
    ("form", "activation"),
    [
        *((form, activation) for form in ("safetensors", "archive") for activation in ("auto", "quick_gelu", "gelu")),
        *((form, "gelu") for form in WRAPPINGS),
    ],
)
def test_local_files_of_every_form(tmp_path, form, activation):
    path, openais = write(tmp_path / "weights", weights(), form), form == "archive"
    if activation == ("gelu" if openais else "auto"):  # what the file contradicts, or does not say
        with pytest.raises(WeightsError, match=r"MODEL\.ACTIVATION: .*weights.* quick_gelu"):
            load_clip(SMALL, str(path), activation)
        return
    clip, settled = load_clip(SMALL, str(path), activation)
    assert settled == ("quick_gelu" if openais else activation)
    assert all(value.dtype == torch.float32 for value in clip.state_dict().values())
    images = torch.randn(2, 3, 32, 32)
    expected, other = (
        small_clip(image_size=32, quick_gelu=quick).encode_image(images)
        for quick in (settled == "quick_gelu", settled != "quick_gelu")
    )
    result = clip.eval().encode_image(images)
    assert (result - expected).abs().max() <= (5e-3 if openais else 0)  # half precision
    assert (result - other).abs().max() > 5e-3


def test_a_random_start_needs_no_file():
    clip, activation = load_clip(SMALL, "none")
    assert activation == "quick_gelu" and load_clip(SMALL, "none", "gelu")[1] == "gelu"
    assert not torch.equal(clip.visual.proj, load_clip(SMALL, "none")[0].visual.proj)


def test_the_tiny_clip_is_complete():
    clip, activation = load_clip(tiny_clip.NAME, tiny_clip.TAG)
    assert activation == "quick_gelu"
    assert all(torch.isfinite(value).all() for name, value in clip.state_dict().items() if "token_emb" not in name)
    assert clip.visual.grid_size == (10, 5) and clip.visual.conv1.stride == (6, 6)
    with pytest.raises(WeightsError, match=r"MODEL\.ACTIVATION: rendered was trained with quick_gelu"):
        load_clip(tiny_clip.NAME, tiny_clip.TAG, "gelu")


def test_positions_are_resized_from_those_in_the_file(tmp_path):
    state = weights()
    path = write(tmp_path / "weights", state, "state dict")
    settings = ["MODEL.NAME", SMALL, "MODEL.PRETRAIN", str(path), "MODEL.ACTIVATION", "gelu"]
    sizes = ["INPUT.SIZE_TRAIN", "(32, 16)", "INPUT.SIZE_TEST", "(32, 16)", "MODEL.STRIDE_SIZE", "(6, 6)"]
    heads = ["MODEL.SSL_HIDDEN", "8", "MODEL.SSL_OUT", "4"]
    model = make_model(load(None, settings + sizes + heads), benchmark())
    table = resize_positions(state["visual.positional_embedding"], (4, 4), (5, 2))
    assert torch.equal(model.image.visual.positional_embedding, table)
    assert torch.equal(model.image.visual.conv1.weight, state["visual.conv1.weight"])
    assert torch.equal(model.prompts.prefix[0], state["token_embedding.weight"][[49406, 320, 1125, 539, 320]])
    assert model.architecture["activation"] == "gelu"


def test_a_file_is_what_it_holds_not_what_it_is_called(tmp_path):
    state = weights() | {"logit_scale": torch.tensor([2.0])}  # a vector in some
    write(tmp_path / "weights", state, "safetensors").rename(tmp_path / "weights.bin")
    write(tmp_path / "other", state, "state dict").rename(tmp_path / "other.safetensors")
    for name in ("weights.bin", "other.safetensors"):
        clip, _ = load_clip(SMALL, str(tmp_path / name), "gelu")
        assert torch.equal(clip.visual.proj, state["visual.proj"]) and clip.logit_scale == 2


# ------------------------------------------------------------------------------------------------ what does not fit in


ONE = torch.ones(2)
HUGGING_FACE = {
    "vision_model.encoder.layers.0.self_attn.k_proj.weight": ONE,
    "text_model.embeddings.position_embedding.weight": ONE,
    "logit_scale": torch.ones(()),
}
TIMM = {"cls_token": ONE, "pos_embed": ONE, "blocks.0.attn.qkv.weight": ONE}
LOOPED: dict = {"model": TIMM}
LOOPED["self"] = LOOPED  # no endless search
OTHERS = {
    "Hugging Face": (HUGGING_FACE, "Hugging Face"),
    "half of Hugging Face": ({name: ONE for name in HUGGING_FACE if "vision" in name}, "Hugging Face"),
    "timm": (TIMM, "timm"),
    "another program": ({f"base.{name}": ONE for name in TIMM} | {"classifier.weight": ONE}, "timm"),
    "torchvision": ({"conv1.weight": ONE, "layer1.0.conv1.weight": ONE, "fc.bias": ONE}, "torchvision"),
    "unknown": ({"a.weight": ONE, "b.weight": ONE}, "'a.weight', 'b.weight'"),
}


@pytest.mark.parametrize(("kind", "form"), [*((kind, "safetensors") for kind in OTHERS), ("timm", "module.")])
def test_weights_by_others_names_are_called_by_theirs_before_anything_is_asked(tmp_path, kind, form):
    state, word = OTHERS[kind]
    path = write(tmp_path / "weights", state, form)
    with pytest.raises(WeightsError) as refused:
        load_clip(SMALL, str(path))
    message = str(refused.value)
    assert path.name in message and word in message and "MODEL.PRETRAIN" in message and "ACTIVATION" not in message


@pytest.mark.parametrize(
    ("contents", "word"),
    [
        ({"epoch": 1, "optimizer": {"state": {0: {"exp_avg": ONE}}}}, "'epoch', 'optim"),
        ({"state_dict": TIMM, "ema": {"model": TIMM}}, "['ema']['model']"),
        ({**TIMM, "ema": TIMM}, "['ema']"),
        ({"x.weight": ONE, "module.x.weight": ONE}, "module"),
        (LOOPED, "several"),
        ({"model": {7: ONE}}, "7 is a Tensor"),
    ],
)
def test_a_file_without_one_dictionary_of_tensors_says_what_it_has(tmp_path, contents, word):
    torch.save(contents, tmp_path / "thing.pth")
    for door in (lambda path: load_clip(SMALL, str(path)), read_weights):
        with pytest.raises(WeightsError, match=rf"thing\.pth.*{re.escape(word)}"):
            door(tmp_path / "thing.pth")


def test_of_several_dictionaries_the_command_saves_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"student": {"x": ONE, "y": ONE}, "teacher": TIMM, "args": argparse.Namespace()}, "x.pth")
    with pytest.raises(WeightsError) as refused:
        load_clip(SMALL, "x.pth")
    _, code = shlex.split(str(refused.value).partition("python ")[2])
    with torch.serialization.safe_globals([]):
        exec(code)
    assert torch.load("right.pth").keys() == TIMM.keys()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda x: x * float("nan"), "not finite"),
        (lambda x: x.to(torch.complex64), "complex64"),
        (lambda x: x.to_sparse(), "sparse_coo"),
        (lambda x: x.to("meta"), "meta"),
    ],
)
def test_tensors_that_are_no_weights_are_named_at_every_door(tmp_path, change, word):
    published = {"image_encoder.proj": change(torch.ones(2, 2)), "bottleneck.weight": ONE}
    clip = {"visual.proj": change(torch.ones(2, 2))}
    for state, door in ((clip, lambda path: load_clip(SMALL, str(path))), (published, read_weights)):
        torch.save(state, tmp_path / "thing.pth")
        with pytest.raises(WeightsError, match=rf"thing\.pth: .*proj .*{word}"):
            door(tmp_path / "thing.pth")


def test_weights_that_do_not_fit_are_said_before_their_activation_is_asked_for(tmp_path):
    image = {name: value for name, value in weights().items() if name.startswith("visual.")}
    with pytest.raises(WeightsError, match=r"missing \(ln_final\.bias"):
        load_clip(SMALL, str(write(tmp_path / "weights", image, "_orig_mod.")))


STATE = weights()
LACKING = {name: value for name, value in STATE.items() if name != "visual.proj"}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (LACKING, ["visual.proj"]),
        ({**STATE, "extra.weight": ONE}, ["extra.weight"]),
        ({**STATE, "visual.proj": torch.zeros(24, 32)}, ["visual.proj is [24, 32], not [32, 24]"]),
        (weights(layers=4), ["visual.transformer.resblocks.3."]),
        # A shape that would broadcast is wrong all the same.
        ({**LACKING, "extra": ONE, "visual.ln_pre.bias": torch.zeros(1)}, ["visual.proj", "extra", "[1], not [32]"]),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, state, words):
    with pytest.raises(WeightsError) as caught:
        load_clip(SMALL, str(write(tmp_path / "weights", state, "state dict")), "gelu")
    assert [word for word in ["weights.bin", "MODEL.NAME", *words] if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("name", "tag", "words"),
    [
        ("ViT-B16", "openai", "MODEL.NAME: .*'ViT-B16'"),
        ("ViT-B-16", "opnai", "'opnai' .*ViT-B-16; did you mean openai"),
        ("ViT-B-16", "/no/such/file.pt", "'/no/such/file.pt' .*ViT-B-16; tags: openai"),
        ("ViT-Tiny-8", "openai", "'openai' .*ViT-Tiny-8; tags: rendered"),
        *((name, "openai", f"MODEL.NAME: '{name}'.*ViT-B-16") for name in ("coca_ViT-B-32", "ViT-B-16-SigLIP")),
        *((name, "none", f"MODEL.NAME: '{name}'.*ViT-B-16") for name in ("roberta-ViT-B-32", "ViT-H-14-CLIPA")),
    ],
)
def test_unknown_names_are_refused_before_a_download(monkeypatch, name, tag, words):
    monkeypatch.setattr(pretrained, "fetch", lambda *_: pytest.fail("downloaded before the name was checked"))
    with pytest.raises(WeightsError, match=words):
        load_clip(name, tag)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("asked the network"))


SCHEMES = ["local-dir:", "local-dir:{folder}", "local-dir:/no/such/folder", "hf-hub:", "hf-hub:laion/CLIP-ViT-B-16"]


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", [*SCHEMES, "{folder}", "", "..", "a\nb", "x" * 5000])
def test_a_name_that_is_none_is_refused_without_a_look_at_disk_or_network(tmp_path, name):
    (tmp_path / "open_clip_config.json").write_text("{}")
    name = name.format(folder=tmp_path)
    with pytest.raises(WeightsError, match=r"MODEL\.NAME: there is no architecture .*ViT-B-16") as refused:
        find_tower(name)
    assert ("MODEL.PRETRAIN /path/open_clip_model.safetensors" in str(refused.value)) == (":" in name or "/" in name)
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["hf-hub:laion/CLIP-ViT-B-16", "local-dir:/no/such/folder"])
def test_a_checkpoint_cannot_have_the_network_asked(tmp_path, name):
    side = {"sie_camera": False, "sie_view": False}
    architecture = {**dict.fromkeys(SETTLED), "name": name, "activation": "gelu", **side}
    save_checkpoint(tmp_path / "x.pth", {"model": {}, "config": {}, "architecture": architecture})
    with pytest.raises(WeightsError):
        load_model(tmp_path / "x.pth")
    with pytest.raises(WeightsError):
        settle_architecture(load(None, []), read_weights(tmp_path / "x.pth"))


# ------------------------------------------------------------------------------------------------- tags, with a network


@pytest.fixture
def nothing_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)


@pytest.fixture
def tag(monkeypatch: pytest.MonkeyPatch) -> dict:
    """A tag of the small architecture, as open_clip has them."""
    entry = {"url": "https://example.org/here/small.pt", "hf_hub": "somebody/small/"}
    monkeypatch.setitem(hub._PRETRAINED, SMALL, {"toy": entry})
    return entry


@pytest.mark.parametrize("known", [True, False])
def test_a_tag_says_its_activation(monkeypatch, tmp_path, tag, known):
    path = write(tmp_path / "weights", weights(), "safetensors")
    if known:
        tag["quick_gelu"] = True
    asked = []
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *names: asked.append(names) or str(path))
    monkeypatch.setattr(pretrained, "answers", lambda *_: pytest.fail("asked the network for what is here"))
    clip, activation = load_clip(SMALL, "toy")
    assert activation == ("quick_gelu" if known else "gelu")
    assert asked == [("somebody/small", "open_clip_model.safetensors")]
    assert torch.equal(clip.visual.proj, weights()["visual.proj"])


@pytest.mark.usefixtures("nothing_cached")
def test_a_tag_in_openais_own_cache(tmp_path, monkeypatch, tag):
    monkeypatch.setattr(pretrained, "answers", lambda *_: pytest.fail("asked the network for what is here"))
    cache = tmp_path / ".cache" / "clip"
    cache.mkdir(parents=True)
    tag["quick_gelu"] = True
    archive(cache / "small.pt", weights())
    assert load_clip(SMALL, "toy")[1] == "quick_gelu"
    whole = (cache / "small.pt").read_bytes()
    (cache / "small.pt").write_bytes(whole[: len(whole) // 2])  # an interrupted download
    with pytest.raises(WeightsError, match=r"small\.pt"):
        load_clip(SMALL, "toy")


@pytest.mark.usefixtures("nothing_cached")
def test_a_tag_is_downloaded_where_the_network_answers(monkeypatch, tmp_path, tag):
    path = write(tmp_path / "weights", weights(), "safetensors")
    monkeypatch.setattr(pretrained, "answers", lambda *_: True)
    monkeypatch.setattr(hub, "download_pretrained", lambda entry: str(path) if entry is tag else None)
    assert load_clip(SMALL, "toy")[1] == "gelu"

    def fails(entry):
        raise FileNotFoundError("connection lost")

    monkeypatch.setattr(hub, "download_pretrained", fails)
    with pytest.raises(WeightsError, match=r"toy: downloading .*open_clip_model.safetensors failed \(connection lost"):
        load_clip(SMALL, "toy")


def test_any_answer_of_a_server_is_an_answer(monkeypatch):
    def refuses(request, timeout):
        assert request.get_method() == "HEAD" and timeout <= 5
        raise urllib.error.HTTPError(request.full_url, 403, "no", {}, io.BytesIO())

    monkeypatch.setattr(urllib.request, "urlopen", refuses)
    assert pretrained.answers("https://example.org/x")


# ----------------------------------------------------------------------------------------------------------- offline


def unresolved(*_, **__):
    raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


@pytest.mark.usefixtures("nothing_cached")
@pytest.mark.parametrize(
    ("tag", "words"),
    [
        ("openai", ["timm/vit_base_patch16_clip_224.openai/resolve/main/", "ACTIVATION quick_gelu"]),
        ("laion2b_s34b_b88k", ["laion/CLIP-ViT-B-16-laion2B-s34B-b88K/resolve/main/", "ACTIVATION gelu"]),
    ],
)
def test_offline_one_message_says_what_to_fetch_and_where_to_put_it(monkeypatch, tag, words):
    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    monkeypatch.setattr(hub, "download_pretrained", lambda *_: pytest.fail("tried to download without a network"))
    with pytest.raises(WeightsError) as caught:
        load_clip("ViT-B-16", tag)
    message = str(caught.value)
    everything = [f"MODEL.PRETRAIN {tag}", "https://", "open_clip_model.safetensors", *words]
    assert [word for word in everything if word not in message] == [] and "\n" not in message


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_address_that_is_none_is_no_answer():
    assert not pretrained.answers("hf-mirror.example/x")


@pytest.mark.usefixtures("nothing_cached")
def test_a_network_that_swallows_everything_is_given_up(monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait() and unresolved())
    try:
        with pytest.raises(WeightsError, match="the network does not answer"):  # or the test would not end
            load_clip("ViT-B-16", "openai")
    finally:
        released.set()


# -------------------------------------------------------------------------------------------------------------- broken


def test_cut_off_safetensors_are_refused(tmp_path):
    path = write(tmp_path / "weights", {"visual.proj": torch.randn(32, 24)}, "safetensors")
    whole = path.read_bytes()
    for length in (1, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=path.name):
            load_clip(SMALL, str(path), "gelu")
