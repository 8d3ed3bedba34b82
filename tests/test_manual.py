"""What is generated from the program: man pages and the schema of the configuration say what the program does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

TOP = Path(__file__).resolve().parents[1]
LIBRARY = TOP / "scripts" / "lib"
sys.path.append(str(LIBRARY))

from manual import __main__ as program  # noqa: E402 - scripts/lib is on nobody's path
from manual import configuration, roff, rules  # noqa: E402

from netagent import errors, settings  # noqa: E402
from netagent.cli import main as commands  # noqa: E402
from netagent.nftables import layout  # noqa: E402

# A busy machine may take its time.
SECONDS = 60
FILES = program.files()
PAGES = {path.name: text for path, text in FILES.items() if path.suffix != ".json"}


# --- man pages --------------------------------------------------------------------------------------------------


def test_the_files_in_the_repository_are_what_the_program_says_now() -> None:
    assert program.stale(TOP) == [], "run scripts/build-man"


def test_the_same_program_gives_the_same_bytes() -> None:
    assert program.files() == FILES


def test_a_file_that_is_missing_stale_or_too_much_is_named(tmp_path: Path) -> None:
    program.write(tmp_path)
    assert program.stale(tmp_path) == []
    (tmp_path / "share/man/man8/netagent.8").write_text("old")
    (tmp_path / "share/man/man8/netagent-run.8").unlink()
    (tmp_path / "share/man/man8/netagent-gone.8").write_text("")
    assert program.stale(tmp_path) == [
        "share/man/man8/netagent-gone.8: nothing generates it any more",
        "share/man/man8/netagent.8: is not what the program says now",
        "share/man/man8/netagent-run.8: is missing",
    ]
    program.write(tmp_path)
    assert program.stale(tmp_path) == []


def test_every_command_has_a_page_with_all_its_options() -> None:
    with click.Context(commands.main) as context:
        for name in commands.main.list_commands(context):
            command = commands.main.get_command(context, name)
            assert command is not None
            page = PAGES[f"netagent-{name}.8"]
            for option in command.params:
                if isinstance(option, click.Option):
                    for flag in option.opts:
                        assert roff.escaped(flag) in page, f"{flag} of {name}"
            assert f"\\fBnetagent\\-{name}\\fR(8)" in PAGES["netagent.8"]


def test_every_setting_is_in_the_page_of_the_configuration() -> None:
    page = PAGES["netagent.conf.5"]
    words = " ".join(page.split())
    for setting in settings.SETTINGS:
        assert f"\n\\fB{roff.escaped(setting.path)}\\fR\n" in page
        assert roff.escaped(f"{setting.unit}; default: {setting.default}]") in words


def test_the_page_of_the_rules_names_every_set_and_chain_and_no_other() -> None:
    assert set(rules.SETS) == set(layout.sets(affinity_clients=1))
    made = {value for name, value in vars(layout).items() if name.isupper() and isinstance(value, str)}
    assert set(rules.SETS) | set(rules.CHAINS) == made | {"prerouting", "output", "postrouting", "forward"}


@pytest.mark.parametrize("name", sorted(PAGES))
def test_groff_renders_the_page_without_a_warning(name: str) -> None:
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("not installed: groff")
    if not [
        macros for root in ("/usr/share", "/usr/local/share") for macros in Path(root).glob("groff/*/tmac/an*.tmac")
    ]:
        pytest.skip("not installed: the macros of man pages (Debian package groff)")
    done = subprocess.run(
        [groff, "-man", "-Tutf8", "-ww", "-k"],
        input=PAGES[name],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    shown = re.sub(".\x08", "", done.stdout)  # bold, as typewriters make it
    assert "\nNAME\n" in shown
    assert "\nSEE ALSO\n" in shown


@given(st.text(alphabet=st.sampled_from("a.'\\-`^~\"…µ \n%{}"), max_size=30))
def test_no_text_is_taken_for_a_request(text: str) -> None:
    page = roff.Page("x", 1, purpose="y", version="0")
    before = len(str(page).splitlines())
    page.paragraph(text)
    added = str(page).splitlines()[before:]
    assert added[0] == ".PP"
    assert not [line for line in added[1:] if line.startswith((".", "'"))]


# --- the schema of the configuration ----------------------------------------------------------------------------

HEAD = {"apiVersion": settings.API_VERSION, "kind": settings.KIND}


def document(path: str, value: object) -> dict[str, Any]:
    section, _, name = path.rpartition(".")
    return {**HEAD, section: {name: value}} if section else {**HEAD, name: value}


def schema_takes(found: dict[str, Any]) -> bool:
    return bool(jsonschema.Draft202012Validator(configuration.schema()).is_valid(found))


def netagent_takes(found: dict[str, Any]) -> bool:
    try:
        settings.parse(json.dumps(found), origin="test")
    except errors.ConfigError as error:
        # What stands in two fields is no matter of the schema.
        return "must not be empty in this detectLocalMode" in str(error) or "is longer than the" in str(error)
    return True


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(configuration.schema())


@pytest.mark.parametrize("setting", settings.SETTINGS, ids=lambda setting: setting.path)
def test_the_default_of_a_setting_fits_the_schema_and_null_does(setting: settings.Setting) -> None:
    for value in (yaml.safe_load(setting.default), None):
        assert schema_takes(document(setting.path, value))


@pytest.mark.parametrize("name", ["kube-proxy-config.yaml"])
def test_the_example_fits(name: str) -> None:
    assert schema_takes(yaml.safe_load((TOP / "examples" / name).read_text()))


VALUES: tuple[object, ...] = (
    True, 0, 1, -1, 14, 31, 32, 1000, 1001, -1000, 2**24, 2**31, 0.5, 1e10, "", "nftables", "ipvs", "ClusterCIDR",
    "auto", "10.0.0.0/8", "10.0.0.1", "10.0.0.1:80", "30s", "1m30s", "-1s", "1.5h", ".5s", "-0s", "30", "x", "x" * 16,
    "x" * 64, [], ["primary"], ["10.0.0.0/8"], ["IPv4"], ["IPv6", "IPv4"], ["UDP"], ["TCP"], [1], {}, {"a": 1},
)  # fmt: skip


@pytest.mark.parametrize("setting", settings.SETTINGS, ids=lambda setting: setting.path)
def test_the_schema_refuses_nothing_that_netagent_takes(setting: settings.Setting) -> None:
    for value in VALUES:
        found = document(setting.path, value)
        if netagent_takes(found):
            assert schema_takes(found), value


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "userspace"},
        {"mode": 1},
        {"nftables": {"masqueradeBit": 32}},
        {"nftables": {"syncPeriod": 30}},
        {"nftables": {"syncPeriod": "30"}},
        {"nftables": {"masqueradeAl": True}},
        {"netagent": {"families": []}},
        {"netagent": {"families": ["IPv5"]}},
        {"netagnet": {}},
        {"featureGates": {"X": "yes"}},
        {"kind": "ConfigMap"},
    ],
    ids=str,
)
def test_the_schema_and_netagent_refuse_the_same_mistakes(wrong: dict[str, Any]) -> None:
    assert not netagent_takes({**HEAD, **wrong})
    assert not schema_takes({**HEAD, **wrong})


def test_ignored_fields_fit() -> None:
    for path in settings.IGNORED:
        name = path.replace("*", "SomeGate")
        assert schema_takes(document(name, False))
