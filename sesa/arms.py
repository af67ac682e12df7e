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
from dataclasses import asdict, field, fields, replace
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field, StrictBool, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs

from sesa import sampling
from sesa.collapse import Monitor
from sesa.config import CONFIG, Amount, Count
from sesa.objective import Objective
from sesa.runs import derive_seed
from sesa.sampling import Sampling
from sesa.tasks import is_environment

ONE_TURN = (sampling.parallel, sampling.sequential, sampling.sesa, sampling.iid_sketches)
AGENTS = (sampling.parallel, sampling.actions, sampling.iid_actions)
SAMPLERS = {f.__name__: f for f in (*ONE_TURN, *AGENTS)}
ADDITIONS = {"kl": {"kl": 0.1}, "replay": {"replay": 0.1}, "unique": {"duplicate_reward": -0.5}, "distill": {"distill": 1.0}}


def _known(arm: str) -> str:
    sampler, *additions = arm.split("+")
    if sampler not in SAMPLERS or not set(additions) <= ADDITIONS.keys():
        raise ValueError(f"no arm {arm!r}: take one of {', '.join(SAMPLERS)}, then any of +{', +'.join(ADDITIONS)}")
    return arm


Arm = Annotated[str, AfterValidator(_known)]


@dataclass(frozen=True, config=CONFIG)
class Training:
    """Every number of a run but its seed. Where the paper's is not known to us it is our choice; RAGEN's public
    one is named.

    `sampling`, `objective` and `monitor` take dictionaries too, as YAML gives them, and the numbers of
    `sampling` may also stand at the top: Training(group_size=4). A name that there is none of, or a wrong
    number, is a ValueError that says where it stands.
    """

    arm: Arm = "parallel"
    on_collapse: Arm | None = None  # the arm to go on with while the monitor says that the policy has collapsed
    steps: Count = 200  # RAGEN: 200. No part of what a run is: with more of them it goes on
    problems_per_step: Count = 16  # RAGEN: 8
    sampling: Sampling = Sampling()  # of a group. RAGEN: group_size 16, temperature 1
    updates: Count = 2  # of the weights, from one set of rollouts
    learning_rate: Amount = 5e-4  # for a tiny LM; found in prototypes
    max_grad_norm: Annotated[float, Field(gt=0, strict=True)] = 1.0
    # DAPO: leave out groups whose rewards are all equal (they have no advantage, but count in the mean)
    filter_groups: StrictBool = False
    micro_batch: Count = 16384  # tokens, with padding, in one forward pass of an update; changes only rounding
    probe_every: Count = 10
    checkpoint_every: Count = 25
    objective: Objective = Objective()
    monitor: Monitor = field(default_factory=Monitor)  # for on_collapse

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, given: ArgsKwargs) -> ArgsKwargs:
        """Moves numbers of sampling from the top to where they belong. Over a `Sampling` they win, as in `replace`."""
        named = dict(given.kwargs or {})
        top = {f.name: named.pop(f.name) for f in fields(Sampling) if f.name in named}
        below = named.get("sampling", {})
        if top and isinstance(below, Sampling):
            named["sampling"] = asdict(below) | top
        elif top and isinstance(below, dict):
            if twice := [name for name in top if name in below]:
                raise ValueError(f"{', '.join(twice)}: given at the top and in sampling")
            named["sampling"] = below | top
        return ArgsKwargs(given.args, named)

    @property
    def group_size(self) -> int:
        """Of `sampling`."""
        return self.sampling.group_size

    @property
    def branch(self) -> int:
        """Of `sampling`."""
        return self.sampling.branch

    @property
    def temperature(self) -> float:
        """Of `sampling`."""
        return self.sampling.temperature

    @property
    def sampler(self):
        """The function of `sesa.sampling` that draws the groups."""
        return SAMPLERS[self.arm.split("+")[0]]

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
        """The objective with what the arm adds; a number that was given, one that is not the default, stays."""
        added = {key: value for name in self.arm.split("+")[1:] for key, value in ADDITIONS[name].items()}
        given = {key for key in added if getattr(self.objective, key) != getattr(Objective, key)}
        return replace(self.objective, **{key: value for key, value in added.items() if key not in given})

    @property
    def needs_reference(self) -> bool:
        """Whether training needs a reference policy: some KL weight is not 0."""
        return any(replace(self, arm=arm).full_objective.kl for arm in filter(None, (self.arm, self.on_collapse)))

    def suit(self, task: Any) -> None:
        """Raises ValueError if the arm does not know how to answer this task."""
        suited = AGENTS if is_environment(task) else ONE_TURN
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
