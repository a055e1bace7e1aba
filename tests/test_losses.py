"""What the comparison with the reference leaves out: options of the losses, and what holds for all of them."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from loss.contrast import ImageTextContrast, ImageToText
from loss.identity import IdentityLoss
from loss.memory import Memory
from loss.precision import in_fp32
from loss.self_supervised import NegativeCosine, NTXent, SupCon, find_positives
from loss.triplet import BatchHardTriplet
from loss.weighing import weigh
from tests import reference as ref
from utils.devices import tf32


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, dtype=torch.float64, generator=generator)


# -------------------------------------------------------------------------------------------------------------- triplet


@pytest.mark.parametrize("margin", [0.3, None])
def test_triplet_without_negatives_is_zero_and_trains_nothing(margin):
    features = draw(4, 3).requires_grad_()
    loss = BatchHardTriplet(margin)(features, torch.full((4,), 9))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(features.grad, torch.zeros_like(features))


# ----------------------------------------------------------------------------------------------------- self-supervision


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_contrasts_at_other_temperatures(temperature):
    a, b, pids = draw(6, 4, seed=1), draw(6, 4, seed=2), PIDS.tolist()
    torch.testing.assert_close(NTXent(temperature)(9 * a, b / 9), ref.nt_xent(a, b, temperature))
    both = ref.sup_con(a / temperature, b, pids, pids) + ref.sup_con(b / temperature, a, pids, pids)
    torch.testing.assert_close(ImageTextContrast(temperature)(a, b, PIDS), both)


@pytest.mark.parametrize("pids", [[0, 0, 1, 1, 2], [4, 4, 4, 4, 4], [0, 1, 2, 3, 4]])
def test_nt_xent_without_negatives_of_the_same_identity(pids):
    a, b, terms = draw(5, 4, seed=1), draw(5, 4, seed=2), []
    views, owners = F.normalize(torch.cat([a, b]), dim=1), 2 * pids
    for i, view in enumerate(views):
        candidates = [(i + 5) % 10, *(j for j in range(10) if owners[j] != owners[i])]  # the positive first
        terms.append(-(views[candidates] @ view / 0.1).log_softmax(dim=0)[0])
    torch.testing.assert_close(NTXent()(a, b, torch.tensor(pids)), sum(terms) / 10)


def test_nt_xent_of_one_pair_is_zero_and_trains_nothing():
    a, b = draw(1, 4, seed=1).requires_grad_(), draw(1, 4, seed=2).requires_grad_()
    loss = NTXent()(a, b)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(a.grad, torch.zeros_like(a)) and torch.equal(b.grad, torch.zeros_like(b))


UNLIKE = ([0, 0, 0, 1, 1, 2], [0, 0, 1, 0, 0, 3])  # identities and cameras: 0 is in two, 1 in one, 2 has one image


def partners(i: int, pids: list[int], camids: list[int] | None) -> list[int]:
    """The positives of view i, of 2N."""
    n = len(pids)
    same = [j for j in range(2 * n) if j != i and pids[j % n] == pids[i % n]]
    if camids is None:
        return same
    here = camids[i % n]
    return [j for j in same if here >= 0 and camids[j % n] >= 0 and camids[j % n] != here] or same


@pytest.mark.parametrize("camids", [None, UNLIKE[1], [0, -1, 1, -1, 2, 0], [4] * 6])
@pytest.mark.parametrize("one_by_one", [False, True])
def test_several_positives(one_by_one, camids):
    pids, n = UNLIKE[0], 6
    a, b, total = draw(n, 4, seed=1), draw(n, 4, seed=2), 0
    views = F.normalize(torch.cat([a, b]), dim=1)
    for i, view in enumerate(views):
        chosen = partners(i, pids, camids)
        strangers = [j for j in range(2 * n) if pids[j % n] != pids[i % n]]
        for p in chosen:
            among = [p] if one_by_one else chosen
            odds = sum((views[j] @ view / 0.1).exp() for j in among + strangers)
            total = total - ((views[p] @ view / 0.1).exp() / odds).log() / len(chosen) / (2 * n)
    found = find_positives(torch.tensor(pids), None if camids is None else torch.tensor(camids))
    torch.testing.assert_close(SupCon(one_by_one=one_by_one)(a, b, torch.tensor(pids), found), total)


@pytest.mark.parametrize("camids", [None, UNLIKE[1]])
def test_predictions_against_several_positives(camids):
    pids, n, total = UNLIKE[0], 6, 0
    p1, z2, p2, z1 = (draw(n, 4, seed=seed).requires_grad_() for seed in range(4))
    predictions, views = (F.normalize(torch.cat(pair), dim=1) for pair in ((p1, p2), (z1, z2)))
    for i in range(2 * n):
        chosen = partners(i, pids, camids)
        total = total - sum(predictions[i] @ views[j] for j in chosen) / len(chosen) / (2 * n)
    found = find_positives(torch.tensor(pids), None if camids is None else torch.tensor(camids))
    loss = NegativeCosine()(p1, z2, p2, z1, found)
    torch.testing.assert_close(loss, total)
    loss.backward()
    assert z1.grad is None and z2.grad is None and p1.grad is not None


def test_where_every_identity_has_one_image_its_other_view_is_the_only_positive():
    p1, z2, p2, z1 = (draw(5, 4, seed=seed) for seed in range(4))
    pids = torch.arange(5)
    found = find_positives(pids, pids)
    for one_by_one in (False, True):
        torch.testing.assert_close(SupCon(one_by_one=one_by_one)(p1, z2, pids, found), NTXent()(p1, z2))
    torch.testing.assert_close(NegativeCosine()(p1, z2, p2, z1, found), NegativeCosine()(p1, z2, p2, z1))


def test_several_positives_without_negatives():
    a, b, pids = draw(3, 4, seed=1).requires_grad_(), draw(3, 4, seed=2).requires_grad_(), torch.tensor([7, 7, 7])
    loss = SupCon(one_by_one=True)(a, b, pids, find_positives(pids))
    loss.backward()
    assert loss.item() == 0 and not a.grad.any() and not b.grad.any()
    assert SupCon()(a, b, pids, find_positives(pids)).isfinite()


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


def memory() -> Memory:
    """A prototype of each identity."""
    made = Memory(4)
    made.fill(draw(6, 4, seed=5).float(), PIDS)
    return made


# name -> (loss, shapes of the arguments that are differentiated, whether identities follow)
LOSSES = {
    "triplet": (BatchHardTriplet(3.0), [(6, 4)], True),
    "soft triplet": (BatchHardTriplet(None), [(6, 4)], True),
    "image-text contrast": (ImageTextContrast(), [(6, 4), (6, 4)], True),
    "image to text": (ImageToText(), [(6, 4), (3, 4)], True),
    "identity": (IdentityLoss(), [(6, 3)], True),
    "prototypes": (memory(), [(6, 4)], True),
    "NT-Xent": (NTXent(), [(6, 4), (6, 4)], False),
    "NT-Xent with identities": (NTXent(), [(6, 4), (6, 4)], True),
    "several positives": (SupCon(), [(6, 4), (6, 4)], True),
    "several positives, one by one": (SupCon(one_by_one=True), [(6, 4), (6, 4)], True),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def arguments(name: str, dtype=torch.float64, scale: float = 1.0):
    _, shapes, labelled = LOSSES[name]
    labels = [PIDS, find_positives(PIDS)] if isinstance(LOSSES[name][0], SupCon) else [PIDS] * labelled
    return [draw(*shape, seed=seed, scale=scale).to(dtype) for seed, shape in enumerate(shapes)], labels


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
def test_not_a_number_is_not_hidden(name):
    loss, (tensors, labels) = LOSSES[name][0], arguments(name)
    tensors[0][1, 2] = torch.nan
    assert loss(*tensors, *labels).isnan()


class Spy(nn.Module):
    """Remembers what its forward was given."""

    @in_fp32
    def forward(self, *positional, **named):
        self.seen = positional, named
        self.rounds = torch.is_autocast_enabled("cpu") or torch.backends.cuda.matmul.allow_tf32


def test_in_fp32_widens_every_argument_but_labels():
    half, whole, double = torch.ones(2, dtype=torch.bfloat16), torch.tensor([1, 2]), torch.ones(2, dtype=torch.float64)
    spy = Spy()
    with torch.autocast("cpu", torch.bfloat16), tf32(True):
        spy((half, double), whole, named=half)
        assert torch.is_autocast_enabled("cpu")
    assert not spy.rounds
    ((first, second), labels), named = spy.seen
    assert (first.dtype, second.dtype, labels.dtype) == (torch.float32, torch.float64, torch.int64)
    assert named["named"].dtype == torch.float32


def test_arguments_by_name():
    features = draw(6, 4)
    assert torch.equal(BatchHardTriplet()(features=features, pids=PIDS), BatchHardTriplet()(features, PIDS))
    assert torch.equal(IdentityLoss()(features, PIDS), IdentityLoss()([features], PIDS))
    assert torch.equal(IdentityLoss()(pids=PIDS, scores=(features,)), IdentityLoss()(features, PIDS))
