"""Flags that the sources share: those of Hugging Face's trainer.

PaddleNLP's trainer took over the names of the former.
"""

from internvl2.train.migrate.batch import StepOf, batch
from internvl2.train.migrate.flags import Flag, Flags
from internvl2.train.migrate.launching import launching_rules
from internvl2.train.migrate.verdicts import (
    Rule,
    Setting,
    Verdict,
    expects,
    lost,
    missing,
    needless,
    nothing,
    number,
    text,
    translated,
    truth,
    whole,
)

DEFAULTS = {
    "learning_rate": "5e-5",
    "weight_decay": "0",
    "lr_scheduler_type": "linear",
    "warmup_ratio": "0",
    "num_train_epochs": "3",
    "seed": "42",
    "save_steps": "500",
    "per_device_train_batch_size": "8",
    "gradient_accumulation_steps": "1",
}
"""Of the Hugging Face trainer, where they are not ours."""

ADAMW = (
    *("adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused"),
    *("adamw_torch_xla", "adamw_torch_npu_fused", "paged_adamw", "paged_adamw_32bit"),
)
ADAMW_8BIT = ("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "adamw_torch_8bit")
IGNORED_BY_US = (
    "do_train",
    "remove_unused_columns",
    "ddp_timeout",
    "ddp_backend",
    "ddp_find_unused_parameters",
    "ddp_bucket_cap_mb",
    "ddp_broadcast_buffers",
    "dataloader_pin_memory",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "disable_tqdm",
    "log_level",
    "logging_first_step",
    "logging_strategy",
    "logging_dir",
    "include_num_input_tokens_seen",
    "include_tokens_per_second",
    "gradient_checkpointing_kwargs",
    "use_reentrant_gc",
    "local_rank",
    "save_safetensors",
    "save_on_each_node",
    "tf32",
    "skip_memory_metrics",
    "average_tokens_across_devices",
)


def common_rules(step_of: StepOf) -> dict[str, Rule]:
    """The rules of a trainer whose steps are read so."""
    return {
        **dict.fromkeys(IGNORED_BY_US, nothing("how theirs runs, not what is learned")),
        **_optimization(),
        **_checkpoints(),
        **_precision(),
        **launching_rules(step_of),
        "environment.WANDB_PROJECT": _wandb_project,
        "per_device_train_batch_size": batch(step_of),
        "gradient_accumulation_steps": batch(step_of),
    }


def _optimization() -> dict[str, Rule]:
    return {
        "learning_rate": number("optimizer.learning_rate"),
        "weight_decay": number("optimizer.weight_decay"),
        "adam_beta1": _betas,
        "adam_beta2": _betas,
        "adam_epsilon": number("optimizer.eps"),
        "max_grad_norm": _max_grad_norm,
        "optim": _optim,
        "lr_scheduler_type": _schedule,
        "lr_scheduler_kwargs": lost("the schedules have no settings of their own"),
        "warmup_ratio": _warmup_ratio,
        "warmup_steps": _warmup_steps,
        "num_train_epochs": _epochs,
        "max_steps": _max_steps,
        "seed": whole("seed"),
        "data_seed": _data_seed,
        "neftune_noise_alpha": lost("embeddings get no noise"),
        "label_smoothing_factor": lost("labels are not smoothed"),
        "group_by_length": nothing("samples are packed, so that nothing is padded"),
        "dataloader_num_workers": _workers,
        "dataloader_drop_last": nothing("one step of a run at most"),
        "full_determinism": truth("deterministic"),
    }


def _checkpoints() -> dict[str, Rule]:
    decided = "what is measured is said in [validation]: give it data"
    return {
        "output_dir": text("output"),
        "overwrite_output_dir": nothing(
            "the same command goes on where its folder ends; delete the folder to begin anew"
        ),
        "save_strategy": _save_strategy,
        "save_steps": _save_steps,
        "save_total_limit": _keep,
        "save_only_model": lost("checkpoints always hold what a run needs to go on"),
        "resume_from_checkpoint": _resume,
        "evaluation_strategy": expects(("no", "steps"), decided, _EVERY),
        "eval_strategy": expects(("no", "steps"), decided, _EVERY),
        "do_eval": nothing(decided),
        "eval_steps": _eval_steps,
        "per_device_eval_batch_size": nothing("validation samples are packed like all others"),
        "load_best_model_at_end": nothing("the model of the lowest validation loss is in best/"),
        "metric_for_best_model": expects(
            ("loss", "eval_loss"), "the lowest validation loss is what best/ has", _METRIC
        ),
        "greater_is_better": nothing("follows from the metric"),
        "logging_steps": nothing("every step is logged and written to metrics.jsonl"),
        "report_to": _report_to,
        "run_name": nothing("a run is named by its folder"),
        "push_to_hub": lost("upload the folder of the run yourself"),
        "predict_with_generate": lost("validation.questions = FILE lets the model answer"),
    }


_EVERY = "measured every validation.every steps, and once more at the end"
_METRIC = "best/ has the lowest validation loss; scores are in metrics.jsonl"


def _precision() -> dict[str, Rule]:
    return {
        "use_cpu": _use_cpu,
        "bf16": _bf16,
        "fp16": _fp16,
        "bf16_full_eval": nothing("validation runs as training does"),
        "torch_compile": truth("compile"),
        "gradient_checkpointing": recompute,
        "use_liger_kernel": nothing("the loss never holds all logits, and layers are compiled"),
        "trust_remote_code": nothing("no code of a checkpoint is ever run"),
    }


NO_FP16 = (
    "weights in fp16 cannot be trained; they are in bf16: where the device has none, give "
    'dtype = "float32"'
)


def recompute(flag: Flag, flags: Flags) -> Verdict:
    """Checkpointed activations, of both parts."""
    share = 1.0 if flag.truth() else 0.0
    return translated(Setting("recompute.vision", share), Setting("recompute.decoder", share))


def _betas(flag: Flag, flags: Flags) -> Verdict:
    betas = [flags.number("adam_beta1", 0.9), flags.number("adam_beta2", 0.999)]
    return translated(Setting("optimizer.betas", betas))


def _max_grad_norm(flag: Flag, flags: Flags) -> Verdict:
    if flag.number() <= 0:
        return missing("gradients are always clipped; optimizer.max_grad_norm = 1e9 never does")
    return translated(Setting("optimizer.max_grad_norm", flag.number()))


def _optim(flag: Flag, flags: Flags) -> Verdict:
    name = flag.text().lower()
    if name in ADAMW:
        return translated(Setting("optimizer.name", "adamw"))
    if name in ADAMW_8BIT:
        return translated(Setting("optimizer.name", "adamw"), Setting("optimizer.moments", "8bit"))
    if name == "muon":
        return translated(Setting("optimizer.name", "muon"))
    return missing('optimizers are adamw (optimizer.moments "fp32" or "8bit") and muon')


def _schedule(flag: Flag, flags: Flags) -> Verdict:
    name = flag.text().lower()
    if name in ("cosine", "linear", "constant"):
        return translated(Setting("schedule.kind", name))
    if name == "constant_with_warmup":
        return translated(Setting("schedule.kind", "constant"))
    return missing("schedules are cosine, linear and constant, each to 0 or level")


def _warmup_ratio(flag: Flag, flags: Flags) -> Verdict:
    if flags.word("lr_scheduler_type") == "constant":
        zero = Setting("schedule.warmup_ratio", 0.0, "their schedule `constant` has no warm-up")
        return translated(zero)
    steps = flags.find("warmup_steps")
    if steps is not None and steps.number() > 0:
        return needless(f"{steps.shown} goes before it")
    return translated(Setting("schedule.warmup_ratio", flag.number()))


def _warmup_steps(flag: Flag, flags: Flags) -> Verdict:
    steps, total = flag.number(), flags.number("max_steps", -1)
    if not steps:
        return needless("the ratio decides")
    if steps < 1:
        return translated(Setting("schedule.warmup_ratio", steps))
    if total <= 0:
        return missing("give schedule.warmup_ratio, these steps as a share of all")
    return translated(Setting("schedule.warmup_ratio", round(steps / total, 6)))


def _epochs(flag: Flag, flags: Flags) -> Verdict:
    if flags.number("max_steps", -1) > 0:
        return needless("max_steps goes before it")
    return translated(Setting("schedule.epochs", flag.number()))


def _max_steps(flag: Flag, flags: Flags) -> Verdict:
    if flag.whole() <= 0:
        return needless("the epochs decide")
    return translated(Setting("schedule.max_steps", flag.whole()))


def _data_seed(flag: Flag, flags: Flags) -> Verdict:
    if flag.is_nothing or flag.whole() == flags.whole("seed", 42):
        return needless("one seed decides all")
    return missing("one seed decides all: `seed`")


def _workers(flag: Flag, flags: Flags) -> Verdict:
    why = "per GPU; about 60 to 200 tiles/s each, and a GPU takes 160 to 300"
    return translated(Setting("workers", flag.whole(), why))


def _save_strategy(flag: Flag, flags: Flags) -> Verdict:
    name = flag.text().lower()
    if name in ("steps", "no"):
        return needless("a checkpoint comes every save_every steps and at the end")
    is_one = flags.number("num_train_epochs", 3) <= 1
    if name == "epoch" and is_one and flags.number("max_steps", -1) <= 0:
        return needless("the run is one epoch, and a checkpoint comes at the end anyway")
    return missing("give save_every, the steps of an epoch (a run's first log line says them)")


def _save_steps(flag: Flag, flags: Flags) -> Verdict:
    if flag.number() < 1:
        return missing("give save_every as a number of steps")
    return translated(Setting("save_every", flag.whole()))


def _keep(flag: Flag, flags: Flags) -> Verdict:
    if flag.is_nothing or flag.whole() < 1:
        return missing("old checkpoints are always deleted; keep = 1000 keeps as many")
    return translated(Setting("keep", flag.whole()))


def _resume(flag: Flag, flags: Flags) -> Verdict:
    if not flag.fault and (flag.is_nothing or flag.value.lower() in ("true", "false", "auto")):
        return needless("the same command goes on after its last checkpoint")
    return missing("others' checkpoints have no place in a run of ours; name one as `model`")


def _eval_steps(flag: Flag, flags: Flags) -> Verdict:
    if flags.word("eval_strategy", "evaluation_strategy") == "no":
        return needless("nothing is measured")
    if flag.is_nothing or flag.number() < 1:
        return missing("give validation.every as a number of steps")
    return translated(Setting("validation.every", flag.whole()))


def _trackers(flags: Flags) -> tuple[str, ...]:
    flag = flags.find("report_to")
    return () if flag is None or flag.is_nothing else tuple(n.lower() for n in flag.texts())


def _report_to(flag: Flag, flags: Flags) -> Verdict:
    names = _trackers(flags)
    settings: list[Setting] = []
    if "tensorboard" in names:
        settings.append(Setting("tensorboard", True))
    if "wandb" in names:
        project = flags.find("environment.WANDB_PROJECT", "wandb_project")
        name = project.text() if project is not None else "huggingface"
        settings.append(Setting("wandb", name))
    others = [name for name in names if name not in ("tensorboard", "wandb", "visualdl")]
    if others:
        return missing("tensorboard = true and wandb = PROJECT are what there is", *settings)
    if settings:
        return translated(*settings)
    reason = "metrics.jsonl and loss.png always have the curves; tensorboard = true for a browser"
    return needless(reason if names else "nothing is sent anywhere")


def _wandb_project(flag: Flag, flags: Flags) -> Verdict:
    if "wandb" not in _trackers(flags):
        return needless("nothing is sent to Weights & Biases")
    return translated(Setting("wandb", flag.text()))


def _use_cpu(flag: Flag, flags: Flags) -> Verdict:
    return translated(Setting("device", "cpu")) if flag.truth() else needless("it is off")


def _bf16(flag: Flag, flags: Flags) -> Verdict:
    if flag.value.lower() == "auto" or flag.truth():
        return needless("bf16 wherever the device is good at it, with exact fp32 sums of updates")
    if flags.is_true("fp16"):
        return needless("fp16 decides")
    return translated(Setting("dtype", "float32"))


def _fp16(flag: Flag, flags: Flags) -> Verdict:
    if flag.value.lower() == "auto" or not flag.truth():
        return needless("it is off")
    return missing(NO_FP16)
