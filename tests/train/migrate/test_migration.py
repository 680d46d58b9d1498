"""Recipes out of other trainers' scripts, commands and files."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from internvl2.train.migrate.migration import SOURCES, Migration, migrate
from internvl2.train.migrate.verdicts import Kind
from internvl2.train.migrate.writing import recipe_text, report
from internvl2.train.recipe import DataSource, Freeze, Lora, Recipe

FOLDER = Path(__file__).parent / "sources"
NAMES = sorted(path.name for path in FOLDER.iterdir())


def migrated(name: str, **changes: str) -> Migration:
    """An example, some of its words changed."""
    text = (FOLDER / name).read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return migrate(text, name, folder=FOLDER)


def read_back(migration: Migration, folder: Path) -> Recipe:
    path = folder / "recipe.toml"
    path.write_text(recipe_text(migration))
    return Recipe.read(path)


def fates(migration: Migration) -> dict[str, Kind]:
    """The list that each flag is in."""
    return {entry.flag.shown: entry.kind for entry in migration.entries if entry.flag.is_given}


@pytest.mark.parametrize("name", NAMES)
def test_every_flag_of_a_source_is_in_exactly_one_list(name: str):
    text = (FOLDER / name).read_text()
    if name.endswith(".yaml"):
        written = re.findall(r"^(\w+:)", text, re.MULTILINE)
    else:
        commands = "\n".join(ln for ln in text.splitlines() if not re.match(r"\s*#", ln))
        written = re.findall(r"(?<![\w-])(--[a-z][\w-]*)", commands)
        written += [f"{n}=" for n in re.findall(r"^export (\w+)=", text, re.MULTILINE)]
    listed = [e.flag.shown for e in migrated(name).entries if e.flag.is_given]
    assert set(written) <= set(listed)
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_read_back_as_the_same_recipe(name: str, tmp_path: Path):
    found = migrated(name)
    assert read_back(found, tmp_path) == found.recipe


@pytest.mark.parametrize("size", ["1b", "2b", "8b"])
def test_the_scripts_of_paddlemix_become_the_recipes_of_that_name(size: str):
    found, ours = migrated(f"paddlemix_{size}.sh"), Recipe.read(f"{size}-paddlemix")
    meta = "paddlemix/examples/internvl2/shell/data/internvl_1_2_finetune.json"
    expected = replace(
        ours,
        model=f"OpenGVLab/InternVL2-{size.upper()}",
        output=f"work_dirs/internvl2-{size.upper()}",
        data=(DataSource(meta),),
        workers=1,
        recompute=found.recipe.recompute,
        optimizer=replace(ours.optimizer, moments="fp32"),
    )
    assert found.recipe == expected
    assert found.is_complete


def test_the_page_on_training_has_the_commands_of_paddlemix_with_ours_beside_them():
    page = (Path(__file__).parents[3] / "docs" / "training.md").read_text()
    pairs = re.findall(r"^sh (\S+)\ntorchrun .* train (\S+) --data (\S+)$", page, re.MULTILINE)
    assert [recipe for _, recipe, _ in pairs] == ["1b-paddlemix", "2b-paddlemix", "8b-paddlemix"]
    for script, recipe, data in pairs:
        size = recipe.split("-")[0]
        assert f"/internvl2_{size}_" in script
        assert migrated(f"paddlemix_{size}.sh").recipe.data == (DataSource(data),)


def test_an_official_full_script_becomes_our_recipe_of_that_size():
    found, ours = migrated("official_full.sh").recipe, Recipe.read("2b")
    assert found.optimizer == ours.optimizer
    assert found.schedule == ours.schedule
    assert found.freeze == ours.freeze
    assert (found.max_tiles, found.drop_path) == (ours.max_tiles, ours.drop_path)
    theirs = found.packs_per_step * found.packing.tokens
    assert theirs == ours.packs_per_step * ours.packing.tokens
    assert (found.keep, found.save_every, found.tensorboard) == (1, 200, True)


def test_an_official_lora_script_becomes_our_recipe_of_that_size():
    found, ours = migrated("official_lora.sh").recipe, Recipe.read("2b-lora")
    assert found.lora == replace(ours.lora, alpha=None)
    assert found.kept == ours.kept
    assert found.packing == ours.packing
    assert found.packs_per_step == ours.packs_per_step
    assert found.optimizer == ours.optimizer


# model, GPUs, samples, each, rate, decay, tokens, tiles, drop path, ZeRO, sharded
RELEASED = [
    ("InternVL2-1B", 8, 128, 4, "4e-5", "0.01", 4096, 6, 0.1, "zero_stage1_config.json", False),
    ("InternVL2-8B", 8, 128, 4, "4e-5", "0.05", 4096, 6, 0.1, "zero_stage1_config.json", False),
    ("InternVL2-26B", 8, 128, 2, "2e-5", "0.05", 4096, 6, 0.4, "zero_stage3_config.json", True),
    (
        *("InternVL2-Llama3-76B", 32, 128, 1, "2e-5", "0.05", 4096, 6, 0.4),
        *("zero_stage3_config_100b.json", True),
    ),
    ("InternVL2_5-4B", 8, 128, 4, "4e-5", "0.01", 8192, 6, 0.1, "zero_stage1_config.json", False),
    ("InternVL3-1B", 8, 128, 4, "1e-5", "0.05", 16384, 12, 0.0, "zero_stage1_config.json", False),
    ("InternVL3-78B", 32, 128, 2, "2e-5", "0.05", 16384, 12, 0.4, "zero_stage3.json", True),
]


@pytest.mark.parametrize("row", RELEASED, ids=lambda row: row[0])
def test_the_published_values_of_each_size_go_over(row: tuple):
    model, gpus, samples, each, rate, decay, tokens, tiles, drop_path, zero, sharded = row
    changes = {
        "InternVL2-2B": model,
        "GPUS:-8": f"GPUS:-{gpus}",
        "BATCH_SIZE:-128": f"BATCH_SIZE:-{samples}",
        "DEVICE_BATCH_SIZE:-4": f"DEVICE_BATCH_SIZE:-{each}",
        "rate 4e-5": f"rate {rate}",
        "decay 0.01": f"decay {decay}",
        "length 4096": f"length {tokens}",
        "patch 6": f"patch {tiles}",
        "drop_path_rate 0.1": f"drop_path_rate {drop_path}",
        "zero_stage1_config.json": zero,
    }
    found = migrated("official_full.sh", **changes)
    recipe = found.recipe
    assert found.is_complete
    assert recipe.optimizer.learning_rate == float(rate)
    assert recipe.optimizer.weight_decay == float(decay)
    assert (recipe.packing.tokens, recipe.max_tiles) == (tokens, tiles)
    assert recipe.packing.tiles == tokens * 30 // 8192
    assert (recipe.drop_path, recipe.shard) == (drop_path, sharded)
    assert recipe.packs_per_step == 64


def test_packs_of_the_official_code_are_packs_of_ours():
    recipe = migrated("official_packed.sh").recipe
    assert recipe.packs_per_step == 512
    assert (recipe.packing.tokens, recipe.packing.tiles) == (16384, 48)
    assert recipe.packing.loss_weighting == "square"
    assert recipe.schedule.max_steps == 5500
    assert not recipe.freeze.vision
    assert recipe.data == (DataSource("mixture.json", num_frames=32),)


def test_packs_of_paddlemix_are_packs_of_ours_too():
    found = migrate(
        "python -m paddle.distributed.launch --gpus 0,1 internvl_chat_pretrain.py "
        "--model_name_or_path m --use_packed_ds True --max_packed_tokens 4096 "
        "--num_images_expected 12 --max_seq_length 2048 --per_device_train_batch_size 1 "
        "--gradient_accumulation_steps 4",
        "x",
    )
    recipe = found.recipe
    assert (recipe.packing.tokens, recipe.packing.tiles, recipe.packs_per_step) == (4096, 12, 8)
    assert fates(found)["--max_seq_length"] == Kind.NEEDLESS


def test_training_on_preferences_has_no_counterpart():
    lost = {entry.flag.shown for entry in migrated("official_preferences.sh").of(Kind.MISSING)}
    flags = {"--loss_type", "--sigmoid_loss_weight", "--bco_pair_loss_weight", "--rpo_alpha"}
    assert lost == {*flags, "internvl/train/internvl_chat_mpo.py"}


def test_defaults_of_the_official_code_count_where_flags_are_left_out():
    command = "torchrun --nproc_per_node=2 internvl_chat_finetune.py --model_name_or_path m"
    found = migrate(command, "x")
    recipe = found.recipe
    assert not recipe.freeze.vision
    assert recipe.max_tiles == 1
    assert (recipe.optimizer.learning_rate, recipe.optimizer.weight_decay) == (5e-5, 0)
    assert (recipe.schedule.kind, recipe.schedule.epochs, recipe.seed) == ("linear", 3, 42)
    assert [e.flag.shown for e in found.of(Kind.MISSING)] == ["--use_thumbnail"]
    assert "schedule.epochs = 3.0" in "\n".join(report(found))


@pytest.mark.parametrize(
    ("flags", "key", "value"),
    [
        ("--unfreeze_vit_layers -3 --freeze_backbone True", "freeze.vision_last", 3),
        ("--unfreeze_vit_layers 20 --freeze_backbone True", "freeze.vision_last", 4),
        ("--use_backbone_lora 8", "lora.vision_rank", 8),
        ("--freeze_llm True --unfreeze_lm_head True", "freeze.head", False),
        ("--optim adamw_bnb_8bit", "optimizer.moments", "8bit"),
        ("--warmup_steps 50 --max_steps 1000", "schedule.warmup_ratio", 0.05),
        ("--bf16 False", "dtype", "float32"),
        ("--use_cpu True", "device", "cpu"),
        ("--report_to wandb", "wandb", "huggingface"),
        ("--grad_checkpoint False", "recompute.decoder", 0.0),
        ("--evaluation_strategy steps --eval_steps 70", "validation.every", 70),
        ("--use_llm_lora 4 --deepspeed ds_z3_config.json", "shard", True),
        ("--force_image_size 224", "tile_size", 224),
        ("--dynamic_image_size True --min_dynamic_patch 2", "min_tiles", 2),
    ],
)
def test_a_flag_says_a_key(flags: str, key: str, value: object):
    command = f"torchrun internvl_chat_finetune.py --model_name_or_path InternVL2-2B {flags}"
    assert migrate(command, "x").origins[key].setting.value == value


@pytest.mark.parametrize(
    "flag",
    [
        *("--ps_version v1", "--use_data_resampling True"),
        *("--pad2square True", "--normalize_type clip", "--vision_select_layer -4"),
        *("--optim adafactor", "--deepspeed zero_stage3_offload.json", "--neftune_noise_alpha 5"),
        *("--report_to swanlab", "--new_flag 1", "--resume_from_checkpoint old/checkpoint-7"),
        *("--save_strategy epoch", "--lr_scheduler_type polynomial", "--loss_type sigmoid"),
        "--fp16 True",
    ],
)
def test_what_has_no_counterpart_is_named(flag: str):
    name = flag.split()[0]
    given = "--use_thumbnail True --model_name_or_path m"
    found = migrate(f"torchrun internvl_chat_finetune.py {given} {flag}", "x")
    assert [entry.flag.shown for entry in found.of(Kind.MISSING)] == [name]
    assert f"NO COUNTERPART: {flag}: " in recipe_text(found).replace("\n# ", " ")


@pytest.mark.parametrize("flag", ["--force_image_size 224", "--min_dynamic_patch 2"])
def test_adapters_do_not_go_with_other_tiles(flag: str):
    flags = f"--model_name_or_path m --use_llm_lora 4 --dynamic_image_size True {flag}"
    found = migrate(f"torchrun internvl_chat_finetune.py --use_thumbnail True {flags}", "x")
    assert [entry.flag.shown for entry in found.of(Kind.MISSING)] == [flag.split()[0]]
    assert (found.recipe.tile_size, found.recipe.min_tiles) == (None, None)


def test_more_tiles_than_the_most_have_no_counterpart():
    flags = "--model_name_or_path m --dynamic_image_size True --max_dynamic_patch 4"
    given = f"torchrun internvl_chat_finetune.py {flags} --use_thumbnail True"
    found = migrate(f"{given} --min_dynamic_patch 5", "x")
    assert [entry.flag.shown for entry in found.of(Kind.MISSING)] == ["--min_dynamic_patch"]


def test_a_yaml_file_of_llama_factory_finds_its_data(tmp_path: Path):
    data = tmp_path / "data"
    data.mkdir()
    turns = '{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}'
    (data / "mine.json").write_text(f'[{{"messages": [{turns}]}}{", {}" * 3}]')
    (data / "dataset_info.json").write_text(
        '{"mine": {"file_name": "mine.json", "formatting": "sharegpt", '
        '"columns": {"messages": "messages", "images": "images"}, "tags": {"role_tag": "role", '
        '"content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}}, '
        '"old": {"file_name": "old.json"}, "far": {"hf_hub_url": "a/b"}}'
    )
    text = (FOLDER / "llama_factory.yaml").read_text()
    found = migrate(text, "lora.yaml", folder=tmp_path)
    assert found.is_complete
    recipe = found.recipe
    assert recipe.data == (DataSource(str(data / "mine.json"), repeat=0.5),)
    assert recipe.lora == Lora(decoder_rank=16, dropout=0.0, dora=True)
    assert (recipe.quantize, recipe.packing.tokens, recipe.max_tiles) == ("nf4", 2048, 2)
    assert recipe.optimizer.learning_rate == 1e-4
    assert recipe.freeze.projector
    assert recipe.packs_per_step == 4


def test_sets_of_llama_factory_that_would_be_read_as_something_else_are_left_out(tmp_path: Path):
    entries = {
        "old": {"file_name": "a.json"},
        "far": {"hf_hub_url": "a/b", "file_name": "a.json"},
        "pairs": {"file_name": "a.json", "formatting": "sharegpt", "ranking": True},
        "seen": {"file_name": "a.json", "formatting": "sharegpt", "columns": {"images": "seen"}},
        "told": {"file_name": "a.json", "formatting": "sharegpt", "columns": {"system": "told"}},
        "heard": {"file_name": "a.json", "formatting": "sharegpt", "columns": {"audios": "heard"}},
        "good": {"file_name": "good.json", "formatting": "sharegpt"},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries))
    text = f"model_name_or_path: m\nstage: sft\ndataset: {','.join(entries)},gone\n"
    found = migrate(text, "x", folder=tmp_path)
    assert [source.path for source in found.recipe.data] == [str(tmp_path / "good.json")]
    (lost,) = (e.verdict.note for e in found.of(Kind.MISSING) if e.flag.name == "dataset")
    for words in (
        *("old: the records of a.json have the form alpaca", "data convert", "far has hf_hub_url"),
        *("pairs: the records of a.json are preferences", "seen: the images of a.json stand in"),
        *("told: the system messages of a.json stand in", "heard: ", "'audios'", "gone is not in"),
    ):
        assert words in lost


def test_a_command_of_swift_goes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("train.jsonl").write_text('{"query": "Hi", "response": "Ho"}\n' * 5)
    found = migrated("swift.sh")
    recipe = found.recipe
    assert found.is_complete
    assert recipe.data == (DataSource("train.jsonl", repeat=0.4),)
    assert recipe.lora == Lora(decoder_rank=8, vision_rank=8, alpha=32.0)
    assert recipe.optimizer.vision_rate == pytest.approx(0.1)
    assert recipe.optimizer.projector_rate == pytest.approx(0.2)
    assert recipe.optimizer.betas == (0.9, 0.95)
    assert recipe.packs_per_step == 64
    assert (recipe.packing.tokens, recipe.max_tiles) == (2048, 6)
    assert recipe.schedule.epochs == 1


def test_full_training_with_swift_has_its_own_learning_rate():
    command = "swift sft --model OpenGVLab/InternVL2-2B --train_type full --freeze_aligner false"
    recipe = migrate(command, "x").recipe
    assert recipe.optimizer.learning_rate == 1e-5
    assert recipe.lora == Lora()
    assert not recipe.freeze.projector
    assert recipe.packs_per_step == 8


def test_swift_without_a_longest_sample_says_what_is_taken():
    text = recipe_text(migrate("swift sft --model OpenGVLab/InternVL2-2B", "x"))
    assert "as long as the model can read" in text
    assert "tokens = 8192" in text
    packed = "swift sft --model OpenGVLab/InternVL2-2B --packing true --packing_length 4096"
    assert migrate(packed, "x").recipe.packing.tokens == 4096


SWIFT_2 = """
swift sft --model_type internvl2-2b --model_revision master --dtype bf16 --sft_type full \\
    --model_id_or_path models/InternVL2-2B --custom_train_dataset_path train.jsonl \\
    --custom_val_dataset_path held-out.jsonl --batch_size 2 --eval_batch_size 1 \\
    --gradient_accumulation_steps 4 --train_dataset_sample -1 --lazy_tokenize true \\
    --preprocess_num_proc 4 --use_flash_attn true --deepspeed default-zero2
"""


def test_full_training_with_swift_2_goes_over():
    found = migrate(SWIFT_2, "x")
    recipe = found.recipe
    assert found.is_complete
    assert recipe.model == "models/InternVL2-2B"
    assert [source.path for source in recipe.data] == ["train.jsonl"]
    assert [source.path for source in recipe.validation.data] == ["held-out.jsonl"]
    assert recipe.packs_per_step == 4
    assert (recipe.packing.tokens, recipe.optimizer.max_grad_norm) == (2048, 0.5)
    assert recipe.freeze == Freeze(vision=False)


def test_adapters_of_swift_2_go_over_by_the_type_of_their_model():
    options = "--quantization_bit 4 --lora_target_modules ALL --lora_dropout_p 0.1 --max_length -1"
    options += " --max_steps -1 --self_cognition_sample 0 --add_output_dir_suffix false"
    found = migrate(f"swift sft --model_type internvl2-8b --sft_type lora {options}", "x")
    recipe = found.recipe
    assert found.is_complete
    assert (recipe.model, recipe.quantize) == ("internvl2-8b", "nf4")
    assert recipe.lora == Lora(decoder_rank=8, alpha=32.0, dropout=0.1)
    assert recipe.freeze == Freeze(projector=True)
    assert recipe.packing.tokens == 8192


def test_adapters_of_swift_2_on_some_matrices_have_no_counterpart():
    options = "--sft_type lora --lora_target_modules DEFAULT --train_dataset_sample 500"
    found = migrate(f"swift sft --model_type internvl2-2b {options}", "x")
    assert fates(found)["--lora_target_modules"] == Kind.MISSING
    assert fates(found)["--train_dataset_sample"] == Kind.MISSING


def test_a_set_of_a_hub_must_be_downloaded_first():
    found = migrate("swift sft --model InternVL2-2B --dataset a/b#500 --system Hello", "x")
    assert fates(found)["--dataset"] == Kind.MISSING
    assert fates(found)["--system"] == Kind.MISSING


def test_a_model_of_another_family_has_no_counterpart():
    found = migrate("swift sft --model Qwen/Qwen2-VL-2B-Instruct", "x")
    assert fates(found) == {"--model": Kind.MISSING}


@pytest.mark.parametrize(("lora", "layout"), [("", "hf"), (" --use_llm_lora 8", "opengvlab")])
def test_a_model_in_the_layout_of_transformers_gives_one_unless_adapters_are_trained(
    lora: str, layout: str
):
    command = "torchrun internvl_chat_finetune.py --model_name_or_path OpenGVLab/InternVL3-1B-hf"
    assert migrate(command + lora, "x").recipe.layout == layout


def test_arguments_of_paddlemix_in_json_are_read():
    text = (
        '{"model_name_or_path": "OpenGVLab/InternVL2-1B", "meta_path": "m.json", "bf16": true,\n'
        '"fp16_opt_level": "O1", "learning_rate": 1e-5, "use_thumbnail": true, "recompute": true}'
    )
    found = migrate(text, "sft.json")
    assert found.source.name == "PaddleMIX"
    assert found.recipe.optimizer.learning_rate == 1e-5
    assert found.recipe.recompute.decoder == 1
    assert found.is_complete


def test_flags_in_a_file_that_a_command_names_are_read(tmp_path: Path):
    (tmp_path / "sft.yaml").write_text("model: InternVL2-1B\nlearning_rate: 1e-5\n")
    found = migrate("swift sft --config sft.yaml --learning_rate 3e-5", "x", folder=tmp_path)
    assert found.recipe.optimizer.learning_rate == 3e-5
    assert fates(found)["learning_rate:"] == Kind.NEEDLESS
    with pytest.raises(FileNotFoundError, match=r"takes flags from gone\.yaml"):
        migrate("llamafactory-cli train gone.yaml", "x", folder=tmp_path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("echo hello", "there is no training command; what is read is a shell script"),
        ("swift sft --model a\nswift sft --model b", r"2 training commands \(lines 1, 2\)"),
        ("swift sft --tuner_type lora", "x names no model: model is missing"),
        ("stage: sft\ncutoff_len: 2", "x names no model: model_name_or_path is missing"),
        ("swift sft --model m --learning_rate fast", "--learning_rate is 'fast'; a number"),
        ("swift sft --model m --learning_rate 0", "x: optimizer.learning_rate is 0.0; it must"),
        ("swift sft --model m --weight_decay 1e400", "a number that is not so large"),
        ("swift sft --model $M", r"\$M is set nowhere; give it with --set M=VALUE"),
        ("megatron sft --model m", "`swift sft` is read"),
        ("model: a\nlr: 1e-5\n", r"its keys \(model, lr\) are of no known trainer"),
        ("model: a\nstage: sft\nmodel: b\n", "model twice"),
        ('{"model": 1,\n}', "x:2: not JSON"),
    ],
)
def test_a_source_that_cannot_be_read_is_told_why(text: str, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        migrate(text, "x")


def test_the_number_of_gpus_may_be_said():
    command = "swift sft --model InternVL2-2B --gradient_accumulation_steps 16"
    assert migrate(command, "x").recipe.packs_per_step == 8
    assert migrate(command, "x", gpus=6).recipe.packs_per_step == 48


@pytest.mark.parametrize(
    ("launcher", "packs"),
    [
        ("deepspeed --include localhost:0,1,2", 12),
        ("deepspeed --include a:0,1@b:0,1", 16),
        ("deepspeed --include a", 4),
        ("accelerate launch --num_processes 2", 8),
        ("torchrun --nnodes 2 --nproc-per-node 2", 16),
    ],
)
def test_launchers_say_how_many_gpus_train(launcher: str, packs: int):
    command = f"{launcher} internvl_chat_finetune.py --model_name_or_path m"
    assert migrate(command, "x").recipe.packs_per_step == packs


def test_a_table_without_values_of_its_own_has_no_heading():
    command = "swift sft --model m --dataset a.jsonl --val_dataset b.jsonl --eval_steps 200"
    lines = recipe_text(migrate(command, "x")).splitlines()
    assert "[[validation.data]]" in lines
    assert "[validation]" not in lines


@pytest.mark.parametrize("kind", SOURCES)
def test_defaults_of_a_source_have_rules(kind: str):
    source = SOURCES[kind]  # type: ignore[index]
    assert set(source.defaults) <= set(source.rules())


def test_the_report_names_flag_value_and_what_became_of_it():
    lines = report(migrated("official_lora.sh"))
    assert any(re.match(r"  --use_llm_lora 16 +lora.decoder_rank = 16", line) for line in lines)
    assert any("--conv_style internlm2-chat" in ln and "template" in ln for ln in lines)
