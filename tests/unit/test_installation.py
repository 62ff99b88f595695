"""What `vmbatch install` writes, and that it takes itself away."""

import sys
from pathlib import Path

import pytest
import things
from hypothesis import given
from hypothesis import strategies as st

from vmbatch import installation
from vmbatch.errors import SiteError

PLACE = installation.Layout(
    Path("/opt/p"), Path("/etc/slurm/slurm.conf"), Path("/etc/vmbatch/vmbatch.toml"), Path("/run/v"), True
)
CONF = "ClusterName=x\nProlog=/etc/slurm/site-prolog\n# a comment\nPrologFlags=X11\nNodeName=n1\n"


def test_slurm_conf_gets_our_lines_and_keeps_the_sites_hook() -> None:
    text, before = installation.slurm_lines(CONF, PLACE)
    assert "\nProlog=/opt/p/libexec/vmbatch/slurm/prolog\n" in text
    assert "\nPrologFlags=Alloc,X11\n" in text
    assert "\nTaskProlog=/opt/p/libexec/vmbatch/slurm/task_prolog\n" in text
    assert before == {"prolog": "/etc/slurm/site-prolog"}


def test_applied_twice_it_is_the_same_and_taken_away_it_is_the_original() -> None:
    once, before = installation.slurm_lines(CONF, PLACE)
    assert installation.slurm_lines(once, PLACE) == (once, before)
    assert installation.without(once) == CONF


@given(
    st.lists(st.sampled_from([*CONF.splitlines(), "Epilog=/e", "taskprolog = /t", "", "SchedulerParameters=a"]), max_size=9)
)
def test_any_slurm_conf_comes_back_unchanged(lines: list[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    once, _ = installation.slurm_lines(text, PLACE)
    assert installation.without(once) == text
    assert installation.slurm_lines(once, PLACE)[0] == once


@pytest.mark.parametrize(("conf", "name"), [(CONF, "x"), ("clustername = My_C  # c\n", "my_c"), ("#ClusterName=a\n", "")])
def test_the_plugin_is_told_the_clusters_name(conf: str, name: str) -> None:
    assert installation.cluster_name(conf) == name


def test_a_pattern_as_prolog_is_refused_with_what_to_do() -> None:
    with pytest.raises(SiteError, match="a pattern") as caught:
        installation.slurm_lines("Prolog=/etc/slurm/prolog.d/*\n", PLACE)
    assert "link /opt/p/libexec/vmbatch/slurm/prolog" in caught.value.hint


def test_first_lines_are_absolute_and_isolated() -> None:
    files = installation.files(PLACE, {})
    for path, (text, mode) in files.items():
        if mode & 0o111:
            first = text.splitlines()[0]
            assert first in (f"#!{sys.executable} -I", "#!/bin/sh"), f"{path}: {first}"
            assert "@" not in text.replace("@{", ""), f"{path} has an unfilled place"
    gates = {path.name for path, (text, _) in files.items() if text.startswith("#!/bin/sh")}
    assert gates == {"prolog", "epilog", "task_prolog"}


@pytest.mark.programs
@pytest.mark.parametrize(("site_code", "gate_code"), [(0, 0), (3, 3)])
@pytest.mark.parametrize("name", ["prolog", "epilog"])
def test_a_sites_own_hook_is_called_in_turn(name: str, site_code: int, gate_code: int, tmp_path: Path) -> None:
    import subprocess

    site = tmp_path / "site-hook"
    site.write_text(f"#!/bin/sh\necho site >> {tmp_path}/order\nexit {site_code}\n")
    hook = tmp_path / "libexec" / "vmbatch" / "vmbatch-hook"
    hook.parent.mkdir(parents=True)
    hook.write_text(f"#!/bin/sh\necho ours $* >> {tmp_path}/order\n")
    place = installation.Layout(tmp_path, Path("/c"), Path("/d"), tmp_path, False)
    gate = tmp_path / name
    gate.write_text(installation.files(place, {name: str(site)})[place.libexec / "slurm" / name][0])
    for file in (site, hook, gate):
        file.chmod(0o755)
    for env, ours in (({}, False), ({"SPANK_VMBATCH_VM": "tiny"}, True), ({"SLURM_JOB_COMMENT": "x vm=y"}, True)):
        (tmp_path / "order").unlink(missing_ok=True)
        assert subprocess.run([str(gate)], env=env, check=False).returncode == gate_code
        lines = (tmp_path / "order").read_text().splitlines()
        expected = ours and (site_code == 0 or name == "epilog")
        assert lines == ["site"] + ([f"ours slurm {name}ue"] if expected else [])


def test_every_file_of_the_package_is_found() -> None:
    assert installation.source("spank", "vmbatch.c").exists()
    assert installation.source("hooks/slurm", "prolog").exists()
    assert "installed" if things.ROOT not in Path(installation.__file__).parents else "tree"
