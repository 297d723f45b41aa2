"""What a task runs on a node: `python -m trainer.node train` or `... bench`. No torch in this process.

Claims the attempt, checks the machine before it costs anything, starts torchrun (or the benchmark),
forwards signals, and turns what happened into the exit code of `trainer.contract.ExitCode`: torchrun
itself exits 1 whatever its workers returned, and after SIGTERM even when every rank saved.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import psutil

from trainer import encoder_fetch, node_watch
from trainer.at_most import standing_of
from trainer.config import TrainConfig
from trainer.contract import (
    AwayError,
    Document,
    Env,
    ExitCode,
    LdlmError,
    Name,
    RankEnd,
    TaskOffer,
    attempt_file,
)
from trainer.guard import Standing
from trainer.hang import HangWatch, HungError
from trainer.limit_watch import LateClock, check_again, check_limits
from trainer.limits import LimitError
from trainer.machine import (
    MachineError,
    check_clock,
    check_machine,
    check_set_up,
    cluster_info,
    key_files,
    traffic,
    visible_gpus,
)
from trainer.node_task import (
    node_rank,
    num_nodes,
    own_attempt,
    ranks_per_node,
    read_config,
    read_document,
    required,
)
from trainer.notices import cloud_named, listen
from trainer.overdue import bench_until, check_in_time, overdue_at
from trainer.own_offer import own_envs
from trainer.programs import kill_tree
from trainer.relay import relayed
from trainer.rental_terms import own_upload_price
from trainer.rented import Rented, await_store, code_without_store
from trainer.retention import abort_killed, tidy_finished
from trainer.run_folder import Attempt, AttemptEnd, RunFolder
from trainer.seen_machine import SeenMachine
from trainer.set_up import LATE_NOTE
from trainer.stop_request import SaveTime, StopRequest
from trainer.store import AlreadyExistsError, open_store
from trainer.stuck import check_progress, resumed_at
from trainer.tell import Teller, Watch, Webhook
from trainer.wandb_node import Follower
from trainer.wrong_machine import say_wrong

# Others may hang in a collective that waits for a rank which has already told us why it left.
_PEER_GRACE_S = 20
# All nodes of a run see within seconds that it hangs: to the last of them, the ranks of the first must not
# look as if they had crashed (guess).
_OTHER_NODES_S = 5
_GOOD = (ExitCode.FINISHED, ExitCode.RECOVER)
_LAST = (ExitCode.FINISHED, ExitCode.STOPPED, ExitCode.BROKEN, ExitCode.BAD_CONFIG)  # no attempt follows


@dataclass
class _Node:
    """This node, once it knows its run.

    Attributes:
        rented: None where an engine of ours looks after the run.
        attempt: None on every node but the first.
        teller, follower: Of the attempt, from when they are begun.
    """

    document: Document
    config: TrainConfig
    folder: RunFolder
    stop: StopRequest
    rented: Rented | None
    attempt: Attempt | None
    teller: Teller | None = None
    follower: Follower | None = None


class _Ended(NamedTuple):
    """How a document has ended on this node, and whether its machine was wrong or its ranks hung."""

    end: RankEnd
    is_wrong: bool = False
    is_hung: bool = False


def main(argv: list[str]) -> int:
    """Run one document of a task on this node. Returns the node's exit code."""
    started_at, cloud = datetime.now(UTC), cloud_named(cluster_info(os.environ).get("cloud", ""))
    # A local engine that itself runs inside a managed job numbers and judges its attempts all the same.
    managed = "SKYPILOT_MANAGED_JOB_ID" in os.environ and not os.environ.get(Env.ATTEMPT)
    stop = StopRequest(cloud)
    listen(cloud, stop.hear, lambda: stop.save_s())
    try:
        node = _begin(read_document(argv), started_at, stop, managed=managed)
    except LdlmError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        if not managed or not isinstance(error, AwayError):
            return error.node_exit_code
        return ExitCode.RECOVER if stop.received else code_without_store()
    if node is None:
        print("training had finished before", flush=True)
        return ExitCode.FINISHED
    return _conclude(node, _carry_out(node))


def _begin(document: Document, started_at: datetime, stop: StopRequest, *, managed: bool) -> _Node | None:
    """Find the run, and claim its next attempt on the first node; None: its training had finished before."""
    config = read_config()
    # Before anything is counted, and for the ranks too.
    os.environ.update(own_envs(os.environ))
    os.environ.update(own_upload_price(os.environ, Path.home()))
    folder, rented = RunFolder(open_store(required(Env.STORE)), required(Env.RUN_ID)), None
    if managed:
        await_store(folder, lambda: stop.received)
        rented = Rented(folder, document, node=node_rank(), has_course=bool(os.environ.get(Env.COURSE)))
        if rented.has_finished_before():
            return None
        stop.wish = rented.wish
    attempt = own_attempt(folder, document, started_at) if node_rank() == 0 else None
    if document is Document.TRAIN:
        stop.save_s = SaveTime(folder)
    return _Node(document, config, folder, stop, rented, attempt)


def _carry_out(node: _Node) -> _Ended:
    """Run the document, and read how it ended out of what was raised."""
    try:
        return _Ended(_run_checked(node))
    except MachineError as error:
        return _Ended(refuse(node.rented, error), is_wrong=True)
    except LimitError as error:
        return _Ended(node.rented.end_at_limit(error) if node.rented
                      else RankEnd(error.node_exit_code, str(error)))
    except HungError as error:
        error.save(node.folder)
        return _Ended(RankEnd(error.node_exit_code, str(error)), is_hung=True)
    except LdlmError as error:
        return _Ended(RankEnd(error.node_exit_code, str(error)))


def _run_checked(node: _Node) -> RankEnd:
    """Run the document between the checks of limits, machine and progress. Raises LdlmError."""
    folder, attempt = node.folder, node.attempt
    if attempt and node.rented:
        written = folder.key(attempt_file(attempt.number, "attempt.json"))  # a moment ago
        check_clock(datetime.now(UTC), folder.store.written_at(written))
    clock, attempts, events = LateClock(), folder.attempts(), folder.events()
    if attempt:
        node.teller = Teller(Watch(folder, attempt, attempts, events, node.config, os.environ), folder,
                             Webhook(os.environ), node.config.heartbeat_s)
    dearest, until = TaskOffer.dearest(os.environ), None
    standing = standing_of(attempts, events, clock(), traffic(), dearest)
    if node.rented:
        _check_rented(node.document, standing)
    seen = check_machine(os.environ)
    if attempt:
        _begin_beside(node, attempt, seen)
        check_progress(attempts, attempt, resumed_at(events))
        until = bench_until(attempts, attempt, resumed_at(events))
    check_in_time(None, until, standing.now)
    end = run_document(node.document, attempt, node.stop, node.config, overdue_at(standing, until), until)
    check_in_time(end, until, clock())
    if node.rented:
        check_again(node.document, end, standing_of(attempts, events, clock(), traffic(), dearest))
    return end


def _check_rented(document: Document, standing: Standing) -> None:
    note = LATE_NOTE.expanduser()
    if document is Document.TRAIN or note.exists():  # a benchmark that can begin times one text
        check_limits(document, standing)
    check_set_up(note)


def _begin_beside(node: _Node, attempt: Attempt, seen: SeenMachine) -> None:
    """Start what runs beside the program of an attempt, and record its machine.

    Not before the checks: a machine that is wrong has not been given the SDK of W&B.
    """
    node.follower = Follower(node.config.wandb, attempt, node.folder.run_id)
    keys = key_files(Path.home()) if node.rented else None
    node.folder.write(attempt_file(attempt.number, Name.MACHINE), seen.model_copy(update={"key_files": keys}))
    threading.Thread(target=abort_killed, args=(node.folder, attempt.number), daemon=True,
                     name="killed uploads").start()  # nothing waits for it


def _conclude(node: _Node, ended: _Ended) -> int:
    """Record the end, and tell it to who waits for it. Returns the node's exit code."""
    end, attempt = ended.end, node.attempt
    if attempt:
        record_end(node.folder, attempt, end, wrong_machine=ended.is_wrong, hung=ended.is_hung,
                   preempted=end.code == ExitCode.RECOVER and node.stop.is_taken)
        if node.document is Document.TRAIN and end.code == ExitCode.FINISHED:
            tidy_finished(node.folder, attempt.number, node.config.checkpoint.stays)
    print(end.reason if end.code in _GOOD else f"error: {end.reason}", flush=True)
    code = node.rented.conclude(end) if node.rented else end.code
    if node.teller:
        node.teller.end(is_last=code in _LAST)
    if node.follower:
        node.follower.end(end.code)
    return code


def refuse(rented: Rented | None, error: MachineError) -> RankEnd:
    """How a node ends whose machine is wrong; where nobody rents another one, that is the recipe's fault."""
    if rented is None:
        return RankEnd(error.node_exit_code, str(error))
    try:
        return rented.refuse(error)
    except LdlmError as unwritten:
        return RankEnd(ExitCode.BROKEN, f"{error.problem}, which could not be counted: {unwritten}")


def run_document(document: Document, attempt: Attempt | None, stop: StopRequest, config: TrainConfig,
                 overdue: datetime | None, until: datetime | None = None) -> RankEnd:
    """Start the program of one document, pass signals on to it, and read how it ended.

    Args:
        document: Which program.
        attempt: None on every node but the first: the ranks hear its number from rank 0.
        stop: Heard since this process began.
        config: Of the run: the silence of its ranks that is taken for a hang, and its encoder.
        overdue: See `overdue_at`.
        until: See `bench_until`.

    Raises:
        HungError: They hung, and are killed.
    """
    if stop.received:
        return RankEnd(ExitCode.RECOVER, f"{stop.why} before {document} began")
    with tempfile.TemporaryDirectory(prefix="ldlm-node-") as folder:
        ends = Path(folder)
        command = train_command() if document is Document.TRAIN else [sys.executable, "-m", "trainer.bench"]
        with relayed() as output, node_watch.hold(ends):
            told = {Env.BENCH_UNTIL: until.isoformat()} if until else {}
            environment = child_environment(ends, attempt, stop.shutdown_timeout_s) | told
            if document is Document.TRAIN:
                encoder_fetch.begin(config.token_encoder, environment, output)
            child = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
            wait_for(child, ends, stop, overdue, HangWatch(ends, config.hang_s))
        if child.returncode is None:
            say_wrong(Path.home())
        stop.learn(ends)
        num_expected = ranks_per_node() if document is Document.TRAIN else 1
        return node_end(RankEnd.read_all(ends), num_expected, child.returncode, stopped=stop.why)


def child_environment(ends: Path, attempt: Attempt | None, shutdown_timeout_s: int) -> dict[str, str]:
    """What torchrun and the ranks, or the benchmark, find in their environment."""
    environment = os.environ | {Env.END_FOLDER: str(ends), "PYTHONUNBUFFERED": "1",
                                "TOKENIZERS_PARALLELISM": "false"}
    if attempt:
        environment[Env.ATTEMPT] = str(attempt.number)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks_per_node())))
    environment["DS_ACCELERATOR"] = "cuda" if visible_gpus() else "cpu"
    environment.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")  # of libraries, about themselves
    # Read by torchrun from 2.13 on, for when the signal reaches it and not us.
    environment.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(shutdown_timeout_s))
    return environment


def train_command() -> list[str]:
    """torchrun for this node, from what SkyPilot says about its peers."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks_per_node())]
    if num_nodes() == 1:
        # By its name, torchrun would wait for minutes on a machine whose name does not resolve.
        rendezvous = ["--standalone", "--local-addr", "127.0.0.1"]
    else:
        head = required("SKYPILOT_NODE_IPS").split()[0]
        rendezvous = ["--nnodes", str(num_nodes()), "--node-rank", str(node_rank()),
                      "--master-addr", head, "--master-port", str(master_port())]
    return [*torchrun, *rendezvous, "-m", "trainer.rank"]


def master_port() -> int:
    """Where the nodes of one run meet: the same on all, and another for another run on the same machine.

    Below the ports that Linux gives to outgoing connections (32768 on) and above those of Ray's workers.
    """
    run = f"{required(Env.STORE)}/{required(Env.RUN_ID)}"
    return 20_000 + zlib.crc32(run.encode()) % 10_000


def wait_for(child: "subprocess.Popen[bytes]", ends: Path, stop: StopRequest,
             overdue: datetime | None = None, watch: HangWatch | None = None) -> None:
    """Wait for the program; end it when one rank has failed or died and its peers do not follow, when it is
    there from `overdue` on, and when it hangs. Raises HungError."""
    failed_at, clock = None, LateClock()
    while child.poll() is None:
        time.sleep(0.2)
        if overdue and clock() >= overdue:
            print("warning: it is far past its limits and has not ended: it hangs and is killed", flush=True)
            break
        stop.pass_on(ends)
        # Still starting: nothing is there to be saved, and the time is billed.
        is_starting = stop.received and not RankEnd.listening(ends)
        if failed_at is None and has_failed(ends):
            failed_at = time.monotonic()
        has_waited = failed_at is not None and time.monotonic() - failed_at > _PEER_GRACE_S
        if is_starting or stop.is_over() or has_waited:
            break
        if failed_at is None and watch and (problem := watch.look()):
            error = watch.error(problem)
            time.sleep(_OTHER_NODES_S if num_nodes() > 1 else 0)
            kill_tree(child)
            raise error
    if child.returncode is None:
        kill_tree(child)


def has_failed(ends: Path) -> bool:
    """True when a rank has told of a failure, or is gone without having told anything."""
    gone = [pid for pid in RankEnd.listening(ends) if not psutil.pid_exists(pid)]
    told = RankEnd.read_all(ends)  # after the look at the processes: a rank tells first, then goes
    return len(gone) > len(told) or any(end.code not in _GOOD for end in told)


def node_end(ends: list[RankEnd], num_expected: int, returncode: int | None, *, stopped: str = "") -> RankEnd:
    """One end out of those of all ranks: a named failure first, then a missing rank, then the rest.

    Args:
        ends: What the ranks of this node have left.
        num_expected: How many ranks there were.
        returncode: Of torchrun, or of the benchmark; None: it survives SIGKILL.
        stopped: Why this node was to stop, if it was: a rank that died without a word was taken then, it did
            not crash.
    """
    for code in (ExitCode.BAD_CONFIG, ExitCode.BROKEN):
        for end in ends:
            if end.code == code:
                return end
    for end in ends:
        if end.code not in _GOOD:
            return end
    if len(ends) < num_expected:
        missing = f"{num_expected - len(ends)} of {num_expected} ranks"
        if stopped:
            return RankEnd(ExitCode.RECOVER, f"{stopped}; {missing} ended without a last checkpoint")
        if returncode is None:
            return RankEnd(1, f"{missing} told nothing and survive SIGKILL: a GPU or a disk does not answer")
        return RankEnd(1, f"{missing} died without a word (torchrun's code {returncode}): "
                          "killed, out of memory, or a hardware fault")
    return max(ends, key=lambda end: end.code)


def record_end(folder: RunFolder, attempt: Attempt, end: RankEnd, *, wrong_machine: bool,
               preempted: bool, hung: bool) -> None:
    """Leave the end of this attempt in the run folder, unless the engine was quicker."""
    try:
        folder.write(attempt_file(attempt.number, "end.json"), create=True,
                     record=AttemptEnd(at=datetime.now(UTC), exit_code=end.code, preempted=preempted,
                                       reason=end.reason, wrong_machine=wrong_machine, hung=hung,
                                       traffic=traffic()))
    except AlreadyExistsError:
        pass
    except LdlmError as error:
        print(f"warning: end of attempt {attempt.number} not recorded: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
