"""Cases that have failed once, by what was wrong then. `draw_case` gives those of new seeds."""

from tests.chaos.plan import NODE, Case, Life, Strike

FAILED = {
    "a sleeper waited half an hour for a part list that the attempt after it had deleted": Case(
        "protocol", 38, "slept through a takeover",
        (Life(3, Strike("put", "rest", 2, "before", 0, "sleep")),), keeps_promise=False),
    "what a sleeper had uploaded stayed for ever": Case(
        "protocol", 58, "slept through a takeover",
        (Life(2, Strike("stream", "shard", 2, "after", 0, "sleep")),), keeps_promise=False),
    "a checkpoint of a sleeper stayed beside those of the attempt after it": Case(
        "protocol", 118, "slept through a takeover",
        (Life(1, Strike("delete", "", 1, "after", 0, "sleep")),), keeps_promise=False),
    "the draft of a row that was being written stayed for ever": Case(
        "protocol", 89, "killed at a record", (Life(2, Strike("put", "rows", 2, "during", 0, "self")),)),
    "the draft of an attempt's end stayed for ever when training was over": Case(
        "protocol", 129, "killed at a record",
        (Life(2, Strike("put", "end", 1, "during", NODE, "machine")),)),
    "a checkpoint stayed for ever where the last listing of a finished run lagged": Case(
        "protocol", 144, "listing stale",
        (Life(1, Strike("step", "", 11, "before", 0, "machine")),
         Life(1, Strike("objects", "checkpoints", 3, "before", 0, "stale", 1))), keeps_promise=False),
}
