"""Settings: defaults, files, flags; and what mistakes get: one line with value, allowed and remedy, nothing lost."""

import re

import pytest
from helpers.commands import error_line, files, refused, start

import data
import run
from amaml import InputError
from experiment import machine, opening, settings
from experiment.methods import METHODS
from experiment.settings import FIELDS, FOLDER, checked, flag_name, merged, parse_flags, read_toml

LIMITS = {"shots": 1000, "queries": 1000, "meta-batch": 100, "test-tasks": 100}
COUNTS = [*LIMITS, "inner-steps", "meta-updates", "width", "cg-steps", "checkpoint-interval", "ways", "task-chunk"]
COUNTS += ["processes", "test-steps"]
BAD_RATES = ["0", "-0.1", "nan", "inf", "x", "1e31"]
BAD_COUNTS = ["-3", "2.5", "ten", "", "nan", "inf", "1e3", "9" * 400, "2147483648"]
FINETUNE = ["--protocol", "finetune"]  # the sizes of TINY are for it
MISTAKES = [
    (["--domain", "alpine2d"], ["unknown domain 'alpine2d'", "did you mean 'Alpine2D'?", "CosMixture2D-slides"]),
    (["--method", "mamal"], ["unknown method 'mamal'", "did you mean 'maml'?", "reptile"]),
    (["--meta_updates", "3"], ["'--meta_updates'", "did you mean '--meta-updates'?"]),
    (["maml"], ["unknown flag 'maml'"]),
    (["--shots"], ["--shots", "expected one argument", "--help"]),
    (["--resume=yes"], ["--resume", "'yes'", "--help"]),
    *((["--" + name, "0"], [f"--{name} must be a positive integer", "'0'"]) for name in COUNTS),
    *((["--" + name, str(most + 1)], [f"--{name} {most + 1}", f"at most {most}"]) for name, most in LIMITS.items()),
    *((["--shots", bad], ["--shots must be a positive integer", repr(bad)]) for bad in BAD_COUNTS),
    (["--test-epochs", "-1"], ["--test-epochs must be zero or a positive integer", "'-1'"]),
    (["--seed", str(2**63)], ["--seed must be zero or a positive integer below 2**63", str(2**63)]),
    *((["--inner-lr", bad], ["--inner-lr must be a positive number below 1e30", repr(bad)]) for bad in BAD_RATES),
    (["--rtol", "1"], ["--rtol must be a number between 0 and 1", "'1'"]),
    *((["--noise", bad], ["--noise must be 0 or a number below 1", repr(bad)]) for bad in ("1", "-0.1")),
    (["--prox", "-1"], ["--prox must be zero or a positive number", "'-1'"]),
    (["--prox", "0", "--method", "imaml"], ["prox", "positive", "0.0"]),
    (["--device", "cuda:99"], ["--device 'cuda:99' is not there", "this machine has: cpu"]),
    (["--device", "gpu"], ["--device must be cpu, cuda or cuda:N, got 'gpu'"]),
    (["--solver", "rk44"], ["unknown solver 'rk44'", "did you mean 'rk4'?"]),
    (["--norm", "batch", "--shots", "1"], ["--norm batch", "at least 2", "--shots 1"]),
    (["--meta-optimizer", "adamw"], ["unknown meta-optimizer 'adamw'", "did you mean 'adam'?"]),
    (["--network", "conv4"], ["--network conv4", "CosMixture", "choose mlp or linear"]),
    (["--method", "maml", "--inner-batch", "5"], ["--inner-batch 5", "at most 4"]),
    (["--query-steps", "1", "9"], ["query_steps must be increasing numbers of inner steps from 0 to 2, got"]),
    *((["--query-steps", bad], ["--query-steps must be zero or", repr(bad)]) for bad in ("-1", "x", "101%", "%")),
    (["--query-weights", "1"], ["--query-weights are those of --query-steps; give both"]),
    (["--query-steps", "50%", "--query-weights", "1", "2"], ["query_weights must have a number for each of 1", "2.0"]),
    (["--protocol", "innner"], ["unknown protocol 'innner'", "did you mean 'inner'?"]),
    (["--domain", "Jester", *FINETUNE], ["Jester", "--data-root", "AMAML_DATA"]),
    (["--domain", "MiniImageNet", "--network", "conv4", *FINETUNE], ["MiniImageNet", "--data-root"]),
    (["--domain", "Glyphs", "--ways", "10000", *FINETUNE], ["--ways 10000", "choose at most"]),
    (["--draw", "101"], ["--draw must be an integer from 0 to 100", "'101'"]),
    (["--draw", "3"], ["--draw 3", "at most 2"]),
    (["--method", "reptile", "--cg-steps", "9"], ["--cg-steps 9 is for --method imaml, not for reptile; leave it out"]),
    (["--solver", "rk4"], ["--solver rk4 is for --method amaml or anil, not for fomaml"]),
    (["--method", "maml", "--learn-rates", "scalar"], ["is for --method amaml or anil, not for maml"]),
    (["--inner-batch", "2"], ["--inner-batch 2 is for --method maml or maml1, not for fomaml"]),
    (["--network", "linear"], ["--width 4 is for --network mlp or conv4"]),
    (["--test-steps", "9", *FINETUNE], ["--test-steps 9 is for --protocol inner or both, not for finetune"]),
    (["--ways", "9"], ["--ways 9 is for --domain Omniglot or MiniImageNet"]),
    (["--out", ""], ["--out must be a path", "''"]),
    (["--resume", "--overwrite"], ["--resume", "--overwrite", "choose one"]),
    (["--evaluate", "nowhere"], ["cannot read the checkpoint nowhere", "No such file"]),
]


@pytest.mark.parametrize(("flags", "fragments"), MISTAKES, ids=lambda value: " ".join(value)[:40])
def test_a_wrong_flag_gets_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, flags, fragments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AMAML_DATA", raising=False)
    line = refused(capsys, "run", *flags)
    assert all(fragment in line for fragment in fragments), line
    assert list(tmp_path.iterdir()) == []


def test_compiling_needs_a_compiler(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(opening, "compiler_found", lambda: False)
    assert "--compile on needs a C++ compiler" in refused(capsys, tmp_path / "run", "--compile", "on")
    assert list(tmp_path.iterdir()) == []
    assert not opening._compiles(merged({"domain": "CosMixture"}))


def test_no_domain_is_a_mistake_that_names_them_all(capsys):
    assert run.main(["--shots", "5"]) == 2
    line = error_line(capsys)
    assert all(name in line for name in data.DOMAINS)


def test_tasks_of_many_inputs_are_not_drawn_which_stops_no_run(tmp_path):
    flags = ["--domain", "Logistic", *FINETUNE, "--network", "mlp", "--draw", "1"]
    with pytest.warns(RuntimeWarning, match=r"these have \(50,\): there will be no picture"):
        assert start(tmp_path / "run", *flags) == 0
    assert "summary.json" in files(tmp_path / "run")
    assert "fits.png" not in files(tmp_path / "run")


OUTS = {
    "file": "is a file",
    "file/below": "Not a directory",
    "/proc/amaml": "No such file",
    "x" * 300: "File name too long",
    "two\nlines": "two lines is a file",
    "foreign": "holds",
    "project": "config",
}


@pytest.mark.parametrize("flags", [(), ("--overwrite",), ("--resume",), ("--evaluate", "run")], ids=str)
@pytest.mark.parametrize("out", OUTS, ids=lambda out: out[:12])
def test_an_out_that_cannot_be_used_is_refused_and_left_alone(finished, tmp_path, monkeypatch, capsys, out, flags):
    """An evaluation's too, which may not be another run's folder."""
    monkeypatch.chdir(tmp_path)
    held = {"file": "precious", "two\nlines": "precious", "foreign/thesis.tex": "precious"}
    for name, text in (held | {"project/config.json": '{"name": "another program"}'}).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    line = refused(capsys, out, *flags, "--out", out, keeps=tmp_path)
    assert all(said in line for said in (OUTS[out], " ".join(out[:50].split()), "--out")), line


@pytest.mark.parametrize(
    ("flags", "lost", "fragment"),
    [
        (["--overwrite", "--shots", "2000"], [], "--shots 2000"),
        (["--overwrite", "--norm", "batch", "--shots", "1"], [], "--norm batch"),
        (["--resume", "--domain", "CosMixture-slides"], [], "with --domain CosMixture, not CosMixture-slides; choose"),
        (["--resume", "--method", "maml"], [], "holds a run with --method fomaml, not maml"),
        (["--meta-updates", "8"], [], "{out} holds a finished run of 6 updates; go on with --resume or discard"),
        (["--meta-updates", "8", "--resume"], ["checkpoint.pt"], "{out} has lost its checkpoint.pt"),
        ([], ["summary.json"], "{out} holds an unfinished run; go on with --resume or discard it with --overwrite"),
        (["--resume", "--meta-updates", "5"], ["summary.json"], "--meta-updates 5 is less than the 6 already made"),
    ],
    ids=str,
)
def test_a_run_is_neither_lost_nor_continued_unasked(finished, capsys, flags, lost, fragment):
    for name in lost:
        (finished / name).unlink()
    assert fragment.format(out=finished) in refused(capsys, finished, *flags, keeps=finished)


def test_a_network_that_no_memory_holds_is_refused_before_it_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("experiment.build.seeded", None)
    monkeypatch.setattr("os.sysconf", lambda name: 2**18)  # pages of 256 KiB: 64 GiB
    for flags, tasks in (([], 2), (["--meta-batch", "50"], 50), (["--task-chunk", "1"], 1)):
        line = refused(capsys, tmp_path / "run", "--width", "60000", *flags)
        assert f"{tasks} tasks at once take at least" in line
        assert "parameters, choose a smaller one, or a smaller --task-chunk" in line
    assert list(tmp_path.iterdir()) == []


def test_processes_of_one_machine_need_a_device_each(monkeypatch):
    machine.check_device("cpu", 9)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    machine.check_device("cuda", 2)
    with pytest.raises(run.InputError, match="3 processes need a GPU each, this machine has 2"):
        machine.check_device("cuda", 3)
    with pytest.raises(run.InputError, match="choose --device cuda, one for each"):
        machine.check_device("cuda:0", 2)


DEFAULTS = read_toml(FOLDER / "defaults.toml")


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """A folder of configuration files to break: the real defaults, and no domain's file."""
    for name in ("defaults.toml", "synthetic.toml"):
        (tmp_path / name).write_text((FOLDER / name).read_text())
    monkeypatch.setattr(settings, "FOLDER", tmp_path)
    return tmp_path


def test_every_setting_has_one_default():
    in_code = {name for name, f in FIELDS.items() if f.default is not None or "None" in str(f.type)}
    assert set(DEFAULTS) == set(FIELDS) - in_code - {"domain"}


def test_none_is_a_value_and_what_a_file_says_of_another_method_is_not_used():
    s = merged({"domain": "Alpine2D", "robust": "none", "learn_rates": "none"})
    assert (s.robust, s.learn_rates) == (None, None)
    assert merged({"domain": "Omniglot", "method": "reptile"}).cg_damping == 1.0


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_the_files_hold_overrides_only(path):
    values = read_toml(path)
    if path.stem != "defaults":
        assert path.stem in {*data.DOMAINS, *(kind.defaults for kind in data.DOMAINS.values())}
        tables = [values.pop(name) for name in METHODS if name in values]
        assert all(DEFAULTS.get(name) != value for table in (values, *tables) for name, value in table.items())


def test_a_domains_file_may_say_what_differs_for_one_method(configs):
    def of(name: str, **given):
        s = merged({"domain": "Alpine2D"} | given)
        return getattr(s, name)

    (configs / "Alpine2D.toml").write_text("[imaml]\ncg_steps = 7\n[amaml]\nrtol = 0.5\n")
    (configs / "synthetic.toml").write_text("[amaml]\nrtol = 0.25\nprox = 0.5\n")
    assert (of("prox", method="imaml"), of("cg_steps", method="imaml")) == (None, 7)
    assert (of("rtol"), of("prox"), of("prox", prox=0.0), of("rtol", domain="CosMixture")) == (0.5, 0.5, 0.0, 0.25)
    (configs / "Alpine2D.toml").write_text('method = "imaml"\n[imaml]\nprox = 3.0\n[amaml]\nprox = 4.0\n')
    assert (of("prox"), of("prox", method="amaml")) == (3.0, 4.0)


def test_flags_have_the_types_of_their_settings_and_win_over_the_domains_file_which_wins_over_the_defaults(configs):
    (configs / "Alpine2D.toml").write_text("width = 7.0\nseed = 3\n")  # a whole number may have a point
    s = merged(parse_flags(["--domain", "Alpine2D", "--seed", "4"]))
    assert (s.width, s.seed, s.shots, type(s.width)) == (7, 4, 100, int)
    assert merged({"domain": "CosMixture"}).width == 32
    flags = parse_flags(["--shots", "7", "--inner-lr=1e-2", "--resume", "--out", "a b", "--prox", "0", "--shots", "8"])
    assert flags == {"shots": 8, "inner_lr": 0.01, "resume": True, "out": "a b", "prox": 0.0}
    assert type(flags["prox"]) is float
    assert parse_flags([]) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("widht = 3", "unknown setting in {path} 'widht'; did you mean 'width'?"),
        ("width = 'three'", "--width in {path} must be a positive integer below 2**31, got 'three'"),
        ("width = 2.5", "--width in {path} must be a positive integer"),
        ("inner_lr = nan", "--inner-lr in {path} must be a positive number"),
        ("inner_lr = [1]", "--inner-lr in {path} must be a positive number"),
        ("method = 'mml'", "unknown method in {path} 'mml'; did you mean 'maml'?"),
        ("resume = 'false'", "--resume in {path} must be true or false, got 'false'"),
        ("out = 3", "--out in {path} must be a path, got 3"),
        ("width = ", "cannot read the configuration {path}"),
        ("\xff\xfe", "cannot read the configuration {path}"),
        ("[amalm]\nprox = 1.0", "unknown setting in {path} 'amalm'"),
        ("[maml]\nshotz = 5", "unknown setting in {path} 'shotz'"),  # also where another method is chosen
        ("[maml]\nshots = 0", "--shots in {path} must be a positive integer"),
        ('[amaml]\nmethod = "maml"', "method in {path} is not for the table [amaml]"),
        (None, "cannot read the configuration {path}"),
    ],
)
def test_a_mistake_in_a_file_names_the_file(configs, text, said):
    path = configs / "Alpine2D.toml"
    path.mkdir() if text is None else path.write_text(text, "latin-1")
    with pytest.raises(InputError, match=re.escape(said.format(path=path))):
        merged({"domain": "Alpine2D"})


def test_settings_must_be_complete_and_known():
    whole = DEFAULTS | {"domain": "Logistic"} | read_toml(FOLDER / "Logistic.toml")
    optional = [name for name, f in FIELDS.items() if "None" in str(f.type)]
    assert checked(whole) == checked(whole | dict.fromkeys(optional)) == merged({"domain": "Logistic"})
    for name in whole:
        with pytest.raises(InputError, match=f"{flag_name(name)} in the file is missing"):
            checked({k: v for k, v in whole.items() if k != name}, " in the file")
        with pytest.raises(InputError, match=name.replace("_", ".")):
            checked(whole | {name: None})
