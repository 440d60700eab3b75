"""Settings: defaults, files and flags, and what each value must be."""

import re

import pytest

import data
from amaml import InputError
from experiment import settings
from experiment.methods import METHODS
from experiment.settings import FIELDS, FOLDER, checked, flag_name, merged, parse_flags, read_toml

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


def test_flags_win_over_the_domains_file_which_wins_over_the_defaults(configs):
    (configs / "Alpine2D.toml").write_text("width = 7.0\nseed = 3\n")  # a whole number may have a point
    s = merged(parse_flags(["--domain", "Alpine2D", "--seed", "4"]))
    assert (s.width, s.seed, s.shots, type(s.width)) == (7, 4, 100, int)
    assert merged({"domain": "CosMixture"}).width == 32


def test_flags_have_the_types_of_their_settings():
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
