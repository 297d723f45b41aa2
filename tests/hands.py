"""A clock that a test turns."""


class Hands:
    """Seconds that never go back, as far as the test does not turn `now_s` back."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s
