"""`make demo` and `make demo-slurm`: an unmodified job script runs in a real guest, with its input and its output."""

import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import daemons
import devsite

SCRIPT = """\
#!/bin/bash
echo "This is $(hostname), Linux $(uname -r), user $(id -un)."
echo "The input holds $(wc -l < numbers.txt) numbers; their sum is $(paste -sd+ numbers.txt | bc)."
sort -n numbers.txt > sorted.txt
exit 3
"""


def say(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def show(command: str) -> None:
    print(f"$ {command}", flush=True)


def work_folder(uid: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="vmbatch-demo-"))
    (folder / "job.sh").write_text(SCRIPT)
    (folder / "job.sh").chmod(0o755)
    (folder / "numbers.txt").write_text("".join(f"{7919 * n % 1000}\n" for n in range(1, 101)))
    for path in (folder, *folder.iterdir()):
        os.chown(path, uid, uid)
    return folder


def result(folder: Path, code: int) -> int:
    print(f"exit code {code}")
    show("head -3 sorted.txt        # made in the guest, collected by the user's own uid")
    print("".join((folder / "sorted.txt").read_text().splitlines(keepends=True)[:3]), end="")
    return 0 if code == 3 else 1


def local() -> int:
    folder = work_folder(os.geteuid())
    with devsite.Site() as site:
        say("a job script, as it would run anywhere")
        show("cat job.sh")
        print((folder / "job.sh").read_text(), end="")
        say("the same script in a virtual machine of its own (it boots first: about 10 s without KVM)")
        show("vmbatch run --image tiny -- ./job.sh")
        done = site.call("run", "--image", "tiny", "--", "./job.sh", cwd=folder)
        print(done.stdout + done.stderr, end="")
        return result(folder, done.returncode)


def slurm(running: daemons.Daemons) -> int:
    from slurmcluster import Cluster

    folder = work_folder(65534)
    with devsite.Site() as site:
        say("starting a Slurm of two nodes on this machine, and installing vmbatch on it")
        cluster = Cluster(site.folder / "slurm", running)
        site.configure(slurm={"conf": cluster.conf})
        done = site.call("install", "--scheduler", "slurm", "--prefix", site.folder / "usr")
        if done.returncode:
            print(done.stdout + done.stderr)
            return 1
        cluster.start()
        say("submitting the job, with one flag more than usual")
        show("sbatch --vm=tiny job.sh")
        job = cluster.submit(SCRIPT, "--vm=tiny", "--output=job.out", user=65534, cwd=folder)
        began = time.monotonic()
        fields = cluster.wait(job)
        print(f"job {job}: {fields['JobState']} after {time.monotonic() - began:.1f} s")
        show("cat job.out")
        print((folder / "job.out").read_text(), end="")
        cluster.idle()
        running.stop()
        return result(folder, int(fields["ExitCode"].partition(":")[0]))


def main() -> int:
    running = daemons.Daemons()
    try:
        if os.geteuid() == 0:
            daemons.libvirt(running)
        devsite.image("tiny")
        return slurm(running) if sys.argv[1:] == ["slurm"] else local()
    finally:
        running.stop()


if __name__ == "__main__":
    sys.exit(main())
