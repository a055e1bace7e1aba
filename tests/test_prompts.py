"""Prompts with CLIP's real tokenizer, and the three ways of augmenting them."""

import math
from functools import partial

import open_clip
import pytest
import torch
from builders import TEMPLATE

from model.prompts import AUGMENTATIONS, CONTEXT, PromptLearner, mask, mix, swap, words_only

WIDTH = 6
IDS = [49406, 320, 1125, 539, 320, 343, 343, 343, 343, 2533, 269, 49407]  # start a photo of a X X X X person . end


@pytest.fixture(scope="module")
def table() -> torch.nn.Embedding:
    """Every word's embedding begins with its own number."""
    table = torch.nn.Embedding(49408, WIDTH)
    with torch.no_grad():
        table.weight[:, 0] = torch.arange(49408)
    return table


def learner(table: torch.nn.Embedding, template: str = TEMPLATE, pids: int = 3) -> PromptLearner:
    return PromptLearner(pids, template, table, open_clip.tokenize)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------------------------ template


@pytest.mark.parametrize(("noun", "word"), [("person", 2533), ("vehicle", 5299)])
def test_the_text_word_by_word(table, noun, word):
    prompts = learner(table, f"A photo of a {{}} {noun}.")
    ids = [*IDS[:9], word, *IDS[10:]]
    assert open_clip.tokenize([f"A photo of a X X X X {noun}."])[0].tolist() == ids + [0] * 65
    assert prompts.prefix[0, :, 0].tolist() == ids[:5]
    assert prompts.suffix[0, :, 0].tolist() == ids[9:] + [0] * 65
    assert prompts.end == 11 and CONTEXT == 4
    text = prompts(torch.tensor([2]))
    assert text.shape == (1, 77, WIDTH)
    assert text[0, [0, 1, 2, 3, 4, 9, 10, 11, 12, 76], 0].tolist() == [*ids[:5], *ids[9:], 0, 0]
    assert torch.equal(text[0, 5:9], prompts.context[2])  # learned positions 5..8


@pytest.mark.parametrize(
    ("template", "start", "end"),
    [("{} person", 1, 6), ("A {} person on a street, seen from the left.", 2, 16), ("A photo: {}", 4, 8)],
)
def test_other_templates(table, template, start, end):
    prompts = learner(table, template)
    text = prompts(torch.tensor([1]))
    assert torch.equal(text[0, start : start + 4], prompts.context[1])
    assert prompts.end == end and text[0, end, 0] == 49407 and text.shape[1] == 77


@pytest.mark.parametrize(
    "template",
    [
        *("A photo of a person.", "A {} photo of a {} person.", ""),
        *("A photo of a{} person.", "A photo of a {}person.", "word " * 76 + "{} person."),
    ],
)
def test_a_template_without_a_proper_gap_is_refused(table, template):
    with pytest.raises(ValueError, match="template"):
        learner(table, template)


def test_a_word_that_the_weights_do_not_know_is_refused(table):
    holed = torch.nn.Embedding.from_pretrained(table.weight.detach().clone())
    holed.weight[2533] = torch.nan
    with pytest.raises(ValueError, match="vocabulary"):
        learner(holed)
    learner(holed, "A photo of a {} vehicle.")  # the other words are there


def test_learned_tokens_belong_to_one_identity_each(table):
    prompts = learner(table, pids=200)
    assert prompts.context.shape == (200, CONTEXT, WIDTH)
    assert prompts.context.std().item() == pytest.approx(0.02, rel=0.1)
    assert prompts.context.unique().numel() > 0.99 * prompts.context.numel()
    prompts(torch.tensor([1, 1])).sum().backward()
    touched = prompts.context.grad.flatten(1).abs().sum(dim=1).nonzero().flatten()
    assert touched.tolist() == [1]


# ---------------------------------------------------------------------------------------------------------- augmenting


def prompts_of(n: int = 5, length: int = 77, width: int = 16) -> torch.Tensor:
    return 1 + torch.rand(n, length, width, generator=generator(9))  # nowhere 0


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_mask_zeroes_single_numbers_and_rescales_nothing(strength):
    prompts = prompts_of(n=40)
    masked = mask(prompts, strength, generator=generator())
    gone = masked == 0
    assert torch.equal(masked[~gone], prompts[~gone])
    spread = 5 * math.sqrt(strength * (1 - strength) / gone.numel())
    assert gone.float().mean().item() == pytest.approx(strength, abs=spread + 1e-9)
    # Every number for itself: neighbours in a prompt, a position and a vector agree as often as any two.
    for neighbours in (gone.roll(1, dims=dim) == gone for dim in range(3)):
        assert neighbours.float().mean().item() == pytest.approx(strength**2 + (1 - strength) ** 2, abs=0.02)


@pytest.mark.parametrize(("strength", "count"), [(0.5, 38), (0.99, 76), (1.0, 77), (0.01, 0), (0.02, 1)])
def test_swap_permutes_some_positions_among_themselves(strength, count):
    prompts = prompts_of(n=30)
    swapped = swap(prompts, strength, generator=generator())
    moved = (swapped != prompts).any(dim=2)
    assert moved.sum(dim=1).max() <= count
    if count > 1:
        # A random permutation of `count` places leaves one in place on average.
        assert moved.sum(dim=1).float().mean().item() == pytest.approx(count - 1, abs=0.7)
        if count < 70:
            assert len({tuple(row.tolist()) for row in moved}) == 30  # every prompt by itself
        assert moved.any(dim=0).float().mean() > 0.9  # start, end and padding may move
    for before, after in zip(prompts, swapped, strict=True):  # whole positions: the same vectors in another order
        assert sorted(map(tuple, before.tolist())) == sorted(map(tuple, after.tolist()))


def test_swap_draws_every_position_and_every_order():
    counts = torch.zeros(4, 4)
    prompts = torch.arange(4.0).view(1, 4, 1).expand(6000, -1, -1)
    for row in swap(prompts, 1.0, generator=generator())[..., 0].long():
        counts[torch.arange(4), row] += 1
    torch.testing.assert_close(counts / 6000, torch.full((4, 4), 0.25), rtol=0, atol=0.03)


def test_mix_blends_with_another_original_drawn_uniformly():
    n, draws, strength = 4, 1200, 0.3
    prompts = torch.eye(n)[:, None, :]  # what is mixed in can be read off
    partners = torch.zeros(n, n)
    own = generator()
    for _ in range(draws):
        mixed = mix(prompts, strength, generator=own)[:, 0]
        torch.testing.assert_close(mixed.diagonal(), torch.full((n,), 1 - strength))
        others = mixed - torch.diag(mixed.diagonal())
        torch.testing.assert_close(others.sum(dim=1), torch.full((n,), strength))
        assert ((others > 0).sum(dim=1) == 1).all()  # one partner, not mixed before, never oneself
        partners += (others > 0).float()
    expected = (1 - torch.eye(n)) / (n - 1)
    torch.testing.assert_close(partners / draws, expected, rtol=0, atol=0.07)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_only_words_are_augmented_on_request(name):
    prompts = prompts_of(n=40)
    augment = partial(AUGMENTATIONS[name], strength=0.6, generator=generator())
    augmented = (words_only(augment, 11)(prompts) != prompts).any(dim=2)
    assert augmented[:, 1:11].any(dim=0).all()
    assert not augmented[:, 0].any() and not augmented[:, 11:].any()
    whole = (augment(prompts) != prompts).any(dim=2)
    assert whole[:, 0].any() and whole[:, 11].any()


@pytest.mark.parametrize("method", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_draws_follow_the_generator_and_nothing_else(method):
    prompts, global_state = prompts_of().requires_grad_(), torch.get_rng_state()
    once, again, other = (method(prompts, 0.5, generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(once, again) and not torch.equal(once, other)
    assert once.shape == prompts.shape and once.dtype == prompts.dtype
    assert torch.equal(prompts, prompts_of()) and torch.equal(method(prompts, 0.0, generator=generator()), prompts)
    assert torch.equal(torch.get_rng_state(), global_state)
    once.sum().backward()
    assert prompts.grad.abs().sum() > 0
    # On a device without memory, anything made elsewhere could not be combined with the prompts.
    assert method(torch.empty(3, 77, 4, device="meta"), 0.5).device.type == "meta"


def test_mix_of_a_single_prompt_has_no_partner():
    assert torch.equal(mix(prompts_of(n=1), 0.5), prompts_of(n=1))
