"""The memory of prototypes: loss and update against plain loops."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from loss.memory import Memory

UNIT = {"rtol": 0, "atol": 1e-12}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def filled(labels: list[int], camids: list[int] | None = None, **how) -> Memory:
    memory = Memory(5, **how)
    memory.fill(draw(len(labels), 5, seed=7), torch.tensor(labels), None if camids is None else torch.tensor(camids))
    return memory


SEVEN = [2, 0, 1, 1, -1, 0, 3]


def test_prototypes_are_means_of_the_images_of_a_class():
    memory, features = filled(SEVEN), F.normalize(draw(7, 5, seed=7), dim=1)
    expected = [features[[1, 5]], features[[2, 3]], features[[0]], features[[6]]]
    torch.testing.assert_close(
        memory.prototypes, torch.stack([F.normalize(rows.mean(dim=0), dim=0) for rows in expected]), **UNIT
    )
    assert memory.classes.tolist() == [0, 1, 2, 3] and memory.cameras.tolist() == [-1] * 4
    memory.fill(2 * draw(7, 5), torch.tensor([0] * 7))  # from scratch: nothing of the old ones is left
    torch.testing.assert_close(memory.prototypes[0], F.normalize(F.normalize(draw(7, 5), dim=1).mean(0), dim=0), **UNIT)
    assert memory.classes.tolist() == [0]


def test_no_cluster_leaves_no_prototype():
    for camids in (None, [0, 1]):
        memory = filled([-1, -1], camids)
        assert memory.prototypes.shape == (0, 5) and memory.classes.tolist() == []
        assert memory(draw(2, 5), torch.tensor([-1, -1]), None if camids is None else torch.tensor(camids)).item() == 0


def test_prototypes_of_a_class_in_a_camera():
    memory = filled([1, 0, 0, 0, 1, -1, 1], [0, 2, 1, 2, 0, 0, -1])
    assert list(zip(memory.classes.tolist(), memory.cameras.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 0)]
    features = F.normalize(draw(7, 5, seed=7), dim=1)
    torch.testing.assert_close(memory.prototypes[1], F.normalize(features[1] + features[3], dim=0), **UNIT)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_the_loss_and_its_gradient_are_those_of_cross_entropy_with_a_constant_bank(temperature):
    memory = filled(SEVEN, temperature=temperature)
    features, labels = draw(6, 5, seed=1), torch.tensor([0, 3, -1, 2, 2, 1])
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    loss = memory(ours, labels)
    scores = F.normalize(theirs, dim=1) @ memory.prototypes.T / temperature
    expected = F.cross_entropy(scores, labels, ignore_index=-1)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert not ours.grad[2].any()
    # dL/dq = (softmax - onehot) Phi / tau, through the normalisation
    q = F.normalize(features, dim=1)
    wrong = scores.detach().softmax(dim=1) - F.one_hot(labels.clamp(min=0), 4)
    by_query = (wrong @ memory.prototypes / temperature / 5).masked_fill((labels < 0)[:, None], 0)
    by_feature = (by_query - (by_query * q).sum(1, keepdim=True) * q) / features.norm(dim=1, keepdim=True)
    torch.testing.assert_close(ours.grad, by_feature)


@pytest.mark.parametrize("negatives", [None, 1, 2, 50])
def test_camera_proxies_by_loops(negatives):
    """Class 0 is in three cameras, class 1 in two, classes 2 and 3 in one: their images have no positive."""
    owners, cameras = [0, 0, 0, 1, 1, 2, 3], [0, 1, 2, 0, 3, 1, 1]
    memory = filled(owners, cameras, temperature=0.07, negatives=negatives)
    features, labels, camids = draw(7, 5, seed=1), [0, 1, 2, 0, -1, 1, 0], [1, 0, 1, 2, 1, 2, -1]
    terms = []
    for q, label, camera in zip(F.normalize(features, dim=1), labels, camids, strict=True):
        s = [float(q @ prototype) / 0.07 for prototype in memory.prototypes]
        places = list(zip(range(7), memory.classes.tolist(), memory.cameras.tolist(), strict=True))
        positives = [j for j, owner, place in places if owner == label and place != camera and camera >= 0]
        others = sorted((j for j, owner, _ in places if owner != label), key=lambda j: -s[j])[:negatives]
        if positives:
            odds = torch.tensor([s[j] for j in positives + others], dtype=torch.float64).logsumexp(dim=0)
            terms.append(sum(odds - s[p] for p in positives) / len(positives))
    assert len(terms) == 4
    found = memory(features, torch.tensor(labels), torch.tensor(camids))
    torch.testing.assert_close(found, sum(terms) / len(terms))


@pytest.mark.parametrize("labels", [[-1, -1], [7, 7]])
@pytest.mark.parametrize("memory", [Memory(5), filled(SEVEN), filled(SEVEN, [0, 1, 0, 2, 0, 0, 1], negatives=2)])
def test_a_batch_without_a_class_is_0_and_trains_nothing(memory, labels):
    features = draw(2, 5, seed=3).requires_grad_()
    before = memory.prototypes.clone()
    camids = torch.zeros(2, dtype=torch.int64) if (memory.cameras >= 0).any() else None
    loss = memory(features, torch.tensor(labels), camids)
    loss.backward()
    memory.update(features, torch.tensor(labels), camids)
    assert loss.item() == 0 and not features.grad.any()
    assert torch.equal(memory.prototypes, before)


def test_an_empty_batch():
    memory = filled(SEVEN)
    features, labels = draw(0, 5).requires_grad_(), torch.zeros(0, dtype=torch.int64)
    memory(features, labels).backward()
    memory.update(features, labels)
    assert memory(features, labels).item() == 0


def test_one_cluster_is_always_right():
    memory = filled([0, 0, -1])
    features = draw(3, 5).requires_grad_()
    memory(features, torch.zeros(3, dtype=torch.int64)).backward()
    assert memory(features, torch.zeros(3, dtype=torch.int64)).item() == 0 and not features.grad.any()


@pytest.mark.parametrize("by_camera", [False, True])
@pytest.mark.parametrize("momentum", [0.1, 0.9])
def test_the_update_is_one_image_after_the_other(by_camera, momentum):
    owners, cameras = [0, 0, 1, 2, 2], [0, 1, 1, 0, 1]
    memory = filled(owners, cameras if by_camera else None, momentum=momentum)
    features = draw(40, 5, seed=1).requires_grad_()
    labels = torch.randint(-1, 3, (40,), generator=torch.Generator().manual_seed(1))
    camids = torch.randint(-1, 2, (40,), generator=torch.Generator().manual_seed(2)) if by_camera else None
    expected = memory.prototypes.clone()
    for i, q in enumerate(F.normalize(features.detach(), dim=1)):
        for j in range(len(expected)):
            here = not by_camera or memory.cameras[j] == camids[i]
            if memory.classes[j] == labels[i] and here:
                expected[j] = F.normalize(momentum * expected[j] + (1 - momentum) * q, dim=0)
    memory.update(features, labels, camids)
    torch.testing.assert_close(memory.prototypes, expected, **UNIT)
    torch.testing.assert_close(memory.prototypes.norm(dim=1), torch.ones(len(expected), dtype=torch.float64))
    assert not memory.prototypes.requires_grad


def test_the_last_image_of_a_class_dominates():
    memory = filled(SEVEN)
    features = draw(16, 5, seed=1)
    memory.update(features, torch.zeros(16, dtype=torch.int64))
    assert memory.prototypes[0] @ F.normalize(features[-1], dim=0) > 0.98


def test_images_of_other_classes_may_come_in_between():
    """As after gathering: processes have classes of their own, whose images stay in order."""
    one, other = filled(SEVEN), filled(SEVEN)
    features, labels = draw(8, 5, seed=1), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    one.update(features, labels)
    other.update(features[order], labels[order])
    assert torch.equal(one.prototypes, other.prototypes)


def test_prototypes_are_saved_and_loaded_however_many():
    memory, other = filled(SEVEN, [0, 1, 0, 2, 0, 0, 1]), Memory(5)
    other.load_state_dict(memory.state_dict())
    for name, buffer in memory.named_buffers():
        torch.testing.assert_close(getattr(other, name), buffer, check_dtype=False)
    assert {name for name, _ in memory.named_buffers()} == set(memory.state_dict())
    with pytest.raises(RuntimeError, match="prototypes"):
        Memory(6).load_state_dict(memory.state_dict())


def test_half_precision_features_are_widened():
    memory = Memory(5)
    memory.fill(draw(7, 5).bfloat16(), torch.tensor(SEVEN))
    memory.update(draw(7, 5).bfloat16(), torch.tensor(SEVEN))
    assert memory.prototypes.dtype == torch.float32
