"""Example nouns for tests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from vmbatch import plan, templates
from vmbatch.config import Config, load
from vmbatch.model import Allocation, Guest, Image, Job, Node, Person, Request, Size, Slot

ROOT = Path(__file__).resolve().parent.parent.parent
PERSON = Person("alice", 1000, 1000, Path("/home/alice"), (("alice", 1000), ("physics", 2000)))
JOB = Job("slurm", "prod", "n-1", "4711", "alice", 1000, 1000, Path("/home/alice/run"), "tiny")
IMAGE = Image("tiny", "/images/tiny.qcow2")
NODE = Node("n-1", "b00t", PERSON, Allocation(2, 1024), "kvm", "a kernel boots")


def config(tmp_path: Path, text: str = "") -> Config:
    file = tmp_path / "vmbatch.toml"
    file.write_text(text)
    return load(file)


def site(tmp_path: Path, text: str = "") -> Config:
    """A configuration with all its folders below tmp_path."""
    names = ("images", "catalogue", "templates", "state", "run", "scratch")
    paths = "".join(f'{name} = "{tmp_path / name}"\n' for name in names)
    return config(tmp_path, f"[paths]\n{paths}{text}")


def template(name: str = "default") -> templates.Template:
    file = ROOT / "domain-templates" / f"{name}.xml"
    return templates.parse(name, file, file.read_bytes())


def guest(conf: Config, **changes: Any) -> Guest:
    """Plan a guest; `changes` may hold image, job, request, node, template, slot."""
    image = changes.pop("image", IMAGE)
    job = changes.pop("job", JOB)
    wish = changes.pop("request", Request(image.name))
    node = changes.pop("node", NODE)
    made = plan.plan(
        conf,
        {"": image, **changes.pop("images", {})},
        changes.pop("template", None) or template(),
        job,
        wish,
        node,
        changes.pop("size", None) or plan.size(conf, image, wish, node),
        changes.pop("slot", Slot(3, 22203)),
        1,
        Path("/state/jobs/key/1"),
    )
    return replace(made, **changes)


__all__ = ["IMAGE", "JOB", "NODE", "PERSON", "ROOT", "Size", "config", "guest", "site", "template"]
