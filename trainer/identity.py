"""What has to be the same in all attempts of a run. No torch."""

from pydantic import BaseModel

from trainer.contract import ConfigError
from trainer.manifest import EncoderIdentity, Manifest


class Identity(BaseModel):
    """What has to be the same in all attempts of a run; fields of `Manifest`."""

    data_fingerprint: str
    model: dict[str, int]
    precision: str
    encoder: EncoderIdentity | None

    @classmethod
    def of(cls, manifest: Manifest) -> "Identity":
        """Of the attempt that saved a checkpoint."""
        return cls(**{name: getattr(manifest, name) for name in cls.model_fields})

    def check(self, began: "Identity", step: int) -> None:
        """Refuse to go on from the steps so far where something is another. Raises ConfigError."""
        if began.data_fingerprint != self.data_fingerprint:
            raise ConfigError(
                f"the text is not the one that the {step} steps so far were trained on", place="data.source",
                fix="bring that text back (`python-docs` changes with Python's version), or launch a new run")
        if began.encoder is not None and self.encoder is not None and began.encoder.key != self.encoder.key:
            raise ConfigError(
                f"the token encoder is not the one that the {step} steps so far were trained with: "
                f"{began.encoder} then, {self.encoder} now", place="token_encoder",
                fix="bring that encoder back, or launch a new run")
        pairs = [("precision", began.precision, self.precision),
                 *((name, began.model.get(name), self.model.get(name)) for name in self.model)]
        for name, there, here in pairs:
            if there != here:
                raise other_model_error(step, name, there, here)


def other_model_error(step: int, name: str, there: object, here: object) -> ConfigError:
    """Of a checkpoint that the model here cannot go on from."""
    return ConfigError(
        f"the checkpoint of step {step} is of another model: {name} is {there} there and {here} here",
        place="train", fix="resume with the recipe that the run began with, or launch a new run")
