"""The architecture is a table: a module imports from lower layers only, and each outside world has one door."""

import ast
from pathlib import Path

import pytest
from things import ROOT

PACKAGE = ROOT / "vmbatch"
LAYERS = {
    1: "__init__ model disk names hypervisors records errors quantities hashes joblink failpoints guest settings "
    "partitions deviceorder xmltext tagforms disktags tags tagschema machine troff",
    2: "process pids journal channel turns callforms unpack",
    3: "events pipes userfiles confined",
    4: "config archives catalogue templates request backends hypervisor iso blockexport convert convertdisks",
    5: "node slots accelerator choices diskplan plan payload rundir images contexts networks schedulers",
    6: "domain domaindisks teardown output ready",
    7: "lifecycle",
    8: "commands reap status diagnosis installation manual templatepage elsewhere",
    9: "hook cli remoteshell pygrub",
}
LAYER = {name: number for number, names in LAYERS.items() for name in names.split()}
FAMILIES = ("schedulers", "contexts", "networks", "images")
# A module below may call these above it: the entries are also commands, made of the same pieces.
UPWARD = {
    ("installation", "manual"),
    ("manual", "cli"),
    ("hook", "remoteshell"),
    ("commands", "remoteshell"),
}
DOORS = {
    "libvirt": {"hypervisor"},
    "libvirt_qemu": {"hypervisor"},
    "pycdlib": {"iso"},
    "urllib3": {"images"},
    "ftplib": {"images"},
    "subprocess": {"process"},
    "tarfile": {"archives", "output", "unpack"},
}


def modules() -> list[tuple[str, Path]]:
    return [
        (path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path)
        for path in sorted(PACKAGE.rglob("*.py"))
        if "data" not in path.parts
    ]


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "vmbatch" else [node.module]
    return found


def ours(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "vmbatch" and len(parts) > 1 and parts[1] != "__version__" else None


def test_every_module_has_a_layer() -> None:
    assert {name for name, _ in modules()} == set(LAYER)


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda value: str(value).removeprefix(str(PACKAGE)))
def test_a_module_imports_from_its_own_layer_or_lower_ones(name: str, path: Path) -> None:
    for imported in filter(None, map(ours, imports(path))):
        allowed = LAYER[imported] <= LAYER[name] or (name, imported) in UPWARD
        assert allowed, f"{path.name} (layer {LAYER[name]}) imports {imported} (layer {LAYER[imported]})"


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda value: str(value).removeprefix(str(PACKAGE)))
def test_families_do_not_import_each_other(name: str, path: Path) -> None:
    for imported in filter(None, map(ours, imports(path))):
        assert not (name in FAMILIES and imported in FAMILIES and name != imported), f"{path} imports {imported}"


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda value: str(value).removeprefix(str(PACKAGE)))
def test_each_outside_world_has_one_door(name: str, path: Path) -> None:
    for imported in imports(path):
        assert name in DOORS.get(imported.partition(".")[0], {name}), f"{path} imports {imported}"


@pytest.mark.parametrize("path", [path for _, path in modules()], ids=lambda path: path.stem)
def test_no_shell_and_no_guessed_image_format(path: Path) -> None:
    text = path.read_text()
    for word in ("shell=True", "os.system", "os.popen", "os.chown("):
        assert word not in text
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.List) and node.elts and ast.unparse(node.elts[0]) == "'qemu-img'":
            words = [ast.unparse(one) for one in node.elts]
            assert "'-f'" in words, f"qemu-img without -f: {words}"
            assert "'-b'" not in words or "'-F'" in words, f"qemu-img -b without -F: {words}"


def test_the_jobs_shell_imports_next_to_nothing() -> None:
    allowed = {"os", "select", "signal", "sys", "fcntl", "collections.abc", "termios", "tty", "shlex", "vmbatch"}
    for name in ("remoteshell", "channel", "callforms", "turns", "joblink"):
        found = {one for one in imports(PACKAGE / f"{name}.py") if not one.startswith("vmbatch.")}
        assert found <= allowed, f"{name} imports {found - allowed}"


@pytest.mark.parametrize("path", [path for _, path in modules()], ids=lambda path: path.stem)
def test_modules_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300
