"""What befalls a run, drawn from a seed: pure."""

import random
from collections.abc import Callable
from typing import NamedTuple

NODE = -1  # instead of a rank
LEVELS = ("protocol", "ranks")
INTERVAL = 2  # steps from save to save
NUM_STEPS = {"protocol": 12, "ranks": 10}


class Strike(NamedTuple):
    """A fault at one point of the protocol.

    Attributes:
        operation: Of the store, or "snapshot" or "step".
        subject: What its key names: see `faults.subject_of`; empty: anything.
        nth: Which of those operations, from 1, in one process.
        when: "before", "during" or "after" it.
        who: The rank to which it happens, or NODE.
        action: "self", "peer", "node" and "machine" are killed, "torn" kills the machine in the middle of a
            write to a store that is not atomic, "sleep" stops the machine and "stop" the process (SIGSTOP),
            "away" and "full" are the store's for some seconds, "stale" hides the newest checkpoint from some
            listings.
        amount: Seconds, or listings.
    """

    operation: str
    subject: str
    nth: int
    when: str
    who: int
    action: str
    amount: float = 0.0


class Life(NamedTuple):
    """One attempt, and what is done to the newest checkpoint after it."""

    num_ranks: int
    strike: Strike | None = None
    damage: str = ""


class Case(NamedTuple):
    """A run and what befalls it; attempts after the last life are left in peace.

    Attributes:
        delay_s: Each operation of the store takes up to so long, so that their order changes.
        keeps_promise: What is lost is bounded by the interval and the save in flight.
    """

    level: str
    seed: int
    kind: str
    lives: tuple[Life, ...]
    delay_s: float = 0.0
    keeps_promise: bool = True
    zero_stage: int = 1
    precision: str = "fp32"

    @property
    def num_ranks(self) -> int:
        """Of the attempts that are left in peace."""
        return self.lives[0].num_ranks


_SAVE = {  # operation, subjects, ranks that do it ("all", "first", "others"), how often in a run at least
    "snapshot": ("snapshot", [""], "all", 4), "shard": ("stream", ["shard"], "all", 4),
    "small tensors": ("put", ["rest"], "first", 4), "part list": ("put", ["part"], "others", 4),
    "manifest": ("put", ["manifest"], "first", 4),
    "retention": ("delete", ["manifest", "shard", "rest"], "first", 2),  # of a complete checkpoint
    "tidying": ("delete", ["part", "quarantine"], "first", 4)}
_RESTORE = [("objects", "checkpoints", 2), ("get", "manifest", 2), ("get_range", "shard", 3),
            ("get", "rest", 1)]
_RECORDS = [("put", "heartbeat", 0, 3), ("put", "rows", 0, 3), ("put", "end", NODE, 1),
            ("put", "attempt", NODE, 1), ("size", "attempt", 0, 3)]
_WHEN = ("before", "during", "after")
_DAMAGES = ("truncated", "flipped", "deleted", "manifest flipped", "manifest cut")


class _Draw:
    """Draws strikes for one case."""

    def __init__(self, level: str, seed: int) -> None:
        self.chance = random.Random(f"{level} {seed}")
        self.num_steps = NUM_STEPS[level]
        few = (1, 2, 2, 3) if level == "protocol" else (2,)
        self.num_ranks = 4 if level == "ranks" and seed % 8 == 3 else self.chance.choice(few)

    def save(self, point: str, action: str = "") -> Strike:
        """At a point of a save."""
        operation, subjects, who, often = _SAVE[point]
        subject = self.chance.choice(subjects)
        if subject == "part":  # rank 0 has none
            self.num_ranks = max(2, self.num_ranks)
        rank = {"all": self.chance.randrange(self.num_ranks), "first": 0}.get(who, self.num_ranks - 1)
        when = self.chance.choice([when for when in _WHEN if (operation, when) != ("delete", "during")])
        return Strike(operation, subject, self.chance.randint(1, often), when, rank, action or self.killed())

    def any_save(self, action: str = "") -> Strike:
        """At some point of a save."""
        return self.save(self.chance.choice(list(_SAVE)), action)

    def restore(self) -> Strike:
        """In a resume."""
        operation, subject, often = self.chance.choice(_RESTORE)
        return Strike(operation, subject, self.chance.randint(1, often), self.chance.choice(_WHEN),
                      self.chance.randrange(self.num_ranks), self.killed())

    def record(self) -> Strike:
        """When something is written beside checkpoints."""
        operation, subject, who, often = self.chance.choice(_RECORDS)
        return Strike(operation, subject, self.chance.randint(1, often), self.chance.choice(_WHEN), who,
                      self.chance.choice(("self", "machine")))

    def step(self, action: str = "", *, late: bool = False) -> Strike:
        """Between two steps; late: when checkpoints are there."""
        first = 1 if not late else self.num_steps // 2 + 1
        return Strike("step", "", self.chance.randint(first, self.num_steps - 1), "before",
                      self.chance.randrange(self.num_ranks), action or self.killed())

    def killed(self) -> str:
        """Who is killed."""
        return self.chance.choice(["self", "machine", "node", *["peer"] * (self.num_ranks > 1)])

    def one_of_two(self, *actions: str) -> tuple[Strike, ...]:
        """One rank by itself, in a save or between steps."""
        self.num_ranks = max(2, self.num_ranks)
        return (self.chance.choice((self.any_save, self.any_save, self.step))(self.chance.choice(actions)),)

    def store(self, action: str, amount: float) -> tuple[Strike, ...]:
        """The store fails in a save, then a machine is lost."""
        strike = self.save(self.chance.choice(("shard", "small tensors", "manifest", "retention")), action)
        return strike._replace(amount=amount), self.step("machine")

    def torn(self) -> tuple[Strike, ...]:
        """A store that is not atomic. Of a first manifest, nobody could say whether it once was whole."""
        strike = self.save(self.chance.choice(("shard", "small tensors", "manifest")), "torn")
        return (strike._replace(when="during", nth=max(2, strike.nth)),)

    def stale(self) -> tuple[Strike, ...]:
        """A listing of one rank lags, in a resume or in retention."""
        hidden = Strike("objects", "checkpoints", self.chance.randint(1, 3), "before",
                        self.chance.randrange(self.num_ranks), "stale", self.chance.randint(1, 2))
        late = self.step("machine", late=True)
        return (late, hidden) if self.chance.random() < 0.5 else (hidden._replace(who=0), late)


_Drawn = tuple[Strike, ...]
KINDS: dict[str, Callable[[_Draw], _Drawn]] = {
    **{f"killed at {point}": (lambda draw, point=point: (draw.save(point),)) for point in _SAVE},
    "killed in a resume": lambda draw: (draw.step("machine", late=True), draw.restore()),
    "killed twice in a row": lambda draw: (draw.any_save(), draw.restore(), draw.any_save()),
    "killed between steps": lambda draw: (draw.step(), draw.step()),
    "killed at a record": lambda draw: (draw.record(),),
    "one rank killed": lambda draw: draw.one_of_two("self", "peer"),
    "one rank stopped": lambda draw: draw.one_of_two("stop"),
    "launcher killed": lambda draw: (draw.any_save("node"), draw.step("node")),
    "torn at its final name": _Draw.torn,
    "checkpoint damaged": lambda draw: (draw.step("machine", late=True), draw.step("machine"),
                                         draw.any_save()),
    "reordered": lambda draw: (draw.any_save(), draw.restore()),
    "disk full": lambda draw: draw.store("full", draw.chance.uniform(0.05, 0.4)),
    "store away": lambda draw: draw.store("away", draw.chance.uniform(0.05, 0.4)),
    "listing stale": _Draw.stale,
    "slept through a takeover": lambda draw: (draw.any_save("sleep"),),
    "other number of ranks": lambda draw: (draw.any_save("machine"), draw.any_save("machine")),
}
_LATE = ("checkpoint damaged", "disk full", "store away", "listing stale", "slept through a takeover")


# A toy leaves no sign of life to its node.
_NOT_DRAWN = {"protocol": "one rank stopped", "ranks": "other number of ranks"}


def kinds_of(level: str) -> list[str]:
    """What befalls runs of a level: seed n is of the n-th kind."""
    return [kind for kind in KINDS if kind != _NOT_DRAWN[level]]


def draw_case(level: str, seed: int) -> Case:
    """The case of a seed; kinds take turns."""
    kinds = kinds_of(level)
    draw, kind = _Draw(level, seed), kinds[seed % len(kinds)]
    strikes = KINDS[kind](draw)
    lives = [Life(draw.num_ranks, strike) for strike in strikes]
    if kind == "checkpoint damaged":
        lives[0] = lives[0]._replace(damage=draw.chance.choice(_DAMAGES))
    if kind == "other number of ranks":
        lives = [*lives, Life(draw.chance.choice([n for n in (1, 2, 3) if n != draw.num_ranks]))]
    return Case(level, seed, kind, tuple(lives), delay_s=0.03 if kind == "reordered" else 0.0,
                keeps_promise=kind not in _LATE, zero_stage=draw.chance.choice((1, 2)),
                precision=draw.chance.choice(("fp32", "bf16")))
