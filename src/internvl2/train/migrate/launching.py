"""How a source is started: launchers, batch systems, the environment, and what is divided."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from internvl2.train.migrate.batch import StepOf, gpus
from internvl2.train.migrate.flags import Flag, Flags
from internvl2.train.migrate.verdicts import (
    Rule,
    Setting,
    Verdict,
    missing,
    needless,
    nothing,
    translated,
)

ZERO = re.compile(r"(?:^|[^a-z0-9])(?:z|zero)_?(?:stage)?_?([0-3])(?![0-9])")
BATCH_SYSTEM = (
    *("p", "partition", "gres", "nodes", "N", "J", "job_name", "async", "ntasks_per_node"),
    *("cpus_per_task", "kill_on_bad_exit", "quotatype", "exclude", "time"),
)
COUNTING = (
    *("nproc_per_node", "nnodes", "ntasks", "n", "num_processes", "num_gpus", "num_nodes"),
    *("gpus", "devices", "include"),
)
STARTING = (
    *("node_rank", "rank", "master", "ips", "master_addr", "master_port", "rdzv_backend"),
    *("rdzv_endpoint", "rdzv_id", "standalone", "run_mode", "log_dir", "m", "u", "multi_gpu"),
    *("main_process_port", "machine_rank", "main_process_ip", "mixed_precision"),
)
READ_BY_TORCH = (
    *("CUDA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES", "OMP_NUM_THREADS", "NCCL_DEBUG"),
    *("PYTORCH_CUDA_ALLOC_CONF", "NCCL_P2P_DISABLE", "NCCL_IB_DISABLE", "NCCL_SOCKET_IFNAME"),
    *("HF_HOME", "HF_ENDPOINT", "WANDB_MODE"),
)
READ_BY_NOBODY = (
    *("PYTHONPATH", "MASTER_PORT", "MASTER_ADDR", "TF_CPP_MIN_LOG_LEVEL", "LAUNCHER"),
    *("NODE_RANK", "FORCE_TORCHRUN", "TOKENIZERS_PARALLELISM"),
)


def launching_rules(step_of: StepOf) -> dict[str, Rule]:
    """The rules of what stands before the program, and of deepspeed and fsdp."""
    started = nothing("how theirs is started; torchrun has flags of its own")
    batch_system = nothing("a batch system's; give it to the job that runs ours")
    same = nothing("give it to our command as well; torch or a library reads it")
    counted = gpus(step_of)
    return {
        **{f"launcher.{name}": batch_system for name in BATCH_SYSTEM},
        **{f"launcher.{name}": started for name in STARTING},
        **{f"launcher.{name}": counted for name in COUNTING},
        **{f"environment.{name}": same for name in READ_BY_TORCH},
        **{f"environment.{name}": nothing("nothing here reads it") for name in READ_BY_NOBODY},
        "environment.NPROC_PER_NODE": counted,
        "environment.NNODES": counted,
        "deepspeed": _deepspeed,
        "launcher.deepspeed": _deepspeed,
        "fsdp": _fsdp,
        "fsdp_config": nothing("FSDP2 is set up by the model's shape"),
    }


def _deepspeed(flag: Flag, flags: Flags) -> Verdict:
    if flag.is_nothing:
        return needless("it is off")
    stage, offload = _zero(flag.text(), flags.folder)
    if stage is None:
        return missing("its ZeRO stage is not known; 3 is shard = true, the others need nothing")
    if offload:
        settings = (Setting("shard", True),) if stage == 3 else ()
        return missing("nothing is kept in the host's memory; 8-bit moments save some", *settings)
    if stage == 3:
        return translated(Setting("shard", True))
    return needless(f"ZeRO-{stage}; where a process has no room for the whole, shard = true")


def _zero(name: str, folder: Path) -> tuple[int | None, bool]:
    """Stage, and whether it offloads: from the file where it is there, else from its name."""
    for path in (Path(name), folder / name):
        if path.suffix == ".json" and path.is_file():
            return _zero_of_file(path)
    match = ZERO.search(Path(name).name.lower())
    return (int(match[1]) if match else None), "offload" in name.lower()


def _zero_of_file(path: Path) -> tuple[int | None, bool]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    zero = table.get("zero_optimization") if isinstance(table, Mapping) else None
    if not isinstance(zero, Mapping):
        return 0, False
    stage = zero.get("stage", 0)
    places = [zero.get(f"offload_{part}") for part in ("optimizer", "param")]
    devices = [p.get("device", "none") for p in places if isinstance(p, Mapping)]
    return (stage if stage in (0, 1, 2, 3) else None), any(d != "none" for d in devices)


def _fsdp(flag: Flag, flags: Flags) -> Verdict:
    if flag.is_nothing or flag.value.lower() in ("false", "no_shard"):
        return needless("it is off")
    setting = Setting("shard", True)
    if "offload" in flag.value:
        return missing("nothing is kept in the host's memory", setting)
    return translated(setting)
