"""Every loss against its formula in plain loops, and what holds for all of them."""

import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from loss.contrast import ImageTextContrast, ImageToText
from loss.identity import IdentityLoss
from loss.precision import in_fp32
from loss.self_supervised import NegativeCosine, NTXent
from loss.triplet import BatchHardTriplet
from loss.weighing import weigh

RTOL = 1e-9
UNEQUAL = {
    "3 + 5": [0, 0, 0, 1, 1, 1, 1, 1],
    "2 + 6, whose squares sum to a multiple of 8": [4, 4, 1, 1, 1, 1, 1, 1],
    "1 + 2 + 3, mixed up": [7, 3, 5, 7, 3, 7],
    "all different": [3, 1, 2, 0],
    "equal": [0, 0, 1, 1, 2, 2],
}


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, dtype=torch.float64, generator=generator)


def dot(a, b) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def log_softmax(scores: list[float]) -> list[float]:
    largest = max(scores)
    total = largest + math.log(math.fsum(math.exp(score - largest) for score in scores))
    return [score - total for score in scores]


# -------------------------------------------------------------------------------------------------------------- triplet


def triplet_in_loops(features, pids, margin: float | None) -> float:
    """mean over anchors of max(0, d(hardest positive) - d(hardest negative) + m), d = sqrt(max(|a - b|², 1e-12))."""
    rows, terms = features.tolist(), []
    for anchor, pid in zip(rows, pids, strict=True):
        squares = [math.fsum((x - y) ** 2 for x, y in zip(anchor, other, strict=True)) for other in rows]
        distances = [math.sqrt(max(square, 1e-12)) for square in squares]
        positives = [d for d, other in zip(distances, pids, strict=True) if other == pid]
        negatives = [d for d, other in zip(distances, pids, strict=True) if other != pid]
        if negatives:
            gap = max(positives) - min(negatives)
            terms.append(math.log1p(math.exp(gap)) if margin is None else max(0.0, gap + margin))
    return math.fsum(terms) / max(1, len(terms))


@pytest.mark.parametrize("pids", UNEQUAL.values(), ids=UNEQUAL)
@pytest.mark.parametrize("margin", [0.3, 2.0, None], ids=["margin 0.3", "margin 2", "soft"])
def test_triplet_in_loops(pids, margin):
    features = draw(len(pids), 5, scale=0.7)
    got = BatchHardTriplet(margin)(features, torch.tensor(pids)).item()
    assert got == pytest.approx(triplet_in_loops(features, pids, margin), rel=RTOL)


def test_triplet_by_hand():
    """Points 0, 1 | 3, 7 on a line: only the anchor 3 (positive at 4, negative at 2) breaks the margin, by 2.3."""
    points = torch.tensor([[0.0], [1.0], [3.0], [7.0]], dtype=torch.float64)
    pids = torch.tensor([0, 0, 1, 1])
    assert BatchHardTriplet(0.3)(points, pids).item() == pytest.approx(2.3 / 4, rel=RTOL)
    # softplus(1 - 3), softplus(1 - 2), softplus(4 - 2), softplus(4 - 6)
    soft = sum(math.log1p(math.exp(gap)) for gap in (-2, -1, 2, -2)) / 4
    assert BatchHardTriplet(None)(points, pids).item() == pytest.approx(soft, rel=RTOL)


def test_triplet_compares_features_as_they_are():
    """Not normalised: features of twice the length have twice the distances."""
    features, pids = draw(6, 4), torch.tensor([0, 0, 0, 1, 1, 1])
    once, twice = (BatchHardTriplet(margin)(k * features, pids) for k, margin in ((1, 0.3), (2, 0.6)))
    assert twice.item() == pytest.approx(2 * once.item(), rel=RTOL)


@pytest.mark.parametrize("margin", [0.3, None])
def test_triplet_without_negatives_is_zero_and_trains_nothing(margin):
    features = draw(4, 3).requires_grad_()
    loss = BatchHardTriplet(margin)(features, torch.full((4,), 9))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(features.grad, torch.zeros_like(features))


# ------------------------------------------------------------------------------------------------------------- contrast


def contrast_in_loops(anchors, candidates, pids, temperature: float) -> float:
    """mean_i -1/|P(i)| sum over j in P(i) of log softmax_j(a_i . b)."""
    terms = []
    for anchor, pid in zip(anchors.tolist(), pids, strict=True):
        logs = log_softmax([dot(anchor, candidate) / temperature for candidate in candidates.tolist()])
        own = [log for log, other in zip(logs, pids, strict=True) if other == pid]
        terms.append(-math.fsum(own) / len(own))
    return math.fsum(terms) / len(terms)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("pids", UNEQUAL.values(), ids=UNEQUAL)
def test_image_text_contrast_in_loops(pids, temperature):
    images, texts = draw(len(pids), 6, seed=1), draw(len(pids), 6, seed=2)
    both = contrast_in_loops(images, texts, pids, temperature) + contrast_in_loops(texts, images, pids, temperature)
    assert ImageTextContrast(temperature)(images, texts, torch.tensor(pids)).item() == pytest.approx(both, rel=RTOL)


def test_image_text_contrast_at_temperature_one_unless_told():
    """Two orthogonal pairs of length 2: each of four softmaxes is over (4, 0)."""
    features = 2 * torch.eye(2, dtype=torch.float64)
    loss = ImageTextContrast()(features, features, torch.tensor([0, 1])).item()
    assert loss == pytest.approx(2 * math.log1p(math.exp(-4)), rel=RTOL)


def smoothed_in_loops(scores, pids, smoothing: float) -> float:
    """mean_i -(1 - e) log p_i(y_i) - e/P sum_c log p_i(c)."""
    terms = []
    for row, pid in zip(scores, pids, strict=True):
        logs = log_softmax(row)
        terms.append(-(1 - smoothing) * logs[pid] - smoothing / len(logs) * math.fsum(logs))
    return math.fsum(terms) / len(terms)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_image_to_text_in_loops(smoothing):
    images, sentences, pids = draw(5, 6, seed=1), draw(4, 6, seed=2), [3, 0, 0, 2, 1]
    scores = [[dot(image, sentence) for sentence in sentences.tolist()] for image in images.tolist()]
    got = ImageToText(smoothing)(images, sentences, torch.tensor(pids)).item()
    assert got == pytest.approx(smoothed_in_loops(scores, pids, smoothing), rel=RTOL)


# ------------------------------------------------------------------------------------------------------------- identity


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_identity_in_loops(smoothing):
    first, second, pids = draw(5, 7, seed=1), draw(5, 7, seed=2, scale=3), [6, 0, 3, 3, 1]
    loss, labels = IdentityLoss(smoothing), torch.tensor(pids)
    one, other = (smoothed_in_loops(scores.tolist(), pids, smoothing) for scores in (first, second))
    assert loss(first, labels).item() == pytest.approx(one, rel=RTOL)
    assert loss((first, second), labels).item() == pytest.approx(one + other, rel=RTOL)
    assert loss([first, second], labels).item() == pytest.approx(one + other, rel=RTOL)


def test_identity_smooths_by_a_tenth_unless_told():
    """Scores (0, 0, ln 2) are probabilities (1/4, 1/4, 1/2)."""
    scores = torch.tensor([[0.0, 0.0, math.log(2)]], dtype=torch.float64)
    expected = 0.9 * math.log(2) + 0.1 / 3 * (2 * math.log(4) + math.log(2))
    assert IdentityLoss()(scores, torch.tensor([2])).item() == pytest.approx(expected, rel=RTOL)


# ----------------------------------------------------------------------------------------------------- self-supervision


def nt_xent_in_loops(a, b, temperature: float, pids=None) -> float:
    """Average of both directions; candidates: all of the other view, and one's own view but for oneself.

    With identities, candidates of the anchor's own identity are left out, but for its partner.
    """
    pids = range(len(a)) if pids is None else pids.tolist()

    def unit(row):
        length = math.sqrt(dot(row, row))
        return [x / length for x in row]

    def direction(view, other) -> float:
        terms = []
        for i, anchor in enumerate(view):
            strangers = [row for rows in (other, view) for j, row in enumerate(rows) if pids[j] != pids[i]]
            scores = [dot(anchor, row) / temperature for row in (other[i], *strangers)]
            terms.append(-log_softmax(scores)[0])
        return math.fsum(terms) / len(terms)

    a, b = ([unit(row) for row in view.tolist()] for view in (a, b))
    return (direction(a, b) + direction(b, a)) / 2


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_nt_xent_in_loops(count, temperature):
    a, b = draw(count, 4, seed=1), draw(count, 4, seed=2, scale=5)
    assert NTXent(temperature)(a, b).item() == pytest.approx(nt_xent_in_loops(a, b, temperature), rel=RTOL)


def test_nt_xent_at_a_tenth_unless_told_and_whatever_the_length():
    a, b = draw(3, 4, seed=1), draw(3, 4, seed=2)
    assert NTXent()(a, b).item() == pytest.approx(nt_xent_in_loops(a, b, 0.1), rel=RTOL)
    assert NTXent()(9 * a, b / 9).item() == pytest.approx(NTXent()(a, b).item(), rel=RTOL)


@pytest.mark.parametrize("pids", [[0, 0, 1, 1, 2], [4, 4, 4, 4, 4], [0, 1, 2, 3, 4]])
def test_nt_xent_without_others_of_the_same_identity(pids):
    a, b, pids = draw(5, 4, seed=1), draw(5, 4, seed=2), torch.tensor(pids)
    assert NTXent()(a, b, pids).item() == pytest.approx(nt_xent_in_loops(a, b, 0.1, pids), rel=RTOL, abs=1e-12)


def test_negative_cosine_in_loops():
    p1, z2, p2, z1 = (draw(3, 4, seed=seed, scale=seed + 1) for seed in range(4))

    def cosine(a, b) -> float:
        rows = zip(a.tolist(), b.tolist(), strict=True)
        return math.fsum(dot(x, y) / math.sqrt(dot(x, x) * dot(y, y)) for x, y in rows) / len(a)

    assert NegativeCosine()(p1, z2, p2, z1).item() == pytest.approx(-(cosine(p1, z2) + cosine(p2, z1)) / 2, rel=RTOL)
    assert NegativeCosine()(p1, p1, p2, 7 * p2).item() == pytest.approx(-1)
    views = [tensor.requires_grad_() for tensor in (p1, z2, p2, z1)]
    NegativeCosine()(*views).backward()
    assert [view.grad is not None for view in views] == [True, False, True, False]


def test_nt_xent_of_one_pair_is_zero_and_trains_nothing():
    a, b = draw(1, 4, seed=1).requires_grad_(), draw(1, 4, seed=2).requires_grad_()
    loss = NTXent()(a, b)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(a.grad, torch.zeros_like(a)) and torch.equal(b.grad, torch.zeros_like(b))


# ------------------------------------------------------------------------------------------------------- weights, terms


def test_weigh():
    a, b = torch.tensor(3.0, requires_grad=True), torch.tensor(5.0, requires_grad=True)
    losses = weigh({"a": a, "b": b}, {"a": 0.25, "b": 2.0, "unused": 7.0})
    losses.total.backward()
    assert losses.total.item() == 0.25 * 3 + 2 * 5
    assert (a.grad.item(), b.grad.item()) == (0.25, 2.0)
    assert {name: term.item() for name, term in losses.terms.items()} == {"a": 3.0, "b": 5.0}  # unweighted
    assert not any(term.requires_grad for term in losses.terms.values())


def test_weigh_refuses_a_term_without_weight_and_no_term_at_all():
    with pytest.raises(KeyError, match="b"):
        weigh({"a": torch.tensor(1.0), "b": torch.tensor(1.0)}, {"a": 1.0})
    with pytest.raises(ValueError, match="no loss term"):
        weigh({}, {"a": 1.0})


# ---------------------------------------------------------------------------------------------------- all of them alike

PIDS = torch.tensor([0, 0, 0, 1, 1, 2])
# name -> (loss, shapes of the arguments that are differentiated, whether identities follow)
LOSSES = {
    "triplet": (BatchHardTriplet(3.0), [(6, 4)], True),
    "soft triplet": (BatchHardTriplet(None), [(6, 4)], True),
    "image-text contrast": (ImageTextContrast(), [(6, 4), (6, 4)], True),
    "image to text": (ImageToText(), [(6, 4), (3, 4)], True),
    "identity": (IdentityLoss(), [(6, 3)], True),
    "NT-Xent": (NTXent(), [(6, 4), (6, 4)], False),
    "NT-Xent with identities": (NTXent(), [(6, 4), (6, 4)], True),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def arguments(name: str, dtype=torch.float64, scale: float = 1.0):
    _, shapes, labelled = LOSSES[name]
    return [draw(*shape, seed=seed, scale=scale).to(dtype) for seed, shape in enumerate(shapes)], [PIDS] * labelled


@every_loss
def test_gradients(name):
    loss, (tensors, labels) = LOSSES[name][0], arguments(name)
    tensors = [tensor.requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(lambda *inputs: loss(*inputs, *labels), tensors)


@every_loss
@pytest.mark.parametrize("value", [0.0, 1.0, 30.0])
def test_gradients_of_identical_features_are_finite(name, value):
    loss, (tensors, labels) = LOSSES[name][0], arguments(name, torch.float32)
    tensors = [torch.full_like(tensor, value).requires_grad_() for tensor in tensors]
    result = loss(*tensors, *labels)
    result.backward()
    assert result.isfinite()
    assert all(tensor.grad.isfinite().all() for tensor in tensors)


@every_loss
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"])
def test_computed_in_fp32_whatever_the_autocast(name, dtype, autocast):
    loss, (tensors, labels) = LOSSES[name][0], arguments(name, dtype, scale=3.0)
    tensors = [tensor.requires_grad_() for tensor in tensors]
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        got = loss(*tensors, *labels)
    got.backward()
    assert got.dtype == torch.float32
    assert torch.equal(got, loss(*(tensor.detach().float() for tensor in tensors), *labels))
    assert all(tensor.grad.dtype == dtype and tensor.grad.isfinite().all() for tensor in tensors)


@every_loss
def test_computed_in_fp64_if_the_input_is(name):
    loss, (tensors, labels) = LOSSES[name][0], arguments(name)
    assert loss(*tensors, *labels).dtype == torch.float64


@every_loss
def test_not_a_number_is_not_hidden(name):
    loss, (tensors, labels) = LOSSES[name][0], arguments(name)
    tensors[0][1, 2] = torch.nan
    assert loss(*tensors, *labels).isnan()


class Spy(nn.Module):
    """Remembers what its forward was given."""

    @in_fp32
    def forward(self, *positional, **named):
        self.seen = positional, named
        self.autocast = torch.is_autocast_enabled("cpu")


def test_in_fp32_widens_every_argument_but_labels():
    half, whole, double = torch.ones(2, dtype=torch.bfloat16), torch.tensor([1, 2]), torch.ones(2, dtype=torch.float64)
    spy = Spy()
    with torch.autocast("cpu", torch.bfloat16):
        spy((half, double), whole, named=half)
        assert torch.is_autocast_enabled("cpu")
    assert not spy.autocast
    ((first, second), labels), named = spy.seen
    assert (first.dtype, second.dtype, labels.dtype) == (torch.float32, torch.float64, torch.int64)
    assert named["named"].dtype == torch.float32


def test_arguments_by_name():
    features = draw(6, 4)
    assert torch.equal(BatchHardTriplet()(features=features, pids=PIDS), BatchHardTriplet()(features, PIDS))
    assert torch.equal(IdentityLoss()(pids=PIDS, scores=(features,)), IdentityLoss()(features, PIDS))
