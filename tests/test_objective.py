"""Advantages, the clipped loss and its reductions, against numbers worked out by hand and an independent implementation."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sesa.engines import Completion
from sesa.objective import (
    Objective,
    all_equal,
    clipped_loss,
    group_advantages,
    group_rewards,
    kl_estimate,
    token_weights,
    with_advantages,
)
from sesa.sampling import Group, Rollout

numbers = st.floats(-5, 5, allow_subnormal=False)


def rollout(key, reward, ids=(1,)):
    return Rollout("x", "x", str(key), (), 0, key, reward, reward > 0, Completion(str(key), True, (9,), tuple(ids), (0.0,) * len(ids)))


def test_advantages_of_four_rollouts_by_hand():
    """Rewards 1 0 0 0: mean 1/4, deviations 3/4 and -1/4, standard deviation sqrt(3)/4."""
    rewards = torch.tensor([1.0, 0, 0, 0])
    assert group_advantages(rewards, normalize=False).tolist() == [0.75, -0.25, -0.25, -0.25]
    assert group_advantages(rewards).tolist() == pytest.approx([math.sqrt(3), *[-1 / math.sqrt(3)] * 3], abs=1e-5)


@settings(deadline=None)
@given(st.lists(numbers, min_size=2, max_size=8), numbers, st.floats(0.1, 5))
def test_advantages_sum_to_nothing_and_do_not_see_shift_or_scale(rewards, shift, scale):
    advantages = group_advantages(torch.tensor(rewards, dtype=torch.double))
    assert advantages.sum().item() == pytest.approx(0, abs=1e-6)
    if statistics.pstdev(rewards) > 0.1:
        expected = [(r - statistics.fmean(rewards)) / statistics.pstdev(rewards) for r in rewards]
        assert advantages.tolist() == pytest.approx(expected, abs=1e-3)
        again = group_advantages(torch.tensor(rewards, dtype=torch.double) * scale + shift)
        assert again.tolist() == pytest.approx(advantages.tolist(), abs=1e-3)


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, -7.3])
def test_a_group_without_signal_moves_nothing(reward):
    assert (group_advantages(torch.full((3, 7), reward)) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "rewards, equal",
    [
        ([-1.0, -0.9999999999999999, -1.0000000000000002], True),
        ([0.0, 2.7e-17, -2.7e-17], True),  # a sum that comes to nothing
        ([0.1 + 0.2, 0.3], True),
        ([1e6 + 0.1, 1e6 + 0.1 + 1e-9], True),
        ([0.3, 0.3001], False),
        ([0.0, 1e-4], False),
        ([100.0, 100.01], False),
        ([7.0], True),
    ],
)
def test_rewards_that_differ_by_rounding_are_equal(rewards, equal, dtype):
    rewards = torch.tensor(rewards, dtype=dtype)
    assert all_equal(rewards).item() is equal
    for normalize in (True, False):
        assert (group_advantages(rewards, normalize) == 0).all().item() is equal


def test_what_dropped_proposals_earn():
    """With a reward for repetitions, a repetition earns that and an invalid one its own; without, neither learns."""
    group = Group("x", (rollout("a", 1.0), rollout("b", 0.0)), dropped=(rollout("a", 0.5), rollout(None, -0.1)))
    assert group_rewards(group).tolist() == [1, 0]
    assert group_rewards(group, -0.5).tolist() == pytest.approx([1, 0, -0.5, -0.1])


def test_groups_do_not_mix():
    both = group_advantages(torch.tensor([[1.0, 0, 0, 0], [5, 5, 5, 9]]))
    assert torch.equal(both[0], group_advantages(torch.tensor([1.0, 0, 0, 0])))
    assert torch.equal(both[1], group_advantages(torch.tensor([5.0, 5, 5, 9])))


def test_only_a_repetition_of_a_valid_answer_is_a_duplicate():
    group = Group("x", tuple(rollout(k, r) for k, r in [("a", 1.0), (None, 0.0), ("a", 1.0), (None, 0.0), ("b", 0.0), ("b", 0.0)]))
    assert group_rewards(group).tolist() == [1, 0, 1, 0, 0, 0]
    assert group_rewards(group, -0.5).tolist() == [1, 0, -0.5, 0, 0, -0.5]


def test_a_sketch_gets_the_advantage_of_its_solution():
    solutions = tuple(rollout(k, r) for k, r in [("a", 1.0), ("b", 0.0)])
    sketches = tuple(rollout(k, 0.0) for k in "mn")
    completions, advantages = with_advantages([Group("x", solutions, sketches), Group("y", solutions[::-1])], Objective())
    assert [c.text for c in completions] == ["m", "n", "a", "b", "b", "a"]
    assert advantages.tolist() == pytest.approx([1, -1, 1, -1, -1, 1], abs=1e-5)


@pytest.mark.parametrize(
    "ratio, advantage, expected",
    [
        (1.0, 2.0, -2.0),
        (1.1, 1.0, -1.1),  # inside the clip
        (1.5, 1.0, -1.28),  # already much likelier: the gain is cut at 1 + 0.28
        (0.5, 1.0, -0.5),  # a good token that became rare is pulled back in full
        (0.5, -1.0, 0.8),  # a bad one already rare: cut at 1 - 0.2
        (1.5, -1.0, 1.5),  # a bad one that became likelier is pushed down in full
    ],
)
def test_clipped_loss_by_hand(ratio, advantage, expected):
    old = torch.tensor([-1.0])
    loss = clipped_loss(old + math.log(ratio), old, torch.tensor([advantage]), 0.2, 0.28)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("ratio, advantage, moves", [(1.5, 1.0, False), (0.5, 1.0, True), (0.5, -1.0, False), (1.5, -1.0, True)])
def test_clipping_stops_the_gradient_only_where_enough_was_done(ratio, advantage, moves):
    logprob = torch.tensor([-1.0 + math.log(ratio)], requires_grad=True)
    clipped_loss(logprob, torch.tensor([-1.0]), torch.tensor([advantage]), 0.2, 0.28).sum().backward()
    assert logprob.grad.item() == pytest.approx(-ratio * advantage if moves else 0.0)


def test_at_the_first_update_the_gradient_is_the_policy_gradient():
    """ρ = 1: d/dθ of the loss is -A d/dθ log π."""
    logprobs = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    advantages = torch.tensor([1.0, -2.0, 0.5])
    clipped_loss(logprobs, logprobs.detach(), advantages, 0.2, 0.28).sum().backward()
    torch.testing.assert_close(logprobs.grad, -advantages)


def test_kl_estimate_is_unbiased_and_never_negative():
    """Its mean under π, over all outcomes, is KL(π || r) exactly."""
    p, r = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    estimate = kl_estimate(p.log(), r.log())
    assert (estimate >= 0).all()
    assert (p * estimate).sum().item() == pytest.approx((p * (p / r).log()).sum().item(), abs=1e-6)


def test_reductions_by_hand():
    """Completions of 1 and 3 tokens with losses 4 | 1 1 1: 7/4 over tokens, (4 + 1)/2 over completions."""
    completions = [rollout("a", 0, ids=(1,)).completion, rollout("b", 0, ids=(1, 2, 3)).completion]
    losses, owner = torch.tensor([4.0, 1, 1, 1]), torch.tensor([0, 1, 1, 1])
    for reduction, expected in (("token", 7 / 4), ("sequence", 5 / 2)):
        assert (token_weights(completions, reduction)[owner] * losses).sum().item() == pytest.approx(expected)


@pytest.mark.parametrize("wrong", [{"reduction": "mean"}, {"clip_low": 1.0}, {"clip_high": -0.1}, {"kl": -1.0}, {"replay": -0.1}])
def test_wrong_numbers_are_refused(wrong):
    with pytest.raises(ValueError):
        Objective(**wrong)
