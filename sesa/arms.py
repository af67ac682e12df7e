"""Arms: what is compared, as names that are used everywhere alike; and `Training`, every number of a run.

An *arm* says how groups are drawn and what is added to the objective:

    parallel | sequential | sesa | iid_sketches        how (`sesa.sampling`)
    parallel | actions | iid_actions                   how, of an agent
    +kl                                                a KL term to a reference policy, as in GRPO
    +replay  +unique  +distill                         ours, not the paper's (`sesa.objective`)

so "sesa+replay+unique" is the paper's two stages with warm-start texts replayed and duplicates penalised. All arms get equal rollouts (a
tree of actions: at most as many trajectories), updates and optimiser.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sesa import sampling
from sesa.collapse import Monitor
from sesa.objective import Objective
from sesa.runs import derive_seed
from sesa.sampling import Sampling
from sesa.tasks import Environment

ONE_TURN = (sampling.parallel, sampling.sequential, sampling.sesa, sampling.iid_sketches)
AGENTS = (sampling.parallel, sampling.actions, sampling.iid_actions)
SAMPLERS = {f.__name__: f for f in (*ONE_TURN, *AGENTS)}
ADDITIONS = {"kl": {"kl": 0.1}, "replay": {"replay": 0.1}, "unique": {"duplicate_reward": -0.5}, "distill": {"distill": 1.0}}


@dataclass(frozen=True)
class Training:
    """Every number of a run but its seed. Where the paper's is not known to us it is our choice; RAGEN's public one is named."""

    arm: str = "parallel"
    on_collapse: str | None = None  # the arm to go on with while the monitor says that the policy has collapsed
    steps: int = 200  # RAGEN: 200
    problems_per_step: int = 16  # RAGEN: 8
    group_size: int = 8  # RAGEN: 16
    branch: int = 4  # an agent's proposals at a state, at most, in a tree of at most group_size trajectories
    temperature: float = 1.0  # RAGEN: 1
    updates: int = 2  # of the weights, from one set of rollouts
    learning_rate: float = 5e-4  # for a tiny LM; found in prototypes
    max_grad_norm: float = 1.0
    filter_groups: bool = False  # DAPO: leave out groups whose rewards are all equal (they have no advantage, but count in the mean)
    micro_batch: int = 256  # sequences in one forward pass; lower it when memory runs out. It does not change the result
    probe_every: int = 10
    checkpoint_every: int = 25
    objective: Objective = field(default_factory=Objective)
    monitor: Monitor = field(default_factory=Monitor)  # for on_collapse

    def __post_init__(self):
        for arm in filter(None, (self.arm, self.on_collapse)):
            sampler, *additions = arm.split("+")
            if sampler not in SAMPLERS or not set(additions) <= ADDITIONS.keys():
                raise ValueError(f"no arm {arm!r}: take one of {', '.join(SAMPLERS)}, then any of +{', +'.join(ADDITIONS)}")
        for name in ("steps", "problems_per_step", "group_size", "branch", "updates", "micro_batch", "probe_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"Training.{name} must be at least 1, not {getattr(self, name)}")

    @property
    def sampler(self):
        """The function of `sesa.sampling` that draws the groups."""
        return SAMPLERS[self.arm.split("+")[0]]

    @property
    def sampling(self) -> Sampling:
        """How a group is drawn in training."""
        return Sampling(self.group_size, temperature=self.temperature, branch=self.branch)

    @property
    def two_stages(self) -> bool:
        """Whether a solution grows from a sketch."""
        return self.sampler in (sampling.sesa, sampling.iid_sketches)

    @property
    def independent(self):
        """How the arm's policy answers without a history: in one stage or two, as it was trained."""
        return sampling.iid_sketches if self.two_stages else sampling.parallel

    @property
    def full_objective(self) -> Objective:
        """The objective with what the arm adds."""
        added = [ADDITIONS[name] for name in self.arm.split("+")[1:]]
        return replace(self.objective, **{key: value for addition in added for key, value in addition.items()})

    @property
    def needs_reference(self) -> bool:
        """Whether training needs a reference policy: some KL weight is not 0."""
        return any(replace(self, arm=arm).full_objective.kl for arm in filter(None, (self.arm, self.on_collapse)))

    def suit(self, task: Any) -> None:
        """Raises ValueError if the arm does not know how to answer this task."""
        suited = AGENTS if isinstance(task, Environment) else ONE_TURN
        if self.sampler not in suited:
            raise ValueError(f"{self.arm} cannot answer {type(task).__name__}: take one of {', '.join(f.__name__ for f in suited)}")

    def root(self, seed: int, step: int) -> int:
        """The seed that all chance of a step is derived from."""
        return derive_seed(seed, self.arm, step)

    def choose(self, problems: Sequence[Any], root: int) -> list[Any]:
        """The problems of a step: `problems_per_step` of them, or all if they are fewer, in random order, none twice."""
        rng = np.random.default_rng(derive_seed(root, "problems"))
        size = min(self.problems_per_step, len(problems))
        return [problems[i] for i in rng.choice(len(problems), size=size, replace=False)]
