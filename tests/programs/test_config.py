"""The command line: what DESIGN section 5 and the published README promise."""

import json
import shlex
from pathlib import Path
from typing import get_origin

import pytest

from config import Config
from config.config import REMOVED
from config.flags import PLACES, flag_parser, flags_of
from config.search import SearchConfig
from tests.small_models import settled, small_textdiffs
from utils.command_line import Parser
from utils.errors import InputError

# the commands of the README that people know, as they stand there, with their folders filled in
TEST_COMMANDS = {
    "MSRVTT": "python test.py --datetime=2024_06_01   --arch=clip_stochastic   --videos_dir=/videos  --batch_size=32 "
    "--noclip_lr=1e-7 --transformer_dropout=0.3  --dataset_name=MSRVTT --msrvtt_train_file=9k   --gpu='0'  "
    "--load_epoch=0   --exp_name=MSR-VTT-9k --diffusion_steps=10",
    "LSMDC": "python test.py --arch=clip_stochastic    --exp_name=LSMDC --videos_dir=/videos  --batch_size=32 "
    "--noclip_lr=1e-7 --transformer_dropout=0.3 --dataset_name=LSMDC --gpu='0' --num_epochs=5   --load_epoch=0 "
    "--datetime=2024_06_01 --diffusion_steps=10",
    "DiDeMo": "python test.py  --num_frame=12 --raw_video  --arch=clip_stochastic  --exp_name=DiDeMo "
    "--videos_dir=/videos --batch_size=32 --noclip_lr=1e-7 --transformer_dropout=0.4  --dataset_name=DiDeMo  --gpu='0' "
    "--num_epochs=5   --load_epoch=0 --datetime=2024_06_01 --diffusion_steps=10",
    "ActivityNet": "python test.py --arch=clip_stochastic    --exp_name=ActivityNet --videos_dir=/videos  "
    "--batch_size=32 --noclip_lr=1e-7 --transformer_dropout=0.3 --dataset_name=ActivityNet --gpu='0' --num_epochs=5   "
    "--load_epoch=0 --datetime=2024_06_01 --diffusion_steps=10",
}
TRAIN_COMMANDS = {
    "MSRVTT": "python train.py  --arch=clip_stochastic    --exp_name=MSR-VTT-9k --videos_dir=/videos  --batch_size=32 "
    "--noclip_lr=1e-7 --transformer_dropout=0.3  --dataset_name=MSRVTT --msrvtt_train_file=9k  --gpu='0' "
    "--num_epochs=5  --diffusion_steps=10 ",
    "LSMDC": "python train.py --arch=clip_stochastic   --exp_name=LSMDC --videos_dir=/videos  --batch_size=32 "
    "--noclip_lr=1e-7 --transformer_dropout=0.3 --dataset_name=LSMDC   --gpu='0'  --num_epochs=5  --diffusion_steps=10",
    "DiDeMo": "python train.py  --num_frame=12 --raw_video  --arch=clip_stochastic   --exp_name=DiDeMo "
    "--videos_dir=/videos --batch_size=32 --noclip_lr=1e-7 --transformer_dropout=0.4 --dataset_name=DiDeMo  --gpu='0' "
    "--num_epochs=5  --diffusion_steps=10",
    "ActivityNet": "python train.py --arch=clip_stochastic   --exp_name=ActivityNet --videos_dir=/videos "
    "--batch_size=32 --noclip_lr=1e-7 --transformer_dropout=0.4 --dataset_name=ActivityNet  --gpu='0' --num_epochs=5  "
    "--diffusion_steps=10",
}

# DESIGN section 5: every flag, a value to give it, and its default where one is written down
ANY = object()
FLAGS = {
    "dataset_name": ("LSMDC", ANY),
    "videos_dir": ("/videos", None),
    "msrvtt_train_file": ("7k", ANY),
    "num_frames": (6, 12),
    "video_sample_type": ("rand", "uniform"),
    "input_res": (112, 224),
    "exp_name": ("name", ANY),
    "output_dir": ("/outputs", "./outputs"),
    "save_every": (2, 1),
    "log_step": (3, 10),
    "evals_per_epoch": (4, 1),
    "load_epoch": (7, None),
    "eval_window_size": (6, 5),
    "metric": ("v2t", "t2v"),
    "arch": ("clip_transformer", ANY),
    "clip_arch": ("ViT-B/16", "ViT-B/32"),
    "embed_dim": (128, ANY),
    "loss": ("clip", "clip"),
    "clip_lr": (2e-6, 1e-6),
    "noclip_lr": (1e-7, 1e-5),
    "batch_size": (8, 32),
    "num_epochs": (6, 5),
    "weight_decay": (0.1, 0.2),
    "warmup_proportion": (0.2, 0.1),
    "diffusion_steps": (20, 10),
    "pooling_type": ("avg", "transformer"),
    "k": (3, ANY),
    "attention_temperature": (0.1, 0.01),
    "num_mha_heads": (2, 1),
    "transformer_dropout": (0.4, 0.3),
    "num_workers": (1, 8),
    "seed": (25, 24),
    "tb_log_dir": ("/logs", None),
    "datetime": ("2024_06_01", None),
    "gpu": ("1", None),
    "support_loss_weight": (0.5, ANY),
    "batch_size_split": (4, ANY),
    "stochastic_prior": ("normal", ANY),
    "stochastic_prior_std": (2.0, ANY),
    "stochasic_trials": (10, ANY),
    "recipe": ("published", "textdiffs"),
    "hard_negatives": (4, 1),
    "read_captions": (1, 5),
    "potential_lr": (3e-3, 3e-4),
    "select_on": ("test", "val"),
}
SWITCHES = ("no_tensorboard", "noloss_record", "save_memory_mode", "raw_video", "skip_eval", "DSL")


def parse(line=""):
    return Config.parse(shlex.split(line))


@pytest.mark.parametrize("dataset", TEST_COMMANDS)
def test_known_test_commands_parse(dataset):
    config = parse(TEST_COMMANDS[dataset].removeprefix("python test.py"))
    assert (config.dataset_name, config.load_epoch, config.gpu) == (dataset, 0, "0")
    assert (config.batch_size, config.noclip_lr, config.diffusion_steps) == (32, 1e-7, 10)
    assert config.arch == "clip_stochastic"
    assert config.transformer_dropout == (0.4 if dataset == "DiDeMo" else 0.3)
    name = "MSR-VTT-9k" if dataset == "MSRVTT" else dataset
    assert str(config.run_dir) == f"outputs/{name}/2024_06_01"
    assert str(config.videos_dir) == "/videos"


@pytest.mark.parametrize("dataset", TRAIN_COMMANDS)
def test_known_train_commands_parse(dataset):
    config = parse(TRAIN_COMMANDS[dataset].removeprefix("python train.py"))
    assert (config.dataset_name, config.num_epochs, config.load_epoch) == (dataset, 5, None)
    assert (config.num_frames, config.msrvtt_train_file, config.metric) == (12, "9k", "t2v")
    assert config.raw_video == (dataset == "DiDeMo")
    assert config.transformer_dropout == (0.4 if dataset in ("DiDeMo", "ActivityNet") else 0.3)


@pytest.mark.parametrize("name", FLAGS)
def test_every_flag_can_be_given(name):
    value, _ = FLAGS[name]
    for form in ([f"--{name}={value}"], [f"--{name}", str(value)]):
        config = Config.parse(form)
        assert getattr(config, name) == value
        assert config.explicit == {name}


@pytest.mark.parametrize("name", [name for name, (_, default) in FLAGS.items() if default is not ANY])
def test_defaults(name):
    value, default = FLAGS[name]
    assert getattr(parse(), name) == default
    assert value != default or name == "loss"


@pytest.mark.parametrize("name", SWITCHES)
def test_switches_are_off_until_given(name):
    assert getattr(parse(), name) is False
    assert getattr(parse(f"--{name}"), name) is True


def test_aliases():
    assert parse("--num_frame=6").num_frames == 6
    assert parse("--chunk_size=6").batch_size_split == 6
    assert parse("--stochastic_trials=7").stochasic_trials == 7
    assert parse("--arch=clip_textdiffs").arch == "clip_stochastic"
    assert parse("--num_frame=6").explicit == {"num_frames"}


def test_resolution_follows_the_clip():
    assert parse("--clip_arch=tiny").input_res == 64
    assert parse("--clip_arch=ViT-L/14").input_res == 224
    assert parse("--clip_arch=tiny --input_res=96").input_res == 96


@pytest.mark.parametrize("clip_arch", ["ViT-B/32", "ViT-B/16", "ViT-L/14", "tiny", "tiny-shapes"])
def test_clip_archs(clip_arch):
    assert parse(f"--clip_arch={clip_arch}").clip_arch == clip_arch


@pytest.mark.parametrize("load_epoch", [-1, 0, 3])
def test_load_epoch_takes_minus_one(load_epoch):
    assert parse(f"--load_epoch={load_epoch}").load_epoch == load_epoch
    assert parse(f"--load_epoch {load_epoch}").load_epoch == load_epoch


def test_config_json_round_trip(tmp_path):
    flags = " ".join(f"--{name}={value}" for name, (value, _) in FLAGS.items())
    config = parse(f"{flags} {' '.join(f'--{name}' for name in SWITCHES)}")
    config.save(tmp_path / "config.json")
    assert Config.load(tmp_path / "config.json") == config
    written = json.loads((tmp_path / "config.json").read_text())
    assert written.keys() == flags_of(Config).keys()
    assert written["noclip_lr"] == 1e-7
    assert written["DSL"] is True


def test_config_json_of_a_default_run(tmp_path):
    parse().save(tmp_path / "config.json")
    assert Config.load(tmp_path / "config.json") == parse()


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "3", '"text"', "null", '{"batch_sizes": 3}', b"\xff\xfe\x00"])
def test_damaged_config_json_is_named(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=r"config\.json"):
        Config.load(path)


def test_missing_config_json_is_named(tmp_path):
    with pytest.raises(InputError, match=r"config\.json"):
        Config.load(tmp_path / "config.json")


@pytest.mark.parametrize(
    "flag",
    [
        "--pooling_type=avg", "--k=3", "--attention_temperature=0.1", "--support_loss_weight=0.8",
        "--stochastic_prior=normal", "--stochastic_prior_std=2", "--stochastic_trials=5", "--raw_video",
    ],
)  # fmt: skip
@pytest.mark.parametrize("arch", ["clip_stochastic", "clip_transformer"])
def test_flags_of_other_methods_are_noted_in_one_line(arch, flag):
    (line,) = parse(f"--arch={arch} {flag}").notes()
    name = {"stochastic_trials": "stochasic_trials"}.get(flag.strip("-").split("=")[0], flag.strip("-").split("=")[0])
    assert f"--{name} " in line
    assert "no effect" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "flag",
    [
        "--diffusion_steps=5",
        "--recipe=published",
        "--hard_negatives=2",
        "--read_captions=1",
        "--potential_lr=1e-4",
        "--diffusion_lm=/x",
    ],
)
def test_flags_of_the_diffusion_are_noted_for_xpool_only(flag):
    (line,) = parse(f"--arch=clip_transformer {flag}").notes()
    assert flag.split("=")[0] in line
    assert "clip_transformer" in line
    assert parse(f"--arch=clip_stochastic {flag}").notes() == []


@pytest.mark.parametrize(
    ("flag", "recipe", "other"),
    [("--sampler=ddim", "published", "textdiffs"), ("--sampling_steps=5", "published", "textdiffs"),
     ("--hard_negatives=2", "textdiffs", "published"),
     ("--read_captions=1", "textdiffs", "published"), ("--potential_lr=1e-4", "textdiffs", "published")],
)  # fmt: skip
def test_flags_of_one_recipe_are_noted_for_the_other(flag, recipe, other):
    assert parse(f"--recipe={recipe} {flag}").notes() == []
    said = f"{flag.split('=')[0]} has no effect without --recipe={recipe}"
    assert parse(f"--recipe={other} {flag}").notes() == [said]
    assert "clip_tmass" in parse(f"--arch=clip_tmass {flag}").notes()[0]


@pytest.mark.parametrize("name", sorted(REMOVED.keys() - {"chunk_size"}))  # which is another name now
def test_flags_that_are_no_more_are_refused(name):
    with pytest.raises(InputError, match=f"--{name}"):
        parse(f"--{name}=1")


def test_pooling_of_the_baseline():
    baseline = "--arch=clip_baseline"
    assert parse(baseline).pooling_type == "avg"  # transformer, the default of the flag, is another arch
    assert parse(f"{baseline} --pooling_type=topk --k=12").notes() == []
    assert parse(f"{baseline} --pooling_type=attention --attention_temperature=0.1").notes() == []
    for line, said in (
        ("--k=3", "--k has no effect without --pooling_type=topk"),
        ("--pooling_type=topk --k=3 --attention_temperature=0.1",
         "--attention_temperature has no effect without --pooling_type=attention"),
        ("--noclip_lr=1e-7", "--noclip_lr has no effect with --arch=clip_baseline: it belongs to clip_stochastic, "
         "clip_tmass, clip_transformer, clip_wti"),
    ):  # fmt: skip
        assert parse(f"{baseline} {line}").notes() == [said]
    for line, said in (
        ("--pooling_type=transformer", "--arch=clip_transformer"),
        ("--pooling_type=topk", "--num_frames=12, not -1"),
        ("--pooling_type=topk --k=7 --num_frames=6", "--num_frames=6, not 7"),
        ("--pooling_type=attention --attention_temperature=0", "--attention_temperature=0.0"),
    ):
        with pytest.raises(InputError, match=said):
            parse(f"{baseline} {line}")


def test_flags_of_tmass():
    flags = "--support_loss_weight=0.5 --stochastic_trials=3 --rerank_topk=5 --num_mha_heads=2"
    assert parse(f"--arch=clip_tmass --stochastic_prior=normal --stochastic_prior_std=2 {flags}").notes() == []
    (line,) = parse("--arch=clip_tmass --stochastic_prior_std=2").notes()
    assert line == "--stochastic_prior_std has no effect without --stochastic_prior=normal"
    (line,) = parse("--arch=clip_tmass --diffusion_steps=5").notes()
    assert "clip_stochastic" in line
    with pytest.raises(InputError, match="--stochasic_trials=0"):
        parse("--arch=clip_tmass --stochastic_trials=0")


def test_flags_that_were_not_given_are_not_noted():
    assert parse().notes() == []
    assert parse("--arch=clip_transformer --num_mha_heads=2 --batch_size=3").notes() == []


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("--batch_size=0", "--batch_size"),
        ("--batch_size=-3", "--batch_size"),
        ("--batch_size=many", "--batch_size"),
        ("--batch_size=1.5", "--batch_size"),
        ("--batch_size", "--batch_size"),
        ("--num_frames=0", "--num_frames"),
        ("--num_frame=0", "--num_frames"),
        ("--num_epochs=0", "--num_epochs"),
        ("--diffusion_steps=0", "--diffusion_steps"),
        ("--input_res=0", "--input_res"),
        ("--num_mha_heads=0", "--num_mha_heads"),
        ("--num_workers=-1", "--num_workers"),
        ("--log_step=0", "--log_step"),
        ("--save_every=0", "--save_every"),
        ("--evals_per_epoch=0", "--evals_per_epoch"),
        ("--eval_window_size=0", "--eval_window_size"),
        ("--batch_size_split=0", "--batch_size_split"),
        ("--load_epoch=-2", "--load_epoch"),
        ("--transformer_dropout=1.5", "--transformer_dropout"),
        ("--warmup_proportion=-0.1", "--warmup_proportion"),
        ("--clip_lr=-1", "--clip_lr"),
        ("--clip_lr=nan", "--clip_lr"),
        ("--noclip_lr=inf", "--noclip_lr"),
        ("--sampling_steps=11", "--sampling_steps"),
        ("--hard_negatives=0", "--hard_negatives"),
        ("--read_captions=0", "--read_captions"),
        ("--potential_lr=-1", "--potential_lr"),
        ("--dataset_name=MSRVTTX", "MSRVTTX"),
        ("--arch=clip", "--arch"),
        ("--metric=v2v", "--metric"),
        ("--clip_arch=ViT-H/14", "ViT-H/14"),
        ("--msrvtt_train_file=8k", "--msrvtt_train_file"),
        ("--no_such_flag=1", "--no_such_flag"),
        ("--num_epoch=1", "--num_epoch"),  # no guessing of abbreviated names
        ("stray", "stray"),
    ],
)
def test_bad_values_are_input_errors_of_one_line(line, named):
    with pytest.raises(InputError) as caught:
        parse(line)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_dataset_lists_the_known_ones():
    with pytest.raises(InputError, match=r"MSRVTT.*MSVD.*LSMDC.*DiDeMo.*ActivityNet.*MovingShapes"):
        parse("--dataset_name=nothing")


def test_flags_of_the_data():
    for line, said in (
        ("--frame_cache_gb=5", "--frame_cache_gb has no effect without --frame_cache"),
        ("--annotations=own.csv", "--annotations has no effect without --dataset_name=custom"),
    ):
        assert parse(line).notes() == [said]
        assert parse(f"{line} --frame_cache=/cache --dataset_name=custom --annotations=own.csv").notes() == []
    own = parse("--dataset_name=custom --annotations=a/own.csv")
    assert str(own.dataset_dir) == "a/own.csv"
    assert parse().allow_missing is False and parse().frame_cache is None
    with pytest.raises(InputError, match="--annotations is missing"):
        parse("--dataset_name=custom")


PATH_WORDS = ("dir", "path", "cache", "file", "annotations", "embeddings", "sims", "json", "index", "sheet")


@pytest.mark.parametrize("kind", [Config, SearchConfig])
def test_a_tilde_in_a_path_is_the_home_folder(kind, monkeypatch):
    """Shells leave it in --flag=~/x. Hub ids, words and numbers stay as they are."""
    monkeypatch.setenv("HOME", "/home/me")
    paths = {name for name, (_, declared) in flags_of(kind).items() if declared.metavar in PLACES}
    parser = flag_parser(kind)
    for f, declared in flags_of(kind).values():
        if f.name in paths:
            for given, meant in {"~/a b": "/home/me/a b", "~": "/home/me", "a/~/b": "a/~/b", "a/b-c": "a/b-c"}.items():
                wanted = [meant] if get_origin(f.type) is tuple else meant
                assert vars(parser.parse_args([f"--{f.name}={given}"])) == {f.name: wanted}
            with pytest.raises(InputError, match=f"--{f.name}.*~nobody-of-this-name/x"):
                parser.parse_args([f"--{f.name}=~nobody-of-this-name/x"])
        elif "str" in str(f.type) and not declared.choices:
            assert f.name.rpartition("_")[2] not in PATH_WORDS, "a path that is not declared as one"
    assert {"output_dir", "clip_path", "videos_dir", "annotations", "resume", "frame_cache", "diffusion_lm"} <= paths
    assert parser.parse_args(["--resume"]).resume == "latest"
    assert parser.parse_args(["--clip_path=openai/clip-vit-base-patch32"]).clip_path == "openai/clip-vit-base-patch32"


def test_a_tilde_in_paths_of_other_programs(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    parser = Parser("program", "")
    parser.add_argument("place", type=Path)
    parser.add_argument_group("group").add_argument("--output", type=Path, default="./data")
    args = parser.parse_args(["~/x", "--output=~/y"])
    assert (args.place, args.output) == (Path("/home/me/x"), Path("/home/me/y"))
    assert parser.parse_args(["x"]).output == Path("data")


def test_the_seed_of_a_test_is_that_of_the_training_unless_it_is_given():
    """So that test.py finds the numbers that train.py has written."""
    trained = settled(small_textdiffs(["a b"]), Config(seed=25)).model_config
    for arguments, seed in (([], 25), (["--seed=3"], 3)):
        config = Config.parse(arguments, program="test")
        assert trained.as_asked(config, Path("model_best.pth")).seed == seed
