"""One rank, as torchrun starts it: `trainer.train`, which collects no garbage until its first step is done.

What a start loads stays as long as the rank: looking for garbage among it was a sixth of a start's processor
time (measured, recipes/LOG.md).
"""

import gc

if __name__ == "__main__":
    gc.disable()
    from trainer.train import main

    main()
