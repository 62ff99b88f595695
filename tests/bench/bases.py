"""Raw images of any size with the tiny guest in them: a base of 100 GiB is sparse, and boots like one of 1 GiB."""

import subprocess
from pathlib import Path

import devsite


def base_of(gib: int, folder: Path) -> Path:
    """Make a raw image and its catalogue entry in `folder`; returns the entry."""
    folder.mkdir(exist_ok=True)
    images = devsite.DEV / "images"
    whole, image = folder / "whole", folder / f"tiny{gib}.raw"

    def run(*words: object, text: str = "") -> None:
        subprocess.run([str(word) for word in words], input=text, text=True, check=True, capture_output=True)

    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", images / "tiny.qcow2", whole)
    run("dd", f"if={whole}", f"of={folder}/files", "bs=1M", "skip=1", "conv=sparse")
    run("e2fsck", "-fy", folder / "files")
    run("resize2fs", folder / "files", "900M")
    run("truncate", "-s", f"{gib}G", image)
    run("sfdisk", "-q", image, text="2048,,83,*\n")
    run("dd", f"if={folder}/files", f"of={image}", "bs=1M", "seek=1", "count=900", "conv=notrunc,sparse")
    for file in (whole, folder / "files"):
        file.unlink()
    entry = folder / f"tiny{gib}.toml"
    text = (images.parent / "images.d" / "tiny.toml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith(("source", "format", "sha512", "kernel =", "initrd"))]
    lines += [
        f'source = "{image}"',
        'format = "raw"',
        f'kernel = "{images}/tiny.vmlinuz"',
        f'initrd = "{images}/tiny.initrd"',
    ]
    entry.write_text("\n".join(lines) + "\n")
    return entry
