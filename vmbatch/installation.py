"""What `vmbatch install` puts on a node, decided: files and their text, and the lines of slurm.conf. Pure but for reading.

Everything can be undone: files carry no state, and changed lines of slurm.conf are kept beside ours, marked.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from vmbatch import manual
from vmbatch.config import Config
from vmbatch.errors import SiteError

_HERE = Path(__file__).parent
_MARK = "#vmbatch# "
_BEGIN = "# vmbatch begin: `vmbatch install --uninstall` takes this away and restores the lines marked #vmbatch#"
_END = "# vmbatch end"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things go."""

    prefix: Path
    slurm_conf: Path
    config_file: Path
    run: Path
    comment: bool  # requests in --comment: the task prolog guards them
    cluster: str = ""  # "": slurm.conf does not tell, and the plugin believes the task's environment

    @property
    def libexec(self) -> Path:
        return self.prefix / "libexec" / "vmbatch"

    @property
    def shell(self) -> Path:
        return self.prefix / "bin" / "vmbatch-remoteshell"

    @property
    def plugin(self) -> Path:
        return self.libexec / "slurm" / "vmbatch.so"

    @property
    def plugstack(self) -> Path:
        return self.slurm_conf.parent / "plugstack.conf.d" / "vmbatch.conf"


def layout(config: Config, prefix: Path, config_file: Path) -> Layout:
    conf = config.slurm.conf
    cluster = cluster_name(conf.read_text()) if conf.exists() else ""
    return Layout(prefix, conf, config_file, config.paths.run, config.slurm.comment, cluster)


def cluster_name(conf: str) -> str:
    """Return ClusterName as Slurm puts it into environments, "" where this text does not hold it."""
    match = re.search(r"^\s*ClusterName\s*=\s*([^\s#]+)", conf, re.IGNORECASE | re.MULTILINE)
    return match[1].lower() if match else ""


def source(*names: str) -> Path:
    """Find a file of ours, installed or in the source tree: source("hooks/slurm", "prolog")."""
    in_tree = {"spank": "packaging/spank", "units": "packaging/systemd"}.get(names[0], names[0])
    for place in (_HERE / "data" / names[0], _HERE.parent / in_tree):
        path = place.joinpath(*names[1:])
        if path.exists():
            return path
    raise SiteError(f"this installation lacks {'/'.join(names)}", "install vmbatch again")


def entry(module: str, call: str) -> str:
    """A root-owned entry point: Python by its absolute path, isolated from the caller's environment and folders."""
    return f"#!{sys.executable} -I\nimport sys\n\nfrom vmbatch.{module} import main\n\n{call}\n"


def files(place: Layout, before: dict[str, str]) -> dict[Path, tuple[str, int]]:
    """Return path -> (text, mode). `before`: the site's own Prolog and Epilog, which ours call."""
    words = ["--config", str(place.config_file), "--shell", str(place.shell)]
    cluster = f" cluster={place.cluster}" if place.cluster else ""
    result = {
        place.libexec / "vmbatch-hook": (entry("hook", f"sys.exit(main([*sys.argv[1:], *{words!r}]))"), 0o755),
        place.libexec / "vmbatch-reap": (
            entry("cli", f"sys.exit(main(['--config', {str(place.config_file)!r}, 'reap']))"),
            0o755,
        ),
        place.libexec / "pygrub-vmbatch": (entry("pygrub", "sys.exit(main(sys.argv[1:]))"), 0o755),
        place.shell: (entry("remoteshell", f"main(sys.argv, {str(place.run)!r}, leave=True)"), 0o755),
        place.plugstack: (f"required {place.plugin} shell={place.shell} run={place.run}{cluster}\n", 0o644),
    }
    for name in ("prolog", "epilog", "task_prolog"):
        text = _fill(source("hooks/slurm", name).read_text(), place)
        result[place.libexec / "slurm" / name] = (_call_before(text, name, before.get(name, "")), 0o755)
    for page, text in manual.pages().items():
        result[place.prefix / "share/man" / f"man{page[-1]}" / page] = (text, 0o644)
    for unit in ("vmbatch-reap.service", "vmbatch-reap.timer"):
        result[place.prefix / "lib/systemd/system" / unit] = (_fill(source("units", unit).read_text(), place), 0o644)
    completion = place.prefix / "share/bash-completion/completions/vmbatch"
    result[completion] = (manual.bash_completion(), 0o644)
    lua = _fill(source("hooks/slurm", "job_submit.lua").read_text(), place)
    result[place.libexec / "slurm" / "job_submit.lua"] = (lua, 0o644)
    return result


def _fill(text: str, place: Layout) -> str:
    for word, value in (("libexec", place.libexec), ("run", place.run), ("bin", place.shell.parent)):
        text = text.replace(f"@{word}@", str(value))
    return text


def _call_before(gate: str, name: str, site: str) -> str:
    """The site's own hook runs first, and its failure counts; for the epilog ours still runs."""
    if not site:
        return gate
    first, rest = gate.split("\n", 1)
    if name == "epilog":
        return f"{first}\n{site}\nsite=$?\n" + rest.replace("exec ", "").rstrip("\n") + " || exit\nexit $site\n"
    return f"{first}\n{site} || exit\n{rest}"


def slurm_lines(text: str, place: Layout) -> tuple[str, dict[str, str]]:
    """Return slurm.conf with our lines, and the site's own hooks by our names for them. Applied twice, it is the same."""
    plain = without(text)
    wanted = {"Prolog": str(place.libexec / "slurm/prolog"), "Epilog": str(place.libexec / "slurm/epilog")}
    if place.comment:
        wanted["TaskProlog"] = str(place.libexec / "slurm/task_prolog")
    before: dict[str, str] = {}
    names = {"prolog": "prolog", "epilog": "epilog", "taskprolog": "task_prolog"}
    lines = []
    flags = "Alloc"
    for line in plain.splitlines():
        match = re.match(r"\s*(Prolog|Epilog|TaskProlog|PrologFlags)\s*=\s*(\S+)", line, re.IGNORECASE)
        key = match[1].lower() if match else ""
        if match is None or (key == "taskprolog" and not place.comment):
            lines.append(line)
            continue
        if key == "prologflags":
            given = match[2].split(",")
            flags = match[2] if {"alloc", "contain"} & {one.lower() for one in given} else f"Alloc,{match[2]}"
        else:
            before[names[key]] = _single(match[1], match[2], place)
        lines.append(_MARK + line)
    ours = [_BEGIN, *(f"{key}={value}" for key, value in wanted.items()), f"PrologFlags={flags}", _END]
    return "\n".join([*lines, *ours]) + "\n", before


def _single(key: str, value: str, place: Layout) -> str:
    if re.search(r"[*?\[]", value):
        raise SiteError(
            f"slurm.conf has {key}={value}, a pattern", f"link {place.libexec}/slurm/{key.lower()} into that folder"
        )
    return value


def without(text: str) -> str:
    """Return slurm.conf without anything of ours."""
    lines, inside = [], False
    for line in text.splitlines():
        if line == _BEGIN:
            inside = True
        if not inside:
            lines.append(line.removeprefix(_MARK))
        if line == _END:
            inside = False
    return "\n".join(lines) + ("\n" if lines else "")
