"""Flags of PaddleMIX's internvl_chat_finetune.py: OpenGVLab's under PaddleNLP's trainer."""

from internvl2.train.migrate.flags import Flag, Flags
from internvl2.train.migrate.official import data_rules, model_rules, step_of
from internvl2.train.migrate.trainer_flags import DEFAULTS as TRAINER_DEFAULTS
from internvl2.train.migrate.trainer_flags import common_rules, recompute
from internvl2.train.migrate.verdicts import (
    Rule,
    Setting,
    Verdict,
    expects,
    missing,
    needless,
    nothing,
    translated,
)

NAME = "PaddleMIX"
DEFAULTS = {
    **TRAINER_DEFAULTS,
    "num_train_epochs": "1",
    "max_seq_length": "2048",
    "dynamic_image_size": "False",
    "use_thumbnail": "False",
    "max_dynamic_patch": "12",
    "freeze_backbone": "False",
    "freeze_mlp": "False",
    "freeze_llm": "False",
    "recompute": "False",
}
NOTES = (
    "PaddleMIX divides its loss by all positions, learned or not; here it is the mean over learned",
    "tokens, so that losses are larger and gradients are clipped more often.",
)
UNREAD = "its program never reads it"


def rules() -> dict[str, Rule]:
    """What becomes of each flag."""
    exact = nothing("bf16 weights are trained with exact fp32 sums of their updates")
    alone = expects(("1", "-1"), "it is 1", "layers are not divided over GPUs; shard = true")
    return {
        **common_rules(step_of),
        **model_rules(),
        **data_rules(NAME),
        "grad_checkpoint": nothing(UNREAD),
        "use_custom_trainer": nothing(UNREAD),
        "recompute": recompute,
        "fp16_opt_level": exact,
        "amp_master_grad": exact,
        "amp_custom_black_list": exact,
        "amp_custom_white_list": exact,
        "tensor_parallel_degree": alone,
        "pipeline_parallel_degree": alone,
        "sep_parallel_degree": alone,
        "sharding_parallel_degree": nothing("shard = true divides over all processes"),
        "sharding": _sharding,
        "hybrid_parallel_topo_order": nothing("there is one way of dividing: by data"),
        "pipeline_parallel_config": nothing("there are no pipelines"),
        "sharding_parallel_config": nothing("FSDP2 is set up by the model's shape"),
        "unified_checkpoint": nothing("checkpoints can be read by any number of processes"),
        "device": _device,
        "environment.FLAGS_use_cuda_managed_memory": nothing("nothing here reads it"),
    }


def _sharding(flag: Flag, flags: Flags) -> Verdict:
    text = flag.text().lower()
    setting = (Setting("shard", True),) if "stage3" in text else ()
    if "offload" in text:
        return missing("nothing is kept in the host's memory", *setting)
    if setting:
        return translated(*setting)
    return needless("where a process has no room for the whole, shard = true")


def _device(flag: Flag, flags: Flags) -> Verdict:
    names = {"gpu": "cuda", "npu": "npu", "cpu": "cpu"}
    name = flag.text().lower().split(":")[0]
    if name not in names:
        return missing(f"devices are {', '.join(names.values())} and mps")
    return translated(Setting("device", names[name]))
