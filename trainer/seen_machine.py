"""What the first node of an attempt found where it runs, as it stands in the store. No torch."""

from pydantic import BaseModel, ConfigDict


class SeenGpu(BaseModel):
    """One card, as its driver names it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    memory_gib: float | None = None
    driver: str = ""


class SeenMachine(BaseModel):
    """`machine.json` of an attempt: what its first node found where it runs, once that had passed its check.

    Attributes:
        gpus: Those that were asked for.
        torch: Version of the one that is installed.
        cuda: That it brings; None: it was built without, or no card was asked for.
        key_files: Files with keys of clouds that lie there, from home; None: nobody has looked, since the
            machine is not a rented one.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    gpus: tuple[SeenGpu, ...] = ()
    torch: str | None = None
    cuda: str | None = None
    key_files: tuple[str, ...] | None = None
