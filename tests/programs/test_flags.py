"""Which flags each program has, and what follows from the role of a flag: a new flag is a decision."""

import re
import shlex

import pytest

from config import Config, SearchConfig
from config.flags import ROLES, flag_parser, flags_of, names_of
from config.pretraining import PretrainingConfig
from utils.errors import InputError

OF_MODEL = """
    arch recipe clip_arch clip_path embed_dim num_frames input_res pooling_type k attention_temperature num_mha_heads
    diffusion_steps diffusion_lm diffusion_text_len stochastic_prior stochastic_prior_std seed
"""
OF_RUN = "exp_name output_dir datetime"
OF_SCORE = "sampler sampling_steps stochasic_trials rerank_topk"
OF_MACHINE = "gpu precision batch_size num_workers"
OF_BOTH = f"""
    {OF_MODEL} {OF_RUN} {OF_SCORE} {OF_MACHINE} compile batch_size_split save_memory_mode
    dataset_name videos_dir data_dir annotations allow_missing msrvtt_train_file split
    frame_cache frame_cache_gb raw_video noclip_lr metric DSL output_json
"""
FLAGS = {
    "train": f"""
        {OF_BOTH} video_sample_type loss clip_lr potential_lr num_epochs weight_decay warmup_proportion
        transformer_dropout support_loss_weight read_captions hard_negatives grad_accum
        gradient_checkpointing select_on evals_per_epoch eval_window_size skip_eval
        resume save_every save_steps keep_last log_step no_tensorboard tb_log_dir noloss_record
    """,
    "test": f"{OF_BOTH} load_epoch save_embeddings load_embeddings save_sims report",
    "index": f"index videos_dir exclude window {OF_MODEL} {OF_RUN} load_epoch {OF_MACHINE}",
    "query": f"""
        index videos_dir queries plus without like describe captions folder since until topk per_video min_score
        pool_topk format contact_sheet cut {OF_SCORE} {OF_MACHINE} seed batch_size_split
    """,
    "serve": f"index videos_dir host port pool_topk {OF_SCORE} {OF_MACHINE} seed batch_size_split",
}
COMMON = "--exp_name=a --noclip_lr=1e-7"


def kind_of(program):
    return Config if program in ("train", "test") else SearchConfig


@pytest.mark.parametrize("program", FLAGS)
def test_flags_of_a_program(program):
    """Each of them is in its help, and no other."""
    wanted = FLAGS[program].split()
    assert len(set(wanted)) == len(wanted)
    assert set(names_of(kind_of(program), lambda declared: declared.shown_by(program))) == set(wanted)
    shown = re.findall(r"^  (?:.*, )?--(\w+)", flag_parser(kind_of(program), program).format_help(), re.MULTILINE)
    aliases = {
        "num_frame": "num_frames",
        "stochastic_trials": "stochasic_trials",
        "chunk_size": "batch_size_split",
        "in": "folder",
    }
    assert {aliases.get(name, name) for name in shown} == {*wanted, "help"}


def test_flags_of_the_pretraining():
    wanted = """
        dataset_name captions data_dir annotations msrvtt_train_file min_count held_out denoiser diffusion_steps
        text_len dropout steps lr batch_size ema_rate seed gpu precision output_dir log_step eval_every save_steps
        resume samples
    """
    assert flags_of(PretrainingConfig).keys() == set(wanted.split())


def test_number_of_flags():
    both = set(f"{FLAGS['train']} {FLAGS['test']}".split())
    assert both == flags_of(Config).keys()
    assert len(both) <= 75


def test_every_flag_has_a_role_and_a_group():
    for name, (_, declared) in (flags_of(Config) | flags_of(SearchConfig) | flags_of(PretrainingConfig)).items():
        assert declared.role in ROLES and declared.group, name


@pytest.mark.parametrize(("program", "other"), [("train", "test"), ("test", "train")])
def test_flags_of_the_other_program_are_taken_and_noted(program, other):
    """Commands that people know give them; a note says that they do nothing, unless they are of both."""
    values = {bool: "", int: "=3", float: "=0.5"}
    for name in set(FLAGS[other].split()) - set(FLAGS[program].split()):
        f, declared = flags_of(Config)[name]
        value = f"={declared.choices[-1]}" if declared.choices else values.get(f.type, "=3")
        config = Config.parse([f"--{name}{value}"], program)
        assert config.notes(program) == [f"--{name} has no effect in {program}.py: it is for {other}.py"]
        assert not any(".py" in note for note in config.notes(other))
    assert Config.parse(shlex.split(COMMON), program).notes(program) == []


@pytest.mark.parametrize("command", ["index", "query", "serve"])
def test_search_takes_its_own_flags_alone(command):
    """`query` takes those of the model, too, which an index tells it."""
    of_index = [] if command != "query" else [*OF_MODEL.split(), *OF_RUN.split(), "load_epoch"]
    taken = names_of(SearchConfig, lambda declared: declared.taken_by(command))
    assert set(taken) == {*FLAGS[command].split(), *of_index}
    with pytest.raises(InputError, match="--num_epochs"):
        SearchConfig.parse([command, "--index=i", "--num_epochs=2"])
