"""The objective: group-relative advantages and the clipped loss, over packed groups.

SESA keeps the objective of GRPO (Shao et al. 2024, arXiv 2402.03300) and DAPO (Yu et al. 2025, arXiv 2503.14476) and changes what the
group is. Top to bottom:

    advantages   A_i = r_i - mean(r) over the group; GRPO also divides by the standard deviation
    loss         per token, -min(ρ A, clip(ρ, 1 - ε_low, 1 + ε_high) A), with ρ = π / π_old
    reduction    the mean over all tokens (DAPO), or over each completion first (GRPO)
    KL           optional, to a reference policy

Our choice, where what is known of the paper is silent: a candidate's probability is conditioned on the history that it was drawn with,
and the tokens of a sketch get the advantage of the solution that grew from it.

Ours altogether, and off by default: a reward for duplicates (a penalty), replay of warm-start texts, and distillation of what was found
with a history into the prompt without one. `Objective` says how much of each.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, StrictBool, StrictFloat
from pydantic.dataclasses import dataclass

from sesa.config import CONFIG, Amount
from sesa.engines import Completion
from sesa.sampling import Group


@dataclass(frozen=True, config=CONFIG)
class Objective:
    """Every number of the loss. Clip range and no KL are RAGEN's public configuration; the paper's own are not
    known to us. A wrong number is a ValueError."""

    clip_low: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.2
    clip_high: Amount = 0.28
    # Divide advantages by the group's standard deviation (GRPO); False: subtract the mean only.
    normalize: StrictBool = True
    reduction: Literal["token", "sequence"] = "token"  # over all tokens (DAPO), or over each completion first (GRPO)
    kl: Amount = 0.0  # weight of KL(π || reference); 0: none
    # Ours: what a valid candidate earns that stood before in its group; None: its own reward.
    duplicate_reward: StrictFloat | None = None
    replay: Amount = 0.0  # ours: weight of the cross-entropy of warm-start texts
    distill: Amount = 0.0  # ours: weight of the loss of better candidates after the prompt without history


def all_equal(rewards: torch.Tensor) -> torch.Tensor:
    """(...): whether all rewards of a group, (..., G), are equal: up to a millionth, or 1e-9 near 0 (our
    choice), for a sum of the same rewards in another order differs by rounding. Such a group says nothing."""
    return torch.isclose(rewards.amax(-1), rewards.amin(-1), rtol=1e-6, atol=1e-9)


def group_advantages(rewards: torch.Tensor, normalize: bool = True) -> torch.Tensor:
    """A_i = r_i - mean(r); with `normalize`, divided by the group's standard deviation.  (GRPO, section 4.1.2.)

    Args:
        rewards: (..., G), a group along the last axis. The deviation is the population's, divided by G; TRL takes the sample's, divided
            by G - 1, so its advantages are sqrt((G - 1) / G) of these.

    Returns:
        (..., G). All 0 where all rewards of a group are equal, as `all_equal` says.
    """
    advantages = rewards - rewards.mean(-1, keepdim=True)
    if normalize:
        advantages = advantages / (advantages.square().mean(-1, keepdim=True).sqrt() + 1e-6)
    return advantages * ~all_equal(rewards)[..., None]  # else rounding would be blown up


def group_rewards(group: Group, duplicate_reward: float | None = None) -> torch.Tensor:
    """(G,): the rewards of a group's rollouts; a repetition of an earlier valid candidate earns `duplicate_reward`, if one is given.

    In a tree no trajectory repeats another; with `duplicate_reward` the proposals that were dropped are
    rewarded too, (rollouts + dropped,): a repetition earns that, and an invalid one, as it does in a list, its
    own. (Our choice.)
    """
    seen: set[str] = set()
    rewards = []
    for rollout in group.rollouts:
        again = rollout.key in seen
        rewards.append(duplicate_reward if again and duplicate_reward is not None else rollout.reward)
        if rollout.key is not None:
            seen.add(rollout.key)
    if duplicate_reward is not None:
        rewards += [r.reward if r.key is None else duplicate_reward for r in group.dropped]
    return torch.tensor(rewards, dtype=torch.float32)


def rollout_advantages(group: Group, objective: Objective) -> torch.Tensor:
    """(rollouts,): the advantage of each rollout of a group; with a reward for duplicates, of each dropped proposal too, behind them."""
    return group_advantages(group_rewards(group, objective.duplicate_reward), objective.normalize)


def with_advantages(groups: Sequence[Group], objective: Objective) -> tuple[list[Completion], torch.Tensor]:
    """All completions of all groups, and the advantage of each, (completions,): of a group its sketches, then its solutions.

    A sketch gets the advantage of the solution that grew from it; every turn of an agent gets that of its trajectory. A turn that
    several trajectories of a tree begin with stands in each of them: it gets the sum of their advantages, and counts as often in means
    over tokens. The group's mean reward, too, is over trajectories, so a beginning that branches widely weighs more in it. (Our choices.)
    """
    completions: list[Completion] = []
    advantages: list[torch.Tensor] = []
    for group in groups:
        own = rollout_advantages(group, objective)
        learning = (*group.rollouts, *group.dropped)[: len(own)]
        for rollouts in filter(None, (group.sketches, learning)):
            for rollout, advantage in zip(rollouts, own, strict=True):
                completions += rollout.completions
                advantages += [advantage] * len(rollout.completions)
    return completions, torch.stack(advantages)


def clipped_loss(logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Per token: -min(ρ A, clip(ρ, 1 - low, 1 + high) A) with ρ = exp(logprobs - old). All of one shape.  (DAPO, section 3.1.)"""
    ratio = (logprobs - old).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def kl_estimate(logprobs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Per token, an unbiased estimate of KL(π || reference), never negative: exp(r - l) - (r - l) - 1.  (GRPO, eq. 4.)"""
    return (reference - logprobs).exp() - (reference - logprobs) - 1


def token_weights(completions: Sequence[Completion], reduction: str) -> torch.Tensor:
    """(completions,): the weight of each token of a completion, such that the weighted sum over all tokens is the mean.

    "token": of all tokens alike; "sequence": over the completion first, so that a token of a short one counts for more. An agent's turn
    is a completion.
    """
    lengths = torch.tensor([len(c.ids) for c in completions], dtype=torch.float32)
    return torch.ones_like(lengths) / lengths.sum() if reduction == "token" else 1 / (lengths * len(lengths))
