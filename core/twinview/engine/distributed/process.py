"""The ranks of a run: this process alone, several that are started here, or those that a launcher started."""
from __future__ import annotations

import datetime
import logging
import os
import re
import resource
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

from twinview.errors import TwinviewError
from twinview.faults import explained
from twinview.machine import cores, rank_variable, timeout
from twinview.progress import waiting

T = TypeVar("T")
STORE = "TWINVIEW_STORE"  # a file through which ranks of one machine find each other; set by `twinview.engine.distributed.launch`


class Ranks(NamedTuple):
    """Where this process stands among the others."""

    rank: int
    world: int
    device: torch.device


def pick_device(device: str) -> str:
    """`cpu` or `cuda` for a recipe's `run.device`.  Raises TwinviewError where there is no GPU; starts no CUDA context."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # the other way of asking would make forked ranks unable to use the GPU
    if device == "cuda" and not torch.cuda.is_available():
        raise TwinviewError("[run] device: this machine shows no CUDA device. Write cpu or auto.")
    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def quiet_deepspeed(kind: str) -> None:
    """Import DeepSpeed without its probes of vendor stacks and compilers, and without its log lines.  `kind`: cpu or cuda.

    Left alone it compiles a shared-memory kernel at the first start, which takes half a minute and fails without a compiler; training does
    not use it.
    """
    os.environ.setdefault("DS_ACCELERATOR", kind)
    import deepspeed

    deepspeed.ops.__compatible_ops__ = defaultdict(bool)  # DeepSpeed 0.17 indexes it
    deepspeed.utils.logger.setLevel(logging.ERROR)


def adopt_slurm() -> None:
    """Under srun, say what torch's rendezvous wants to know in its own words; nothing where a launcher has said it already.

    Ranks are srun's tasks; they meet on the first host of the job, at a port that the job's number gives.
    """
    said = os.environ.get
    if "RANK" in os.environ or "SLURM_STEP_ID" not in os.environ or rank_variable("SLURM_NTASKS", 1) == 1:  # a batch script is not srun
        return
    here = re.match(r"\d+", said("SLURM_NTASKS_PER_NODE", "") or said("SLURM_TASKS_PER_NODE", ""))
    found = {
        "RANK": said("SLURM_PROCID", "0"),
        "WORLD_SIZE": said("SLURM_NTASKS", "1"),
        "LOCAL_RANK": said("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": here[0] if here else "1",
    }
    os.environ.update(found)
    os.environ.setdefault("MASTER_ADDR", first_host(said("SLURM_STEP_NODELIST") or said("SLURM_JOB_NODELIST", "localhost")))
    os.environ.setdefault("MASTER_PORT", str(20000 + rank_variable("SLURM_JOB_ID") % 20000))


def first_host(nodes: str) -> str:
    """`gpu[007-010,12],login` -> `gpu007`: the first of SLURM's list of hosts."""
    name, _, rest = nodes.partition("[")
    if "," in name or not rest:
        return nodes.partition(",")[0]
    inside, _, after = rest.partition("]")
    return name + re.split(r"[-,]", inside)[0] + after.partition(",")[0]


def join(device: str = "auto") -> Ranks:
    """Make this process a rank: of a launcher's ranks where RANK and WORLD_SIZE (or srun's) are set, else the only one.  May be called again.

    Every wait for another rank ends after TWINVIEW_TIMEOUT seconds (1800).  Raises TwinviewError where the others cannot be reached.
    """
    adopt_slurm()
    kind = pick_device(device)
    rank, world = rank_variable("RANK"), rank_variable("WORLD_SIZE", 1)
    local = rank_variable("LOCAL_RANK", rank if STORE in os.environ else 0)
    local_world = rank_variable("LOCAL_WORLD_SIZE", rank_variable("LOCAL_SIZE", 1))
    if rank >= world:
        raise TwinviewError(f"RANK is {rank} and WORLD_SIZE {world} in the environment: ranks count from 0. Launchers set both; unset them here.")
    place = torch.device("cuda", local) if kind == "cuda" else torch.device("cpu")
    if not dist.is_initialized():
        if kind == "cuda":
            if local >= torch.cuda.device_count():
                raise TwinviewError(f"rank {rank} has no GPU of its own: {local_world} ranks here, {torch.cuda.device_count()} GPUs.")
            torch.cuda.set_device(place)
        elif local_world > 1 and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, cores() // local_world))
        # DeepSpeed reads these even where it is given a process group
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(local), LOCAL_SIZE=str(local_world))
        _meet(rank, world, place)
        quiet_deepspeed(kind)
    elif (dist.get_backend() == "nccl") != (kind == "cuda"):
        raise TwinviewError(f"[run] device: this process trains on another device than {kind} already. Start a new one.")
    return Ranks(rank, world, place)


def _meet(rank: int, world: int, device: torch.device) -> None:
    wait = datetime.timedelta(seconds=timeout())
    # DeepSpeed clones the world's group without its time-out, so the default has to change too
    torch_dist: Any = dist  # its stores are not in the stubs
    torch_dist.distributed_c10d.default_pg_timeout = torch_dist.distributed_c10d.default_pg_nccl_timeout = wait
    store: Any = None  # None: torch's env:// rendezvous
    if world == 1:
        store = torch_dist.HashStore()
    elif STORE in os.environ:
        store = torch_dist.FileStore(os.environ[STORE], world)
    elif "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        raise TwinviewError(f"WORLD_SIZE is {world}, but MASTER_ADDR or MASTER_PORT is not set. Start with torchrun, deepspeed or ranks={world}.")
    backend, own = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    try:
        with waiting(f"waiting for all {world} ranks to start"):
            dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=wait, device_id=own)
    except (RuntimeError, ValueError, TimeoutError) as e:
        if world == 1 and "nable to find" in str(e):  # gloo wants an address, even of a process that is alone on a machine without a network
            return _be_alone()
        if "nable to find" in str(e):
            raise TwinviewError("this machine has no network interface, and ranks talk through one. Start the loopback: ip link set lo up.") from e
        if store is not None:
            raise
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        why = str(e).strip().splitlines()[0].rstrip(".")
        variable = "NCCL_SOCKET_IFNAME" if backend == "nccl" else "GLOO_SOCKET_IFNAME"
        hint = f"Across machines, set {variable} to the network interface that joins them (`ip addr` lists them)."
        raise TwinviewError(f"rank {rank} cannot reach the other ranks ({where}): {why}. {hint}") from e


def _be_alone() -> None:
    """A group of one that sends nothing anywhere: torch's own for tests, whose collectives of one rank are copies."""
    from torch.testing._internal.distributed import fake_pg

    dist.init_process_group("fake", store=fake_pg.FakeStore(), rank=0, world_size=1)


def leave() -> None:
    """Give the process group back, at the end of a process that was one of several ranks."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.destroy_process_group()


# ---- between ranks
@contextmanager
def telling_faults() -> Iterator[None]:
    """Turn errors of the system, of gloo and of NCCL into one line each; faults of the code pass.  Raises RankLost where another rank is gone."""
    try:
        yield
    except TwinviewError:
        raise
    except Exception as e:
        fault = explained(e)
        if fault is None:
            raise
        raise fault from e


def barrier() -> None:
    """Wait for all ranks."""
    if dist.get_world_size() > 1:
        dist.barrier()


def on_first(work: Callable[[], T]) -> T:
    """Do `work` on rank 0 alone and give its (picklable) result to every rank; what it raises is raised on every rank, so that none waits."""
    answer: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            answer[0] = work()
        except Exception as e:
            answer[1] = explained(e) or TwinviewError(f"rank 0: {type(e).__name__}: {e}")
            answer[1].__cause__ = None if answer[1] is e else e
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise answer[1]
    result: T = answer[0]
    return result


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has held at most: of the GPU, or resident in main memory, data workers not counted."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def averaged(values: dict[str, float]) -> dict[str, float]:
    """Numbers averaged over the ranks that have them, in rank order: the same sum every time."""
    everyone = gathered(values)
    names = dict.fromkeys(name for one in everyone for name in one)
    found = {name: [one[name] for one in everyone if name in one] for name in names}
    return {name: sum(numbers) / len(numbers) for name, numbers in found.items()}


def gathered(value: T) -> list[T]:
    """Every rank's (picklable) value, in rank order."""
    if dist.get_world_size() == 1:
        return [value]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, value)
    return everyone
