"""Root's entry: prologue and epilogue of every scheduler. `vmbatch-hook SCHEDULER prologue|epilogue|task --config FILE`.

Before anything else is imported: standard streams exist, the environment is an allow-list, the working directory is /.
A user's mistake never fails the hook; a node's fault does, and tears down first.
"""

import os
import sys

# What each scheduler's hooks may read; everything else is dropped before the first import.
ENVIRONMENT = {"slurm": ("SLURM", "SPANK_VMBATCH_")}
_SECURE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _settle(scheduler: str) -> dict[str, str]:
    """Make the process fit for root's work. Returns what the scheduler said."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open("/dev/null", os.O_RDWR)
    said = {name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT.get(scheduler, ("\0",)))}
    os.environ.clear()
    os.environ.update({"PATH": _SECURE_PATH, "LANG": "C.UTF-8"})
    os.umask(0o022)
    os.chdir("/")
    return said


def main(argv: list[str] | None = None) -> int:
    """Run one hook. Returns the scheduler's exit code: 0, or its requeue code where this node is at fault."""
    words = sys.argv[1:] if argv is None else argv
    scheduler, event = words[0], words[1]
    said = dict(os.environ) if event == "task" else _settle(scheduler)
    return _Hook(scheduler, event, said, dict(zip(words[2::2], words[3::2], strict=False))).run()


class _Hook:
    def __init__(self, scheduler: str, event: str, said: dict[str, str], options: dict[str, str]) -> None:
        from pathlib import Path

        self.scheduler, self.event, self.said = scheduler, event, said
        self.file = Path(options["--config"]) if "--config" in options else None
        self.run_dir = options.get("--run", "")
        self.shell = options.get("--shell", "/usr/bin/vmbatch-remoteshell")

    def run(self) -> int:
        from vmbatch import backends, config
        from vmbatch.errors import CancelledError, SiteError

        requeue = 1
        try:
            self.module = backends.load("schedulers", self.scheduler)
            requeue = self.module.REQUEUE
            self.config = config.load(self.file)
            code: int = getattr(self, f"on_{self.event}")()
            return code
        except CancelledError:
            return 0  # the stop that cancelled it tears down
        except SiteError as error:
            self.tell(str(error))
        except Exception:  # ours: whatever it is, the node must come out clean and the reason be kept
            import traceback

            self.tell(f"this is a bug in vmbatch: {traceback.format_exc()}")
        return requeue

    def on_prologue(self) -> int:
        from vmbatch import lifecycle
        from vmbatch.errors import CancelledError, GuestError, OfferError, UserError

        job = self.module.read(self.config, self.said)
        if job.request is None:
            return 0
        try:
            lifecycle.start(self.config, job)
        except (UserError, GuestError, OfferError) as error:
            self.tell(f"job {job.id}: {error}")
        except CancelledError:
            raise
        except BaseException:
            self.tear_down(job.key)
            raise
        return 0

    def on_epilogue(self) -> int:
        from vmbatch import lifecycle, reap

        lifecycle.stop(self.config, self.module.read(self.config, self.said).key)
        reap.archive(self.config)
        return 0

    def on_task(self) -> int:
        """As the user, before a task: a job that asked for a guest without the plugin must not run on the host."""
        from vmbatch import remoteshell

        said = {name: value for name, value in self.said.items() if name != "VMBATCH_GUEST"}
        facts = remoteshell.read_facts(remoteshell.find_guest(said, self.run_dir or str(self.config.paths.run)))
        if facts.get("asked_by") == "option":
            return 0  # the plugin puts our shell before every task
        why = self.module.own_shell(self.config, self.said, self.shell)
        if why:
            print(f"print vmbatch: {why}", flush=True)
            return 125
        return 0

    def tear_down(self, key: str) -> None:
        from vmbatch import lifecycle
        from vmbatch.errors import VMBatchError

        try:
            lifecycle.stop(self.config, key)
        except VMBatchError as error:
            self.tell(str(error))

    def tell(self, text: str) -> None:
        """To the administrator: syslog, and stderr, which slurmd keeps in its log."""
        import syslog

        from vmbatch.model import printable

        line = printable(f"vmbatch {self.scheduler} {self.event}: {text}", 8000)
        print(line, file=sys.stderr, flush=True)
        syslog.openlog("vmbatch", syslog.LOG_PID, syslog.LOG_DAEMON)
        for part in line.splitlines():
            syslog.syslog(syslog.LOG_ERR, part)


if __name__ == "__main__":
    sys.exit(main())
